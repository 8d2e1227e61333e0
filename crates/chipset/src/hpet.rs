//! The high precision event timer: a 64-bit counter and three comparators.
//!
//! Nothing ticks: the counter is a function of machine time, and one timer is armed for the
//! nearest match. Matches that the host was too late for are coalesced into one, as an interrupt
//! controller would; the grid of a periodic comparator stays that of its accumulator.

mod comparator;
#[cfg(test)]
mod tests;

use clock::Clock;
use comparator::{Comparator, ComparatorV1, Output};
use device::{Device, InterruptLine, Mmio, Msi, Shared, Timed, Timer, Timers, Width, lock, shared};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// IA-PC HPET Specification 1.0a (October 2004).
mod spec {
    /// 10 ns, in femtoseconds; the specification allows up to 100 ns.
    pub(super) const PERIOD_FS: u64 = 10_000_000;
    pub(super) const HZ: u64 = 100_000_000;

    /// 2.3.4: general capabilities and ID: revision 1, three comparators, a 64-bit counter,
    /// legacy replacement, vendor 0x8086, period.
    pub(super) const CAPABILITIES: u64 = PERIOD_FS << 32 | 0x8086_a201;
    /// 2.3.5: general configuration.
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const LEGACY: u64 = 1 << 1;

    pub(super) const REG_CAPABILITIES: u64 = 0x000;
    pub(super) const REG_CONFIGURATION: u64 = 0x010;
    pub(super) const REG_STATUS: u64 = 0x020;
    pub(super) const REG_COUNTER: u64 = 0x0f0;
    /// 2.3.8: comparator n is at 0x100 + 0x20 n.
    pub(super) const REG_COMPARATORS: u64 = 0x100;
    pub(super) const REG_COMPARATORS_END: u64 = 0x160;
}

/// Shortest time between two calls of the timer, in nanoseconds: a guest with a tiny period must
/// not keep a host thread busy.
const GAP_NANOS_MIN: u64 = 20_000;

/// The number of comparators.
const COMPARATORS: usize = 3;

/// The lines and messages by which an [`Hpet`] interrupts.
#[derive(Debug)]
pub struct HpetWires {
    /// The I/O APIC inputs that a comparator may be routed to: number and line. At most 32.
    pub routes: Vec<(u8, InterruptLine)>,
    /// In legacy replacement mode, comparator 0 drives the first (IRQ0 of the PIC, input 2 of the
    /// I/O APIC) and comparator 1 the second (IRQ8 of both).
    pub legacy: [InterruptLine; 2],
    /// High in legacy replacement mode: the board then disconnects PIT and RTC from IRQ0 and
    /// IRQ8.
    pub legacy_active: InterruptLine,
    /// Where comparators send messages that do not use a line.
    pub msi: Msi,
}

/// The high precision event timer.
#[derive(Debug)]
pub struct Hpet {
    configuration: u64,
    /// The counter at machine tick 0 while it runs, its value while it stands.
    counter_base: u64,
    comparators: [Comparator; COMPARATORS],
    /// Machine time before which the timer is not armed again.
    not_before: u64,
    wires: HpetWires,
    clock: Clock,
    timer: Timer,
}

impl Hpet {
    /// Where a PC has the registers.
    pub const BASE: u64 = 0xfed0_0000;
    /// Length of the register range in bytes.
    pub const LEN: u64 = 0x400;

    /// A timer after power-on.
    ///
    /// # Panics
    /// If a route's number is above 31.
    pub fn new(clock: Clock, timers: &Timers, wires: HpetWires) -> Shared<Self> {
        let timer = timers.create();
        let routes = wires.routes.iter().fold(0, |set, (pin, _)| {
            assert!(*pin < 32, "a comparator can be routed to inputs 0 to 31");
            set | 1 << pin
        });
        let hpet = shared(Self {
            configuration: 0,
            counter_base: 0,
            comparators: std::array::from_fn(|_| Comparator::new(routes)),
            not_before: 0,
            wires,
            clock,
            timer: timer.clone(),
        });
        timers.attach(&timer, &hpet);
        lock(&hpet).drive_lines();
        hpet
    }

    fn is_enabled(&self) -> bool {
        self.configuration & spec::ENABLE != 0
    }

    fn is_legacy(&self) -> bool {
        self.configuration & spec::LEGACY != 0
    }

