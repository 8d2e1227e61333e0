//! One comparator of the HPET, in ticks of the main counter.

use serde::{Deserialize, Serialize};
use state::Invalid;

/// HPET Specification 1.0a, 2.3.8: configuration and capabilities.
mod spec {
    pub(super) const LEVEL: u64 = 1 << 1;
    pub(super) const ENABLE: u64 = 1 << 2;
    pub(super) const PERIODIC: u64 = 1 << 3;
    pub(super) const PERIODIC_CAPABLE: u64 = 1 << 4;
    pub(super) const WIDE_CAPABLE: u64 = 1 << 5;
    /// The next write also sets the accumulator.
    pub(super) const SET_VALUE: u64 = 1 << 6;
    pub(super) const NARROW: u64 = 1 << 8;
    pub(super) const ROUTE_SHIFT: u32 = 9;
    pub(super) const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
    pub(super) const MESSAGE: u64 = 1 << 14;
    pub(super) const MESSAGE_CAPABLE: u64 = 1 << 15;
    pub(super) const ROUTES_SHIFT: u32 = 32;

    pub(super) const CAPABILITIES: u64 = PERIODIC_CAPABLE | WIDE_CAPABLE | MESSAGE_CAPABLE;
    pub(super) const WRITABLE: u64 =
        LEVEL | ENABLE | PERIODIC | SET_VALUE | NARROW | ROUTE | MESSAGE;

    pub(super) const REG_CONFIGURATION: u64 = 0x00;
    pub(super) const REG_COMPARATOR: u64 = 0x08;
    pub(super) const REG_MESSAGE: u64 = 0x10;
}

/// How a comparator interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Its legacy line.
    Legacy,
    /// The line to this input of the I/O APIC.
    Route(u8),
    /// A message: address and data.
    Message(u64, u32),
}

/// One comparator.
#[derive(Debug, Clone)]
pub(super) struct Comparator {
    /// Writable bits of the configuration.
    configuration: u64,
    /// The value that matches next; in periodic mode the accumulator.
    value: u64,
    /// The last value written, which is added to the accumulator at a match.
    period: u64,
    /// Address in the upper half, data in the lower.
    message: u64,
    /// Interrupt status.
    raised: bool,
    /// The counter up to which matches were seen.
    seen: u64,
    /// Inputs that it may be routed to.
    routes: u32,
}

impl Comparator {
    /// After power-on: all ones, which the counter does not reach.
    pub(super) fn new(routes: u32) -> Self {
        Self {
            configuration: 0,
            value: u64::MAX,
            period: 0,
            message: 0,
            raised: false,
            seen: 0,
            routes,
        }
    }

    pub(super) fn routes(&self) -> u32 {
        self.routes
    }

    pub(super) fn is_level(&self) -> bool {
        self.configuration & spec::LEVEL != 0
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.configuration & spec::ENABLE != 0
    }

    fn is_periodic(&self) -> bool {
        self.configuration & spec::PERIODIC != 0
    }

    /// Bits that are compared.
    fn mask(&self) -> u64 {
        if self.configuration & spec::NARROW != 0 {
            u32::MAX.into()
        } else {
            u64::MAX
        }
    }

    /// Whether the status bit is set.
    pub(super) fn is_raised(&self) -> bool {
        self.raised
    }

    pub(super) fn raise(&mut self) {
        self.raised = true;
    }

    /// Software wrote 1 to the status bit.
    pub(super) fn clear(&mut self) {
        self.raised = false;
    }

    /// Whether its line is high.
    pub(super) fn asserts(&self) -> bool {
        self.raised && self.is_level() && self.is_enabled()
    }

    /// Where it interrupts. Legacy replacement overrides its own routing (2.3.5).
    pub(super) fn output(&self, legacy: bool) -> Output {
        if legacy {
            Output::Legacy
        } else if self.configuration & spec::MESSAGE != 0 {
            Output::Message(self.message >> 32, self.message as u32)
        } else {
            Output::Route(((self.configuration & spec::ROUTE) >> spec::ROUTE_SHIFT) as u8)
        }
    }

    /// Matches after `counter` count.
    pub(super) fn start(&mut self, counter: u64) {
        self.seen = counter;
    }

