//! What is checked before an instruction is executed, clause by clause of the SDM.

use crate::testing::{Bench, Mode};
use x86::{Cr0, Cr4, Vector, Xcr0};

const ADDPS: [u8; 3] = [0x0f, 0x58, 0xc1];
const MOVAPS: [u8; 3] = [0x0f, 0x28, 0xc1];
const VADDPS: [u8; 4] = [0xc5, 0xf0, 0x58, 0xc2];
const VMOVAPS: [u8; 4] = [0xc5, 0xf8, 0x28, 0xc1];
const PADDB_MM: [u8; 3] = [0x0f, 0xfc, 0xc1];
const CVTPI2PS: [u8; 3] = [0x0f, 0x2a, 0xc1];
const EMMS: [u8; 2] = [0x0f, 0x77];
const FLD1: [u8; 2] = [0xd9, 0xe8];
const FWAIT: [u8; 1] = [0x9b];
const FNSTSW_AX: [u8; 2] = [0xdf, 0xe0];
const ANDN: [u8; 5] = [0xc4, 0xe2, 0x78, 0xf2, 0xc1];

const UD: Option<Vector> = Some(Vector::InvalidOpcode);
const NM: Option<Vector> = Some(Vector::DeviceNotAvailable);
const GP: Option<Vector> = Some(Vector::GeneralProtection);

#[test]
fn sdm_2_table_2_21_class_4_legacy_sse() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for code in [ADDPS, MOVAPS] {
        assert_eq!(bench.raised(&code), None);
        bench.cpu.cr0 |= Cr0::TS;
        assert_eq!(bench.raised(&code), NM);
        bench.cpu.cr0 |= Cr0::EM;
        assert_eq!(bench.raised(&code), UD);
        bench.cpu.cr0.remove(Cr0::EM | Cr0::TS);
        bench.cpu.cr4.remove(Cr4::OSFXSR);
        assert_eq!(bench.raised(&code), UD);
        bench.cpu.cr4 |= Cr4::OSFXSR;
    }
}

#[test]
fn sdm_2_table_2_21_class_4_vex() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for code in [VADDPS, VMOVAPS] {
        assert_eq!(bench.raised(&code), None);
        // CR0.EM and CR4.OSFXSR are nothing to AVX.
        bench.cpu.cr0 |= Cr0::EM;
        bench.cpu.cr4.remove(Cr4::OSFXSR);
        assert_eq!(bench.raised(&code), None);
        bench.cpu.cr0.remove(Cr0::EM);
        bench.cpu.cr4 |= Cr4::OSFXSR;
        bench.cpu.cr0 |= Cr0::TS;
        assert_eq!(bench.raised(&code), NM);
        bench.cpu.xcr0 = Xcr0::X87 | Xcr0::SSE;
        assert_eq!(bench.raised(&code), UD);
        bench.cpu.xcr0 |= Xcr0::AVX;
        bench.cpu.cr4.remove(Cr4::OSXSAVE);
        assert_eq!(bench.raised(&code), UD);
        bench.cpu.cr4 |= Cr4::OSXSAVE;
        bench.cpu.cr0.remove(Cr0::TS);
    }
}

#[test]
fn sdm_2_2_3_vex_needs_protected_mode() {
    let mut protected = Bench::with_vectors(Mode::Protected32);
    let mut real = Bench::with_vectors(Mode::Real);
    for code in [&VADDPS[..], &VMOVAPS, &ANDN] {
        assert_eq!(protected.raised(code), None, "{code:x?}");
        assert_eq!(real.raised(code), UD, "{code:x?}");
    }
    assert_eq!(real.raised(&ADDPS), None);
}

