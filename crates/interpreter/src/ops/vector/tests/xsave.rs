//! FXSAVE and the XSAVE family.

use super::random::Operands;
use crate::testing::{Bench, Mode, Random};
use native::oracle::{Case, Oracle};
use native::{Fpu, VectorState};
use x86::{Cr0, Cr4, Vector, Xcr0};

const XSAVE: [u8; 3] = [0x0f, 0xae, 0x23];
const XRSTOR: [u8; 3] = [0x0f, 0xae, 0x2b];
const XSAVEOPT: [u8; 3] = [0x0f, 0xae, 0x33];
const XSAVEC: [u8; 3] = [0x0f, 0xc7, 0x23];
const XSAVES: [u8; 3] = [0x0f, 0xc7, 0x2b];
const XRSTORS: [u8; 3] = [0x0f, 0xc7, 0x1b];
const FXSAVE: [u8; 3] = [0x0f, 0xae, 0x03];
const FXRSTOR: [u8; 3] = [0x0f, 0xae, 0x0b];

const GP: Option<Vector> = Some(Vector::GeneralProtection);
const HEADER: u64 = 512;

/// A vCPU whose area is at RBX, with these components in EDX:EAX and something in each of them.
fn bench(mode: Mode, components: Xcr0) -> Bench {
    let mut bench = Bench::with_vectors(mode);
    bench.cpu.gpr[3] = bench.data;
    bench.cpu.gpr[0] = components.bits();
    bench.cpu.gpr[2] = 0;
    bench.cpu.fpu.state.ymm = std::array::from_fn(|n| [n as u8 + 1; 32]);
    bench.cpu.fpu.state.mxcsr = 0x9f80;
    bench.cpu.fpu.state.fpu.fcw = 0x27f;
    bench.cpu.fpu.state.fpu.st[0] = [1; 10];
    bench
}

const ALL: Xcr0 = Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX);

fn clear(bench: &mut Bench) {
    bench.cpu.fpu.state = VectorState::reset();
    bench.cpu.fpu.state.ymm = [[0xcc; 32]; 16];
}

fn u64_at(bench: &Bench, offset: u64) -> u64 {
    u64::from_le_bytes(bench.data(offset))
}

#[test]
fn sdm_1_13_7_what_is_saved_can_be_restored() {
    for (save, restore) in [
        (XSAVE, XRSTOR),
        (XSAVEOPT, XRSTOR),
        (XSAVEC, XRSTOR),
        (XSAVES, XRSTORS),
    ] {
        let mut bench = bench(Mode::Kernel64, ALL);
        let before = bench.cpu.fpu.state.clone();
        assert_eq!(bench.raised(&save), None);
        assert_eq!(u64_at(&bench, HEADER), 7);
        clear(&mut bench);
        assert_eq!(bench.raised(&restore), None);
        assert_eq!(bench.cpu.fpu.state, before);
    }
}

#[test]
fn sdm_1_13_2_components_outside_the_mask_are_left_alone() {
    for component in [Xcr0::X87, Xcr0::SSE, Xcr0::AVX] {
        let mut bench = bench(Mode::Kernel64, component);
        bench.set_data(0, &[0xee; 832]);
        bench.set_data(HEADER, &[0; 64]);
        assert_eq!(bench.raised(&XSAVE), None);
        assert_eq!(u64_at(&bench, HEADER), component.bits());
        let saved = |offset| bench.data::<1>(offset) != [0xee];
        assert_eq!(saved(0), component == Xcr0::X87);
        assert_eq!(
            saved(24),
            component != Xcr0::X87,
            "MXCSR goes with SSE and AVX"
        );
        assert_eq!(saved(32), component == Xcr0::X87);
        assert_eq!(saved(160), component == Xcr0::SSE);
        assert_eq!(saved(415), component == Xcr0::SSE);
        assert!(!saved(416));
        assert_eq!(saved(576), component == Xcr0::AVX);
        assert_eq!(saved(831), component == Xcr0::AVX);
    }
}

#[test]
fn sdm_1_13_6_initial_components_are_not_in_use() {
    let mut bench = bench(Mode::Kernel64, ALL);
    bench.cpu.fpu.state = VectorState::reset();
    bench.cpu.fpu.state.fpu = Fpu::init();
    bench.set_data(0, &[0xee; 832]);
    bench.set_data(HEADER, &[0; 64]);
    assert_eq!(bench.raised(&XSAVEC), None);
    assert_eq!(u64_at(&bench, HEADER), 0);
    assert_eq!(u64_at(&bench, HEADER + 8), 1 << 63 | 7);
    assert_eq!(
        bench.data::<512>(0),
        [0xee; 512],
        "nothing but the header is written"
    );
    bench.cpu.fpu.state.mxcsr = 0x1fa0;
    assert_eq!(bench.raised(&XSAVEC), None);
    assert_eq!(u64_at(&bench, HEADER), 2, "MXCSR makes SSE in use");
}

