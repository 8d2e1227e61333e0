//! What a CPU that lacks a feature does with what belongs to it, where the architecture has a say.

use super::board::{Board, DATA};
use crate::cpuid::features;
use x86::cpuid::{Feature, FeatureSet, Model};
use x86::{Cr4, VcpuState, Xcr0};

const UNDEFINED: u8 = 6;
const PROTECTION: u8 = 13;
/// What a test's code ends with, if nothing is wrong: INT 0x30.
const END: [u8; 2] = [0xcd, 0x30];

/// The vector that `code` ends with on a CPU with `features`, in 64-bit mode at CPL 0.
fn outcome(features: FeatureSet, code: &[u8], prepare: impl Fn(&mut VcpuState)) -> u8 {
    let mut board = Board::with_features(features).in_long_mode(0);
    board.change(|state| {
        state.gpr[3] = DATA;
        if features.has(Feature::Xsave) {
            state.cr4 |= Cr4::OSXSAVE | Cr4::OSFXSR;
            state.xcr0 = Xcr0::X87 | Xcr0::SSE;
        }
        prepare(state);
    });
    board.fault(&[code, &END].concat()).0
}

/// Runs `code` on a CPU with all features, which executes it, and on one without `feature`.
#[track_caller]
fn without(feature: Feature, vector: u8, code: &[u8], prepare: impl Fn(&mut VcpuState)) {
    let all = features();
    assert_eq!(outcome(all, code, &prepare), END[1], "with {feature:?}");
    let less = all.without(FeatureSet::of(&[feature]).with_dependents());
    assert_eq!(outcome(less, code, &prepare), vector, "without {feature:?}");
}

#[test]
fn instructions_that_are_not_there_are_undefined() {
    let cases: [(Feature, &[u8]); 9] = [
        (Feature::Rdtscp, &[0x0f, 0x01, 0xf9]),
        (Feature::Rdpid, &[0xf3, 0x0f, 0xc7, 0xf8]),
        (Feature::Rdrand, &[0x0f, 0xc7, 0xf0]),
        (Feature::Rdseed, &[0x0f, 0xc7, 0xf8]),
        (Feature::Smap, &[0x0f, 0x01, 0xcb]),
        (Feature::Invpcid, &[0x66, 0x0f, 0x38, 0x82, 0x03]),
        (Feature::Xsaveopt, &[0x0f, 0xae, 0x33]),
        (Feature::Xsavec, &[0x0f, 0xc7, 0x23]),
        (Feature::Xsaves, &[0x0f, 0xc7, 0x2b]),
    ];
    for (feature, code) in cases {
        // INVPCID: all contexts. The XSAVE family: everything.
        let prepare = |state: &mut VcpuState| {
            (state.gpr[0], state.gpr[2]) = (3, 0);
        };
        without(feature, UNDEFINED, code, prepare);
    }
    // Nothing of the family is there without XSAVE; CR4.OSXSAVE can't be set then.
    for code in [[0x0f, 0xae, 0x23], [0x0f, 0xae, 0x2b], [0x0f, 0x01, 0xd0]] {
        without(Feature::Xsave, UNDEFINED, &code, |state| state.gpr[1] = 0);
    }
}

#[test]
fn control_bits_of_what_is_not_there_are_reserved() {
    let mov_to_cr4 = [0x0f, 0x22, 0xe0];
    for (feature, bit) in [
        (Feature::Xsave, Cr4::OSXSAVE),
        (Feature::Fsgsbase, Cr4::FSGSBASE),
        (Feature::Smep, Cr4::SMEP),
        (Feature::Smap, Cr4::SMAP),
        (Feature::Umip, Cr4::UMIP),
        (Feature::Pcid, Cr4::PCIDE),
    ] {
        // The pages are user pages, which SMEP and SMAP mind; the next instruction is never
        // reached where they are there.
        let minds = matches!(feature, Feature::Smep | Feature::Smap);
        let set = |state: &mut VcpuState| state.gpr[0] = (Cr4::PAE | bit).bits();
        if minds {
            let less = features().without(FeatureSet::of(&[feature]));
            assert_eq!(outcome(less, &mov_to_cr4, set), PROTECTION, "{feature:?}");
        } else {
            without(feature, PROTECTION, &mov_to_cr4, set);
        }
    }
}

#[test]
fn vector_state_that_is_not_there_is_never_enabled() {
    if !features().has(Feature::Avx) {
        eprintln!("skipped: the host has no AVX");
        return;
    }
    let xsetbv = [0x0f, 0x01, 0xd1];
    without(Feature::Avx, PROTECTION, &xsetbv, |state| {
        (state.gpr[0], state.gpr[1], state.gpr[2]) = (7, 0, 0);
    });
    // vpaddd ymm0, ymm0, ymm0 with what can be enabled.
    let vpaddd = [0xc5, 0xfd, 0xfe, 0xc0];
    let level = |model: Model| model.level().unwrap().intersection(features());
    assert_eq!(outcome(level(Model::V2), &vpaddd, |_| ()), UNDEFINED);
    let enabled = outcome(level(Model::V3), &vpaddd, |state| state.xcr0 |= Xcr0::AVX);
    assert_eq!(enabled, END[1]);
}

#[test]
fn msrs_of_what_is_not_there_are_refused() {
    let wrmsr = [0x0f, 0x30];
    // IA32_APIC_BASE: x2APIC mode.
    without(Feature::X2Apic, PROTECTION, &wrmsr, |state| {
        (state.gpr[0], state.gpr[1], state.gpr[2]) = (0xfee0_0d00, 0x1b, 0);
    });
    // RDMSR of IA32_XSS.
    let rdmsr = [0x0f, 0x32];
    without(Feature::Xsaves, PROTECTION, &rdmsr, |state| {
        state.gpr[1] = 0xda0;
    });
    // XGETBV with ECX = 1.
    let xgetbv = [0x0f, 0x01, 0xd0];
    without(Feature::Xgetbv1, PROTECTION, &xgetbv, |state| {
        state.gpr[1] = 1;
    });
}

#[test]
fn a_state_with_vectors_does_not_fit_a_cpu_without() {
    use engine::Vcpu;
    let mut board = Board::with_features(Model::V2.level().unwrap());
    let mut state = board.state();
    state.cr4 |= Cr4::OSXSAVE;
    assert!(board.vcpus[0].set_state(&state).is_err());
    let mut state = board.state();
    state.xcr0 |= Xcr0::SSE | Xcr0::AVX;
    assert!(board.vcpus[0].set_state(&state).is_err());
}