#[test]
fn sdm_1_9_5_mmx() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for code in [&PADDB_MM[..], &EMMS] {
        bench.cpu.cr4.remove(Cr4::OSFXSR);
        assert_eq!(bench.raised(code), None);
        bench.cpu.cr4 |= Cr4::OSFXSR;
        bench.cpu.cr0 |= Cr0::TS;
        assert_eq!(bench.raised(code), NM);
        bench.cpu.cr0 |= Cr0::EM;
        assert_eq!(bench.raised(code), UD);
        bench.cpu.cr0.remove(Cr0::EM | Cr0::TS);
        bench.cpu.fpu.state.fpu.fcw = 0x340;
        bench.cpu.fpu.state.fpu.fsw = 1;
        assert_eq!(bench.raised(code), Some(Vector::X87));
        bench.cpu.fpu.state.fpu.fsw = 0;
    }
    bench.cpu.cr4.remove(Cr4::OSFXSR);
    assert_eq!(bench.raised(&CVTPI2PS), UD, "it works on XMM registers too");
}

#[test]
fn sdm_3_table_2_2_em_mp_ts() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for bits in 0..8 {
        let has = |bit: u32| bits >> bit & 1 != 0;
        let (em, mp, ts) = (has(0), has(1), has(2));
        bench.cpu.cr0.set(Cr0::EM, em);
        bench.cpu.cr0.set(Cr0::MP, mp);
        bench.cpu.cr0.set(Cr0::TS, ts);
        assert_eq!(
            bench.raised(&FLD1),
            (em || ts).then_some(Vector::DeviceNotAvailable)
        );
        assert_eq!(
            bench.raised(&FNSTSW_AX),
            (em || ts).then_some(Vector::DeviceNotAvailable)
        );
        assert_eq!(
            bench.raised(&FWAIT),
            (mp && ts).then_some(Vector::DeviceNotAvailable)
        );
    }
}

#[test]
fn sdm_1_11_5_xm_by_osxmmexcpt() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    // 0 / 0 with the invalid-operation exception unmasked.
    let divps = [0x0f, 0x5e, 0xc1];
    bench.cpu.fpu.state.mxcsr = 0x1f00;
    assert_eq!(bench.raised(&divps), Some(Vector::Simd));
    assert_eq!(bench.cpu.fpu.state.mxcsr, 0x1f01);
    bench.cpu.cr4.remove(Cr4::OSXMMEXCPT);
    assert_eq!(bench.raised(&divps), UD);
}

#[test]
fn sdm_2_table_2_18_class_1_alignment() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.gpr[3] = bench.data + 8;
    for code in [
        &[0x0f, 0x28, 0x03][..],   // movaps xmm0, [rbx]
        &[0x0f, 0x29, 0x03],       // movaps [rbx], xmm0
        &[0x66, 0x0f, 0xe7, 0x03], // movntdq [rbx], xmm0
        &[0x0f, 0x58, 0x03],       // addps xmm0, [rbx]
        &[0x66, 0x0f, 0xef, 0x03], // pxor xmm0, [rbx]
        &[0xc5, 0xf8, 0x28, 0x03], // vmovaps xmm0, [rbx]
    ] {
        assert_eq!(bench.raised(code), GP, "{code:x?}");
    }
    for code in [
        &[0x0f, 0x10, 0x03][..],   // movups xmm0, [rbx]
        &[0xc5, 0xf8, 0x58, 0x03], // vaddps xmm0, xmm0, [rbx]
        &[0xc5, 0xf9, 0xef, 0x03], // vpxor xmm0, xmm0, [rbx]
    ] {
        assert_eq!(bench.raised(code), None, "{code:x?}");
    }
    // 32 bytes: 16-byte alignment is not enough.
    bench.cpu.gpr[3] = bench.data + 16;
    assert_eq!(bench.raised(&[0xc5, 0xfc, 0x28, 0x03]), GP); // vmovaps ymm0, [rbx]
    assert_eq!(bench.raised(&[0xc5, 0xfc, 0x10, 0x03]), None); // vmovups ymm0, [rbx]
}

