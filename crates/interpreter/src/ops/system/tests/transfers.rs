//! SDM vol. 3, 6.8 and chapters 9 and 22: gates, returns, system calls, tasks, virtual-8086 mode.

use super::board::{
    Board, CODE, CODE0, CODE3, DATA0, DATA3, FREE, GDT, HANDLERS, KERNEL_STACK, STACK, TSS,
    TSS_SELECTOR,
};
use x86::{Rflags, Selector};

/// lcall selector:0 in 32-bit code.
fn lcall(selector: u16) -> Vec<u8> {
    let mut code = vec![0x9a, 0, 0, 0, 0];
    code.extend(selector.to_le_bytes());
    code
}

/// A 32-bit call gate with DPL 3 to the handler of vector 0x40.
fn call_gate(parameters: u64) -> u64 {
    let offset = HANDLERS + 0x400;
    offset & 0xffff | u64::from(CODE0) << 16 | parameters << 32 | 0xec << 40
}

#[test]
fn sdm_6_8_5_a_call_gate_switches_stacks_and_copies_parameters() {
    let mut board = Board::protected(3);
    board.set_descriptor(FREE, call_gate(2));
    board.set(STACK, 0x2222_2222_1111_1111);
    board.code(&lcall(FREE | 3));
    let state = board.run_to(&[HANDLERS + 0x400]);
    assert_eq!(state.segments[1].selector.0, CODE0);
    assert_eq!(state.gpr[4], KERNEL_STACK - 24);
    let frame: Vec<u32> = (0..6).map(|i| board.double(state.gpr[4] + 4 * i)).collect();
    let expected = [
        CODE as u32 + 7,
        CODE3.into(),
        0x1111_1111,
        0x2222_2222,
        STACK as u32,
        DATA3.into(),
    ];
    assert_eq!(frame, expected);
    // retf 8: both stacks drop the parameters, data segments of CPL 0 are lost.
    board.write(state.rip, &[0xca, 8, 0]);
    board.change(|s| s.segments[0] = s.segments[2]);
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4]), (CODE + 7, STACK + 8));
    assert_eq!(back.segments[2].selector.0, DATA3);
    assert_eq!(back.segments[0].selector, Selector(0), "ES had DPL 0");
    assert_eq!(back.segments[3].selector.0, DATA3);
}

#[test]
fn sdm_6_8_4_gates_check_privilege_and_presence() {
    for (gate, expected) in [
        (call_gate(0) & !(0x60 << 40), (13, u64::from(FREE))),
        (call_gate(0) & !(0x80 << 40), (11, u64::from(FREE))),
        (call_gate(0) & !(0xffff << 16), (13, 0)),
        (
            call_gate(0) & !(0xffff << 16) | u64::from(DATA0) << 16,
            (13, u64::from(DATA0)),
        ),
    ] {
        let mut board = Board::protected(3);
        board.set_descriptor(FREE, gate);
        assert_eq!(board.fault(&lcall(FREE | 3)), expected, "{gate:#x}");
    }
}

#[test]
fn sdm_6_8_1_direct_far_calls_stay_at_their_level() {
    let mut board = Board::protected(3);
    assert_eq!(board.fault(&lcall(CODE0)), (13, CODE0.into()));
    let mut board = Board::protected(0);
    assert_eq!(board.fault(&lcall(0)), (13, 0));
    assert_eq!(board.fault(&lcall(CODE3)), (13, u64::from(CODE3 & !3)));
}

#[test]
fn iret_in_64_bit_mode_goes_to_compatibility_mode_and_checks_ss() {
    let mut board = Board::long(0);
    let code32 = 0x00cf_fb00_0000_ffff;
    board.set_descriptor(FREE, code32);
    for (i, value) in [
        CODE + 0x100,
        u64::from(FREE | 3),
        0x202,
        0xa000,
        DATA3.into(),
    ]
    .into_iter()
    .enumerate()
    {
        board.set(STACK + 8 * i as u64, value);
    }
    board.code(&[0x48, 0xcf]);
    let state = board.step();
    assert_eq!((state.rip, state.gpr[4]), (CODE + 0x100, 0xa000));
    assert_eq!(state.segments[1].selector.0, FREE | 3);
    assert_eq!(state.segments[2].dpl(), 3);
    // From compatibility mode into the 64-bit kernel.
    board.write(CODE + 0x100, &[0x0f, 0x0b]);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 6);
    assert!(state.segments[1].is_long());
    // A null SS is for CPL 0 to 2 only.
    let mut board = Board::long(0);
    for (i, value) in [CODE, u64::from(CODE3), 0x202, 0xa000, 0]
        .into_iter()
        .enumerate()
    {
        board.set(STACK + 8 * i as u64, value);
    }
    assert_eq!(board.fault(&[0x48, 0xcf]), (13, 0));
}