#[test]
fn sdm_1_13_8_components_not_in_the_area_are_initialised() {
    let mut bench = bench(Mode::Kernel64, ALL);
    assert_eq!(bench.raised(&XSAVE), None);
    let before = bench.cpu.fpu.state.clone();
    bench.set_data(HEADER, &Xcr0::AVX.bits().to_le_bytes());
    clear(&mut bench);
    assert_eq!(bench.raised(&XRSTOR), None);
    let state = &bench.cpu.fpu.state;
    assert_eq!(state.fpu, Fpu::init());
    assert_eq!(
        state.mxcsr, before.mxcsr,
        "the standard form always loads it"
    );
    for (ymm, old) in state.ymm.iter().zip(&before.ymm) {
        assert_eq!((&ymm[..16], &ymm[16..]), (&[0; 16][..], &old[16..]));
    }
}

#[test]
fn sdm_1_13_8_2_compacted_form_initialises_mxcsr_with_sse() {
    let mut bench = bench(Mode::Kernel64, ALL);
    assert_eq!(bench.raised(&XSAVEC), None);
    bench.set_data(HEADER, &Xcr0::X87.bits().to_le_bytes());
    assert_eq!(bench.raised(&XRSTOR), None);
    assert_eq!(bench.cpu.fpu.state.mxcsr, 0x1f80);
    assert_eq!(bench.cpu.fpu.state.ymm, [[0; 32]; 16]);
}

#[test]
fn sdm_1_13_8_headers_that_raise_gp() {
    let compacted = 1u64 << 63;
    for (state, compaction, byte, good) in [
        (7, 0, None, true),
        (8, 0, None, false),
        (7, 1, None, false),
        (7, 0, Some(16), false),
        (7, 0, Some(23), false),
        // Only the compacted form looks at these.
        (7, 0, Some(24), true),
        (7, compacted | 7, None, true),
        (3, compacted | 7, None, true),
        (7, compacted | 3, None, false),
        (7, compacted | 15, None, false),
        (compacted | 7, compacted | 7, None, false),
        (7, compacted | 7, Some(16), false),
        (7, compacted | 7, Some(63), false),
    ] {
        let mut bench = bench(Mode::Kernel64, ALL);
        bench.set_data(24, &0x1f80u32.to_le_bytes());
        bench.set_data(HEADER, &u64::to_le_bytes(state));
        bench.set_data(HEADER + 8, &u64::to_le_bytes(compaction));
        if let Some(byte) = byte {
            bench.set_data(HEADER + byte, &[1]);
        }
        let expected = if good { None } else { GP };
        assert_eq!(
            bench.raised(&XRSTOR),
            expected,
            "{state:x} {compaction:x} {byte:?}"
        );
        let expected = if compaction & compacted == 0 {
            GP
        } else {
            expected
        };
        assert_eq!(
            bench.raised(&XRSTORS),
            expected,
            "{state:x} {compaction:x} {byte:?}"
        );
    }
}

#[test]
fn sdm_1_13_5_faults() {
    let mut bench = bench(Mode::Kernel64, ALL);
    for code in [XSAVE, XRSTOR, XSAVEOPT, XSAVEC, XSAVES, XRSTORS] {
        bench.cpu.cr4.remove(Cr4::OSXSAVE);
        assert_eq!(bench.raised(&code), Some(Vector::InvalidOpcode));
        bench.cpu.cr4 |= Cr4::OSXSAVE;
        bench.cpu.cr0 |= Cr0::TS;
        assert_eq!(bench.raised(&code), Some(Vector::DeviceNotAvailable));
        bench.cpu.cr0.remove(Cr0::TS);
        bench.cpu.gpr[3] += 16;
        assert_eq!(bench.raised(&code), GP, "64-byte alignment");
        bench.cpu.gpr[3] = bench.data;
    }
    bench.cpu.cpl = 3;
    for code in [XSAVES, XRSTORS] {
        assert_eq!(bench.raised(&code), GP, "CPL 0 only");
    }
    for code in [FXSAVE, FXRSTOR] {
        bench.cpu.gpr[3] = bench.data + 8;
        assert_eq!(bench.raised(&code), GP, "16-byte alignment");
    }
}

#[test]
fn reserved_bits_of_mxcsr_raise_gp_and_change_nothing() {
    for restore in [XRSTOR, FXRSTOR] {
        let mut bench = bench(Mode::Kernel64, ALL);
        let before = bench.cpu.fpu.state.clone();
        bench.set_data(HEADER, &7u64.to_le_bytes());
        bench.set_data(24, &0x1_0000u32.to_le_bytes());
        assert_eq!(bench.raised(&restore), GP);
        assert_eq!(bench.cpu.fpu.state, before);
    }
}

