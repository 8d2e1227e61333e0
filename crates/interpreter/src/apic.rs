//! The vCPU's local APIC in its place: mail, timer, register page and MSRs, the PIC's line.

use crate::cpu::Cpu;
use crate::shared::Shared;
use engine::{Event, Kinds};
use lapic::{Effect, GeneralProtection, Message, Tsc};
use x86::cpuid::Feature;
use x86::{Activity, ApicState, SegmentRegister, Selector};

const PAGE: u64 = 0xfff;

impl Cpu {
    /// The guest's time-stamp counter.
    fn tsc_clock(&self) -> Tsc {
        Tsc {
            khz: self.shared.tsc_khz,
            offset: self.tsc_offset,
        }
    }

    /// The time-stamp counter at machine time `now`.
    pub(crate) fn tsc_at(&self, now: u64) -> u64 {
        self.tsc_clock().at(now)
    }

    /// WRMSR to IA32_TSC.
    pub(crate) fn write_tsc(&mut self, value: u64) {
        self.move_tsc(value.wrapping_sub(self.tsc()));
    }

    /// Moves the counter on by `ticks`, and IA32_TSC_ADJUST with it (SDM vol. 3, 18.17.3).
    pub(crate) fn move_tsc(&mut self, ticks: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(ticks);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(ticks);
        self.write_clock_page();
        self.attend_to_apic();
    }

    /// An access to the local APIC's page; `None` if `gpa` is elsewhere.
    pub(crate) fn apic_access(
        &mut self,
        gpa: u64,
        bytes: usize,
        write: Option<u64>,
    ) -> Option<u64> {
        self.apic_page(gpa)?;
        self.settle_eoi();
        let now = self.shared.clock.now();
        let offset = gpa & PAGE;
        let Some(value) = write else {
            // Registers are 32 bits wide; narrower reads see a part of one.
            let register = u64::from(self.lapic.read(offset & !3, now));
            let shifted = register >> (8 * (offset & 3));
            return Some(shifted & u64::MAX >> (64 - 8 * bytes.min(8)));
        };
        // SDM vol. 3, 11.4.1: other writes than of 32 bits are undefined; they are lost.
        if bytes == 4 {
            let effect = self.lapic.write(offset, value as u32, now);
            self.apply(effect);
        }
        Some(0)
    }

    /// `gpa`, if it is in the local APIC's page.
    pub(crate) fn apic_page(&self, gpa: u64) -> Option<u64> {
        (self.lapic.page() == Some(gpa & !PAGE)).then_some(gpa)
    }

    /// Makes the next block boundary look at everything, the APIC's timer too: its deadline may have
    /// moved.
    fn attend_to_apic(&mut self) {
        self.apic_touched = true;
        self.attend();
    }

    /// RDMSR of an x2APIC register.
    pub(crate) fn read_x2apic(&mut self, number: u32) -> Result<u64, GeneralProtection> {
        self.settle_eoi();
        self.lapic.read_msr(number, self.shared.clock.now())
    }

    /// WRMSR to an x2APIC register.
    pub(crate) fn write_x2apic(
        &mut self,
        number: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        self.settle_eoi();
        let now = self.shared.clock.now();
        let effect = self.lapic.write_msr(number, value, now)?;
        self.apply(effect);
        Ok(())
    }

