//! SDM vol. 3, chapters 2 and 10: control registers, mode switches, MSRs, CPUID.

use super::board::{Board, CODE, DATA, GDT, STACK, TABLES, TSS, TYPE_CODE, TYPE_DATA, flat32};
use engine::Vcpu;
use x86::{Cr0, Cr4, Efer, Rflags};

#[test]
fn sdm_10_8_5_from_real_mode_to_64_bit_mode() {
    let mut board = Board::real();
    board.set_descriptor(0x08, flat32(TYPE_CODE));
    board.set_descriptor(0x10, flat32(TYPE_DATA));
    board.set_descriptor(0x18, 0x00af_9b00_0000_ffff);
    for level in 0..2 {
        let table = TABLES + 0x1000 * level;
        board.set(table, (table + 0x1000) | 3);
    }
    board.set(TABLES + 0x2000, 0x83);
    board.write(DATA, &[0xff, 0x0f, 0x00, 0x10, 0, 0]);
    #[rustfmt::skip]
    let code = [
        0x0f, 0x01, 0x16, 0x00, 0x90,             // lgdt [0x9000]
        0x0f, 0x20, 0xc0, 0x0c, 0x01,             // mov eax, cr0; or al, 1
        0x0f, 0x22, 0xc0,                         // mov cr0, eax
        0xea, 0x12, 0x80, 0x08, 0x00,             // jmp 8:0x8012
        0x0f, 0x20, 0xe0, 0x0c, 0x20,             // 0x8012: mov eax, cr4; or al, 0x20
        0x0f, 0x22, 0xe0,                         // mov cr4, eax
        0xb8, 0x00, 0x00, 0x01, 0x00,             // mov eax, TABLES
        0x0f, 0x22, 0xd8,                         // mov cr3, eax
        0xb9, 0x80, 0x00, 0x00, 0xc0,             // mov ecx, EFER
        0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30, // rdmsr; or ah, 1; wrmsr
        0x0f, 0x20, 0xc0,                         // mov eax, cr0
        0x0d, 0x00, 0x00, 0x00, 0x80,             // or eax, PG
        0x0f, 0x22, 0xc0,                         // mov cr0, eax
        0xea, 0x40, 0x80, 0x00, 0x00, 0x18, 0x00, // jmp 0x18:0x8040
    ];
    board.code(&code);
    assert_eq!(code.len(), 0x40, "where the last jump goes");
    // mov rax, 0x1122334455667788; nop
    board.write(
        0x8040,
        &[
            0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x90,
        ],
    );
    let state = board.run_to(&[0x804a]);
    assert_eq!(state.gpr[0], 0x1122_3344_5566_7788);
    assert!(state.efer.contains(Efer::LMA));
    assert_eq!(board.word(GDT + 0x18), 0x00af_9b00_0000_ffff);
}

/// mov cr`n`, rax
fn mov_cr(n: u8) -> Vec<u8> {
    match n {
        8 => vec![0x44, 0x0f, 0x22, 0xc0],
        _ => vec![0x0f, 0x22, 0xc0 | n << 3],
    }
}

fn refuses(board: &mut Board, register: u8, value: u64) -> bool {
    // Then int 0x30, to tell success.
    let mut code = mov_cr(register);
    code.extend([0xcd, 0x30]);
    board.change(|s| {
        s.gpr[0] = value;
        s.gpr[4] = STACK;
    });
    match board.fault(&code) {
        (13, 0) => true,
        (0x30, _) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sdm_2_5_reserved_and_contradicting_control_bits() {
    let mut board = Board::long(0);
    let cr0 = board.state().cr0;
    for (value, refused) in [
        ((cr0 - Cr0::PG).bits(), true),
        (cr0.bits() | 1 << 32, true),
        ((cr0 | Cr0::NW).bits(), true),
        ((cr0 | Cr0::NW | Cr0::CD).bits(), false),
        ((cr0 - Cr0::PE).bits(), true),
        ((cr0 | Cr0::AM).bits(), false),
    ] {
        assert_eq!(refuses(&mut board, 0, value), refused, "CR0 {value:#x}");
    }
    let cr4 = board.state().cr4;
    for (value, refused) in [
        ((cr4 - Cr4::PAE).bits(), true),
        ((cr4 | Cr4::VMXE).bits(), true),
        (cr4.bits() | 1 << 40, true),
        ((cr4 | Cr4::LA57).bits(), true),
        ((cr4 | Cr4::PCIDE).bits(), false),
        ((cr4 | Cr4::PGE).bits(), false),
    ] {
        assert_eq!(refuses(&mut board, 4, value), refused, "CR4 {value:#x}");
    }
    assert!(refuses(&mut board, 3, 1 << 50));
    assert!(refuses(&mut board, 8, 16));
    assert!(!refuses(&mut board, 8, 15));
}

#[test]
fn sdm_5_10_1_pcide_needs_a_clean_cr3() {
    let mut board = Board::long(0);
    board.change(|s| s.cr3 |= 1 << 3);
    let cr4 = board.state().cr4 | Cr4::PCIDE;
    assert!(refuses(&mut board, 4, cr4.bits()));
}

#[test]
fn sdm_5_4_1_pdptes_are_checked_when_loaded() {
    let mut board = Board::protected(0);
    board.set(DATA, 1 | 1 << 1);
    board.change(|s| {
        s.cr4 = Cr4::PAE;
        s.cr3 = DATA;
        s.gpr[0] = (s.cr0 | Cr0::PG).bits();
    });
    assert_eq!(board.fault(&mov_cr(0)), (13, 0));
    assert!(!board.state().cr0.contains(Cr0::PG));
}

#[test]
fn user_mode_is_kept_from_system_instructions() {
    let privileged: [&[u8]; 14] = [
        &[0xf4],             // hlt
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x20, 0xc0], // mov eax, cr0
        &[0x0f, 0x22, 0xc0], // mov cr0, eax
        &[0x0f, 0x21, 0xc0], // mov eax, dr0
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x01, 0x13], // lgdt
        &[0x0f, 0x00, 0xd0], // lldt
        &[0x0f, 0x01, 0x3b], // invlpg
        &[0x0f, 0x09],       // wbinvd
        &[0xfa],             // cli
        &[0xe4, 0x10],       // in al, 0x10
        &[0x0f, 0x33],       // rdpmc
    ];
    for code in privileged {
        let mut board = Board::long(3);
        board.memory.store(TSS + 102, 0x68_u16).unwrap();
        board.change(|s| s.gpr[3] = DATA);
        assert_eq!(board.fault(code), (13, 0), "{code:x?}");
    }
}

