//! The host's own kernel, where it has KVM: what is given to it comes back.

use super::*;
use memory::RegionSpec;
use x86::cpuid::{Answer, Feature, FeatureSet};
use x86::{Activity, Cr0, Cr4, Efer, Exception, Rflags, Segment, Selector, Vector};

fn vcpu(clock: clock::Clock) -> Option<Box<dyn Vcpu>> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(problem) => {
            eprintln!("skipped: {problem}");
            return None;
        }
    };
    let region = RegionSpec {
        gpa: 0,
        len: 0x1_0000,
        kind: Kind::Ram,
    };
    let mut table = Table::new();
    let answer = |eax, ecx, edx| Answer {
        eax,
        ebx: 0,
        ecx,
        edx,
    };
    // What there is on every CPU of 64 bits, with MTRRs and PAT; the APIC's deadline if it has one.
    let deadline = host.features().unwrap().has(Feature::TscDeadline);
    assert!(
        host.features()
            .unwrap()
            .contains(FeatureSet::of(&[Feature::Lm]))
    );
    table.set(0, answer(1, 0, 0));
    let ecx = if deadline { 1 << 24 } else { 0 };
    table.set(1, answer(0x0f61, ecx, 0x0783_fbff));
    table.set(0x8000_0000, answer(0x8000_0008, 0, 0));
    table.set(0x8000_0001, answer(0, 0, 1 << 29 | 1 << 20 | 1 << 11));
    table.set(0x8000_0008, answer(46 | 48 << 8, 0, 0));
    let setup = Setup {
        memory: GuestMemory::new(&[region]).unwrap(),
        clock,
        cpuid: vec![table],
        tsc_khz: host.tsc_khz(1_000_000).unwrap(),
        tracer: None,
    };
    let (_, mut vcpus) = Kvm::create(&setup).unwrap();
    vcpus.pop()
}

/// In long mode, with a value in everything that has room for one.
fn full() -> VcpuState {
    let mut state = VcpuState::after_reset(0);
    state.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(n as u32));
    state.rip = 0xffff_8000_1234_5678;
    state.rflags = Rflags::FIXED | Rflags::IF | Rflags::CF;
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP;
    state.cr4 = Cr4::PAE | Cr4::OSFXSR;
    state.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
    (state.cr2, state.cr3) = (0x1000, 0x2000);
    let flat = |selector, access| Segment {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access,
        unusable: false,
    };
    state.segments = [flat(0x10, 0xc093); 6];
    state.segments[1] = flat(8, 0xa09b);
    state.segments[4].base = 0x7fff_0000_0000;
    state.segments[5].base = 0xffff_8880_0000_0000;
    state.fpu.control = 0x37f;
    state.fpu.status = 3 << 11;
    state.fpu.tags = 0xffff;
    for (n, ymm) in state.fpu.ymm.iter_mut().enumerate() {
        ymm[..2].copy_from_slice(&[n as u64, !(n as u64)]);
    }
    state.syscall.star = 0x0023_0010_0000_0000;
    state.syscall.lstar = 0xffff_8000_0000_1000;
    state.syscall.fmask = 0x4_7700;
    state.syscall.kernel_gs_base = 0xffff_8880_0000_0000;
    state.syscall.sysenter_cs = 0x10;
    state.pat = 0x0007_0406_0007_0406;
    state.mtrr.default_type = 0xc06;
    state.mtrr.variable[0] = (0xc000_0000, 0x3fff_c000_0800);
    state.dr = [0x1000, 0x2000, 0, 0];
    state.apic.svr = 0x1ff;
    state.apic.tpr = 0x20;
    state.apic.lvt[3] = 0x700;
    state.apic.irr[1] = 1 << 7;
    state.apic.isr[2] = 1 << 1;
    state
}

#[test]
fn a_state_comes_back_from_the_kernel() {
    let Some(mut vcpu) = vcpu(clock::Clock::stopped_at(1 << 30)) else {
        return;
    };
    let state = full();
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.state(), state);
    // Another one, in another mode, and back.
    let reset = VcpuState::after_reset(0);
    vcpu.set_state(&reset).unwrap();
    assert_eq!(vcpu.state(), reset);
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.state(), state);
}

#[test]
fn what_waits_comes_back_from_the_kernel() {
    let Some(mut vcpu) = vcpu(clock::Clock::stopped_at(0)) else {
        return;
    };
    let mut state = full();
    state.events.nmi_pending = true;
    state.events.sti_shadow = true;
    state.events.external_interrupt = true;
    state.activity = Activity::Halted;
    state.apic.lvt[0] = 0x2_0040;
    state.apic.divide = 0b1011;
    state.apic.initial_count = 1_000_000;
    state.apic.timer_deadline = Some(123_456);
    state.tsc_offset = 0x1234_5678_9abc;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.state(), state);
    state.events = x86::Events {
        exception: Some(Exception {
            vector: Vector::PageFault,
            error_code: 2,
            payload: state.cr2,
        }),
        ..x86::Events::default()
    };
    state.activity = Activity::WaitForSipi;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.state(), state);
}

#[test]
fn a_state_that_can_not_be_changes_nothing() {
    let Some(mut vcpu) = vcpu(clock::Clock::stopped_at(0)) else {
        return;
    };
    let state = full();
    vcpu.set_state(&state).unwrap();
    let mut wrong = state.clone();
    wrong.gpr[0] = 1;
    // Long mode without PAE.
    wrong.cr4 = Cr4::empty();
    let error = vcpu.set_state(&wrong).unwrap_err();
    assert!(error.to_string().contains("refuses"), "{error}");
    assert_eq!(vcpu.state(), state);
}
