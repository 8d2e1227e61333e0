//! ACPI power management: event and control blocks, the PM timer, general-purpose events.

#[cfg(test)]
mod tests;

use crate::{PowerControl, bytewise};
use clock::Clock;
use device::{Device, InterruptLine, PortIo, Shared, Timed, Timer, Timers, Width, lock, shared};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};
use std::sync::Arc;

/// ACPI Specification 6.5, 4.8: fixed hardware registers.
mod spec {
    /// 4.8.3.1: PM1 event grouping.
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const GLOBAL: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    pub(super) const SLEEP_BUTTON: u16 = 1 << 9;
    pub(super) const RTC: u16 = 1 << 10;
    pub(super) const WAKE: u16 = 1 << 15;
    /// Events that have a status and an enable bit.
    pub(super) const EVENTS: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
    pub(super) const STATUS: u16 = EVENTS | WAKE;

    /// 4.8.3.2: PM1 control.
    /// Always set: there is no SMI command port (FADT: 0), so no way out of ACPI mode (4.8.2.5).
    pub(super) const SCI_ENABLE: u16 = 1 << 0;
    pub(super) const BUS_MASTER_RELOAD: u16 = 1 << 1;
    pub(super) const SLEEP_TYPE_SHIFT: u32 = 10;
    pub(super) const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    /// Write-only.
    pub(super) const SLEEP_ENABLE: u16 = 1 << 13;
    pub(super) const CONTROL_WRITABLE: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;

    /// 4.8.2.1: the timer's frequency in Hz.
    pub(super) const TIMER_HZ: u64 = 3_579_545;
    /// TMR_STS is set whenever the top bit of the counter changes. It has 32 bits
    /// (`TMR_VAL_EXT` in the FADT).
    pub(super) const TIMER_HALF: u64 = 1 << 31;
}

/// Where the blocks are, as the FADT says.
pub mod ports {
    /// PM1a event block: status, then enable; 4 bytes.
    pub const PM1_EVENT: u16 = 0x600;
    /// PM1a control block; 2 bytes.
    pub const PM1_CONTROL: u16 = 0x604;
    /// PM timer, 32 bits.
    pub const PM_TIMER: u16 = 0x608;
    /// General-purpose event block 0: 16 status, then 16 enable bits; 4 bytes.
    pub const GPE0: u16 = 0x620;
}

/// SLP_TYP of the soft-off state S5, for the `_S5` package of the DSDT.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The registers of a general-purpose or fixed event block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Events {
    status: u16,
    enable: u16,
}

impl Events {
    /// Byte `index` of the block: two of status, two of enable.
    fn byte(self, index: u16) -> u8 {
        let [low, high] = self.status.to_le_bytes();
        let [enable_low, enable_high] = self.enable.to_le_bytes();
        [low, high, enable_low, enable_high][usize::from(index & 3)]
    }

    /// Status bits are cleared by writing 1, enable bits are set as they are written, as far as
    /// the block has them.
    fn write_byte(&mut self, index: u16, value: u8, enables: u16) {
        let shift = 8 * (index & 1);
        let value = u16::from(value) << shift;
        if index & 2 == 0 {
            self.status &= !value;
        } else {
            self.enable = self.enable & !(0xff << shift) | value & enables;
        }
    }

    fn is_active(self) -> bool {
        self.status & self.enable != 0
    }
}

/// The ACPI power management registers.
pub struct AcpiPm {
    pm1: Events,
    control: u16,
    gpe0: Events,
    /// Tick of the PM timer up to which changes of its top bit were seen.
    seen: u64,
    /// The level driven on `sci`.
    sci_level: bool,
    clock: Clock,
    timer: Timer,
    sci: InterruptLine,
    power: Arc<dyn PowerControl>,
}

impl AcpiPm {
    /// The ports that the device decodes: first port and length.
    pub const PORTS: [(u16, u16); 3] = [
        (ports::PM1_EVENT, 6),
        (ports::PM_TIMER, 4),
        (ports::GPE0, 4),
    ];

    /// The registers after power-on, in ACPI mode. Events drive `sci`, a level; the guest's
    /// soft-off goes to `power`.
    pub fn new(
        clock: Clock,
        timers: &Timers,
        sci: InterruptLine,
        power: Arc<dyn PowerControl>,
    ) -> Shared<Self> {
        let timer = timers.create();
        let pm = shared(Self {
            pm1: Events::default(),
            control: spec::SCI_ENABLE,
            gpe0: Events::default(),
            seen: clock::ticks(clock.now(), spec::TIMER_HZ),
            sci_level: false,
            clock,
            timer: timer.clone(),
            sci,
            power,
        });
        timers.attach(&timer, &pm);
        lock(&pm).update();
        pm
    }

    /// Somebody pressed the power button.
    pub fn press_power_button(&mut self) {
        self.pm1.status |= spec::POWER_BUTTON;
        self.update();
    }

    /// General-purpose event `index` (0 to 15) happened.
    ///
    /// # Panics
    /// If there is no such event.
    pub fn raise_gpe(&mut self, index: u8) {
        assert!(index < 16, "GPE block 0 has 16 events");
        self.gpe0.status |= 1 << index;
        self.update();
    }