    /// The main counter at machine time `now`.
    fn counter(&self, now: u64) -> u64 {
        if self.is_enabled() {
            clock::ticks(now, spec::HZ).wrapping_add(self.counter_base)
        } else {
            self.counter_base
        }
    }

    /// Brings the comparators up to `now` and interrupts. Returns whether one has matched.
    fn advance(&mut self, now: u64) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let counter = self.counter(now);
        let mut matched = false;
        for index in 0..COMPARATORS {
            if self.comparators[index].advance(counter) {
                self.interrupt(index);
                matched = true;
            }
        }
        matched
    }

    /// Comparator `index` has matched.
    fn interrupt(&mut self, index: usize) {
        let legacy = self.legacy_line(index);
        let comparator = &mut self.comparators[index];
        if comparator.is_level() {
            // 2.3.6: the status bit is set even if the comparator may not interrupt.
            comparator.raise();
            self.drive_lines();
            return;
        }
        if !comparator.is_enabled() {
            return;
        }
        match comparator.output(legacy) {
            Output::Message(address, data) => self.wires.msi.send(address, data),
            Output::Legacy => self.wires.legacy[index].pulse(),
            Output::Route(pin) => {
                if let Some((_, line)) = self.wires.routes.iter().find(|(p, _)| *p == pin) {
                    line.pulse();
                }
                self.drive_lines();
            }
        }
    }

    /// Whether comparator `index` drives a legacy line.
    fn legacy_line(&self, index: usize) -> bool {
        self.is_legacy() && index < self.wires.legacy.len()
    }

    /// Drives every line to its level. Comparators may share a route.
    fn drive_lines(&self) {
        let mut routes_high = 0u32;
        let mut legacy_high = [false; 2];
        for (index, comparator) in self.comparators.iter().enumerate() {
            if comparator.asserts() {
                match comparator.output(self.legacy_line(index)) {
                    Output::Legacy => legacy_high[index] = true,
                    Output::Route(pin) => routes_high |= 1 << pin,
                    Output::Message(..) => {}
                }
            }
        }
        self.wires.legacy_active.set(self.is_legacy());
        for (line, high) in self.wires.legacy.iter().zip(legacy_high) {
            line.set(high);
        }
        for (pin, line) in &self.wires.routes {
            line.set(routes_high >> pin & 1 != 0);
        }
    }

    /// Arms the timer for the next match, as of the counter at `now`.
    fn arm(&self, now: u64) {
        let counter = self.counter(now);
        let next = self.comparators.iter().map(|c| c.ticks_to_match(counter));
        match next.min() {
            Some(ticks) if self.is_enabled() => {
                let tick = clock::ticks(now, spec::HZ).saturating_add(ticks);
                let deadline = clock::nanos(tick, spec::HZ);
                self.timer.arm(deadline.max(self.not_before));
            }
            _ => self.timer.disarm(),
        }
    }

    /// The 64-bit register at `offset`.
    fn read_register(&self, offset: u64, now: u64) -> u64 {
        match offset {
            spec::REG_CAPABILITIES => spec::CAPABILITIES,
            spec::REG_CONFIGURATION => self.configuration,
            spec::REG_STATUS => self
                .comparators
                .iter()
                .enumerate()
                .fold(0, |status, (i, c)| status | u64::from(c.is_raised()) << i),
            spec::REG_COUNTER => self.counter(now),
            spec::REG_COMPARATORS..spec::REG_COMPARATORS_END => {
                self.comparators[comparator_at(offset)].read(offset & 0x1f)
            }
            _ => 0,
        }
    }

    /// Writes the bits `mask` of the register at `offset`.
    fn write_register(&mut self, offset: u64, value: u64, mask: u64, now: u64) {
        match offset {
            spec::REG_CONFIGURATION => {
                let value = self.configuration & !mask | value & mask;
                self.configure(value & (spec::ENABLE | spec::LEGACY), now);
            }
            spec::REG_STATUS => {
                for (index, comparator) in self.comparators.iter_mut().enumerate() {
                    if (value & mask) >> index & 1 != 0 {
                        comparator.clear();
                    }
                }
            }
            // 2.3.7: to be written only while it stands. Running, the write is lost.
            spec::REG_COUNTER if !self.is_enabled() => {
                self.counter_base = self.counter_base & !mask | value & mask;
                self.start_comparators(self.counter_base);
            }
            spec::REG_COMPARATORS..spec::REG_COMPARATORS_END => {
                let counter = self.counter(now);
                let comparator = &mut self.comparators[comparator_at(offset)];
                comparator.write(offset & 0x1f, value, mask, counter);
            }
            _ => {}
        }
    }

    fn configure(&mut self, configuration: u64, now: u64) {
        let counter = self.counter(now);
        let was_enabled = self.is_enabled();
        self.configuration = configuration;
        if self.is_enabled() && !was_enabled {
            self.counter_base = counter.wrapping_sub(clock::ticks(now, spec::HZ));
            self.start_comparators(counter);
        } else if !self.is_enabled() {
            self.counter_base = counter;
        }
    }

    /// Only what the counter reaches after `counter` matches.
    fn start_comparators(&mut self, counter: u64) {
        for comparator in &mut self.comparators {
            comparator.start(counter);
        }
    }
}

