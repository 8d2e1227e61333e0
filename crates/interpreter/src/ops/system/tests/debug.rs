//! SDM vol. 3, chapter 18: debug exceptions.

use super::board::{Board, CODE, DATA, HANDLERS, PAGE_TABLE};
use x86::Rflags;

const DB: u8 = 1;

#[test]
fn sdm_18_3_1_4_single_step_traps_after_each_instruction() {
    let mut board = Board::long(0);
    board.code(&[0x90, 0x90]);
    board.change(|s| s.rflags |= Rflags::TF);
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.word(state.gpr[4])), (DB, CODE + 1));
    assert_eq!(state.dr6 & 0xe00f, 1 << 14);
    assert!(!state.rflags.contains(Rflags::TF));
    assert_eq!(
        board.word(state.gpr[4] + 16) & 0x1_0100,
        0x100,
        "TF is pushed, RF is not"
    );
}

#[test]
fn sdm_18_3_1_1_instruction_breakpoints_are_faults_and_rf_passes_them() {
    let mut board = Board::long(0);
    board.code(&[0x90, 0x90, 0x90]);
    board.change(|s| {
        s.dr[1] = CODE + 1;
        s.dr7 = 0x400 | 1 << 2;
    });
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.word(state.gpr[4])), (DB, CODE + 1));
    assert_eq!(state.dr6 & 0xe00f, 2);
    // The handler sets RF in the image and returns.
    board.set(state.gpr[4] + 16, 0x1_0002);
    board.write(HANDLERS + 16, &[0x48, 0xcf]);
    assert_eq!(board.run_to(&[CODE + 2]).rip, CODE + 2);
}

#[test]
fn sdm_18_3_1_2_data_breakpoints_are_traps() {
    let mut board = Board::long(0);
    // mov al, [rbx]; mov [rbx], al; nop
    board.code(&[0x8a, 0x03, 0x88, 0x03, 0x90]);
    board.change(|s| {
        s.gpr[3] = DATA + 2;
        s.dr[0] = DATA;
        // DR0: writes, 4 bytes
        s.dr7 = 0x401 | 0b1101 << 16;
    });
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.word(state.gpr[4])), (DB, CODE + 4));
    assert_eq!(state.dr6 & 0xe00f, 1);
}

#[test]
fn sdm_18_2_4_general_detect_faults_and_is_cleared() {
    let mut board = Board::long(0);
    board.change(|s| s.dr7 = 0x400 | 1 << 13);
    // mov rax, dr0
    board.code(&[0x0f, 0x21, 0xc0]);
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.word(state.gpr[4])), (DB, CODE));
    assert_eq!(state.dr6 & 0xe00f, 1 << 13);
    assert_eq!(state.dr7, 0x400);
}

#[test]
fn sdm_7_8_3_mov_ss_delays_the_trap() {
    let mut board = Board::long(0);
    // mov ss, ax; nop; nop
    board.code(&[0x8e, 0xd0, 0x90, 0x90]);
    board.change(|s| {
        s.gpr[0] = 0x10;
        s.rflags |= Rflags::TF;
    });
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.word(state.gpr[4])), (DB, CODE + 3));
}

#[test]
fn int3_and_int1_are_traps() {
    for (code, expected) in [(0xcc, 3), (0xf1, 1)] {
        let mut board = Board::long(0);
        board.code(&[code]);
        let (vector, state) = board.run_to_handler();
        assert_eq!((vector, board.word(state.gpr[4])), (expected, CODE + 1));
        assert_eq!(state.dr6 & 0xe00f, 0);
    }
}

#[test]
fn sdm_18_2_4_an_access_that_faults_meets_no_data_breakpoint() {
    let mut board = Board::long(0);
    // mov [rbx], al
    board.code(&[0x88, 0x03]);
    board.set(PAGE_TABLE + 8 * (DATA >> 12), 0);
    board.change(|s| {
        s.gpr[3] = DATA;
        s.dr[0] = DATA;
        s.dr7 = 0x401 | 0b0001 << 16;
    });
    let (vector, _) = board.run_to_handler();
    assert_eq!(vector, 14);
    let state = board.step();
    assert_eq!(state.rip, HANDLERS + 14 * 16 + 1);
    assert_eq!(state.dr6 & 0xe00f, 0);
}

#[test]
fn sdm_18_3_1_4_single_step_traps_after_each_element_of_a_port_string() {
    let mut board = Board::long(0);
    // rep insb
    board.code(&[0xf3, 0x6c]);
    board.change(|s| {
        s.gpr[1] = 3;
        s.gpr[7] = DATA;
        s.rflags |= Rflags::TF;
    });
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, state.gpr[1]), (DB, 2));
    assert_eq!(board.word(state.gpr[4]), CODE);
}
