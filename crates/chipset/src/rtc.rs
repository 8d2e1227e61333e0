//! The CMOS real-time clock and its battery-backed RAM.
//!
//! Its time is the host's wall clock plus an offset, which the guest changes when it sets the
//! clock; so the time is right again after a pause or in a restored machine. Nothing ticks: the
//! update, alarm and periodic flags follow from the time that has passed since somebody last
//! looked, and a timer is armed only for an interrupt that is enabled and not pending already.

mod calendar;
#[cfg(test)]
mod tests;

use crate::bytewise;
use calendar::{Alarm, Encoding, Time};
use clock::Clock;
use device::{Device, InterruptLine, PortIo, Shared, Timed, Timer, Timers, Width, shared};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Motorola MC146818A data sheet (1984); ports: Intel 82371AB (PIIX4) data sheet (order
/// 290562-001), 4.2.5.
mod spec {
    /// Index in bits 6 to 0; bit 7 masks NMI.
    pub(super) const INDEX: u16 = 0x70;
    pub(super) const DATA: u16 = 0x71;
    pub(super) const EXTENDED_INDEX: u16 = 0x72;
    pub(super) const EXTENDED_DATA: u16 = 0x73;
    pub(super) const NMI_MASK: u8 = 1 << 7;

    pub(super) const REGISTER_A: u8 = 0x0a;
    pub(super) const REGISTER_B: u8 = 0x0b;
    pub(super) const REGISTER_C: u8 = 0x0c;
    pub(super) const REGISTER_D: u8 = 0x0d;

    /// Register A: update in progress.
    pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    /// Register A: periodic rate; and the divider, held in reset by 6 and 7.
    pub(super) const RATE: u8 = 0x0f;
    pub(super) const DIVIDER_SHIFT: u32 = 4;
    pub(super) const DIVIDER_RESET: u8 = 6;
    /// Register B: the time is being set and is not updated.
    pub(super) const SET: u8 = 1 << 7;
    /// Registers B and C: enables and flags.
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const UPDATE: u8 = 1 << 4;
    pub(super) const FLAGS: u8 = PERIODIC | ALARM | UPDATE;
    pub(super) const SQUARE_WAVE: u8 = 1 << 3;
    /// Register C: an enabled flag is set.
    pub(super) const INTERRUPT: u8 = 1 << 7;
    /// Register D: RAM and time are valid.
    pub(super) const VALID: u8 = 1 << 7;

    /// What firmware sets: a time base of 32.768 kHz and a rate of 1,024 Hz; 24 hours, BCD.
    pub(super) const A_AT_POWER_ON: u8 = 0x26;
    pub(super) const B_AT_POWER_ON: u8 = 0x02;

    /// UIP rises 244 us before an update cycle, which takes 1,984 us ("Update Cycle").
    pub(super) const UPDATE_NANOS: i128 = 2_228_000;
    /// The first update after the divider's reset comes half a second later ("Divider Control").
    pub(super) const RELEASE_NANOS: i128 = 500_000_000;
    /// Frequency of the time base in Hz.
    pub(super) const BASE_HZ: i128 = 32_768;
}

/// Nanoseconds of a second.
const SECOND: i128 = clock::NANOS_PER_SECOND as i128;

/// The timer is armed at most this far ahead (nanoseconds), so that an alarm is not missed for
/// long after the host's wall clock was set or the machine was paused.
const SLEEP_NANOS_MAX: i128 = 60 * SECOND;

/// Bytes of RAM, registers included: two banks of 128.
const RAM_LEN: usize = 256;

/// No time that can be set is further from the host's than this (nanoseconds).
const OFFSET_MAX: i128 = 1 << 90;

/// A source of wall-clock time: nanoseconds since the Unix epoch, UTC. On a host,
/// [`Clock::wall_nanos`].
pub type WallClock = Box<dyn Fn() -> u64 + Send>;

/// The memory sizes that firmware looks up in CMOS RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySizes {
    /// Bytes of RAM below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub above_4g: u64,
}

/// The real-time clock of a PC.
pub struct Rtc {
    index: u8,
    extended_index: u8,
    nmi_masked: bool,
    /// All bytes; the time's are valid only while the clock stands.
    ram: [u8; RAM_LEN],
    a: u8,
    b: u8,
    /// Flags of register C.
    flags: u8,
    /// Guest time less host time, in nanoseconds.
    offset: i128,
    /// The day of the week that the guest set, less that of the date.
    weekday_offset: u8,
    /// Guest time up to which flags were set.
    seen: i128,
    /// The level driven on `irq`.
    irq_level: bool,
    wall: WallClock,
    clock: Clock,
    timer: Timer,
    irq: InterruptLine,
}

