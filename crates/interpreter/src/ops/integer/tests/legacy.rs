//! What only exists outside 64-bit code, by the manuals.

use crate::int::HIGH;
use crate::testing::{Bench, Mode};
use x86::{SegmentRegister, Vector};

const CF: u64 = 1;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;

/// `value` (0 to 99) as two packed digits.
fn packed(value: u8) -> u64 {
    u64::from(value / 10 * 16 + value % 10)
}

/// `value` (0 to 99) as two unpacked digits.
fn unpacked(value: u64) -> u64 {
    value / 10 * 256 + value % 10
}

#[test]
fn sdm_1_7_3_4_1_packed_decimal_addition_and_subtraction() {
    let mut bench = Bench::new(Mode::Protected32);
    for a in 0..100 {
        for b in 0..100 {
            bench.cpu.gpr[0] = packed(a);
            bench.cpu.gpr[3] = packed(b);
            bench.run(&[0x00, 0xd8]).expect("add al, bl");
            bench.run(&[0x27]).expect("daa");
            assert_eq!(bench.cpu.gpr[0] & 0xff, packed((a + b) % 100), "{a} + {b}");
            assert_eq!(bench.cpu.flags.cf(), a + b > 99, "{a} + {b}");
            bench.cpu.gpr[0] = packed(a);
            bench.run(&[0x28, 0xd8]).expect("sub al, bl");
            bench.run(&[0x2f]).expect("das");
            let difference = (a + 100 - b) % 100;
            assert_eq!(bench.cpu.gpr[0] & 0xff, packed(difference), "{a} - {b}");
            assert_eq!(bench.cpu.flags.cf(), a < b, "{a} - {b}");
        }
    }
}

#[test]
fn sdm_1_7_3_4_2_unpacked_decimal_arithmetic() {
    let mut bench = Bench::new(Mode::Protected32);
    for a in 0..10u64 {
        for b in 0..10u64 {
            bench.cpu.gpr[0] = a;
            bench.cpu.gpr[3] = b;
            bench.run(&[0x00, 0xd8]).expect("add al, bl");
            bench.run(&[0x37]).expect("aaa");
            assert_eq!(bench.cpu.gpr[0], unpacked(a + b));
            bench.cpu.gpr[0] = 0x500 | a;
            bench.run(&[0x28, 0xd8]).expect("sub al, bl");
            bench.run(&[0x3f]).expect("aas");
            assert_eq!(bench.cpu.gpr[0], unpacked(50 + a - b));
            bench.cpu.gpr[0] = a * b;
            bench.run(&[0xd4, 10]).expect("aam");
            assert_eq!(bench.cpu.gpr[0], unpacked(a * b));
            bench.run(&[0xd5, 10]).expect("aad");
            assert_eq!(bench.cpu.gpr[0], a * b);
            assert_eq!(bench.cpu.flags.zf(), a * b == 0);
        }
    }
    assert_eq!(bench.raised(&[0xd4, 0]), Some(Vector::DivideError));
}

#[test]
fn sixteen_bit_branches_wrap_and_keep_inside_the_limit() {
    let mut bench = Bench::new(Mode::Real);
    let at = bench.code;
    // jmp rel16 to 0x10 below the beginning: IP wraps to the top of the segment.
    let displacement = 0u16.wrapping_sub(at as u16 + 3 + 0x10).to_le_bytes();
    bench
        .run(&[0xe9, displacement[0], displacement[1]])
        .expect("jmp");
    assert_eq!(bench.cpu.rip, 0xfff0);
    bench.cpu.segments[SegmentRegister::Cs as usize].limit = 0x1fff;
    // jmp rel16 to 0x2000, beyond the limit.
    let raised = bench.raised(&[0xe9, 0xfd, 0x0f]);
    assert_eq!(raised, Some(Vector::GeneralProtection));
    assert_eq!(bench.cpu.rip, at);
    // A call there pushes nothing.
    bench.cpu.gpr[4] = 0x3000;
    assert_eq!(
        bench.raised(&[0xe8, 0xfd, 0x0f]),
        Some(Vector::GeneralProtection)
    );
    assert_eq!(bench.cpu.gpr[4], 0x3000);
}

#[test]
fn a_branch_not_taken_is_not_checked() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.cpu.segments[SegmentRegister::Cs as usize].limit = 0x1_ffff;
    // jz far below the beginning.
    let jz = [0x0f, 0x84, 0, 0, 0, 0x80];
    bench.set_flags(0);
    bench.run(&jz).expect("not taken");
    assert_eq!(bench.cpu.rip, bench.code + 6);
    bench.set_flags(ZF);
    assert_eq!(bench.raised(&jz), Some(Vector::GeneralProtection));
}

#[test]
fn loop_counts_in_the_bits_of_the_address_size() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.cpu.gpr[1] = 0x1_0001;
    // loopw to itself: CX becomes 0.
    bench.run(&[0x67, 0xe2, 0xfd]).expect("loop");
    assert_eq!(
        (bench.cpu.gpr[1], bench.cpu.rip),
        (0x1_0000, bench.code + 3)
    );
    bench.run(&[0xe2, 0xfe]).expect("loop");
    assert_eq!((bench.cpu.gpr[1], bench.cpu.rip), (0xffff, bench.code));
}

