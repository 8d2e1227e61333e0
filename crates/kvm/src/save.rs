//! A vCPU's state out of the kernel.

use crate::calls::VcpuCalls;
use crate::time::VcpuTime;
use crate::{apic, fpu, msrs, pending, registers};
use std::io::Result;
use x86::{VcpuState, Xcr0, msr};

/// The state of the vCPU behind `calls`, which stands. `kept` has what the kernel does not keep.
///
/// # Errors
/// If the kernel refuses one of the calls that every KVM has.
pub(crate) fn save(
    calls: &dyn VcpuCalls,
    kept: &VcpuState,
    time: &VcpuTime,
    external_interrupt: bool,
) -> Result<VcpuState> {
    let mut state = kept.clone();
    // First, since with it the kernel takes in what changes registers: INIT and start-up IPIs.
    let mp_state = calls.mp_state()?;
    registers::take_general(&mut state, &calls.regs()?);
    registers::take_special(&mut state, &calls.sregs()?);
    registers::take_debug(&mut state, &calls.debug_regs()?);
    state.fpu = fpu::from_area(&calls.xsave()?);
    let xcrs = calls.xcrs()?;
    if let Some(xcr0) = xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize]
        .iter()
        .find(|register| register.xcr == 0)
    {
        state.xcr0 = Xcr0::from_bits_retain(xcr0.value);
    }
    msrs::save(calls, &mut state);
    if let Ok(address) = calls.msr(msr::KVM_WALL_CLOCK)
        && address != 0
    {
        state.paravirt.wall_clock = address;
    }
    apic::read(&mut state.apic, &calls.lapic()?);
    state.apic.initial_count = time.initial_count;
    state.apic.timer_deadline = time.deadline;
    state.apic.tsc_deadline = time.tsc_deadline;
    state.tsc_offset = time.tsc_offset;
    let events = calls.events()?;
    pending::take_events(&mut state, &events);
    (state.activity, state.events.sipi) = pending::activity(mp_state, &events);
    state.events.init = false;
    state.events.external_interrupt = external_interrupt;
    Ok(state)
}