#[test]
fn sdm_2_table_2_18_class_1_segments() {
    let mut bench = Bench::with_vectors(Mode::Protected32);
    bench.cpu.gpr[3] = 0x2000;
    bench.cpu.segments[2].limit = 0x200e;
    bench.cpu.segments[3].limit = 0x200e;
    assert_eq!(bench.raised(&[0x0f, 0x28, 0x03]), GP);
    assert_eq!(
        bench.raised(&[0x36, 0x0f, 0x28, 0x03]),
        Some(Vector::StackFault)
    );
    bench.cpu.segments[3].limit = 0x200f;
    assert_eq!(bench.raised(&[0x0f, 0x28, 0x03]), None);
}

#[test]
fn sdm_1_10_2_3_reserved_bits_of_mxcsr() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.gpr[3] = bench.data;
    let ldmxcsr = [0x0f, 0xae, 0x13];
    bench.set_data(0, &0x1_1f80u32.to_le_bytes());
    assert_eq!(bench.raised(&ldmxcsr), GP);
    assert_eq!(bench.cpu.fpu.state.mxcsr, 0x1f80);
    bench.set_data(0, &0xffffu32.to_le_bytes());
    assert_eq!(bench.raised(&ldmxcsr), None);
    assert_eq!(bench.raised(&[0x0f, 0xae, 0x5b, 0x08]), None); // stmxcsr [rbx + 8]
    assert_eq!(bench.data::<4>(8), 0xffffu32.to_le_bytes());
}

#[test]
fn a_fault_leaves_registers_and_memory_alone() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    // The last eight bytes that are mapped, and the first eight that are not.
    bench.cpu.gpr[3] = bench.data + 0x1ff8;
    bench.cpu.fpu.state.ymm = [[0x5a; 32]; 16];
    let before = bench.cpu.fpu.state.clone();
    for code in [
        &[0x0f, 0x10, 0x03][..],   // movups xmm0, [rbx]
        &[0x0f, 0x11, 0x03],       // movups [rbx], xmm0
        &[0xc5, 0xfc, 0x11, 0x03], // vmovups [rbx], ymm0
        &[0xc5, 0xec, 0x58, 0x03], // vaddps ymm0, ymm2, [rbx]
        &[0x66, 0x0f, 0xf7, 0xc1], // maskmovdqu [rdi], xmm0, xmm1
        &[0xdb, 0x3b],             // fstp tbyte [rbx]
    ] {
        bench.cpu.gpr[7] = bench.data + 0x1ff8;
        bench.cpu.fpu.state.ymm[1] = [0xff; 32];
        bench.cpu.fpu.state.fpu.ftw = 0xff;
        let mut expected = before.clone();
        expected.ymm[1] = [0xff; 32];
        expected.fpu.ftw = 0xff;
        assert_eq!(bench.raised(code), Some(Vector::PageFault), "{code:x?}");
        assert_eq!(bench.cpu.fpu.state, expected, "{code:x?}");
        assert_eq!(bench.data::<8>(0x1ff8), [0; 8], "{code:x?}");
    }
}

#[test]
fn sdm_2_vgather_goes_on_after_a_fault() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.set_data(0, &0x1111_1111u32.to_le_bytes());
    bench.cpu.gpr[3] = bench.data;
    let state = &mut bench.cpu.fpu.state;
    for (n, index) in [0u32, 0, 0x4000, 0].into_iter().enumerate() {
        state.ymm[2][4 * n..4 * n + 4].copy_from_slice(&index.to_le_bytes());
    }
    state.ymm[1] = [0xff; 32];
    state.ymm[0] = [0x77; 32];
    // vpgatherdd xmm0, [rbx + xmm2], xmm1
    let code = [0xc4, 0xe2, 0x71, 0x90, 0x04, 0x13];
    assert_eq!(bench.raised(&code), Some(Vector::PageFault));
    let state = &mut bench.cpu.fpu.state;
    assert_eq!(state.ymm[1][..8], [0; 8]);
    assert_eq!(state.ymm[1][8..16], [0xff; 8]);
    assert_eq!(state.ymm[0][..8], [0x11; 8]);
    assert_eq!(state.ymm[0][8..16], [0x77; 8]);
    state.ymm[2] = [0; 32];
    assert_eq!(bench.raised(&code), None);
    let state = &bench.cpu.fpu.state;
    assert_eq!(state.ymm[0][..16], [0x11; 16]);
    assert_eq!(state.ymm[0][16..], [0; 16]);
    assert_eq!(state.ymm[1], [0; 32]);
}

