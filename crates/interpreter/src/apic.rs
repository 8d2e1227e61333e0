//! The vCPU's local APIC in its place: mail, timer, page.

use crate::cpu::Cpu;
use crate::shared::Shared;

impl Cpu {
    /// The local APIC's registers, as the guest means them.
    pub(crate) fn apic_state(&self) -> x86::ApicState {
        self.lapic.state()
    }
    pub(crate) fn offer_restored_eoi(&mut self) {}
    pub(crate) fn apic_access(
        &mut self,
        _gpa: u64,
        _bytes: usize,
        _write: Option<u64>,
    ) -> Option<u64> {
        None
    }
    pub(crate) fn apic_page(&self, _gpa: u64) -> Option<u64> {
        None
    }
    pub(crate) fn advance_apic(&mut self, _now: u64) {}
    pub(crate) fn next_apic_deadline(&self) -> Option<u64> {
        None
    }
    pub(crate) fn take_interrupts(&mut self) {}
    pub(crate) fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    pub(crate) fn interrupt_waits(&self) -> bool {
        false
    }
}

impl Shared {
    pub(crate) fn send_message(&self, _address: u64, _data: u32) {}
    pub(crate) fn set_external_interrupt(&self, _high: bool) {}
    pub(crate) fn send_nmi(&self, _index: usize) {}
}
