//! Memory: faults before any change, repetitions that are interrupted.

use crate::testing::{Bench, Mode};
use x86::cpuid::Vendor;
use x86::{Rflags, Vector};

/// `rep lodsb` and `rep stosb`.
const REP_LODSB: [u8; 2] = [0xf3, 0xac];
const REP_STOSB: [u8; 2] = [0xf3, 0xaa];

#[test]
fn cmpxchg_writes_even_if_the_comparison_fails() {
    let mut bench = Bench::new(Mode::User64);
    bench.cpu.gpr[3] = bench.code;
    // The code page is readable, and RAX is not what stands there.
    for code in [&[0x0f, 0xb1, 0x0b][..], &[0xf0, 0x0f, 0xb1, 0x0b]] {
        bench.cpu.gpr[0] = 0x1234;
        let raised = bench.run(code).expect_err("lock cmpxchg [rbx], ecx");
        assert_eq!(raised.vector, Vector::PageFault);
        assert_eq!(raised.error_code & 0b111, 0b111, "a user's write, present");
        assert_eq!(bench.cpu.gpr[0], 0x1234);
    }
}

#[test]
fn cmpxchg16b_must_be_aligned() {
    let mut bench = Bench::new(Mode::User64);
    let cmpxchg16b = [0xf0, 0x48, 0x0f, 0xc7, 0x0b];
    bench.cpu.gpr[3] = bench.data + 8;
    assert_eq!(bench.raised(&cmpxchg16b), Some(Vector::GeneralProtection));
    bench.cpu.gpr[3] = bench.data;
    bench.cpu.gpr[1] = 7;
    bench.run(&cmpxchg16b).expect("RDX:RAX and memory are 0");
    assert_eq!((bench.word(0), bench.word(8)), (bench.data, 7));
    assert!(bench.cpu.flags.zf());
}

#[test]
fn a_read_modify_write_of_a_read_only_page_changes_nothing() {
    let mut bench = Bench::new(Mode::User64);
    bench.cpu.gpr[3] = bench.code;
    bench.set_flags(0);
    bench.cpu.gpr[0] = u64::MAX;
    for code in [
        &[0x48, 0x01, 0x03][..],
        &[0x48, 0x87, 0x03],
        &[0x48, 0x0f, 0xc1, 0x03],
    ] {
        let raised = bench.run(code).expect_err("add, xchg, xadd [rbx], rax");
        assert_eq!(raised.vector, Vector::PageFault);
        assert_eq!(bench.cpu.flags.get(), Rflags::FIXED);
        assert_eq!(bench.cpu.gpr[0], u64::MAX);
    }
}

#[test]
fn a_long_repetition_lets_interrupts_in() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.cpu.gpr[1] = 100_000;
    let mut runs = 0;
    while bench.cpu.gpr[1] != 0 {
        let before = bench.cpu.gpr[1];
        bench.cpu.budget = 1;
        bench.run(&REP_LODSB).expect("rep lodsb");
        runs += 1;
        assert!(bench.cpu.gpr[1] < before);
        assert_eq!(bench.cpu.gpr[6], 100_000 - bench.cpu.gpr[1]);
        let done = bench.cpu.gpr[1] == 0;
        assert_eq!(bench.cpu.rip, bench.code + if done { 2 } else { 0 });
        assert_eq!(bench.cpu.budget == 0, !done);
    }
    assert!(runs > 10);
}

#[test]
fn sdm_3_18_3_1_4_single_stepping_stops_after_each_repetition() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.cpu.flags.set_system(Rflags::TF, true);
    bench.cpu.gpr[1] = 2;
    bench.cpu.gpr[7] = bench.data;
    bench.run(&REP_STOSB).expect("rep stosb");
    assert_eq!((bench.cpu.gpr[1], bench.cpu.rip), (1, bench.code));
    bench.run(&REP_STOSB).expect("rep stosb");
    assert_eq!((bench.cpu.gpr[1], bench.cpu.rip), (0, bench.code + 2));
}

#[test]
fn sdm_2_rep_a_fault_takes_the_flags_of_a_comparison_back_unless_on_amd() {
    // REPE CMPSB from the end of the data pages: one comparison, then a fault.
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut bench = Bench::new(Mode::User64);
        bench.cpu.model.vendor = vendor;
        let before = Rflags::CF | Rflags::SF;
        bench.set_flags(before.bits());
        bench.cpu.gpr[1] = 2;
        bench.cpu.gpr[6] = bench.data + 8191;
        bench.cpu.gpr[7] = bench.data;
        assert_eq!(bench.raised(&[0xf3, 0xa6]), Some(Vector::PageFault));
        assert_eq!(bench.cpu.gpr[1], 1, "one comparison is done");
        let equal = Rflags::ZF | Rflags::PF;
        let expected = match vendor {
            Vendor::Intel => before,
            Vendor::Amd => equal,
        };
        assert_eq!(bench.cpu.flags.get() & (before | equal), expected);
    }
}

#[test]
fn a_repetition_stops_at_the_segment_limit() {
    let mut bench = Bench::new(Mode::Real);
    bench.cpu.segments[0].limit = 0x2fff;
    bench.cpu.gpr[0] = 0x77;
    bench.cpu.gpr[1] = 0x20;
    bench.cpu.gpr[7] = 0x2ff8;
    let raised = bench.raised(&REP_STOSB);
    assert_eq!(raised, Some(Vector::GeneralProtection));
    assert_eq!((bench.cpu.gpr[1], bench.cpu.gpr[7]), (0x18, 0x3000));
    assert_eq!(bench.word(0xff8), 0x7777_7777_7777_7777);
}

#[test]
fn random_numbers_differ() {
    let mut bench = Bench::new(Mode::User64);
    for opcode in [0xf0, 0xf8] {
        let code = [0x48, 0x0f, 0xc7, opcode];
        bench.run(&code).expect("rdrand or rdseed rax");
        let first = bench.cpu.gpr[0];
        bench.run(&code).expect("rdrand or rdseed rax");
        assert_ne!(first, bench.cpu.gpr[0]);
        assert!(bench.cpu.flags.cf());
    }
}