#[test]
fn sdm_1_10_5_1_fxsave_leaves_the_end_alone_and_keeps_eight_registers_outside_64_bit_mode() {
    for (mode, end) in [(Mode::Kernel64, 416), (Mode::Protected32, 288)] {
        let mut bench = bench(mode, ALL);
        bench.set_data(0, &[0xee; 512]);
        let before = bench.cpu.fpu.state.clone();
        assert_eq!(bench.raised(&FXSAVE), None);
        let image = bench.data::<512>(0);
        assert!(image[end..].iter().all(|byte| *byte == 0xee));
        assert_ne!(image[end - 1], 0xee);
        clear(&mut bench);
        assert_eq!(bench.raised(&FXRSTOR), None);
        let count = (end - 160) / 16;
        for (n, (ymm, old)) in bench.cpu.fpu.state.ymm.iter().zip(&before.ymm).enumerate() {
            let low = if n < count {
                &old[..16]
            } else {
                &[0xcc; 16][..]
            };
            assert_eq!((&ymm[..16], &ymm[16..]), (low, &[0xcc; 16][..]));
        }
        assert_eq!(bench.cpu.fpu.state.fpu, before.fpu);
    }
}

#[test]
fn a_fault_in_the_middle_leaves_the_area_alone() {
    for code in [FXSAVE, XSAVE, XSAVEC] {
        let mut bench = bench(Mode::Kernel64, ALL);
        bench.cpu.gpr[3] = bench.data + 0x1f00;
        assert_eq!(bench.raised(&code), Some(Vector::PageFault));
        assert_eq!(bench.data::<256>(0x1f00), [0; 256]);
    }
}

/// On AMD's processors the pointers are saved only while an exception is pending, and MXCSR has a
/// bit 17, which is not offered to guests.
fn comparable(mut area: [u8; 832]) -> [u8; 832] {
    area[6..24].fill(0);
    area[30] &= !2;
    area
}

#[test]
fn areas_are_those_of_the_host() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut bench = Bench::with_vectors(Mode::User64);
    let mut random = Random::new(5);
    for round in 0..400 {
        let code = random.one_of(&[FXSAVE, FXRSTOR, XSAVE, XSAVEC, XRSTOR]);
        let mut case = Case::new(&code);
        case.vectors = random.state();
        if random.one_in(3) {
            case.vectors = VectorState::reset();
            case.vectors.fpu = Fpu::init();
            random.fill(&mut case.vectors.ymm[9][16..]);
        }
        random.fill(case.data.as_flattened_mut());
        case.gprs[3] = bench.data;
        case.gprs[0] = random.next() & 7;
        let area = &mut case.data[0];
        area[26..28].fill(0);
        area[512..576].fill(0);
        area[512] = random.next() as u8 & 7;
        if random.one_in(2) {
            area[520] = random.one_of(&[area[512], 7]);
            area[527] = 0x80;
        }
        let effect = oracle.run(&case).expect("the oracle runs");
        bench.cpu.gpr[..16].copy_from_slice(&case.gprs);
        bench.cpu.fpu.state = case.vectors.clone();
        bench.set_data(0, case.data.as_flattened());
        let raised = bench.raised(&code);
        assert_eq!(
            raised.is_some(),
            effect.signal.is_some(),
            "{round}: {code:x?}"
        );
        let ours = comparable(bench.data(0));
        let theirs = *effect.data[0].first_chunk().expect("an area");
        assert_eq!(ours, comparable(theirs), "{round}: {code:x?}");
        let ours = &bench.cpu.fpu.state;
        assert_eq!(ours.ymm, effect.vectors.ymm, "{round}: {code:x?}");
        // Where SSE is initial, XSAVES leaves the kernel's copy of MXCSR as it was, and so does
        // ptrace.
        let stale = ours.mxcsr == native::MXCSR_RESET && effect.vectors.mxcsr == case.vectors.mxcsr;
        assert!(
            ours.mxcsr == effect.vectors.mxcsr || stale,
            "{round}: {code:x?}"
        );
        assert_eq!(ours.fpu.st, effect.vectors.fpu.st, "{round}: {code:x?}");
        assert_eq!(
            (ours.fpu.fcw, ours.fpu.fsw, ours.fpu.ftw),
            (
                effect.vectors.fpu.fcw,
                effect.vectors.fpu.fsw,
                effect.vectors.fpu.ftw
            ),
            "{round}: {code:x?}"
        );
    }
}
