//! The registers of one local APIC, as its vCPU sees them.

use crate::inbox::{Inbox, Requests, logical_x2apic_id};
use crate::message::Message;
use crate::spec::{
    DFR_ONES, DIVIDE_WRITABLE, LDR_WRITABLE, VECTOR_MIN, VERSION, base, esr, icr, lvt, register,
    svr,
};
use crate::timer::{self, Tsc};
use state::Invalid;
use std::sync::Arc;
use x86::{ApicState, msr};

/// What a register write asks of the world outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// [`crate::send`] this, with the writer as the source.
    Message(Message),
    /// A level-triggered interrupt with this vector has ended: tell the I/O APICs.
    EndOfInterrupt(u8),
}

/// The access raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

impl std::fmt::Display for GeneralProtection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("general protection")
    }
}

impl std::error::Error for GeneralProtection {}

/// A local APIC, owned by the thread of its vCPU.
///
/// Times are machine time in nanoseconds. Call [`Lapic::advance`] and [`Lapic::take_inbox`]
/// before asking for interrupts.
#[derive(Debug)]
pub struct Lapic {
    registers: ApicState,
    inbox: Arc<Inbox>,
    /// Width of physical addresses in bits, which bounds IA32_APIC_BASE.
    physical_bits: u32,
}

impl Lapic {
    /// The local APIC with `id` after power-on, of a processor with `physical_bits` of physical
    /// address. The one with ID 0 is the boot processor's.
    pub fn new(id: u32, physical_bits: u32) -> Self {
        let lapic = Self {
            registers: ApicState::after_reset(id),
            inbox: Inbox::new(id),
            physical_bits,
        };
        lapic.inbox.publish(&lapic.registers);
        lapic
    }

    /// The shared side, for senders.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Returns to the state after power-on. Requests that wait are void; the level of LINT0 is
    /// as its driver says.
    pub fn reset(&mut self) {
        self.registers = ApicState::after_reset(self.registers.id);
        self.inbox.clear_interrupts();
        self.inbox.take_requests();
        self.inbox.publish(&self.registers);
    }

    /// INIT: like a reset, but mode and base address stay (SDM vol. 3, 11.4.7.3, 11.12.5.1).
    pub fn init(&mut self) {
        let base = self.registers.base;
        self.registers = ApicState {
            base,
            ..ApicState::after_reset(self.registers.id)
        };
        self.inbox.clear_interrupts();
        self.inbox.publish(&self.registers);
    }

    /// What a PC's firmware leaves behind: enabled, the PIC's interrupts through LINT0, NMI
    /// through LINT1 (virtual wire mode, MultiProcessor Specification 1.4, 3.6.2.2).
    pub fn set_virtual_wire_mode(&mut self) {
        self.registers.svr = svr::ENABLE | 0xff;
        self.registers.lvt[lvt::LINT0] = lvt::MODE_EXTINT << lvt::MODE_SHIFT;
        self.registers.lvt[lvt::LINT1] = lvt::MODE_NMI << lvt::MODE_SHIFT;
        self.inbox.publish(&self.registers);
    }

    #[inline]
    fn is_present(&self) -> bool {
        self.registers.base & base::ENABLE != 0
    }

    #[inline]
    fn is_x2apic(&self) -> bool {
        self.registers.base & base::X2APIC != 0
    }

    /// The guest-physical page where the registers are, if they are in memory.
    #[inline]
    pub fn page(&self) -> Option<u64> {
        (self.is_present() && !self.is_x2apic())
            .then_some(self.registers.base >> base::ADDRESS_SHIFT << base::ADDRESS_SHIFT)
    }
}

/// Interrupts.
impl Lapic {
    /// Takes in what came to the inbox and returns what is not an interrupt. Cheap if nothing
    /// came.
    #[inline]
    pub fn take_inbox(&mut self) -> Requests {
        if self.inbox.take_news() {
            self.take_items()
        } else {
            Requests::default()
        }
    }