#[test]
fn iret_at_cpl_3_keeps_if_and_iopl() {
    let mut board = Board::protected(3);
    for (i, value) in [CODE as u32 + 9, CODE3.into(), 0x3002]
        .into_iter()
        .enumerate()
    {
        board.memory.store(STACK + 4 * i as u64, value).unwrap();
    }
    board.code(&[0xcf]);
    let state = board.step();
    assert_eq!(state.rip, CODE + 9);
    assert_eq!(state.rflags, Rflags::FIXED | Rflags::IF);
}

#[test]
fn sdm_6_8_8_syscall_and_sysret() {
    let mut board = Board::long(3);
    board.code(&[0x0f, 0x05]);
    board.change(|s| {
        // SYSRET: SS at 0x18 + 8, 64-bit CS at 0x18 + 16; both with RPL 3.
        s.syscall.star = 0x0018_0008 << 32;
        s.syscall.lstar = HANDLERS;
        s.syscall.fmask = 0x200;
    });
    let state = board.run_to(&[HANDLERS]);
    assert_eq!((state.gpr[1], state.gpr[11]), (CODE + 2, 0x202));
    assert!(!state.rflags.contains(Rflags::IF));
    assert_eq!(state.segments[1].selector.0, CODE0);
    assert_eq!(state.segments[2].selector.0, DATA0);
    assert_eq!(state.gpr[4], STACK, "RSP is the kernel's own business");
    board.write(HANDLERS, &[0x48, 0x0f, 0x07]);
    let back = board.step();
    assert_eq!(back.rip, CODE + 2);
    assert_eq!(
        (back.segments[1].selector.0, back.segments[2].selector.0),
        (0x2b, 0x23)
    );
    assert!(back.rflags.contains(Rflags::IF));
    assert_eq!(back.segments[2].dpl(), 3);
}

#[test]
fn sdm_6_8_7_sysenter_and_sysexit_in_protected_mode() {
    let mut board = Board::protected(3);
    board.code(&[0x0f, 0x34]);
    board.change(|s| {
        s.syscall.sysenter_cs = CODE0.into();
        s.syscall.sysenter_eip = HANDLERS;
        s.syscall.sysenter_esp = 0x4ff0;
    });
    let state = board.run_to(&[HANDLERS]);
    assert_eq!(
        (state.gpr[4], state.segments[1].selector.0),
        (0x4ff0, CODE0)
    );
    assert!(!state.rflags.contains(Rflags::IF));
    board.write(HANDLERS, &[0x0f, 0x35]);
    board.change(|s| {
        s.gpr[1] = STACK;
        s.gpr[2] = CODE + 2;
    });
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4]), (CODE + 2, STACK));
    assert_eq!(
        (back.segments[1].selector.0, back.segments[2].selector.0),
        (CODE3, DATA3)
    );
}

/// A second task at [`NEW_TSS`], in the descriptor [`FREE`].
const NEW_TSS: u64 = 0x3800;

fn second_task(board: &Board) {
    board.set_descriptor(FREE, 0x0000_8900_0000_0067 | NEW_TSS << 16);
    let fields = [
        (32, CODE as u32 + 0x100),
        (36, 2),
        (40, 0xaaaa),
        (56, 0xa800),
        (72, DATA0.into()),
        (76, CODE0.into()),
        (80, DATA0.into()),
        (84, DATA0.into()),
    ];
    for (at, value) in fields {
        board.memory.store(NEW_TSS + at, value).unwrap();
    }
}