impl Rtc {
    /// The ports that the device decodes: first port and length.
    pub const PORTS: [(u16, u16); 1] = [(spec::INDEX, 4)];

    /// A clock that shows the time of `wall` and whose interrupts drive `irq`.
    pub fn new(
        clock: Clock,
        wall: WallClock,
        timers: &Timers,
        irq: InterruptLine,
        memory: MemorySizes,
    ) -> Shared<Self> {
        let timer = timers.create();
        let seen = wall().into();
        let rtc = shared(Self {
            index: 0,
            extended_index: 0,
            nmi_masked: false,
            ram: ram_with(memory),
            a: spec::A_AT_POWER_ON,
            b: spec::B_AT_POWER_ON,
            flags: 0,
            offset: 0,
            weekday_offset: 0,
            seen,
            irq_level: false,
            wall,
            clock,
            timer: timer.clone(),
            irq,
        });
        timers.attach(&timer, &rtc);
        rtc
    }

    /// Sets a byte of RAM, for the board's firmware. The clock's own registers (below 0x0e) and
    /// the century are not RAM.
    ///
    /// # Panics
    /// If `index` is one of them.
    pub fn set_byte(&mut self, index: u8, value: u8) {
        assert!(
            index > spec::REGISTER_D && index != calendar::CENTURY,
            "a byte of RAM"
        );
        self.ram[usize::from(index)] = value;
    }

    /// Whether the guest masks NMI.
    pub fn is_nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn now(&self) -> i128 {
        i128::from((self.wall)()) + self.offset
    }

    fn divider_is_reset(&self) -> bool {
        self.a >> spec::DIVIDER_SHIFT & 7 >= spec::DIVIDER_RESET
    }

    /// Whether the time stands: the guest sets it, or the divider is held in reset.
    fn stands(&self) -> bool {
        self.b & spec::SET != 0 || self.divider_is_reset()
    }

    fn encoding(&self) -> Encoding {
        Encoding::from_register_b(self.b)
    }

    fn alarm(&self) -> Option<Alarm> {
        Alarm::decode(&self.ram, self.encoding())
    }

    /// Sets the flags of what has happened up to `now`.
    fn advance(&mut self, now: i128) {
        let from = self.seen;
        self.seen = now;
        // The host's clock may have been set back: then nothing has happened.
        if now <= from {
            return;
        }
        if !self.stands() && seconds(now) > seconds(from) {
            self.flags |= spec::UPDATE;
            let alarm = self.alarm().and_then(|a| a.next_after(seconds(from)));
            if alarm.is_some_and(|at| at <= seconds(now)) {
                self.flags |= spec::ALARM;
            }
        }
        if self.next_period(from).is_some_and(|at| at <= now) {
            self.flags |= spec::PERIODIC;
        }
    }

    /// The first time after `from` at which the periodic flag is set.
    fn next_period(&self, from: i128) -> Option<i128> {
        if self.divider_is_reset() {
            return None;
        }
        let ticks = match self.a & spec::RATE {
            0 => return None,
            // These two are those of 8 and 9 ("Periodic Interrupt Rate", 32.768 kHz).
            rate @ 1..=2 => 1 << (rate + 6),
            rate => 1i128 << (rate - 1),
        };
        let tick = (from * spec::BASE_HZ).div_euclid(SECOND);
        let next = (tick.div_euclid(ticks) + 1) * ticks;
        // The first nanosecond of that tick.
        Some((next * SECOND + spec::BASE_HZ - 1).div_euclid(spec::BASE_HZ))
    }

    /// The next time at which a flag is set whose interrupt is enabled and not pending.
    fn next_event(&self) -> Option<i128> {
        let wanted = self.b & !self.flags;
        let runs = !self.stands();
        let update = (runs && wanted & spec::UPDATE != 0).then(|| seconds(self.seen) + 1);
        let alarm = self
            .alarm()
            .filter(|_| runs && wanted & spec::ALARM != 0)
            .and_then(|alarm| alarm.next_after(seconds(self.seen)));
        let period = self
            .next_period(self.seen)
            .filter(|_| wanted & spec::PERIODIC != 0);
        let on_second = [update, alarm].into_iter().flatten().min();
        let on_second = on_second.map(|s| i128::from(s) * SECOND);
        [on_second, period].into_iter().flatten().min()
    }

    fn interrupts(&self) -> bool {
        self.flags & self.b & spec::FLAGS != 0
    }