    fn take_items(&mut self) -> Requests {
        for word in 0..8 {
            let (irr, tmr) = self.inbox.take_interrupts(word);
            self.registers.irr[word] |= irr;
            self.registers.tmr[word] = self.registers.tmr[word] & !irr | tmr;
        }
        let mut requests = self.inbox.take_requests();
        if self.inbox.take_external_edge() {
            requests.nmi |= self.raise_lint0();
        }
        match self.inbox.take_errors() {
            0 => {}
            errors => self.record_error(errors),
        }
        requests
    }

    /// LINT0 has risen. Returns whether it is an NMI. In ExtINT mode its level counts.
    fn raise_lint0(&mut self) -> bool {
        let entry = self.registers.lvt[lvt::LINT0];
        if !self.is_present() || entry & lvt::MASKED != 0 {
            return false;
        }
        match entry >> lvt::MODE_SHIFT & 7 {
            lvt::MODE_FIXED => {
                self.accept(entry as u8);
                false
            }
            mode => mode == lvt::MODE_NMI,
        }
    }

    /// Whether NMI at LINT1 reaches the processor: masked only if the APIC says so.
    pub fn passes_nmi(&self) -> bool {
        let entry = self.registers.lvt[lvt::LINT1];
        !self.is_present()
            || entry & lvt::MASKED == 0 && entry >> lvt::MODE_SHIFT & 7 == lvt::MODE_NMI
    }

    /// Whether the PIC interrupts: its line is high and LINT0 passes it on, or there is no local
    /// APIC in the way.
    #[inline]
    pub fn external_interrupt(&self) -> bool {
        self.inbox.external() && self.passes_external()
    }

    fn passes_external(&self) -> bool {
        let entry = self.registers.lvt[lvt::LINT0];
        !self.is_present()
            || entry & lvt::MASKED == 0 && entry >> lvt::MODE_SHIFT & 7 == lvt::MODE_EXTINT
    }

    /// The interrupt to deliver next: the highest request, if its class is above the
    /// processor's priority (11.8.3.1).
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = highest(&self.registers.irr)?;
        (self.is_present() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Takes the pending interrupt into service and returns its vector; with none, the spurious
    /// vector, and nothing is in service (11.9).
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.pending() else {
            return self.registers.svr as u8;
        };
        let (word, bit) = place(vector);
        self.registers.irr[word] &= !bit;
        self.registers.isr[word] |= bit;
        vector
    }

    /// The interrupt that is served now.
    pub fn in_service(&self) -> Option<u8> {
        highest(&self.registers.isr)
    }

    /// Whether the interrupt served now may end without a write to EOI (KVM's paravirtual EOI):
    /// no I/O APIC waits for it, and its end lets no other one through.
    pub fn may_skip_eoi(&self) -> bool {
        let Some(vector) = self.in_service() else {
            return false;
        };
        let (word, bit) = place(vector);
        self.registers.tmr[word] & bit == 0
            && highest(&self.registers.irr).is_none_or(|waiting| {
                let mut others = self.registers.isr;
                others[word] &= !bit;
                waiting >> 4 <= priority(self.registers.tpr, &others) >> 4
            })
    }

