//! x87 control and the pointers to the last instruction.

use crate::testing::{Bench, Mode};
use x86::Vector;

const FLD1: [u8; 2] = [0xd9, 0xe8];

fn u16_at(bench: &Bench, offset: u64) -> u16 {
    u16::from_le_bytes(bench.data(offset))
}

fn u32_at(bench: &Bench, offset: u64) -> u32 {
    u32::from_le_bytes(bench.data(offset))
}

#[test]
fn sdm_1_8_1_8_pointers_are_those_of_the_last_non_control_instruction() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.gpr[3] = bench.data;
    assert_eq!(bench.raised(&FLD1), None);
    let fpu = &bench.cpu.fpu.state.fpu;
    assert_eq!((fpu.fip, fpu.fcs), (bench.code, 0x10));
    assert_eq!((fpu.fdp, fpu.fds), (0, 0), "no memory operand");
    assert_eq!(bench.raised(&[0xd8, 0x43, 0x10]), None); // fadd dword [rbx + 16]
    let before = bench.cpu.fpu.state.fpu.clone();
    assert_eq!((before.fdp, before.fds), (bench.data + 16, 0x18));
    bench.code += 0x40;
    for control in [
        &[0xd9, 0x3b][..], // fnstcw [rbx]
        &[0xd9, 0x2b],     // fldcw [rbx]
        &[0xdd, 0x3b],     // fnstsw [rbx]
        &[0xdb, 0xe2],     // fnclex
        &[0x9b],           // fwait
    ] {
        assert_eq!(bench.raised(control), None);
        let fpu = &bench.cpu.fpu.state.fpu;
        assert_eq!((fpu.fip, fpu.fdp), (before.fip, before.fdp), "{control:x?}");
    }
}

#[test]
fn sdm_1_8_1_9_opcode_of_the_instruction_that_failed() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.fpu.state.fpu.fcw = 0x340;
    assert_eq!(bench.raised(&FLD1), None);
    assert_eq!(bench.cpu.fpu.state.fpu.fop, 0);
    // fdiv st0, st1, which is empty: invalid operation, reported by the next instruction.
    assert_eq!(bench.raised(&[0xd8, 0xf1]), None);
    assert_eq!(bench.cpu.fpu.state.fpu.fop, 0x0f1);
    assert_eq!(bench.raised(&FLD1), Some(Vector::X87));
    assert_eq!(bench.raised(&[0x9b]), Some(Vector::X87));
    assert_eq!(bench.raised(&[0xdb, 0xe2]), None, "FNCLEX does not wait");
    assert_eq!(bench.raised(&FLD1), None);
}

#[test]
fn sdm_1_figure_8_9_environment_32_bit_protected() {
    let mut bench = Bench::with_vectors(Mode::Protected32);
    bench.cpu.gpr[3] = bench.data;
    assert_eq!(bench.raised(&FLD1), None);
    assert_eq!(bench.raised(&[0xd8, 0x43, 0x10]), None); // fadd dword [ebx + 16]
    assert_eq!(bench.raised(&[0xd9, 0x73, 0x40]), None); // fnstenv [ebx + 64]
    assert_eq!(u16_at(&bench, 64), 0x37f);
    assert_eq!(u16_at(&bench, 68), 0x3800);
    assert_eq!(u16_at(&bench, 72), 0x3fff);
    assert_eq!(u32_at(&bench, 76), bench.code as u32);
    assert_eq!(u16_at(&bench, 80), 0x10);
    assert_eq!(u32_at(&bench, 84), bench.data as u32 + 16);
    assert_eq!(u16_at(&bench, 88), 0x18);
}

#[test]
fn sdm_1_figure_8_12_environment_16_bit_real() {
    let mut bench = Bench::with_vectors(Mode::Real);
    // By its selector, the code segment begins a little higher, so that pointer and offset differ.
    bench.cpu.segments[1].selector.0 = 0x10;
    bench.cpu.segments[3].selector.0 = 0x123;
    bench.cpu.segments[3].base = 0x1230;
    bench.cpu.gpr[3] = bench.data - 0x1230;
    bench.cpu.segments_changed();
    assert_eq!(bench.raised(&[0xd9, 0x07]), None); // fld dword [bx]
    assert_eq!(bench.raised(&[0xd9, 0x77, 0x40]), None); // fnstenv [bx + 64]
    assert_eq!(u16_at(&bench, 64 + 6), bench.code as u16 + 0x100);
    assert_eq!(u16_at(&bench, 64 + 10), bench.data as u16);
    let env: [u8; 16] = bench.data(64);
    assert_eq!(env[14..], [0; 2], "14 bytes");
}

#[test]
fn sdm_2_fnsave_and_frstor_keep_everything() {
    for mode in [Mode::Kernel64, Mode::Protected32, Mode::Real] {
        let mut bench = Bench::with_vectors(mode);
        let base = if mode == Mode::Real { 7 } else { 3 };
        bench.cpu.gpr[3] = bench.data + 0x100;
        for _ in 0..3 {
            assert_eq!(bench.raised(&FLD1), None);
        }
        let before = bench.cpu.fpu.state.fpu.clone();
        assert_eq!(bench.raised(&[0xdd, 0x30 | base]), None); // fnsave
        assert_eq!(bench.cpu.fpu.state.fpu.ftw, 0);
        assert_eq!(bench.cpu.fpu.state.fpu.fcw, 0x37f);
        assert_eq!(bench.raised(&[0xdd, 0x20 | base]), None); // frstor
        let after = &bench.cpu.fpu.state.fpu;
        assert_eq!(
            (after.st, after.ftw, after.fsw),
            (before.st, before.ftw, before.fsw)
        );
    }
}

#[test]
fn sdm_1_8_7_an_unmasked_exception_keeps_the_store_back() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.gpr[3] = bench.data;
    bench.set_data(0, &[0xee; 8]);
    bench.cpu.fpu.state.fpu.fcw = 0x340;
    // fist dword [rbx] of an empty register
    assert_eq!(bench.raised(&[0xdb, 0x13]), None);
    assert_eq!(bench.data::<8>(0), [0xee; 8]);
    assert!(bench.cpu.fpu.state.fpu.pending());
    assert_eq!(bench.cpu.fpu.state.fpu.fdp, bench.data);
}