    /// Drives the line and arms the timer.
    fn update(&mut self) {
        let high = self.interrupts();
        if high != self.irq_level {
            self.irq_level = high;
            self.irq.set(high);
        }
        match self.next_event() {
            Some(at) => {
                let ahead = (at - self.seen).clamp(0, SLEEP_NANOS_MAX);
                self.timer
                    .arm(self.clock.now().saturating_add(ahead as u64));
            }
            None => self.timer.disarm(),
        }
    }

    /// The time's bytes as they are now.
    fn store_time(&mut self, now: i128) {
        if !self.stands() {
            let time = Time::from_seconds(seconds(now));
            let encoding = self.encoding();
            time.encode(&mut self.ram, encoding, self.weekday_offset);
        }
    }

    /// The time goes on from its bytes, `subsecond` nanoseconds into the second.
    fn load_time(&mut self, subsecond: i128) {
        let (time, weekday_offset) = Time::decode(&self.ram, self.encoding());
        self.weekday_offset = weekday_offset;
        let target = i128::from(time.to_seconds()) * SECOND + subsecond;
        self.offset = target - i128::from((self.wall)());
        self.seen = target;
    }

    fn read_byte(&mut self, index: u8, now: i128) -> u8 {
        match index {
            spec::REGISTER_A => {
                let left = SECOND - now.rem_euclid(SECOND);
                let updates = !self.stands() && left <= spec::UPDATE_NANOS;
                self.a | if updates { spec::UPDATE_IN_PROGRESS } else { 0 }
            }
            spec::REGISTER_B => self.b,
            spec::REGISTER_C => {
                let interrupt = if self.interrupts() {
                    spec::INTERRUPT
                } else {
                    0
                };
                std::mem::take(&mut self.flags) | interrupt
            }
            spec::REGISTER_D => spec::VALID,
            _ => {
                if calendar::is_time(index) {
                    self.store_time(now);
                }
                self.ram[usize::from(index)]
            }
        }
    }

    fn write_byte(&mut self, index: u8, value: u8, now: i128) {
        match index {
            spec::REGISTER_A => self.control(value & !spec::UPDATE_IN_PROGRESS, self.b, now),
            spec::REGISTER_B => {
                // SET clears the update interrupt's enable ("Register B").
                let clears = value & spec::SET != 0;
                let value = if clears { value & !spec::UPDATE } else { value };
                self.control(self.a, value, now);
            }
            spec::REGISTER_C | spec::REGISTER_D => {}
            _ if calendar::is_time(index) => {
                self.store_time(now);
                self.ram[usize::from(index)] = value;
                if !self.stands() {
                    self.load_time(now.rem_euclid(SECOND));
                }
            }
            _ => self.ram[usize::from(index)] = value,
        }
    }

    /// Writes registers A and B; the clock may stop or start by it.
    fn control(&mut self, a: u8, b: u8, now: i128) {
        let stood = self.stands();
        let was_reset = self.divider_is_reset();
        self.store_time(now);
        (self.a, self.b) = (a, b);
        if stood && !self.stands() {
            self.load_time(if was_reset {
                SECOND - spec::RELEASE_NANOS
            } else {
                now.rem_euclid(SECOND)
            });
        }
    }