fn comparator_at(offset: u64) -> usize {
    ((offset - spec::REG_COMPARATORS) / 0x20) as usize
}

impl Mmio for Hpet {
    /// Any width; what lies beyond the 64-bit register of the first byte reads as 0.
    fn mmio_read(&mut self, offset: u64, _: Width) -> u64 {
        let now = self.clock.now();
        // The counter is read all the time: touch the timer only if there is a reason.
        if self.advance(now) {
            self.arm(now);
        }
        self.read_register(offset & !7, now) >> (8 * (offset & 7))
    }

    /// Aligned 32 and 64 bits (2.3.3); others are lost.
    fn mmio_write(&mut self, offset: u64, width: Width, value: u64) {
        if width < Width::Dword || !offset.is_multiple_of(width.bytes() as u64) {
            return;
        }
        let now = self.clock.now();
        self.advance(now);
        let shift = 8 * (offset & 7);
        self.write_register(offset & !7, value << shift, width.ones() << shift, now);
        self.drive_lines();
        // A comparator that was set to the counter's value matches at once.
        self.advance(now);
        self.arm(now);
    }
}

impl Timed for Hpet {
    fn expired(&mut self, now: u64) {
        self.not_before = now.saturating_add(GAP_NANOS_MIN);
        self.advance(now);
        self.arm(now);
    }
}

/// The saved state of an [`Hpet`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetV1 {
    configuration: u64,
    counter_base: u64,
    comparators: [ComparatorV1; COMPARATORS],
    not_before: u64,
}

impl Saved for HpetV1 {
    const KIND: &'static str = "hpet";
    const VERSION: u16 = 1;
}

impl Persist for Hpet {
    type State = HpetV1;

    fn save(&self) -> HpetV1 {
        let Self {
            configuration,
            counter_base,
            comparators,
            not_before,
            wires: _,
            clock: _,
            timer: _,
        } = self;
        HpetV1 {
            configuration: *configuration,
            counter_base: *counter_base,
            comparators: comparators.each_ref().map(Comparator::save),
            not_before: *not_before,
        }
    }

    fn restore(&mut self, state: HpetV1) -> Result<(), Invalid> {
        let HpetV1 {
            configuration,
            counter_base,
            comparators: [first, second, third],
            not_before,
        } = state;
        let now = self.clock.now();
        if configuration & !(spec::ENABLE | spec::LEGACY) != 0 {
            return Err(Invalid::new("the configuration has reserved bits"));
        }
        if not_before > now.saturating_add(GAP_NANOS_MIN) {
            return Err(Invalid::new("the timer is ahead of the machine's time"));
        }
        let routes = self.comparators[0].routes();
        self.comparators = [
            Comparator::restored(first, routes)?,
            Comparator::restored(second, routes)?,
            Comparator::restored(third, routes)?,
        ];
        (self.configuration, self.counter_base) = (configuration, counter_base);
        self.not_before = not_before;
        self.drive_lines();
        if self.is_enabled() {
            // What is due is found by the timer: nothing interrupts while state is restored.
            self.arm(now);
        }
        Ok(())
    }
}

impl Device for Hpet {
    fn reset(&mut self) {
        let routes = self.comparators[0].routes();
        self.comparators = std::array::from_fn(|_| Comparator::new(routes));
        (self.configuration, self.counter_base, self.not_before) = (0, 0, 0);
        self.drive_lines();
        self.timer.disarm();
    }

    device::saved_by_persist!();
}