#[test]
fn sdm_9_3_a_call_to_a_tss_nests_tasks_and_iret_returns() {
    let mut board = Board::protected(0);
    second_task(&board);
    board.code(&lcall(FREE));
    board.write(CODE + 0x100, &[0xcf, 0x90]);
    let new = board.step();
    assert_eq!(
        (new.rip, new.gpr[0], new.gpr[4]),
        (CODE + 0x100, 0xaaaa, 0xa800)
    );
    assert_eq!(new.tr.selector.0, FREE);
    assert!(new.rflags.contains(Rflags::NT) && new.cr0.contains(x86::Cr0::TS));
    assert_eq!(board.word(NEW_TSS) as u16, TSS_SELECTOR, "linked");
    let kind = |selector: u16| board.word(GDT + u64::from(selector)) >> 40 & 15;
    assert_eq!((kind(FREE), kind(TSS_SELECTOR)), (11, 11), "both are busy");
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4]), (CODE + 7, STACK));
    assert_eq!(back.tr.selector.0, TSS_SELECTOR);
    assert!(!back.rflags.contains(Rflags::NT));
    let kind = |selector: u16| board.word(GDT + u64::from(selector)) >> 40 & 15;
    assert_eq!((kind(FREE), kind(TSS_SELECTOR)), (9, 11));
}

#[test]
fn sdm_9_3_a_jump_leaves_the_old_task() {
    let mut board = Board::protected(0);
    second_task(&board);
    let mut code = lcall(FREE);
    code[0] = 0xea;
    board.code(&code);
    let new = board.step();
    assert!(!new.rflags.contains(Rflags::NT));
    let kind = |selector: u16| board.word(GDT + u64::from(selector)) >> 40 & 15;
    assert_eq!((kind(FREE), kind(TSS_SELECTOR)), (11, 9));
}

#[test]
fn sdm_9_1_faults_of_the_new_task_are_delivered_in_it() {
    let mut board = Board::protected(0);
    second_task(&board);
    board.memory.store(NEW_TSS + 84, 0xff8_u32).unwrap();
    board.code(&lcall(FREE));
    let (vector, state) = board.run_to_handler();
    assert_eq!((vector, board.double(state.gpr[4])), (10, 0xff8));
    assert_eq!(board.double(state.gpr[4] + 4), CODE as u32 + 0x100);
    assert_eq!(state.tr.selector.0, FREE);
}

#[test]
fn sdm_9_2_4_a_busy_tss_is_refused() {
    let mut board = Board::protected(0);
    assert_eq!(board.fault(&lcall(TSS_SELECTOR)), (13, TSS_SELECTOR.into()));
}

#[test]
fn sdm_7_12_2_a_task_gate_takes_the_error_code() {
    let mut board = Board::protected(0);
    second_task(&board);
    board.set_gate(13, |_| 0x0000_8500_0000_0000 | u64::from(FREE) << 16);
    board.code(&[0xb8, 0xf8, 0x0f, 0, 0, 0x8e, 0xd8]);
    let state = board.run_to(&[CODE + 0x100]);
    assert_eq!(state.gpr[4], 0xa800 - 4);
    assert_eq!(board.double(0xa800 - 4), 0xff8);
    assert_eq!(board.double(TSS + 32), CODE as u32 + 5);
}

#[test]
fn sdm_22_2_virtual_8086_mode_and_back() {
    let mut board = Board::protected(0);
    // EIP, CS, EFLAGS with VM and IOPL 3, ESP, SS, ES, DS, FS, GS
    let frame = [0x10_u32, 0x800, 0x2_3202, 0x100, 0xb00, 1, 2, 3, 4];
    for (i, value) in frame.into_iter().enumerate() {
        board.memory.store(STACK + 4 * i as u64, value).unwrap();
    }
    board.code(&[0xcf]);
    let state = board.step();
    assert!(state.rflags.contains(Rflags::VM));
    assert_eq!(
        (state.rip, state.segments[1].base, state.segments[2].base),
        (0x10, 0x8000, 0xb000)
    );
    assert_eq!(state.segments[4].selector.0, 3);
    // int 0x30: through the IDT, with all segments on the stack of CPL 0.
    board.set_gate(0x30, |gate| gate | 3 << 45);
    board.write(0x8010, &[0xcd, 0x30]);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 0x30);
    assert_eq!(state.gpr[4], KERNEL_STACK - 36);
    let frame: Vec<u32> = (0..9).map(|i| board.double(state.gpr[4] + 4 * i)).collect();
    assert_eq!(frame, [0x12, 0x800, 0x2_3202, 0x100, 0xb00, 1, 2, 3, 4]);
    assert!(!state.rflags.contains(Rflags::VM));
    assert!(state.segments[3].unusable);
    // Back again.
    board.write(state.rip, &[0xcf]);
    assert_eq!(board.step().rip, 0x12);
}

