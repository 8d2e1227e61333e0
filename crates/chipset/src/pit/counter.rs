//! One counter of the 8254, as a function of time in ticks of CLK.

use serde::{Deserialize, Serialize};
use state::Invalid;

/// Which bytes of the count are read and written (8254 data sheet, figure 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

/// "Mode Definitions".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    TerminalCount = 0,
    OneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    fn from_control(word: u8) -> Self {
        match word >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// A rising gate starts the count.
    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// The counting element at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// The count that was loaded, 1 to 65536 (BCD: up to 10000).
    count: u32,
    /// Tick of the load. In mode 3, as if the cycle had begun with this count.
    start: i64,
    /// Ticks counted when a low gate stopped it.
    held: Option<u64>,
}

impl Run {
    /// Ticks counted.
    fn elapsed(&self, tick: u64) -> u64 {
        self.held
            .unwrap_or_else(|| (tick as i64).saturating_sub(self.start).max(0) as u64)
    }

    /// Ticks since the start of the cycle, in the periodic modes.
    fn phase(&self, tick: u64) -> u64 {
        self.elapsed(tick) % u64::from(self.count)
    }

    /// Ticks of a square wave's high half: of an odd count, the longer one.
    fn high_half(&self) -> u64 {
        u64::from(self.count).div_ceil(2)
    }
}

/// One counter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count register, as written.
    reload: u16,
    /// A count was written since the control word.
    written: bool,
    /// The count register was not yet loaded into the counting element.
    null_count: bool,
    /// Tick at which it will be.
    load_at: Option<u64>,
    run: Option<Run>,
    /// The low byte of a count whose high byte is still to come.
    low_byte: Option<u8>,
    /// The next read is of the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

/// Counts below make no sense in the periodic modes ("Minimum and Maximum Initial Counts").
const PERIODIC_COUNT_MIN: u32 = 2;

impl Counter {
    /// A counter that was never programmed: OUT is low and nothing counts.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            reload: 0,
            written: false,
            null_count: true,
            load_at: None,
            run: None,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Moves on from tick `from` to `to`. Returns whether OUT has risen.
    pub(super) fn advance(&mut self, from: u64, to: u64) -> bool {
        let rose = self.next_rise(from).is_some_and(|tick| tick <= to);
        if let Some(at) = self.load_at.filter(|at| *at <= to) {
            self.load(at);
        }
        rose
    }

    /// The first tick after `tick` at which OUT rises.
    pub(super) fn next_rise(&self, tick: u64) -> Option<u64> {
        let before_load = self.next_rise_of_run(tick);
        let Some(at) = self.load_at else {
            return before_load;
        };
        before_load.filter(|rise| *rise <= at).or_else(|| {
            let mut loaded = *self;
            loaded.load(at);
            loaded.next_rise_of_run(at.max(tick))
        })
    }

    /// The same as long as nothing is loaded.
    fn next_rise_of_run(&self, tick: u64) -> Option<u64> {
        let run = self.run.as_ref().filter(|run| run.held.is_none())?;
        let count = i64::from(run.count);
        let ends = match self.mode {
            Mode::TerminalCount | Mode::OneShot => count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => count + 1,
            Mode::RateGenerator | Mode::SquareWave => {
                let cycles = (run.elapsed(tick) / u64::from(run.count)) as i64;
                (cycles + 1) * count
            }
        };
        u64::try_from(run.start + ends).ok().filter(|r| *r > tick)
    }