#[test]
fn sdm_2_vmaskmov_touches_only_what_is_selected() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    bench.cpu.gpr[3] = bench.data + 0x1ff8;
    bench.cpu.fpu.state.ymm[1] = [0; 32];
    bench.cpu.fpu.state.ymm[1][..8].fill(0xff);
    bench.cpu.fpu.state.ymm[2] = [0x33; 32];
    // vmaskmovps [rbx], ymm1, ymm2; vmaskmovps ymm3, ymm1, [rbx]
    assert_eq!(bench.raised(&[0xc4, 0xe2, 0x75, 0x2e, 0x13]), None);
    assert_eq!(bench.data::<8>(0x1ff8), [0x33; 8]);
    assert_eq!(bench.raised(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]), None);
    assert_eq!(bench.cpu.fpu.state.ymm[3][..8], [0x33; 8]);
    assert_eq!(bench.cpu.fpu.state.ymm[3][8..], [0; 24]);
    bench.cpu.fpu.state.ymm[1][8] = 0xff;
    bench.cpu.fpu.state.ymm[1][11] = 0xff;
    assert_eq!(
        bench.raised(&[0xc4, 0xe2, 0x75, 0x2c, 0x1b]),
        Some(Vector::PageFault)
    );
}

#[test]
fn what_is_not_shown_is_undefined() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for code in [
        &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2][..], // vaddps zmm0, zmm1, zmm2
        &[0x62, 0xf1, 0x74, 0x08, 0x58, 0xc2],     // vaddps xmm0, xmm1, xmm2 in EVEX
        &[0x66, 0x0f, 0x79, 0xc1],                 // extrq xmm0, xmm1 (SSE4a)
        &[0x0f, 0x0f, 0xc1, 0x9e],                 // pfadd mm0, mm1 (3DNow!)
        &[0x8f, 0xe9, 0x78, 0x81, 0xc1],           // vfrczpd (XOP)
        &[0xc4, 0xe3, 0x71, 0x68, 0xc2, 0x30],     // vfmaddps (FMA4)
    ] {
        assert_eq!(bench.raised(code), UD, "{code:x?}");
    }
}

#[test]
fn the_table_of_operations_is_bounded_by_distinct_instructions() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    for _ in 0..3 {
        for code in [&ADDPS[..], &VADDPS, &FLD1] {
            assert_eq!(bench.raised(code), None);
        }
    }
    assert_eq!(bench.cpu.vector.len(), 3);
}

#[test]
fn ever_new_instructions_do_not_fill_the_host() {
    let mut bench = Bench::with_vectors(Mode::Kernel64);
    // pshufd with all registers and immediates
    let mut distinct = 0u32;
    while !bench.cpu.vector.is_full() {
        let [immediate, registers, ..] = distinct.to_le_bytes();
        let rex = 0x40 | registers >> 7 << 2 | registers >> 3 & 1;
        let modrm = 0xc0 | registers >> 1 & 0x38 | registers & 7;
        assert_eq!(
            bench.raised(&[0x66, rex, 0x0f, 0x70, modrm, immediate]),
            None
        );
        distinct += 1;
    }
    assert_eq!(bench.cpu.vector.len(), distinct as usize);
    let mut vcpu = crate::InterpreterVcpu {
        cpu: bench.cpu,
        cache: crate::cache::Cache::new(),
    };
    vcpu.bound_tables();
    assert_eq!(vcpu.cpu.vector.len(), 0);
    assert_eq!(vcpu.cache.flushes, 1, "blocks refer to the table");
}