#[test]
fn sdm_2_5_umip_hides_tables_from_user_mode() {
    for code in [
        &[0x0f, 0x01, 0x03][..],
        &[0x0f, 0x01, 0xe0],
        &[0x0f, 0x00, 0xc8],
    ] {
        let mut board = Board::long(3);
        board.change(|s| {
            s.gpr[3] = DATA;
            s.cr4 |= Cr4::UMIP;
        });
        assert_eq!(board.fault(code), (13, 0), "{code:x?}");
        let mut board = Board::long(3);
        board.change(|s| s.gpr[3] = DATA);
        board.code(code);
        assert_eq!(board.step().rip, CODE + code.len() as u64, "{code:x?}");
    }
}

#[test]
fn sdm_1_20_5_2_the_io_permission_bitmap() {
    let mut board = Board::long(3);
    board.memory.store(TSS + 102, 0x68_u16).unwrap();
    board.memory.store(TSS + 0x68 + 2, 0b1111_1110_u8).unwrap();
    board.change(|s| s.tr.limit = 0x68 + 3);
    // in al, 0x10
    board.code(&[0xe4, 0x10]);
    assert_eq!(board.step().gpr[0] & 0xff, 0x10);
    // in ax, 0x10: port 0x11 is not allowed
    assert_eq!(board.fault(&[0x66, 0xe5, 0x10]), (13, 0));
}

#[test]
fn rep_outs_sends_every_element() {
    let mut board = Board::long(0);
    board.write(DATA, &[1, 2, 3]);
    board.code(&[0xf3, 0x6e, 0x90]);
    board.change(|s| {
        s.gpr[1] = 3;
        s.gpr[2] = 0x3f8;
        s.gpr[6] = DATA;
    });
    let state = board.run_to(&[CODE + 2]);
    assert_eq!((state.gpr[1], state.gpr[6]), (0, DATA + 3));
    let writes = board.ports.writes.lock().unwrap();
    assert_eq!(*writes, [(0x3f8, 1), (0x3f8, 2), (0x3f8, 3)]);
}

#[test]
fn popf_at_cpl_3_leaves_if_and_iopl_alone() {
    let mut board = Board::long(3);
    board.set(STACK, 0x3cd7);
    board.code(&[0x9d]);
    let flags = board.step().rflags;
    assert!(flags.contains(Rflags::IF) && flags.iopl() == 0);
    assert!(flags.contains(Rflags::STATUS | Rflags::DF));
}

#[test]
fn sdm_2_cpuid_osxsave_follows_cr4() {
    let mut board = Board::long(0);
    for on in [false, true] {
        board.code(&[0x0f, 0xa2]);
        board.change(|s| {
            s.cr4.set(Cr4::OSXSAVE, on);
            s.gpr[0] = 1;
            s.rip = CODE;
        });
        assert_eq!(board.step().gpr[1] >> 27 & 1 != 0, on);
    }
}

#[test]
fn sdm_18_17_3_tsc_adjust_moves_with_the_tsc() {
    let mut board = Board::long(0);
    board.clock.advance(1000);
    // wrmsr; rdtsc
    board.code(&[0x0f, 0x30, 0x0f, 0x31]);
    board.change(|s| {
        s.gpr[1] = x86::msr::IA32_TSC.into();
        s.gpr[0] = 5000;
        s.gpr[2] = 0;
    });
    assert_eq!(board.step().tsc_adjust, 4000);
    board.clock.advance(7);
    assert_eq!(board.step().gpr[0], 5007);
}

#[test]
fn states_that_no_processor_is_in_are_refused() {
    let mut board = Board::long(0);
    let good = board.state();
    let bad: [fn(&mut x86::VcpuState); 10] = [
        |s| s.cr0 -= Cr0::PE,
        |s| s.cr4 |= Cr4::VMXE,
        |s| s.efer -= Efer::LMA,
        |s| s.cr4 -= Cr4::PAE,
        |s| s.rflags |= Rflags::VM,
        |s| s.rflags -= Rflags::FIXED,
        |s| s.segments[2].access |= 0x60,
        |s| s.segments[4].base = 1 << 63,
        |s| s.syscall.lstar = 1 << 62,
        |s| s.pat = 2,
    ];
    for (i, change) in bad.into_iter().enumerate() {
        let mut state = good.clone();
        change(&mut state);
        assert!(board.vcpus[0].set_state(&state).is_err(), "change {i}");
        assert_eq!(board.state(), good, "change {i} left a trace");
    }
    board.set_state(&good);
}