    /// OUT.
    pub(super) fn out(&self, tick: u64) -> bool {
        let Some(run) = &self.run else {
            return self.mode != Mode::TerminalCount;
        };
        let count = u64::from(run.count);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => run.elapsed(tick) >= count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => run.elapsed(tick) != count,
            Mode::RateGenerator => !self.gate || run.phase(tick) != count - 1,
            Mode::SquareWave => !self.gate || run.phase(tick) < run.high_half(),
        }
    }

    /// The counting element.
    fn count(&self, tick: u64) -> u16 {
        let Some(run) = &self.run else {
            return self.reload;
        };
        let count = i64::from(run.count);
        let value = match self.mode {
            Mode::RateGenerator => count - run.phase(tick) as i64,
            Mode::SquareWave => {
                // It counts by two, from the even number below an odd count.
                let phase = run.phase(tick);
                let in_half = phase.checked_sub(run.high_half()).unwrap_or(phase);
                (count & !1) - 2 * in_half as i64
            }
            _ => count - run.elapsed(tick) as i64,
        };
        if self.bcd {
            to_bcd(value.rem_euclid(10_000) as u16)
        } else {
            value as u16
        }
    }

    /// The count register as a number of ticks.
    fn initial(&self) -> u32 {
        let count = match (self.reload, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => count.into(),
            (count, true) => from_bcd(count),
        };
        if self.mode.is_periodic() {
            count.max(PERIODIC_COUNT_MIN)
        } else {
            count
        }
    }

    /// The count register goes to the counting element at tick `at`.
    fn load(&mut self, at: u64) {
        let mut run = Run {
            count: self.initial(),
            start: at as i64,
            held: (!self.gate && !self.mode.is_triggered()).then_some(0),
        };
        if let Some(before) = self.run.filter(|_| self.mode == Mode::SquareWave)
            && before.phase(at) != 0
        {
            // A new count between the halves: the low half is the first with it.
            run.start -= run.high_half() as i64;
        }
        self.run = Some(run);
        self.load_at = None;
        self.null_count = false;
    }

    /// A control word for this counter, the latch command included.
    pub(super) fn control(&mut self, word: u8, tick: u64) {
        let access = match word >> 4 & 3 {
            0 => return self.latch_count(tick),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        *self = Self {
            mode: Mode::from_control(word),
            access,
            bcd: word & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    /// "Counter Latch Command": a latched count stays until it is read.
    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(tick));
        }
    }

    /// "Read-Back Command": the same for the status byte.
    pub(super) fn latch_status(&mut self, tick: u64) {
        let status = u8::from(self.out(tick)) << 7
            | u8::from(self.null_count) << 6
            | (self.access as u8) << 4
            | (self.mode as u8) << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// Reads the counter's port: a latched status first, then a latched count, else the count.
    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count(tick));
        let [low, high] = count.to_le_bytes();
        if self.access == Access::LowThenHigh && !self.read_high {
            self.read_high = true;
            return low;
        }
        self.read_high = false;
        self.latched_count = None;
        if self.access == Access::Low {
            low
        } else {
            high
        }
    }

    /// Writes the counter's port: a byte of the count.
    pub(super) fn write(&mut self, value: u8, tick: u64) {
        match (self.access, self.low_byte.take()) {
            (Access::Low, _) => self.set_count(value.into(), tick),
            (Access::High, _) => self.set_count(u16::from(value) << 8, tick),
            (Access::LowThenHigh, Some(low)) => {
                self.set_count(u16::from_le_bytes([low, value]), tick);
            }
            (Access::LowThenHigh, None) => {
                self.low_byte = Some(value);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops the count and sets OUT low ("Mode 0").
                    self.run = None;
                    self.load_at = None;
                }
            }
        }
    }

    /// A whole count was written. It is loaded with the next CLK, at the end of the cycle, or by
    /// a trigger, as the mode says.
    fn set_count(&mut self, count: u16, tick: u64) {
        self.reload = count;
        self.written = true;
        self.null_count = true;
        match self.mode {
            Mode::TerminalCount => {
                self.run = None;
                self.load_at = Some(tick + 1);
            }
            Mode::SoftwareStrobe => self.load_at = Some(tick + 1),
            Mode::OneShot | Mode::HardwareStrobe => {}
            Mode::RateGenerator | Mode::SquareWave => {
                if self.load_at.is_none() {
                    self.load_at = match &self.run {
                        None => Some(tick + 1),
                        // With the gate low, it is loaded when the gate rises.
                        Some(run) if run.held.is_some() => None,
                        Some(run) => Some(self.next_boundary(run, tick)),
                    };
                }
            }
        }
    }

    /// The end of the cycle, in mode 3 of the half-cycle, that tick `tick` is in.
    fn next_boundary(&self, run: &Run, tick: u64) -> u64 {
        let phase = run.phase(tick);
        let length = match self.mode {
            Mode::SquareWave if phase < run.high_half() => run.high_half(),
            _ => run.count.into(),
        };
        tick + (length - phase)
    }

    /// Drives GATE ("Gate Pin Operations Summary").
    pub(super) fn set_gate(&mut self, high: bool, tick: u64) {
        if high == self.gate {
            return;
        }
        self.gate = high;
        match self.mode {
            Mode::OneShot | Mode::HardwareStrobe => {
                if high && self.written {
                    self.load_at = Some(tick + 1);
                }
            }
            Mode::RateGenerator | Mode::SquareWave if high => {
                if self.run.take().is_some() {
                    self.load_at = Some(tick + 1);
                }
            }
            _ if high => self.resume(tick),
            _ => self.hold(tick),
        }
    }

    fn hold(&mut self, tick: u64) {
        if let Some(run) = &mut self.run {
            run.held = Some(run.elapsed(tick));
            if self.mode.is_periodic() {
                // What was to be loaded at the end of the cycle waits for the gate.
                self.load_at = None;
            }
        }
    }

    fn resume(&mut self, tick: u64) {
        if let Some(run) = &mut self.run
            && let Some(held) = run.held.take()
        {
            run.start = tick as i64 - held as i64;
        }
    }
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |number, digit| {
        number * 10 + u32::from(value >> (4 * digit) & 0xf)
    })
}

