//! The seam to the kernel: every ioctl that the engine makes once its VM is there. Tests have a
//! kernel of their own, which records them.

use crate::run_page::RunPage;
use kvm_bindings::{
    kvm_debugregs, kvm_guest_debug, kvm_lapic_state, kvm_regs, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs,
};
use std::io::Result;
use std::sync::Arc;

/// The XSAVE area as the kernel exchanges it: the standard format, 4 KiB.
pub(crate) type XsaveArea = [u32; 1024];

/// A level-triggered message whose end somebody wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// The number under which the kernel keeps it.
    pub(crate) gsi: u32,
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// Ioctls on a VM. Any thread makes them.
pub(crate) trait VmCalls: Send + Sync {
    /// `KVM_SIGNAL_MSI`. Returns whether any vCPU took it.
    fn signal_msi(&self, address: u64, data: u32) -> Result<bool>;
    /// `KVM_SET_GSI_ROUTING`: replaces all routes.
    fn set_routes(&self, routes: &[Route]) -> Result<()>;
    /// `KVM_GET_CLOCK`: kvmclock's time, in nanoseconds.
    fn clock(&self) -> Result<u64>;
    /// `KVM_SET_CLOCK`.
    fn set_clock(&self, nanos: u64) -> Result<()>;
}

/// Ioctls on a vCPU. The thread that runs it makes them, or its owner while it stands.
pub(crate) trait VcpuCalls: Send + Sync {
    /// The page that `KVM_RUN` answers in.
    fn page(&self) -> &Arc<RunPage>;
    /// `KVM_RUN`.
    fn run(&self) -> Result<()>;
    /// `KVM_RUN` that returns at once but for what it has to do on its way to the guest: an
    /// interrupt that was given is about to be delivered then.
    fn run_up_to_guest(&self) -> Result<()>;
    /// `KVM_INTERRUPT`: the PIC's interrupt.
    fn interrupt(&self, vector: u8) -> Result<()>;
    /// `KVM_NMI`.
    fn nmi(&self) -> Result<()>;
    /// `KVM_GET_REGS`.
    fn regs(&self) -> Result<kvm_regs>;
    /// `KVM_SET_REGS`.
    fn set_regs(&self, regs: &kvm_regs) -> Result<()>;
    /// `KVM_GET_SREGS2`.
    fn sregs(&self) -> Result<kvm_sregs2>;
    /// `KVM_SET_SREGS2`.
    fn set_sregs(&self, sregs: &kvm_sregs2) -> Result<()>;
    /// `KVM_GET_XSAVE`.
    fn xsave(&self) -> Result<XsaveArea>;
    /// `KVM_SET_XSAVE`.
    fn set_xsave(&self, area: &XsaveArea) -> Result<()>;
    /// `KVM_GET_XCRS`.
    fn xcrs(&self) -> Result<kvm_xcrs>;
    /// `KVM_SET_XCRS`.
    fn set_xcrs(&self, xcrs: &kvm_xcrs) -> Result<()>;
    /// `KVM_GET_DEBUGREGS`.
    fn debug_regs(&self) -> Result<kvm_debugregs>;
    /// `KVM_SET_DEBUGREGS`.
    fn set_debug_regs(&self, regs: &kvm_debugregs) -> Result<()>;
    /// `KVM_GET_LAPIC`.
    fn lapic(&self) -> Result<kvm_lapic_state>;
    /// `KVM_SET_LAPIC`.
    fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<()>;
    /// `KVM_GET_VCPU_EVENTS`.
    fn events(&self) -> Result<kvm_vcpu_events>;
    /// `KVM_SET_VCPU_EVENTS`.
    fn set_events(&self, events: &kvm_vcpu_events) -> Result<()>;
    /// `KVM_GET_MP_STATE`.
    fn mp_state(&self) -> Result<u32>;
    /// `KVM_SET_MP_STATE`.
    fn set_mp_state(&self, state: u32) -> Result<()>;
    /// `KVM_GET_MSRS` of one.
    fn msr(&self, number: u32) -> Result<u64>;
    /// `KVM_SET_MSRS` of one.
    fn set_msr(&self, number: u32, value: u64) -> Result<()>;
    /// The guest's TSC less the host's, scaled: `KVM_VCPU_TSC_OFFSET`.
    fn tsc_offset(&self) -> Result<u64>;
    /// Sets it.
    fn set_tsc_offset(&self, offset: u64) -> Result<()>;
    /// `KVM_SET_GUEST_DEBUG`.
    fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()>;
    /// `KVM_TRANSLATE`: the guest-physical address behind a linear one.
    fn translate(&self, linear: u64) -> Result<Option<u64>>;
}