    /// Ticks from what was seen to the next match, at least 1. The match of a whole turn of the
    /// 64-bit counter is some 5,800 years away.
    fn distance(&self) -> u64 {
        match self.value.wrapping_sub(self.seen) & self.mask() {
            0 => self.mask().saturating_add(1),
            distance => distance,
        }
    }

    /// Ticks from `counter` to the next match, 0 if it is overdue.
    pub(super) fn ticks_to_match(&self, counter: u64) -> u64 {
        self.distance()
            .saturating_sub(counter.wrapping_sub(self.seen))
    }

    /// Moves on to `counter`. Returns whether it matched, once or often.
    pub(super) fn advance(&mut self, counter: u64) -> bool {
        let passed = counter.wrapping_sub(self.seen);
        let distance = self.distance();
        self.seen = counter;
        if distance > passed {
            return false;
        }
        let period = self.period & self.mask();
        if self.is_periodic() && period != 0 {
            let matches = (passed - distance) / period + 1;
            let added = matches.wrapping_mul(period);
            self.value = self.value.wrapping_add(added) & self.mask();
        }
        true
    }

    pub(super) fn read(&self, register: u64) -> u64 {
        match register {
            spec::REG_CONFIGURATION => {
                let routes = u64::from(self.routes) << spec::ROUTES_SHIFT;
                self.configuration | spec::CAPABILITIES | routes
            }
            spec::REG_COMPARATOR => self.value & self.mask(),
            spec::REG_MESSAGE => self.message,
            _ => 0,
        }
    }

    /// Writes the bits `mask` of a register while the main counter is at `counter`.
    pub(super) fn write(&mut self, register: u64, value: u64, mask: u64, counter: u64) {
        match register {
            spec::REG_CONFIGURATION => self.configure(self.configuration & !mask | value & mask),
            spec::REG_COMPARATOR => self.write_value(value, mask, counter),
            spec::REG_MESSAGE => self.message = self.message & !mask | value & mask,
            _ => {}
        }
    }

    fn configure(&mut self, value: u64) {
        let mut configuration = value & spec::WRITABLE;
        let route = (configuration & spec::ROUTE) >> spec::ROUTE_SHIFT;
        if self.routes >> route & 1 == 0 {
            // 2.3.8: software finds out by reading back what it wrote.
            configuration = configuration & !spec::ROUTE | self.configuration & spec::ROUTE;
        }
        self.configuration = configuration;
        if !self.is_level() {
            self.raised = false;
        }
    }

    /// 2.3.9.2.2: in periodic mode a write is the period; the accumulator is set too if software
    /// said so just before. Otherwise a write is the value to match.
    fn write_value(&mut self, value: u64, mask: u64, counter: u64) {
        self.period = self.period & !mask | value & mask;
        if !self.is_periodic() || self.configuration & spec::SET_VALUE != 0 {
            self.value = self.value & !mask | value & mask;
            // The counter's value of now matches, too.
            self.seen = counter.wrapping_sub(1);
        }
        self.configuration &= !spec::SET_VALUE;
    }
}

/// The saved state of a comparator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ComparatorV1 {
    configuration: u64,
    value: u64,
    period: u64,
    message: u64,
    raised: bool,
    seen: u64,
}

impl Comparator {
    pub(super) fn save(&self) -> ComparatorV1 {
        let Self {
            configuration,
            value,
            period,
            message,
            raised,
            seen,
            routes: _,
        } = *self;
        ComparatorV1 {
            configuration,
            value,
            period,
            message,
            raised,
            seen,
        }
    }

    /// The comparator that was saved as `state`, which may be routed to `routes`.
    pub(super) fn restored(state: ComparatorV1, routes: u32) -> Result<Self, Invalid> {
        let ComparatorV1 {
            configuration,
            value,
            period,
            message,
            raised,
            seen,
        } = state;
        if configuration & !spec::WRITABLE != 0 {
            return Err(Invalid::new(
                "a comparator's configuration has reserved bits",
            ));
        }
        let route = (configuration & spec::ROUTE) >> spec::ROUTE_SHIFT;
        if route != 0 && routes >> route & 1 == 0 {
            return Err(Invalid::new("a comparator is routed to no input"));
        }
        if raised && configuration & spec::LEVEL == 0 {
            return Err(Invalid::new("an edge-triggered comparator has a status"));
        }
        Ok(Self {
            configuration,
            value,
            period,
            message,
            raised,
            seen,
            routes,
        })
    }
}
