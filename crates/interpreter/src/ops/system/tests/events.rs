//! SDM vol. 3, chapter 7: interrupts and exceptions.

use super::board::{
    Board, CODE, CODE0, CODE3, DATA, DATA0, DATA3, HANDLERS, IDT, KERNEL_STACK, STACK, TSS,
    TSS_SELECTOR,
};
use engine::{Engine, Exit};
use x86::{Activity, Cr0, DescriptorTable, Rflags, Vector};

const UD2: &[u8] = &[0x0f, 0x0b];
const GATE_DPL: u64 = 3 << 45;

#[test]
fn sdm_22_1_4_real_mode_pushes_flags_cs_ip() {
    let mut board = Board::real();
    board.code(&[0xcd, 0x21]);
    board.change(|s| s.rflags |= Rflags::IF | Rflags::CF);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 0x21);
    assert_eq!(state.gpr[4], STACK - 6);
    let frame = board.word(state.gpr[4]);
    assert_eq!(frame & 0xffff, CODE + 2);
    assert_eq!(frame >> 16 & 0xffff, 0);
    assert_eq!(frame >> 32 & 0xffff, 0x203);
    assert!(!state.rflags.contains(Rflags::IF));
    // IRET gives it all back.
    board.write(state.rip, &[0xcf]);
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4]), (CODE + 2, STACK));
    assert!(back.rflags.contains(Rflags::IF | Rflags::CF));
}

#[test]
fn sdm_7_12_1_the_handler_stack_comes_from_the_tss() {
    let mut board = Board::protected(3);
    board.code(UD2);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, Vector::InvalidOpcode as u8);
    assert_eq!(state.segments[2].selector.0, DATA0);
    assert_eq!(state.gpr[4], KERNEL_STACK - 20);
    let frame: Vec<u32> = (0..5)
        .map(|i| board.double(KERNEL_STACK - 20 + 4 * i))
        .collect();
    // A fault: EIP of the instruction, and RF.
    assert_eq!(frame[0], CODE as u32);
    assert_eq!(frame[1], u32::from(CODE3));
    assert_eq!(frame[2], 0x1_0202);
    assert_eq!(frame[3], STACK as u32);
    assert_eq!(frame[4], u32::from(DATA3));
    assert!(!state.rflags.contains(Rflags::IF), "an interrupt gate");
}

#[test]
fn sdm_7_12_1_2_a_trap_gate_leaves_interrupts_on() {
    let mut board = Board::protected(3);
    board.set_gate(6, |gate| gate | 1 << 40);
    board.code(UD2);
    assert!(board.run_to_handler().1.rflags.contains(Rflags::IF));
}

#[test]
fn sdm_7_13_int_n_checks_the_gate_and_reports_it_without_ext() {
    let mut board = Board::protected(3);
    assert_eq!(board.fault(&[0xcd, 0x80]), (13, 0x80 * 8 + 2), "DPL 0");
    board.set_gate(0x80, |gate| gate | GATE_DPL);
    board.change(|s| {
        s.segments = Board::protected(3).state().segments;
        s.gpr[4] = STACK;
    });
    board.code(&[0xcd, 0x80]);
    board.change(|s| s.rip = CODE);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 0x80);
    assert_eq!(
        board.double(state.gpr[4]),
        CODE as u32 + 2,
        "after the instruction"
    );
}

#[test]
fn sdm_7_13_an_absent_gate_for_an_exception_sets_ext() {
    let mut board = Board::protected(0);
    board.set_gate(6, |gate| gate & !(1 << 47));
    assert_eq!(board.fault(UD2), (11, 6 * 8 + 2 + 1));
}

#[test]
fn sdm_7_14_2_the_64_bit_frame_is_aligned_and_always_has_ss_rsp() {
    let mut board = Board::long(0);
    board.code(UD2);
    board.change(|s| s.gpr[4] = STACK - 3);
    let state = board.run_to_handler().1;
    assert_eq!(state.gpr[4], STACK - 16 - 40);
    let frame: Vec<u64> = (0..5).map(|i| board.word(state.gpr[4] + 8 * i)).collect();
    assert_eq!(
        frame,
        [CODE, CODE0.into(), 0x1_0002, STACK - 3, DATA0.into()]
    );
    assert_eq!(state.segments[2].selector.0, DATA0, "SS stays");
}

