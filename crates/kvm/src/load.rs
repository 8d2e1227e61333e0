//! A vCPU's state into the kernel.

use crate::calls::VcpuCalls;
use crate::{apic, fpu, msrs, pending, registers};
use kvm_bindings::{kvm_xcr, kvm_xcrs};
use memory::GuestMemory;
use native::Features;
use state::Invalid;
use x86::{Activity, VcpuState};

/// What of a vCPU's making is in its registers.
pub(crate) struct Identity {
    /// APIC ID.
    pub(crate) id: u32,
    /// EAX of CPUID leaf 1, which is in EDX after INIT.
    pub(crate) signature: u32,
}

/// `state` as it is once an INIT and a start-up IPI that wait are taken: the kernel has no place for
/// them.
pub(crate) fn settled(state: &VcpuState, identity: &Identity) -> VcpuState {
    let mut state = state.clone();
    if state.events.init {
        let sipi = state.events.sipi;
        state.init();
        state.gpr[2] = identity.signature.into();
        state.events.sipi = sipi;
    }
    if let Some(vector) = state.events.sipi.take()
        && state.activity == Activity::WaitForSipi
    {
        state.start_up(vector);
    }
    // What is about to be delivered ends a halt; the kernel looks for what is only requested.
    let is_due = state.events.interrupt.is_some() || state.events.exception.is_some();
    if is_due && state.activity == Activity::Halted {
        state.activity = Activity::Running;
    }
    pending::apply_payload(&mut state);
    state
}

/// Gives the vCPU behind `calls`, which stands, the state `state`, but for what depends on time: the
/// APIC's timer stands.
///
/// The order matters: paging modes need EFER and CR4; the local APIC's registers need its mode;
/// what waits for delivery comes last, since nothing may be done to the vCPU after it.
///
/// # Errors
/// If the kernel refuses a part of it; the vCPU then has another part.
pub(crate) fn load(calls: &dyn VcpuCalls, state: &VcpuState) -> Result<(), Invalid> {
    let refused = |what: &'static str| {
        move |error: std::io::Error| {
            Invalid::new(format!("this host's KVM refuses {what}: {error}"))
        }
    };
    calls
        .set_sregs(&registers::special(state))
        .map_err(refused("the control and segment registers"))?;
    calls
        .set_regs(&registers::general(state))
        .map_err(refused("the general-purpose registers"))?;
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    xcrs.xcrs[0] = kvm_xcr {
        value: state.xcr0.bits(),
        ..kvm_xcr::default()
    };
    calls.set_xcrs(&xcrs).map_err(refused("XCR0"))?;
    calls
        .set_xsave(&fpu::area(&state.fpu, Features::host().avx))
        .map_err(refused("the vector registers"))?;
    msrs::load(calls, state)?;
    let mut page = calls.lapic().map_err(refused("the local APIC"))?;
    apic::write(&mut page, &state.apic);
    calls.set_lapic(&page).map_err(refused("the local APIC"))?;
    calls
        .set_debug_regs(&registers::debug(state))
        .map_err(refused("the debug registers"))?;
    calls
        .set_mp_state(pending::mp_state(state.activity))
        .map_err(refused("the vCPU's activity"))?;
    calls
        .set_events(&pending::events(state))
        .map_err(refused("the events that wait"))
}

/// Takes back an offer to end an interrupt without a write to EOI, which the engine that saved the
/// state made in guest memory: the kernel does not know of it.
pub(crate) fn withdraw_eoi_offer(memory: &GuestMemory, state: &VcpuState) {
    const ENABLED: u64 = 1;
    const OPEN: u8 = 1;
    let address = state.paravirt.pv_eoi & !ENABLED;
    if state.paravirt.pv_eoi & ENABLED != 0
        && let Ok(word) = memory.load::<u8>(address)
        && word & OPEN != 0
    {
        // It was RAM when the guest chose it.
        let _ = memory.store(address, word & !OPEN);
    }
}
