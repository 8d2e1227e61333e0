//! SDM vol. 3, chapters 3 and 6: descriptors and their checks.

use super::board::{Board, CODE, DATA0, FREE, GDT, TYPE_DATA, flat32};
use x86::{Rflags, Selector};

/// mov ds, ax
const MOV_DS: &[u8] = &[0x8e, 0xd8];
/// mov ss, ax
const MOV_SS: &[u8] = &[0x8e, 0xd0];

fn load(cpl: u8, descriptor: u64, selector: u16, code: &[u8]) -> (u8, u64) {
    let mut board = Board::protected(cpl);
    board.set_descriptor(FREE, descriptor);
    board.change(|s| s.gpr[0] = selector.into());
    board.fault(code)
}

#[test]
fn sdm_6_6_privilege_checks_of_data_segments() {
    let gp = (13, u64::from(FREE));
    assert_eq!(load(3, flat32(TYPE_DATA), FREE, MOV_DS), gp, "DPL 0, CPL 3");
    assert_eq!(
        load(0, flat32(TYPE_DATA), FREE | 3, MOV_DS),
        gp,
        "DPL 0, RPL 3"
    );
    assert_eq!(load(0, flat32(0x99), FREE, MOV_DS), gp, "execute-only code");
    assert_eq!(load(0, flat32(0x89), FREE, MOV_DS), gp, "a TSS");
    assert_eq!(
        load(0, flat32(0x13), FREE, MOV_DS),
        (11, FREE.into()),
        "absent"
    );
    assert_eq!(load(0, 0, 0xff8 | 4, MOV_DS), (13, 0xff8 | 4), "no LDT");
}

#[test]
fn sdm_6_7_privilege_checks_of_ss() {
    assert_eq!(load(0, 0, 0, MOV_SS), (13, 0), "null");
    assert_eq!(
        load(0, flat32(0x91), FREE, MOV_SS),
        (13, FREE.into()),
        "read-only"
    );
    assert_eq!(
        load(0, flat32(0xf3), FREE, MOV_SS),
        (13, FREE.into()),
        "DPL 3"
    );
    assert_eq!(
        load(0, flat32(0x13), FREE, MOV_SS),
        (12, FREE.into()),
        "absent"
    );
}

#[test]
fn sdm_3_4_2_a_null_selector_faults_on_use_only() {
    let mut board = Board::protected(0);
    // mov ds, ax; mov al, [0]
    board.change(|s| s.gpr[0] = 0);
    assert_eq!(board.fault(&[0x8e, 0xd8, 0xa0, 0, 0, 0, 0]), (13, 0));
    assert_eq!(board.state().segments[3].selector, Selector(0));
}

#[test]
fn sdm_3_4_5_1_loading_sets_the_accessed_bit() {
    let mut board = Board::protected(0);
    board.set_descriptor(FREE, flat32(0x92));
    board.code(MOV_DS);
    board.change(|s| s.gpr[0] = FREE.into());
    board.step();
    assert_eq!(board.word(GDT + u64::from(FREE)), flat32(0x93));
}

#[test]
fn sdm_6_3_limits_bound_every_access() {
    let mut board = Board::protected(0);
    // Limit 0xfff, byte granular; then one that expands down from there.
    for (kind, offset, fails) in [
        (TYPE_DATA, 0xffc_u64, false),
        (TYPE_DATA, 0xffd, true),
        (0x97, 0xfff, true),
        (0x97, 0x1000, false),
    ] {
        board.set_descriptor(FREE, 0x0040_0000_0000_0fff | kind << 40);
        let offset = (offset as u32).to_le_bytes();
        // mov ds, ax; mov eax, [offset]; int 0x30
        let mut code = vec![0x8e, 0xd8, 0xa1];
        code.extend(offset);
        code.extend([0xcd, 0x30]);
        board.change(|s| s.gpr[0] = FREE.into());
        let expected = if fails { 13 } else { 0x30 };
        assert_eq!(
            board.fault(&code).0,
            expected,
            "type {kind:#x}, {offset:x?}"
        );
    }
}

#[test]
fn sdm_6_10_lar_lsl_verr_verw() {
    let mut board = Board::protected(0);
    // lar ecx, eax; lsl edx, eax; verw ax; setz bl; nop
    board.code(&[
        0x0f, 0x02, 0xc8, 0x0f, 0x03, 0xd0, 0x0f, 0x00, 0xe8, 0x0f, 0x94, 0xc3, 0x90,
    ]);
    board.change(|s| {
        s.gpr[0] = DATA0.into();
        s.gpr[3] = 0;
    });
    let state = board.run_to(&[CODE + 12]);
    assert_eq!(state.gpr[1], 0x00c0_9300);
    assert_eq!(state.gpr[2], 0xffff_ffff);
    assert_eq!(state.gpr[3], 1);
    // A selector beyond the table: no fault, ZF clear.
    board.change(|s| {
        s.gpr[0] = 0xfff8;
        s.rip = CODE;
    });
    assert!(!board.run_to(&[CODE + 3]).rflags.contains(Rflags::ZF));
}

#[test]
fn sdm_3_4_4_fs_and_gs_bases_in_64_bit_mode() {
    let mut board = Board::long(0);
    // swapgs; mov rax, gs:[0]; nop
    board.code(&[
        0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x90,
    ]);
    board.set(0x9008, 0x1234);
    board.change(|s| {
        s.syscall.kernel_gs_base = 0x9008;
        s.segments[5].base = 0x5555;
    });
    let state = board.run_to(&[CODE + 12]);
    assert_eq!(state.gpr[0], 0x1234);
    assert_eq!(state.syscall.kernel_gs_base, 0x5555);
    // WRMSR of an address that is not canonical.
    board.change(|s| {
        s.gpr[1] = 0xc000_0101;
        s.gpr[0] = 0;
        s.gpr[2] = 0x8000;
    });
    assert_eq!(board.fault(&[0x0f, 0x30]), (13, 0));
}

#[test]
fn real_mode_keeps_limits_of_protected_mode() {
    let mut board = Board::real();
    // mov ds, ax; a32 mov bl, [ecx]; nop
    board.code(&[0x8e, 0xd8, 0x67, 0x8a, 0x19, 0x90]);
    board.write(0x10_0000, &[7]);
    board.change(|s| {
        s.segments[3].limit = u32::MAX;
        s.gpr[1] = 0x10_0000 - 0x10;
        s.gpr[0] = 1;
    });
    assert_eq!(board.run_to(&[CODE + 5]).gpr[3] & 0xff, 7);
}