    /// Brings TMR_STS up to `tick`. Returns whether the top bit has changed.
    fn advance(&mut self, tick: u64) -> bool {
        let changed = tick / spec::TIMER_HALF > self.seen / spec::TIMER_HALF;
        if changed {
            self.pm1.status |= spec::TIMER;
        }
        self.seen = self.seen.max(tick);
        changed
    }

    /// Whether an event interrupts.
    fn sci_active(&self) -> bool {
        self.pm1.is_active() || self.gpe0.is_active()
    }

    /// Drives SCI and arms the timer for the next change of the top bit, if that interrupts.
    fn update(&mut self) {
        let high = self.sci_active();
        if high != self.sci_level {
            self.sci_level = high;
            self.sci.set(high);
        }
        if self.pm1.enable & spec::TIMER != 0 && self.pm1.status & spec::TIMER == 0 {
            let change = (self.seen / spec::TIMER_HALF + 1) * spec::TIMER_HALF;
            self.timer.arm(clock::nanos(change, spec::TIMER_HZ));
        } else {
            self.timer.disarm();
        }
    }

    fn tick(&self) -> u64 {
        clock::ticks(self.clock.now(), spec::TIMER_HZ)
    }

    fn read(&self, port: u16, tick: u64) -> u8 {
        match port {
            ports::PM1_EVENT..ports::PM1_CONTROL => self.pm1.byte(port - ports::PM1_EVENT),
            ports::PM1_CONTROL => self.control as u8,
            0x605 => (self.control >> 8) as u8,
            ports::PM_TIMER..=0x60b => (tick >> (8 * (port - ports::PM_TIMER))) as u8,
            ports::GPE0..=0x623 => self.gpe0.byte(port - ports::GPE0),
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            ports::PM1_EVENT..ports::PM1_CONTROL => {
                self.pm1
                    .write_byte(port - ports::PM1_EVENT, value, spec::EVENTS);
            }
            ports::PM1_CONTROL => self.write_control(value.into(), 0x00ff),
            0x605 => self.write_control(u16::from(value) << 8, 0xff00),
            ports::GPE0..=0x623 => self.gpe0.write_byte(port - ports::GPE0, value, u16::MAX),
            _ => {}
        }
    }

    fn write_control(&mut self, value: u16, written: u16) {
        let written_bits = spec::CONTROL_WRITABLE & written;
        self.control = self.control & !written_bits | value & written_bits;
        let sleep_type = (self.control & spec::SLEEP_TYPE) >> spec::SLEEP_TYPE_SHIFT;
        // Only S5 is announced; other sleep types do nothing.
        if value & spec::SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
            self.power.power_off();
        }
    }
}

impl std::fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcpiPm")
            .field("pm1", &self.pm1)
            .field("control", &self.control)
            .field("gpe0", &self.gpe0)
            .finish_non_exhaustive()
    }
}

impl PortIo for AcpiPm {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let tick = self.tick();
        // The timer is read all the time: touch line and timer only if there is a reason.
        if self.advance(tick) {
            self.update();
        }
        bytewise::read(port, width, |port| self.read(port, tick))
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.advance(self.tick());
        bytewise::write(port, width, value, |port, value| self.write(port, value));
        self.update();
    }
}

impl Timed for AcpiPm {
    fn expired(&mut self, now: u64) {
        self.advance(clock::ticks(now, spec::TIMER_HZ));
        self.update();
    }
}

/// The saved state of an [`AcpiPm`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmV1 {
    pm1: Events,
    control: u16,
    gpe0: Events,
    seen: u64,
}

impl Saved for AcpiPmV1 {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

impl Persist for AcpiPm {
    type State = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        let Self {
            pm1,
            control,
            gpe0,
            seen,
            sci_level: _,
            clock: _,
            timer: _,
            sci: _,
            power: _,
        } = self;
        AcpiPmV1 {
            pm1: *pm1,
            control: *control,
            gpe0: *gpe0,
            seen: *seen,
        }
    }

    fn restore(&mut self, state: AcpiPmV1) -> Result<(), Invalid> {
        let AcpiPmV1 {
            pm1,
            control,
            gpe0,
            seen,
        } = state;
        if pm1.status & !spec::STATUS != 0 || pm1.enable & !spec::EVENTS != 0 {
            return Err(Invalid::new("PM1 has reserved events"));
        }
        if control & !spec::CONTROL_WRITABLE != spec::SCI_ENABLE {
            return Err(Invalid::new("PM1 control has impossible fixed bits"));
        }
        if seen > self.tick() {
            return Err(Invalid::new("the PM timer is ahead of the machine's time"));
        }
        (self.pm1, self.control, self.gpe0) = (pm1, control, gpe0);
        self.seen = seen;
        self.sci_level = self.sci_active();
        self.sci.set(self.sci_level);
        self.update();
        Ok(())
    }
}

impl Device for AcpiPm {
    fn reset(&mut self) {
        (self.pm1, self.gpe0) = (Events::default(), Events::default());
        self.control = spec::SCI_ENABLE;
        self.seen = self.tick();
        self.update();
    }

    device::saved_by_persist!();
}