#[test]
fn sdm_22_2_7_virtual_8086_mode_needs_iopl_3() {
    for code in [
        &[0xcd, 0x30][..],
        &[0xfa],
        &[0xfb],
        &[0x9c],
        &[0x9d],
        &[0xcf],
    ] {
        let mut board = Board::protected(0);
        let frame = [0_u32, 0x800, 0x2_0202, 0x100, 0xb00, 1, 2, 3, 4];
        for (i, value) in frame.into_iter().enumerate() {
            board.memory.store(STACK + 4 * i as u64, value).unwrap();
        }
        board.write(0xa000, &[0xcf]);
        board.change(|s| s.rip = 0xa000);
        board.step();
        board.write(CODE, code);
        let (vector, state) = board.run_to_handler();
        assert_eq!((vector, board.double(state.gpr[4])), (13, 0), "{code:x?}");
    }
}

#[test]
fn sdm_9_6_a_16_bit_tss_nests_under_a_32_bit_one() {
    let mut board = Board::protected(0);
    board.set_descriptor(FREE, 0x0000_8100_0000_002b | NEW_TSS << 16);
    let fields = [
        (14, 0x8100_u16),
        (16, 2),
        (18, 0xaaaa),
        (26, 0xa800),
        (34, DATA0),
        (36, CODE0),
        (38, DATA0),
        (40, DATA0),
        (42, 0),
    ];
    for (at, value) in fields {
        board.memory.store(NEW_TSS + at, value).unwrap();
    }
    board.code(&lcall(FREE));
    // mov al, 0xbb; iret; in the old task: nop
    board.write(CODE + 0x100, &[0xb0, 0xbb, 0xcf]);
    let new = board.step();
    assert_eq!(new.rip, CODE + 0x100);
    assert_eq!((new.gpr[0] as u16, new.gpr[4] as u16), (0xaaaa, 0xa800));
    assert_eq!(new.segments[4].selector.0, 0, "FS has no place in it");
    assert!(new.rflags.contains(Rflags::NT));
    assert_eq!(board.word(NEW_TSS) as u16, TSS_SELECTOR, "linked");
    assert_eq!(board.double(TSS + 32), CODE as u32 + 7);
    board.step();
    let back = board.step();
    assert_eq!((back.rip, back.gpr[4]), (CODE + 7, STACK));
    assert_eq!(board.word(NEW_TSS + 18) as u16, 0xaabb);
    assert_eq!(board.word(NEW_TSS + 14) as u16, 0x8103);
    assert_eq!(board.word(NEW_TSS + 16) as u16, 2, "without NT");
}

#[test]
fn sdm_6_8_3_a_16_bit_call_gate_pushes_words() {
    let mut board = Board::protected(3);
    // Type 4: 16-bit call gate; one parameter, of 16 bits.
    board.set_descriptor(FREE, call_gate(1) & !(15 << 40) | 4 << 40 | 0xdead << 48);
    board.set(STACK, 0x2222_1111);
    board.code(&lcall(FREE | 3));
    let state = board.run_to(&[HANDLERS + 0x400]);
    assert_eq!(state.gpr[4], KERNEL_STACK - 10);
    let word = |i: u64| board.word(state.gpr[4] + 2 * i) as u16;
    let frame = [0, 1, 2, 3, 4].map(word);
    assert_eq!(frame, [CODE as u16 + 7, CODE3, 0x1111, STACK as u16, DATA3]);
}