#[test]
fn sdm_7_14_4_a_change_of_privilege_loads_a_null_ss() {
    let mut board = Board::long(3);
    board.code(UD2);
    let state = board.run_to_handler().1;
    assert_eq!(state.segments[2].selector.0, 0);
    assert_eq!(state.gpr[4], KERNEL_STACK - 40);
}

#[test]
fn sdm_7_14_5_the_interrupt_stack_table() {
    let mut board = Board::long(0);
    board.set_gate(6, |gate| gate | 3 << 32);
    board.set(TSS + 36 + 2 * 8, 0x4007);
    board.code(UD2);
    assert_eq!(board.run_to_handler().1.gpr[4], 0x4000 - 40);
}

#[test]
fn sdm_7_15_page_fault_sets_cr2_and_pushes_its_code() {
    let mut board = Board::long(0);
    // mov [0x400000], al
    let (vector, code) = board.fault(&[0x88, 0x04, 0x25, 0, 0, 0x40, 0]);
    assert_eq!((vector, code), (14, 2));
    assert_eq!(board.state().cr2, 0x40_0000);
}

#[test]
fn sdm_7_15_contributory_faults_make_a_double_fault() {
    let mut board = Board::protected(0);
    // The gate of #GP is absent: #GP, then #NP.
    board.set_gate(13, |gate| gate & !(1 << 47));
    let (vector, code) = board.fault(&[0xcd, 0xff, 0xf4, 0xf4]);
    assert_eq!(vector, 0xff, "no fault yet");
    assert_ne!(code, 0);
    // mov ds, [a bad selector]: #GP(0xff0)
    let mut board = Board::protected(0);
    board.set_gate(13, |gate| gate & !(1 << 47));
    assert_eq!(board.fault(&[0xb8, 0xf8, 0x0f, 0, 0, 0x8e, 0xd8]), (8, 0));
}

#[test]
fn sdm_7_15_a_third_fault_shuts_the_processor_down() {
    let mut board = Board::long(0);
    board.code(UD2);
    board.change(|s| {
        s.idtr = DescriptorTable {
            base: IDT,
            limit: 0,
        }
    });
    let Exit::Shutdown(story) = board.run() else {
        panic!("no shutdown");
    };
    for part in [
        "#UD raised #GP(0x33) raised #GP(0x6b) raised #DF(0x0) raised #GP",
        "RIP 0008:",
        "code: 0f 0b",
    ] {
        assert!(story.contains(part), "{part:?} in {story}");
    }
    assert_eq!(board.state().activity, Activity::Shutdown);
    assert_eq!(
        board.state().rip,
        CODE,
        "registers are those of the first fault"
    );
}

#[test]
fn delivery_that_faults_changes_no_register() {
    let mut board = Board::protected(3);
    // The stack in the TSS is not writable: #TS with the selector, on a stack that works.
    board.set(TSS + 4, KERNEL_STACK | u64::from(CODE0) << 32);
    board.set_gate(10, |_| {
        0x0000_8500_0000_0000 | u64::from(TSS_SELECTOR) << 16
    });
    board.code(UD2);
    let before = board.state();
    let Exit::Shutdown(story) = board.run() else {
        panic!("the task gate names a busy TSS, so nothing can be delivered");
    };
    assert!(story.contains("#UD raised #TS(0x9)"), "{story}");
    let after = board.state();
    assert_eq!(
        (after.rip, after.gpr, after.segments),
        (before.rip, before.gpr, before.segments)
    );
}

#[test]
fn sdm_7_7_1_nmis_are_blocked_until_iret() {
    let mut board = Board::long(0);
    board.code(&[0x90; 8]);
    board.engine().send_nmi(0);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 2);
    assert!(state.events.nmi_blocked);
    board.engine().send_nmi(0);
    let state = board.run_to(&[HANDLERS + 33]);
    assert!(state.events.nmi_pending, "the second one waits");
    board.write(state.rip, &[0x48, 0xcf]);
    board.step();
    assert_eq!(board.run_to_handler().0, 2);
}