#[test]
fn the_stack_pointer_wraps_at_16_bits() {
    let mut bench = Bench::new(Mode::Real);
    bench.cpu.gpr[4] = 0xabcd_0000;
    bench.cpu.gpr[0] = 0x1234;
    bench.run(&[0x50]).expect("push ax");
    assert_eq!(bench.cpu.gpr[4], 0xabcd_fffe);
    bench.run(&[0x5b]).expect("pop bx");
    assert_eq!((bench.cpu.gpr[3], bench.cpu.gpr[4]), (0x1234, 0xabcd_0000));
    // push eax across the top does not fit the segment.
    bench.cpu.gpr[4] = 2;
    assert_eq!(bench.raised(&[0x66, 0x50]), Some(Vector::StackFault));
    assert_eq!(bench.cpu.gpr[4], 2);
}

#[test]
fn sdm_2_pusha_and_popa() {
    let mut bench = Bench::new(Mode::Protected32);
    for (slot, gpr) in (0..).zip(&mut bench.cpu.gpr[..8]) {
        *gpr = 0x100 + slot;
    }
    bench.cpu.gpr[4] = bench.data + 0x100;
    bench.run(&[0x60]).expect("pushad");
    assert_eq!(bench.cpu.gpr[4], bench.data + 0xe0);
    let pushed: Vec<_> = (0..8).map(|n| bench.word(0xe0 + 4 * n) as u32).collect();
    let sp = bench.data as u32 + 0x100;
    assert_eq!(
        pushed,
        [0x107, 0x106, 0x105, sp, 0x103, 0x102, 0x101, 0x100]
    );
    bench.cpu.gpr[..4].fill(0);
    bench.cpu.gpr[5..8].fill(0);
    bench.run(&[0x61]).expect("popad");
    assert_eq!(bench.cpu.gpr[4], bench.data + 0x100);
    assert_eq!(bench.cpu.gpr[..4], [0x100, 0x101, 0x102, 0x103]);
    assert_eq!(bench.cpu.gpr[5..8], [0x105, 0x106, 0x107]);
}

#[test]
fn sdm_2_enter_copies_the_frames_outside() {
    let mut bench = Bench::new(Mode::Protected32);
    let (top, outer) = (bench.data + 0x100, bench.data + 0x80);
    bench.cpu.gpr[4] = top;
    bench.cpu.gpr[5] = outer;
    bench.set_data(0x80 - 4, &0x1111u32.to_le_bytes());
    bench.run(&[0xc8, 0x20, 0x00, 0x02]).expect("enter 0x20, 2");
    let frame = top - 4;
    assert_eq!(bench.cpu.gpr[5], frame);
    assert_eq!(bench.cpu.gpr[4], frame - 8 - 0x20);
    assert_eq!(bench.word(0xfc) as u32, outer as u32);
    assert_eq!(bench.word(0xf8) as u32, 0x1111);
    assert_eq!(bench.word(0xf4) as u32, frame as u32);
    bench.run(&[0xc9]).expect("leave");
    assert_eq!((bench.cpu.gpr[4], bench.cpu.gpr[5]), (top, outer));
}

#[test]
fn sdm_2_bound() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.set_data(0, &(-3i32).to_le_bytes());
    bench.set_data(4, &5i32.to_le_bytes());
    bench.cpu.gpr[3] = bench.data;
    for (index, inside) in [(-4i32, false), (-3, true), (5, true), (6, false)] {
        bench.cpu.gpr[0] = u64::from(index as u32);
        let raised = bench.raised(&[0x62, 0x03]);
        assert_eq!(raised.is_none(), inside, "index {index}");
        assert!(inside || raised == Some(Vector::BoundRange));
    }
}

#[test]
fn sdm_2_2_8_vex_needs_protected_mode() {
    let andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1];
    let mut bench = Bench::new(Mode::Real);
    assert_eq!(bench.raised(&andn), Some(Vector::InvalidOpcode));
    let mut bench = Bench::new(Mode::Protected32);
    (bench.cpu.gpr[1], bench.cpu.gpr[3]) = (0b1100, 0b1010);
    bench.run(&andn).expect("andn eax, ebx, ecx");
    assert_eq!(bench.cpu.gpr[0], 0b0100);
}

#[test]
fn sahf_leaves_overflow_alone() {
    let mut bench = Bench::new(Mode::Protected32);
    bench.set_flags(1 << 11);
    bench.cpu.set_reg(HIGH, 0xffu8);
    bench.run(&[0x9e]).expect("sahf");
    let flags = bench.cpu.flags.get().bits();
    assert_eq!(flags & (CF | AF | ZF | 1 << 11), CF | AF | ZF | 1 << 11);
}

#[test]
fn salc_spreads_the_carry() {
    let mut bench = Bench::new(Mode::Protected32);
    for (flags, al) in [(CF, 0xff), (0, 0)] {
        bench.cpu.gpr[0] = 0x1234;
        bench.set_flags(flags);
        bench.run(&[0xd6]).expect("salc");
        assert_eq!(bench.cpu.gpr[0], 0x1200 | al);
    }
}

#[test]
fn addresses_wrap_at_16_bits() {
    let mut bench = Bench::new(Mode::Real);
    bench.cpu.gpr[3] = 0xffff;
    bench.cpu.gpr[6] = 0x2001;
    bench.set_data(0, &[0x5a]);
    bench.run(&[0x8a, 0x00]).expect("mov al, [bx+si]");
    assert_eq!(bench.cpu.gpr[0], 0x5a);
}
