//! KVM's paravirtual interface (Linux, Documentation/virt/kvm/x86/msr.rst): kvmclock, the wall
//! clock, and interrupts that end without a write to EOI.
//!
//! Machine time and the TSC stand still together while the machine is paused, so kvmclock's page
//! stays true over a pause and needs no word of it: the flag `PVCLOCK_GUEST_STOPPED`, which keeps a
//! guest's watchdogs quiet when its clock has jumped, is never set. Its reference point is machine time 0, so
//! that the page of every vCPU with the same TSC is the same.

use crate::cpu::Cpu;
use clock::{Clock, NANOS_PER_SECOND};

/// An MSR's enable bit; the rest is an address.
const ENABLED: u64 = 1;
/// Flag of kvmclock's page: the TSC is the same on all vCPUs.
const TSC_STABLE: u8 = 1;
/// Bit of the paravirtual EOI word: the interrupt needs no write to EOI.
const EOI_OPEN: u8 = 1;

/// Nanoseconds from ticks: `(ticks << shift) * multiplier >> 32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scale {
    multiplier: u32,
    shift: i8,
}

impl Scale {
    /// For a counter of `hz`, with as many bits of precision as fit.
    fn of(hz: u64) -> Self {
        let mut shift = 0;
        loop {
            let multiplier = (u128::from(NANOS_PER_SECOND) << 32 >> shift) / u128::from(hz.max(1));
            // A frequency below 1 Hz over 2^31 does not exist: `shift` stays small.
            if let Ok(multiplier) = u32::try_from(multiplier) {
                return Self { multiplier, shift };
            }
            shift += 1;
        }
    }
}

/// kvmclock's page: `struct pvclock_vcpu_time_info`, after the version.
fn clock_page(tsc_at_zero: u64, scale: Scale) -> [u8; 28] {
    let mut page = [0; 28];
    page[4..12].copy_from_slice(&tsc_at_zero.to_le_bytes());
    // Bytes 12 to 19: system time at that point, 0.
    page[20..24].copy_from_slice(&scale.multiplier.to_le_bytes());
    page[24] = scale.shift as u8;
    page[25] = TSC_STABLE;
    page
}

impl Cpu {
    /// Whether `gpa` is an address for a word of `len` bytes that the host writes.
    fn is_ram(&self, gpa: u64, len: usize) -> bool {
        self.memory
            .region(gpa)
            .is_some_and(|r| r.kind == memory::Kind::Ram)
            && self.memory.offset(gpa, len).is_ok()
    }

    /// Writes `body` behind a version number that is odd while it changes.
    fn write_versioned(&self, gpa: u64, body: &[u8]) {
        use std::sync::atomic::{Ordering, fence};
        let Ok(version) = self.memory.load::<u32>(gpa) else {
            return;
        };
        let version = version & !1;
        // The page was RAM when it was chosen, and RAM does not go away.
        let _ = self.memory.store(gpa, version.wrapping_add(1));
        fence(Ordering::SeqCst);
        let _ = self.memory.write(gpa + 4, body);
        fence(Ordering::SeqCst);
        let _ = self.memory.store(gpa, version.wrapping_add(2));
    }

    /// WRMSR to MSR_KVM_WALL_CLOCK_NEW: writes the wall-clock time of machine time 0. Returns
    /// whether the address is one.
    pub(crate) fn set_wall_clock(&mut self, value: u64) -> bool {
        const LEN: usize = 12;
        if value & 3 != 0 || !self.is_ram(value, LEN) {
            return false;
        }
        self.paravirt.wall_clock = value;
        let zero = Clock::wall_nanos().saturating_sub(self.shared.clock.now());
        let seconds = (zero / NANOS_PER_SECOND) as u32;
        let nanos = (zero % NANOS_PER_SECOND) as u32;
        let mut body = [0; LEN - 4];
        body[..4].copy_from_slice(&seconds.to_le_bytes());
        body[4..].copy_from_slice(&nanos.to_le_bytes());
        self.write_versioned(value, &body);
        true
    }