#[test]
fn sdm_7_8_3_sti_and_mov_ss_hold_interrupts_off_for_one_instruction() {
    let mut board = Board::long(0);
    // sti; nop; nop
    board.code(&[0xfb, 0x90, 0x90]);
    board.change(|s| s.events.external_interrupt = true);
    board.change(|s| {
        s.apic.svr = 0x1ff;
        s.apic.lvt[3] = 0x700;
    });
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 0x55);
    assert_eq!(board.word(state.gpr[4]), CODE + 2);
}

#[test]
fn sdm_6_8_8_hlt_is_woken_by_the_pic() {
    let mut board = Board::long(0);
    board.code(&[0xfb, 0xf4, 0x90]);
    board.change(|s| {
        s.apic.svr = 0x1ff;
        s.apic.lvt[3] = 0x700;
    });
    let engine = board.engine.clone();
    let waker = std::thread::spawn(move || engine.set_external_interrupt(true));
    let (vector, state) = board.run_to_handler();
    waker.join().unwrap();
    assert_eq!(vector, 0x55);
    assert_eq!(board.word(state.gpr[4]), CODE + 2);
    assert_eq!(state.activity, Activity::Running);
}

/// Makes the gate of `vector` a 16-bit interrupt gate.
fn make_16_bit(board: &Board, vector: u64) {
    board.set_gate(vector, |gate| {
        gate & !(0xffff << 48 | 15 << 40) | 6 << 40 | 0xdead << 48
    });
}

#[test]
fn sdm_24_4_a_16_bit_interrupt_gate_pushes_words() {
    let mut board = Board::protected(0);
    make_16_bit(&board, 13);
    // mov ds, [the null descriptor's neighbour beyond the limit]: #GP with an error code
    board.code(&[0xb8, 0xf8, 0x0f, 0, 0, 0x8e, 0xd8]);
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, state.gpr[4]), (13, STACK - 8));
    let frame = [0, 2, 4, 6].map(|at| board.word(state.gpr[4] + at) as u16);
    assert_eq!(frame, [0xff8, CODE as u16 + 5, CODE0, 2]);
}

#[test]
fn sdm_9_6_a_16_bit_tss_has_stacks_for_16_bit_gates() {
    let mut board = Board::protected(3);
    make_16_bit(&board, 6);
    board.set(TSS, KERNEL_STACK << 16 | u64::from(DATA0) << 32);
    board.change(|s| {
        s.tr.access = 0x83;
        s.tr.limit = 0x2b;
    });
    board.code(UD2);
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, state.gpr[4]), (6, KERNEL_STACK - 10));
    assert_eq!(state.segments[2].selector.0, DATA0);
    let frame = [0, 2, 4, 6, 8].map(|at| board.word(state.gpr[4] + at) as u16);
    assert_eq!(frame, [CODE as u16, CODE3, 0x202, STACK as u16, DATA3]);
    // A 32-bit iret would take them for something else: data16 iret.
    board.write(state.rip, &[0x66, 0xcf]);
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4] as u16), (CODE, STACK as u16));
    assert_eq!(back.segments[1].selector.0, CODE3);
}

#[test]
fn sdm_7_15_alignment_checks_are_for_user_mode_with_am_and_ac() {
    // mov eax, [rbx]; nop
    const LOAD: &[u8] = &[0x8b, 0x03, 0x90];
    for (cpl, am, ac, address, checked) in [
        (3, true, true, DATA + 1, true),
        (3, true, true, DATA + 4, false),
        (3, true, false, DATA + 1, false),
        (3, false, true, DATA + 1, false),
        (0, true, true, DATA + 1, false),
    ] {
        let mut board = Board::long(cpl);
        board.change(|s| {
            s.gpr[3] = address;
            s.cr0.set(Cr0::AM, am);
            s.rflags.set(Rflags::AC, ac);
        });
        board.code(LOAD);
        let handler = HANDLERS + 17 * 16;
        let state = board.run_to(&[CODE + 2, handler]);
        assert_eq!(
            state.rip == handler,
            checked,
            "{cpl} {am} {ac} {address:#x}"
        );
        if checked {
            assert_eq!(board.word(state.gpr[4]), 0, "the error code");
            // AC is still set, but the handler is of level 0.
            board.write(handler, LOAD);
            assert_eq!(board.step().rip, handler + 2);
        }
    }
}