    /// A write to EOI.
    pub fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service() else {
            return Effect::None;
        };
        let (word, bit) = place(vector);
        self.registers.isr[word] &= !bit;
        let is_level = self.registers.tmr[word] & bit != 0;
        if is_level && self.registers.svr & svr::SUPPRESS_BROADCAST == 0 {
            Effect::EndOfInterrupt(vector)
        } else {
            Effect::None
        }
    }

    /// Processor priority (11.8.3.1).
    fn processor_priority(&self) -> u8 {
        priority(self.registers.tpr, &self.registers.isr)
    }

    /// CR8: the task-priority class.
    #[inline]
    pub fn cr8(&self) -> u8 {
        self.registers.tpr >> 4
    }

    /// MOV to CR8.
    ///
    /// # Errors
    /// If a reserved bit is set.
    #[inline]
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > 0xf {
            return Err(GeneralProtection);
        }
        self.set_tpr((value as u8) << 4);
        Ok(())
    }

    fn set_tpr(&mut self, tpr: u8) {
        self.registers.tpr = tpr;
        self.inbox.publish_priority(tpr);
    }

    /// An edge-triggered interrupt of its own.
    fn accept(&mut self, vector: u8) {
        if vector < VECTOR_MIN {
            self.record_error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        let (word, bit) = place(vector);
        self.registers.irr[word] |= bit;
        self.registers.tmr[word] &= !bit;
    }

    /// An error was detected (11.5.3).
    fn record_error(&mut self, errors: u32) {
        let new = errors & !self.registers.esr_pending;
        self.registers.esr_pending |= errors;
        let entry = self.registers.lvt[lvt::ERROR];
        if new == 0 || entry & lvt::MASKED != 0 {
            return;
        }
        if (entry as u8) < VECTOR_MIN {
            self.registers.esr_pending |= esr::RECEIVE_ILLEGAL_VECTOR;
        } else {
            self.accept(entry as u8);
        }
    }
}

/// The timer.
impl Lapic {
    /// Machine time at which [`Lapic::advance`] has something to do.
    #[inline]
    pub fn next_deadline(&self, now: u64, tsc: Tsc) -> Option<u64> {
        timer::next_deadline(&self.registers, now, tsc)
    }

    /// Moves the timer on to `now`.
    pub fn advance(&mut self, now: u64, tsc: Tsc) {
        let entry = self.registers.lvt[lvt::TIMER];
        if timer::advance(&mut self.registers, now, tsc) && entry & lvt::MASKED == 0 {
            self.accept(entry as u8);
        }
    }

    /// RDMSR of IA32_TSC_DEADLINE: 0 unless armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.registers.tsc_deadline
    }

    /// WRMSR to IA32_TSC_DEADLINE: arms, or disarms by 0. Without effect in other modes.
    pub fn set_tsc_deadline(&mut self, deadline: u64) {
        if timer::Mode::of(&self.registers) == timer::Mode::TscDeadline {
            self.registers.tsc_deadline = deadline;
        }
    }
}