    /// WRMSR to MSR_KVM_SYSTEM_TIME_NEW. Returns whether the address is one.
    pub(crate) fn set_system_time(&mut self, value: u64) -> bool {
        const LEN: usize = 32;
        let gpa = value & !ENABLED;
        if value & ENABLED != 0 && (gpa & 3 != 0 || !self.is_ram(gpa, LEN)) {
            return false;
        }
        self.paravirt.system_time = value;
        self.write_clock_page();
        true
    }

    /// Writes kvmclock's page, if the guest has one.
    pub(crate) fn write_clock_page(&mut self) {
        self.clock_page_stale = false;
        let value = self.paravirt.system_time;
        if value & ENABLED != 0 {
            let scale = Scale::of(self.shared.tsc_khz.saturating_mul(1000));
            self.write_versioned(value & !ENABLED, &clock_page(self.tsc_offset, scale));
        }
    }

    /// WRMSR to MSR_KVM_PV_EOI_EN. Returns whether the address is one.
    pub(crate) fn set_paravirtual_eoi(&mut self, value: u64) -> bool {
        let gpa = value & !ENABLED;
        if value & ENABLED != 0 && (gpa & 3 != 0 || !self.is_ram(gpa, 4)) {
            return false;
        }
        self.settle_eoi();
        if self.eoi_offered {
            self.write_eoi_word(0);
            self.eoi_offered = false;
        }
        self.paravirt.pv_eoi = value;
        true
    }

    /// Whether the guest has not taken the offer to end the interrupt in service.
    pub(crate) fn eoi_is_open(&self) -> bool {
        let gpa = self.paravirt.pv_eoi & !ENABLED;
        self.memory
            .load::<u8>(gpa)
            .is_ok_and(|word| word & EOI_OPEN != 0)
    }

    fn write_eoi_word(&self, word: u8) {
        let gpa = self.paravirt.pv_eoi & !ENABLED;
        let _ = self.memory.store(gpa, word);
    }

    /// An interrupt of the APIC is being delivered: says whether it needs a write to EOI.
    pub(crate) fn offer_eoi(&mut self) {
        if self.paravirt.pv_eoi & ENABLED == 0 {
            return;
        }
        self.eoi_offered = self.lapic.may_skip_eoi();
        self.write_eoi_word(u8::from(self.eoi_offered));
    }

    /// Takes in an end of interrupt that the guest left in memory; and withdraws the offer when
    /// another interrupt waits for the end. To be called before the APIC's priorities count.
    #[inline]
    pub(crate) fn settle_eoi(&mut self) {
        if self.eoi_offered {
            self.settle_offered_eoi();
        }
    }

    fn settle_offered_eoi(&mut self) {
        if !self.eoi_is_open() {
            self.eoi_offered = false;
            // Only edge-triggered interrupts are offered: no I/O APIC waits for it.
            let _ = self.lapic.end_of_interrupt();
        } else if !self.lapic.may_skip_eoi() {
            self.eoi_offered = false;
            self.write_eoi_word(0);
        }
    }

    /// After a restore: an offer that is open in guest memory still stands.
    pub(crate) fn offer_restored_eoi(&mut self) {
        self.eoi_offered = self.paravirt.pv_eoi & ENABLED != 0
            && self.lapic.in_service().is_some()
            && self.eoi_is_open();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvmclock_is_machine_time_within_a_nanosecond_per_second() {
        for khz in [1_000, 999_999, 1_000_000, 2_649_998, 5_000_000] {
            let hz = khz * 1000;
            let scale = Scale::of(hz);
            for seconds in [1, 3600, 86_400 * 365] {
                let nanos = seconds * NANOS_PER_SECOND;
                let ticks = u128::from(clock::ticks(nanos, hz));
                let shown = ((ticks << scale.shift) * u128::from(scale.multiplier)) >> 32;
                let error = u128::from(nanos).abs_diff(shown);
                assert!(
                    error <= 2 * u128::from(seconds) + 1000,
                    "{khz} kHz: {error} ns in {seconds} s"
                );
            }
        }
    }
}