    fn read(&mut self, port: u16, now: i128) -> u8 {
        match port {
            spec::DATA => self.read_byte(self.index, now),
            spec::EXTENDED_INDEX => self.extended_index,
            spec::EXTENDED_DATA => self.ram[usize::from(self.extended_index | 0x80)],
            // The index can't be read: nothing drives the bus.
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8, now: i128) {
        match port {
            spec::INDEX => {
                self.nmi_masked = value & spec::NMI_MASK != 0;
                self.index = value & !spec::NMI_MASK;
            }
            spec::DATA => self.write_byte(self.index, value, now),
            spec::EXTENDED_INDEX => self.extended_index = value,
            spec::EXTENDED_DATA => self.ram[usize::from(self.extended_index | 0x80)] = value,
            _ => {}
        }
    }
}

/// Whole seconds; times are far within the range of an i64.
fn seconds(nanos: i128) -> i64 {
    nanos.div_euclid(SECOND) as i64
}

/// RAM as firmware leaves it: memory sizes, and the equipment byte.
fn ram_with(memory: MemorySizes) -> [u8; RAM_LEN] {
    const KIB: u64 = 1 << 10;
    const BLOCK: u64 = 64 * KIB;
    /// FPU and a pointing device.
    const EQUIPMENT: u8 = 0x06;
    let mut ram = [0; RAM_LEN];
    ram[0x14] = EQUIPMENT;
    let mut put = |index: usize, value: u64, max: u16| {
        let value = value.min(max.into()) as u16;
        ram[index..index + 2].copy_from_slice(&value.to_le_bytes());
    };
    // KiB below 1 MiB, and twice the KiB above it.
    put(0x15, memory.below_4g / KIB, 640);
    let above_1m = memory.below_4g.saturating_sub(1 << 20) / KIB;
    put(0x17, above_1m, u16::MAX);
    put(0x30, above_1m, u16::MAX);
    // 64 KiB blocks above 16 MiB.
    let above_16m = memory.below_4g.saturating_sub(16 << 20) / BLOCK;
    put(0x34, above_16m, u16::MAX);
    // 64 KiB blocks above 4 GiB, 24 bits.
    let above_4g = (memory.above_4g / BLOCK).min(0xff_ffff) as u32;
    ram[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
    ram
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtc")
            .field("a", &self.a)
            .field("b", &self.b)
            .field("flags", &self.flags)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl PortIo for Rtc {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let now = self.now();
        self.advance(now);
        let value = bytewise::read(port, width, |port| self.read(port, now));
        self.update();
        value
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| {
            // Each byte may set the time anew.
            let now = self.now();
            self.advance(now);
            self.write(port, value, now);
        });
        self.update();
    }
}

impl Timed for Rtc {
    fn expired(&mut self, _: u64) {
        self.advance(self.now());
        self.update();
    }
}

/// The saved state of an [`Rtc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcV1 {
    index: u8,
    extended_index: u8,
    nmi_masked: bool,
    ram: Vec<u8>,
    a: u8,
    b: u8,
    flags: u8,
    offset: i128,
    weekday_offset: u8,
    seen: i128,
}

impl Saved for RtcV1 {
    const KIND: &'static str = "cmos-rtc";
    const VERSION: u16 = 1;
}

impl Persist for Rtc {
    type State = RtcV1;

    fn save(&self) -> RtcV1 {
        let Self {
            index,
            extended_index,
            nmi_masked,
            ram,
            a,
            b,
            flags,
            offset,
            weekday_offset,
            seen,
            irq_level: _,
            wall: _,
            clock: _,
            timer: _,
            irq: _,
        } = self;
        RtcV1 {
            index: *index,
            extended_index: *extended_index,
            nmi_masked: *nmi_masked,
            ram: ram.to_vec(),
            a: *a,
            b: *b,
            flags: *flags,
            offset: *offset,
            weekday_offset: *weekday_offset,
            seen: *seen,
        }
    }

    fn restore(&mut self, state: RtcV1) -> Result<(), Invalid> {
        let RtcV1 {
            index,
            extended_index,
            nmi_masked,
            ram,
            a,
            b,
            flags,
            offset,
            weekday_offset,
            seen,
        } = state;
        let ram = <[u8; RAM_LEN]>::try_from(ram)
            .map_err(|_| Invalid::new("CMOS RAM has not 256 bytes"))?;
        if index & spec::NMI_MASK != 0 || a & spec::UPDATE_IN_PROGRESS != 0 {
            return Err(Invalid::new(
                "the index or register A has an impossible bit",
            ));
        }
        if flags & !spec::FLAGS != 0 || weekday_offset > 6 {
            return Err(Invalid::new("the flags or the day of the week can't be"));
        }
        if b & spec::SET != 0 && b & spec::UPDATE != 0 {
            return Err(Invalid::new("update interrupts while the time is set"));
        }
        if offset.unsigned_abs() > OFFSET_MAX as u128 || seen.unsigned_abs() > OFFSET_MAX as u128 {
            return Err(Invalid::new("a time beyond any calendar"));
        }
        (self.index, self.extended_index) = (index, extended_index);
        (self.nmi_masked, self.ram) = (nmi_masked, ram);
        (self.a, self.b, self.flags) = (a, b, flags);
        (self.offset, self.weekday_offset, self.seen) = (offset, weekday_offset, seen);
        self.irq_level = self.interrupts();
        self.irq.set(self.irq_level);
        self.update();
        Ok(())
    }
}

impl Device for Rtc {
    /// The battery keeps time and RAM ("RESET").
    fn reset(&mut self) {
        self.advance(self.now());
        self.b &= !(spec::FLAGS | spec::SQUARE_WAVE);
        self.flags = 0;
        (self.index, self.extended_index, self.nmi_masked) = (0, 0, false);
        self.update();
    }

    device::saved_by_persist!();
}