/// Register accesses.
impl Lapic {
    /// Reads 32 bits at `offset` in the page. Only multiples of 16 hold registers (11.4.1); the
    /// rest reads as 0.
    pub fn read(&mut self, offset: u64, now: u64) -> u32 {
        if self.page().is_none() || offset & 0xf != 0 || offset >= 0x1000 {
            return 0;
        }
        let number = (offset >> 4) as u32;
        match number {
            register::ID => self.registers.id << 24,
            register::APR => self.processor_priority().into(),
            register::LDR => self.registers.ldr,
            register::DFR => self.registers.dfr,
            register::RRD => 0,
            register::EOI => 0,
            register::ICR => self.registers.icr as u32,
            register::ICR_HIGH => (self.registers.icr >> 32) as u32,
            _ => self.read_common(number, now).unwrap_or_else(|| {
                self.record_error(esr::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes 32 bits at `offset` in the page.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) -> Effect {
        if self.page().is_none() || offset & 0xf != 0 || offset >= 0x1000 {
            return Effect::None;
        }
        match (offset >> 4) as u32 {
            // The ID is wired; the others can only be read.
            register::ID | register::VERSION | register::APR | register::PPR => {}
            register::RRD | register::CURRENT_COUNT => {}
            register::ISR..=register::IRR_LAST => {}
            register::TPR => self.set_tpr(value as u8),
            register::EOI => return self.end_of_interrupt(),
            register::LDR => {
                self.registers.ldr = value & LDR_WRITABLE;
                self.inbox.publish(&self.registers);
            }
            register::DFR => {
                self.registers.dfr = value | DFR_ONES;
                self.inbox.publish(&self.registers);
            }
            register::SVR => self.set_svr(value & svr::WRITABLE),
            register::ESR => self.latch_errors(),
            register::ICR => {
                let high = self.registers.icr >> 32 << 32;
                return self.command(high | u64::from(value & icr::WRITABLE_LOW));
            }
            register::ICR_HIGH => {
                let low = self.registers.icr & 0xffff_ffff;
                self.registers.icr = u64::from(value & 0xff00_0000) << 32 | low;
            }
            number @ register::LVT..=register::LVT_LAST => {
                self.set_lvt((number - register::LVT) as usize, value);
            }
            register::INITIAL_COUNT => timer::start(&mut self.registers, value, now),
            register::DIVIDE => {
                timer::set_divide(&mut self.registers, value & DIVIDE_WRITABLE, now);
            }
            _ => self.record_error(esr::ILLEGAL_REGISTER),
        }
        Effect::None
    }

    /// RDMSR of an x2APIC register, 0x800 to 0x8ff (table 11-6).
    ///
    /// # Errors
    /// If the APIC is not in x2APIC mode, or there is no such register to read.
    pub fn read_msr(&mut self, number: u32, now: u64) -> Result<u64, GeneralProtection> {
        match self.x2apic_register(number)? {
            register::ID => Ok(self.registers.id.into()),
            register::LDR => Ok(logical_x2apic_id(self.registers.id).into()),
            register::ICR => Ok(self.registers.icr),
            number => self
                .read_common(number, now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// WRMSR to an x2APIC register.
    ///
    /// # Errors
    /// If the APIC is not in x2APIC mode, there is no such register to write, or a reserved bit
    /// is set.
    pub fn write_msr(
        &mut self,
        number: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, GeneralProtection> {
        match self.x2apic_register(number)? {
            register::TPR => self.set_tpr(checked(value, 0xff)? as u8),
            register::EOI => {
                checked(value, 0)?;
                return Ok(self.end_of_interrupt());
            }
            register::SVR => self.set_svr(checked(value, svr::WRITABLE)?),
            register::ESR => {
                checked(value, 0)?;
                self.latch_errors();
            }
            register::ICR => {
                checked(value & 0xffff_ffff, icr::WRITABLE_LOW)?;
                return Ok(self.command(value));
            }
            number @ register::LVT..=register::LVT_LAST => {
                let index = (number - register::LVT) as usize;
                let entry = checked(value, lvt::WRITABLE[index] | lvt::READ_ONLY)?;
                self.set_lvt(index, entry);
            }
            register::INITIAL_COUNT => {
                timer::start(&mut self.registers, checked(value, u32::MAX)?, now);
            }
            register::DIVIDE => {
                let divide = checked(value, DIVIDE_WRITABLE)?;
                timer::set_divide(&mut self.registers, divide, now);
            }
            register::SELF_IPI => self.send_to_self(checked(value, 0xff)? as u8),
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::None)
    }

    fn x2apic_register(&self, number: u32) -> Result<u32, GeneralProtection> {
        if !self.is_present() || !self.is_x2apic() || number > msr::X2APIC_LAST {
            return Err(GeneralProtection);
        }
        number
            .checked_sub(msr::X2APIC_FIRST)
            .ok_or(GeneralProtection)
    }

    /// Registers that read the same in both modes.
    fn read_common(&self, number: u32, now: u64) -> Option<u32> {
        let registers = &self.registers;
        Some(match number {
            register::VERSION => VERSION,
            register::TPR => registers.tpr.into(),
            register::PPR => self.processor_priority().into(),
            register::SVR => registers.svr,
            register::ISR..=register::ISR_LAST => registers.isr[(number - register::ISR) as usize],
            register::TMR..=register::TMR_LAST => registers.tmr[(number - register::TMR) as usize],
            register::IRR..=register::IRR_LAST => registers.irr[(number - register::IRR) as usize],
            register::ESR => registers.esr,
            register::LVT..=register::LVT_LAST => registers.lvt[(number - register::LVT) as usize],
            register::INITIAL_COUNT => registers.initial_count,
            register::CURRENT_COUNT => timer::current_count(registers, now),
            register::DIVIDE => registers.divide,
            _ => return None,
        })
    }

    fn set_svr(&mut self, value: u32) {
        self.registers.svr = value;
        if value & svr::ENABLE == 0 {
            // 11.4.7.2: disabling masks every entry.
            for entry in &mut self.registers.lvt {
                *entry |= lvt::MASKED;
            }
        }
        self.inbox.publish(&self.registers);
    }

    /// A write to ESR shows the errors since the last one.
    fn latch_errors(&mut self) {
        self.registers.esr = std::mem::take(&mut self.registers.esr_pending);
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let mut entry = value & lvt::WRITABLE[index];
        if self.registers.svr & svr::ENABLE == 0 {
            entry |= lvt::MASKED;
        }
        if index == lvt::TIMER {
            timer::set_entry(&mut self.registers, entry);
        } else {
            self.registers.lvt[index] = entry;
        }
    }

    /// A write to ICR sends (11.6.1).
    fn command(&mut self, command: u64) -> Effect {
        const FIXED: u32 = 0;
        const LOWEST_PRIORITY: u32 = 1;
        const SELF: u32 = 1;
        self.registers.icr = command;
        let low = command as u32;
        let mode = low >> 8 & 7;
        let is_interrupt = mode == FIXED || mode == LOWEST_PRIORITY;
        if is_interrupt && (low as u8) < VECTOR_MIN {
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        if low >> icr::SHORTHAND_SHIFT & 3 == SELF {
            if mode == FIXED {
                self.send_to_self(low as u8);
            }
            return Effect::None;
        }
        Message::from_icr(command, self.is_x2apic()).map_or(Effect::None, Effect::Message)
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < VECTOR_MIN {
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
        } else if self.registers.svr & svr::ENABLE != 0 {
            self.accept(vector);
        }
    }
}

/// IA32_APIC_BASE.
impl Lapic {
    /// RDMSR of IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.registers.base
    }

    /// WRMSR to IA32_APIC_BASE (11.4.4, and figure 11-27 for the modes).
    ///
    /// # Errors
    /// If a reserved bit is set or the change of mode is illegal.
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if !is_valid_base(value, self.physical_bits) {
            return Err(GeneralProtection);
        }
        let before = self.registers.base;
        let (was, is) = (ModeBits::of(before), ModeBits::of(value));
        match (was, is) {
            // Only through the disabled state, which loses everything.
            (ModeBits::X2Apic, ModeBits::XApic) | (ModeBits::Disabled, ModeBits::X2Apic) => {
                return Err(GeneralProtection);
            }
            (ModeBits::XApic | ModeBits::X2Apic, ModeBits::Disabled) => self.init(),
            (ModeBits::XApic, ModeBits::X2Apic) => {
                // ICR's upper half has another form; the logical destination follows from the
                // ID, and there is no destination format.
                self.registers.icr &= 0xffff_ffff;
                self.registers.ldr = 0;
                self.registers.dfr = u32::MAX;
            }
            _ => {}
        }
        self.registers.base = value;
        self.inbox.publish(&self.registers);
        Ok(())
    }
}

/// How software reaches the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModeBits {
    Disabled,
    XApic,
    X2Apic,
}

impl ModeBits {
    fn of(value: u64) -> Self {
        match (value & base::ENABLE != 0, value & base::X2APIC != 0) {
            (true, true) => Self::X2Apic,
            (true, false) => Self::XApic,
            (false, _) => Self::Disabled,
        }
    }
}

fn is_valid_base(value: u64, physical_bits: u32) -> bool {
    let address = u64::MAX >> (64 - physical_bits.clamp(32, 52)) & !0xfff;
    let allowed = address | base::BOOT_PROCESSOR | base::ENABLE | base::X2APIC;
    let x2apic_without_enable = value & (base::ENABLE | base::X2APIC) == base::X2APIC;
    value & !allowed == 0 && !x2apic_without_enable
}

/// Saved state.
impl Lapic {
    /// The registers, with the interrupts that wait in the inbox.
    /// [`Inbox::requests`] and [`Inbox::external`] belong to the state of the vCPU.
    pub fn state(&self) -> ApicState {
        let mut state = self.registers.clone();
        for word in 0..8 {
            let (irr, tmr) = self.inbox.interrupts(word);
            state.irr[word] |= irr;
            state.tmr[word] = state.tmr[word] & !irr | tmr;
        }
        state.esr_pending |= self.inbox.errors();
        state
    }

    /// Takes `state` over, all or nothing; interrupts that wait in the inbox are void.
    ///
    /// # Errors
    /// If no local APIC with this ID can be in this state.
    pub fn set_state(&mut self, state: &ApicState) -> Result<(), Invalid> {
        self.validate(state)?;
        self.registers = state.clone();
        self.inbox.clear_interrupts();
        self.inbox.publish(&self.registers);
        Ok(())
    }

    fn validate(&self, state: &ApicState) -> Result<(), Invalid> {
        let ApicState {
            base,
            id,
            tpr: _,
            ldr,
            dfr,
            svr: spurious,
            isr,
            tmr,
            irr,
            esr: errors,
            esr_pending,
            icr: command,
            lvt: entries,
            divide,
            initial_count,
            timer_deadline,
            tsc_deadline,
        } = state;
        let no_illegal_vector = |set: &[u32; 8]| set[0] & 0xffff == 0;
        let enabled = spurious & svr::ENABLE != 0;
        let entry_is_valid = |index: usize, entry: u32| {
            entry & !lvt::WRITABLE[index] == 0 && (enabled || entry & lvt::MASKED != 0)
        };
        let mode = timer::Mode::of(state);
        let checks = [
            (*id == self.registers.id, "another APIC ID"),
            (
                is_valid_base(*base, self.physical_bits),
                "IA32_APIC_BASE is invalid",
            ),
            (ldr & !LDR_WRITABLE == 0, "LDR has reserved bits"),
            (dfr & DFR_ONES == DFR_ONES, "DFR has clear reserved bits"),
            (spurious & !svr::WRITABLE == 0, "SVR has reserved bits"),
            (
                [isr, tmr, irr].into_iter().all(no_illegal_vector),
                "a vector below 16",
            ),
            (
                (errors | esr_pending) & !esr::ALL == 0,
                "ESR has reserved bits",
            ),
            (
                *command as u32 & !icr::WRITABLE_LOW == 0,
                "ICR has reserved bits",
            ),
            (
                (0..6).all(|i| entry_is_valid(i, entries[i])),
                "an LVT entry is invalid",
            ),
            (
                divide & !DIVIDE_WRITABLE == 0,
                "the divide configuration has reserved bits",
            ),
            (
                timer_deadline.is_none() || (mode.counts() && *initial_count != 0),
                "the timer counts from nothing",
            ),
            (
                *tsc_deadline == 0 || mode == timer::Mode::TscDeadline,
                "a TSC deadline in another mode",
            ),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(Invalid::new(what)),
            None => Ok(()),
        }
    }
}

/// Word and bit of `vector` in a 256-bit register.
fn place(vector: u8) -> (usize, u32) {
    (usize::from(vector / 32), 1 << (vector % 32))
}

/// The highest vector in a 256-bit register.
#[inline]
fn highest(set: &[u32; 8]) -> Option<u8> {
    let word = set.iter().rposition(|w| *w != 0)?;
    Some((word as u32 * 32 + 31 - set[word].leading_zeros()) as u8)
}

/// Processor priority that follows from the task priority and what is in service.
fn priority(tpr: u8, isr: &[u32; 8]) -> u8 {
    let serving = highest(isr).unwrap_or(0);
    if tpr >> 4 >= serving >> 4 {
        tpr
    } else {
        serving & 0xf0
    }
}

/// `value` if it has no bits outside `allowed`.
fn checked(value: u64, allowed: u32) -> Result<u32, GeneralProtection> {
    if value & !u64::from(allowed) == 0 {
        Ok(value as u32)
    } else {
        Err(GeneralProtection)
    }
}
