//! Events on their way to the vCPU, in the kernel's form (`KVM_GET_VCPU_EVENTS`) and in ours.

use crate::apic;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_vcpu_events,
};
use x86::{Activity, Exception, VcpuState, Vector};

/// The bits of `interrupt.shadow`.
const SHADOW_SS: u8 = 1;
const SHADOW_STI: u8 = 2;

/// The exception with vector `number`, if there is one.
fn vector(number: u8) -> Option<Vector> {
    use Vector as V;
    [
        V::DivideError,
        V::Debug,
        V::Breakpoint,
        V::Overflow,
        V::BoundRange,
        V::InvalidOpcode,
        V::DeviceNotAvailable,
        V::DoubleFault,
        V::InvalidTss,
        V::SegmentNotPresent,
        V::StackFault,
        V::GeneralProtection,
        V::PageFault,
        V::X87,
        V::AlignmentCheck,
        V::MachineCheck,
        V::Simd,
    ]
    .into_iter()
    .find(|vector| *vector as u8 == number)
}

/// The events of `state`. What an exception does to CR2 and DR6 has to be done besides
/// ([`apply_payload`]): to the kernel it is about to be delivered.
pub(crate) fn events(state: &VcpuState) -> kvm_vcpu_events {
    let events = &state.events;
    let mut to = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    if let Some(exception) = events.exception {
        to.exception.injected = 1;
        to.exception.nr = exception.vector as u8;
        to.exception.has_error_code = exception.vector.has_error_code().into();
        to.exception.error_code = exception.error_code;
    }
    if let Some(vector) = events.interrupt {
        to.interrupt.injected = 1;
        to.interrupt.nr = vector;
    }
    to.interrupt.shadow = if events.ss_shadow { SHADOW_SS } else { 0 }
        | if events.sti_shadow { SHADOW_STI } else { 0 };
    to.nmi.pending = events.nmi_pending.into();
    to.nmi.masked = events.nmi_blocked.into();
    to
}

/// Does what the delivery of a waiting exception would do to CR2 and DR6.
pub(crate) fn apply_payload(state: &mut VcpuState) {
    match state.events.exception {
        Some(exception) if exception.vector == Vector::PageFault => state.cr2 = exception.payload,
        Some(exception) if exception.vector == Vector::Debug => state.dr6 |= exception.payload,
        _ => {}
    }
}

/// Takes the kernel's events over. The local APIC's registers are there already, as are CR2 and
/// DR6.
pub(crate) fn take_events(state: &mut VcpuState, from: &kvm_vcpu_events) {
    let kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        ..
    } = from;
    // INT3 and INTO are raised again when they are executed again: RIP is theirs.
    let is_soft = matches!(exception.nr, 3 | 4);
    let waits = (exception.injected | exception.pending) != 0 && !is_soft;
    state.events.exception = vector(exception.nr)
        .filter(|_| waits)
        .map(|vector| Exception {
            vector,
            error_code: if exception.has_error_code != 0 {
                exception.error_code
            } else {
                0
            },
            payload: match vector {
                Vector::PageFault => state.cr2,
                // DR6 has its bits already.
                _ => 0,
            },
        });
    // So is INT n.
    let injected = interrupt.injected != 0 && interrupt.soft == 0;
    state.events.interrupt =
        (injected && !apic::take_back(&mut state.apic, interrupt.nr)).then_some(interrupt.nr);
    state.events.ss_shadow = interrupt.shadow & SHADOW_SS != 0;
    state.events.sti_shadow = interrupt.shadow & SHADOW_STI != 0;
    // Masked only because it is about to be delivered: then it waits.
    state.events.nmi_pending = nmi.pending != 0 || nmi.injected != 0;
    state.events.nmi_blocked = nmi.masked != 0 && nmi.injected == 0;
}

/// What the vCPU does, as `KVM_SET_MP_STATE` has it. One that is shut down waits as one that waits
/// for a start-up IPI does; an INIT wakes it.
pub(crate) fn mp_state(activity: Activity) -> u32 {
    match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi | Activity::Shutdown => KVM_MP_STATE_INIT_RECEIVED,
    }
}

/// What a vCPU in `mp_state` does, with the vector of a start-up IPI that it is about to take.
pub(crate) fn activity(mp_state: u32, events: &kvm_vcpu_events) -> (Activity, Option<u8>) {
    match mp_state {
        KVM_MP_STATE_HALTED => (Activity::Halted, None),
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => (Activity::WaitForSipi, None),
        KVM_MP_STATE_SIPI_RECEIVED => (Activity::WaitForSipi, Some(events.sipi_vector as u8)),
        _ => (Activity::Running, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(state: &VcpuState) -> VcpuState {
        let mut copy = state.clone();
        copy.events = x86::Events::default();
        take_events(&mut copy, &events(state));
        copy
    }

    #[test]
    fn events_come_back_as_they_were() {
        let mut state = VcpuState::after_reset(0);
        state.events.nmi_pending = true;
        state.events.nmi_blocked = true;
        state.events.sti_shadow = true;
        state.events.interrupt = Some(8);
        assert_eq!(back(&state), state);
        state.events = x86::Events {
            ss_shadow: true,
            exception: Some(Exception {
                vector: Vector::PageFault,
                error_code: 2,
                payload: 0x1234,
            }),
            ..x86::Events::default()
        };
        apply_payload(&mut state);
        assert_eq!(state.cr2, 0x1234);
        assert_eq!(back(&state), state);
    }

    #[test]
    fn an_interrupt_of_the_apic_that_was_not_delivered_is_its_again() {
        let mut state = VcpuState::after_reset(0);
        state.apic.isr[1] = 1 << 3;
        let mut from = events(&state);
        (from.interrupt.injected, from.interrupt.nr) = (1, 0x23);
        take_events(&mut state, &from);
        assert_eq!(state.events.interrupt, None);
        assert_eq!((state.apic.isr[1], state.apic.irr[1]), (0, 1 << 3));
    }

    #[test]
    fn an_instruction_that_raises_is_executed_again() {
        let mut state = VcpuState::after_reset(0);
        let mut from = events(&state);
        (from.exception.injected, from.exception.nr) = (1, 3);
        take_events(&mut state, &from);
        assert_eq!(state.events.exception, None);
        from = events(&state);
        (
            from.interrupt.injected,
            from.interrupt.nr,
            from.interrupt.soft,
        ) = (1, 0x80, 1);
        take_events(&mut state, &from);
        assert_eq!(state.events.interrupt, None);
    }
}