fn to_bcd(value: u16) -> u16 {
    let digit = |place: u16| value / place % 10;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}

/// The saved state of a counter. Its gate is the device's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CounterV1 {
    mode: Mode,
    access: Access,
    bcd: bool,
    reload: u16,
    written: bool,
    null_count: bool,
    load_at: Option<u64>,
    run: Option<Run>,
    low_byte: Option<u8>,
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn save(&self) -> CounterV1 {
        let Self {
            mode,
            access,
            bcd,
            gate: _,
            reload,
            written,
            null_count,
            load_at,
            run,
            low_byte,
            read_high,
            latched_count,
            latched_status,
        } = *self;
        CounterV1 {
            mode,
            access,
            bcd,
            reload,
            written,
            null_count,
            load_at,
            run,
            low_byte,
            read_high,
            latched_count,
            latched_status,
        }
    }

    /// The counter that was saved as `state` at tick `seen`.
    pub(super) fn restored(state: CounterV1, gate: bool, seen: u64) -> Result<Self, Invalid> {
        let CounterV1 {
            mode,
            access,
            bcd,
            reload,
            written,
            null_count,
            load_at,
            run,
            low_byte,
            read_high,
            latched_count,
            latched_status,
        } = state;
        if let Some(run) = &run {
            Self::validate_run(run, mode, gate, seen)?;
        }
        // A load lies ahead, and no further than the longest cycle.
        if load_at.is_some_and(|at| at <= seen || at > seen.saturating_add(0x1_0000)) {
            return Err(Invalid::new("a count is loaded at an impossible time"));
        }
        if low_byte.is_some() && access != Access::LowThenHigh {
            return Err(Invalid::new("half a count of a whole one"));
        }
        Ok(Self {
            mode,
            access,
            bcd,
            gate,
            reload,
            written,
            null_count,
            load_at,
            run,
            low_byte,
            read_high,
            latched_count,
            latched_status,
        })
    }

    fn validate_run(run: &Run, mode: Mode, gate: bool, seen: u64) -> Result<(), Invalid> {
        let count_min = if mode.is_periodic() {
            PERIODIC_COUNT_MIN
        } else {
            1
        };
        if run.count < count_min || run.count > 0x1_0000 {
            return Err(Invalid::new("a count that can't be loaded"));
        }
        // A square wave's start may lie up to one cycle before machine time 0.
        if run.start > seen as i64 || run.start < -0x1_0000 {
            return Err(Invalid::new("a count was loaded at an impossible time"));
        }
        let is_held = !gate && !mode.is_triggered();
        if run.held.is_some() != is_held || run.held.is_some_and(|held| held > seen + 0x1_0000) {
            return Err(Invalid::new("the gate does not agree with the count"));
        }
        Ok(())
    }
}