    /// WRMSR to IA32_APIC_BASE.
    pub(crate) fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        const X2APIC: u64 = 1 << 10;
        if value & X2APIC != 0 && !self.model.has(Feature::X2Apic) {
            return Err(GeneralProtection);
        }
        self.settle_eoi();
        self.lapic.set_base(value)?;
        // The page has moved.
        self.tlb.flush();
        self.attend_to_apic();
        Ok(())
    }

    /// RDMSR of IA32_TSC_DEADLINE.
    pub(crate) fn tsc_deadline(&mut self) -> u64 {
        self.advance_apic(self.shared.clock.now());
        self.lapic.tsc_deadline()
    }

    /// WRMSR to IA32_TSC_DEADLINE.
    pub(crate) fn set_tsc_deadline(&mut self, deadline: u64) {
        self.lapic.set_tsc_deadline(deadline);
        self.attend_to_apic();
    }

    /// Does what a register write asks for.
    fn apply(&mut self, effect: Effect) {
        self.attend_to_apic();
        match effect {
            Effect::None => {}
            Effect::Message(message) => self.shared.send(&message, Some(self.index)),
            Effect::EndOfInterrupt(vector) => {
                let platform = self.platform();
                self.mailbox.set_running(false);
                platform.end_of_interrupt(vector);
                self.stand_up();
            }
        }
    }

    /// Moves the APIC's timer on to machine time `now`.
    pub(crate) fn advance_apic(&mut self, now: u64) {
        self.lapic.advance(now, self.tsc_clock());
        self.settle_eoi();
    }

    /// Machine time at which the APIC's timer has something to do.
    pub(crate) fn next_apic_deadline(&self, now: u64) -> Option<u64> {
        self.lapic.next_deadline(now, self.tsc_clock())
    }

    /// Takes in what came to the inbox.
    pub(crate) fn take_interrupts(&mut self) {
        let requests = self.lapic.take_inbox();
        self.nmi_pending |= requests.nmi;
        if requests.init {
            self.emit(Kinds::INTERRUPTS, || Event::Signal("INIT"));
            self.init();
        }
        if let Some(vector) = requests.start_up
            && self.activity == Activity::WaitForSipi
        {
            self.emit(Kinds::INTERRUPTS, || Event::Signal("start-up IPI"));
            self.start_up(vector);
        }
        self.settle_eoi();
    }

    /// A start-up IPI (SDM vol. 3, 10.4.4).
    fn start_up(&mut self, vector: u8) {
        let cs = &mut self.segments[SegmentRegister::Cs as usize];
        cs.selector = Selector(u16::from(vector) << 8);
        cs.base = u64::from(vector) << 12;
        self.rip = 0;
        self.activity = Activity::Running;
        self.segments_changed();
    }

    /// Acknowledges the interrupt to be delivered now, if there is one: the PIC's before the
    /// APIC's own.
    pub(crate) fn acknowledge_interrupt(&mut self) -> Option<u8> {
        if self.lapic.external_interrupt() {
            let platform = self.platform();
            self.mailbox.set_running(false);
            let vector = platform.acknowledge_external();
            self.stand_up();
            return Some(vector);
        }
        self.lapic.pending()?;
        let vector = self.lapic.acknowledge();
        self.offer_eoi();
        Some(vector)
    }

    /// Whether there is an interrupt to be delivered when RFLAGS.IF allows it.
    pub(crate) fn interrupt_waits(&self) -> bool {
        self.lapic.external_interrupt() || self.lapic.pending().is_some()
    }

    /// The local APIC's registers: an end of interrupt that the guest left in memory has happened.
    pub(crate) fn apic_state(&self) -> ApicState {
        let mut state = self.lapic.state();
        if self.eoi_offered
            && !self.eoi_is_open()
            && let Some(vector) = self.lapic.in_service()
        {
            state.isr[usize::from(vector / 32)] &= !(1 << (vector % 32));
        }
        state
    }
}

impl Shared {
    /// Sends `message` to the local APICs that it is for.
    pub(crate) fn send(&self, message: &Message, source: Option<usize>) {
        lapic::send(&self.inboxes, message, source, |index| self.notify(index));
    }

    /// A write of `data` to `address` on the interrupt bus; others are lost.
    pub(crate) fn send_message(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.send(&message, None);
        }
    }

    /// Drives LINT0 of the boot processor.
    pub(crate) fn set_external_interrupt(&self, high: bool) {
        if self
            .inboxes
            .first()
            .is_some_and(|inbox| inbox.set_external(high))
        {
            self.notify(0);
        }
    }

    /// An NMI for vCPU `index`.
    pub(crate) fn send_nmi(&self, index: usize) {
        if self.inboxes[index].post_nmi() {
            self.notify(index);
        }
    }
}
