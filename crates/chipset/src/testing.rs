//! A bench on which every chip is driven by random accesses and shown to survive a snapshot.

use clock::Clock;
use device::{InterruptLine, LineTarget, Msi, MsiTarget, Timers};
use state::{Reader, Section};
use std::sync::{Arc, Mutex};

/// Steps of one hostile run.
const STEPS: usize = 30_000;
/// Steps between two snapshots of a hostile run.
const STEPS_PER_SNAPSHOT: usize = 500;

/// Pseudo-random numbers (xorshift64*): the same on every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number with a random count of significant bits: small and huge ones alike.
    pub(crate) fn any_size(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> bits
    }
}

/// The far end of all lines and messages of a device: levels, and how often each has risen.
#[derive(Debug, Default)]
pub(crate) struct Wires(Mutex<Seen>);

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    levels: u32,
    edges: [u32; 32],
    messages: Vec<(u64, u32)>,
}

impl Wires {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn line(self: &Arc<Self>, line: u32) -> InterruptLine {
        InterruptLine::new(self.clone(), line)
    }

    pub(crate) fn msi(self: &Arc<Self>) -> Msi {
        Msi::new(self.clone())
    }

    pub(crate) fn level(&self, line: u32) -> bool {
        self.0.lock().unwrap().levels >> line & 1 != 0
    }

    /// Rising edges of `line` since the last call.
    pub(crate) fn take_edges(&self, line: u32) -> u32 {
        std::mem::take(&mut self.0.lock().unwrap().edges[line as usize])
    }

    /// Messages since the last call.
    pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap().messages)
    }

    /// What was seen since the last call, and the levels now.
    fn take(&self) -> Seen {
        let mut seen = self.0.lock().unwrap();
        let levels = seen.levels;
        let taken = std::mem::take(&mut *seen);
        seen.levels = levels;
        taken
    }
}

impl LineTarget for Wires {
    fn set_line(&self, line: u32, high: bool) {
        let mut seen = self.0.lock().unwrap();
        let bit = 1 << line;
        if high && seen.levels & bit == 0 {
            seen.edges[line as usize] += 1;
        }
        seen.levels = seen.levels & !bit | if high { bit } else { 0 };
    }
}

impl MsiTarget for Wires {
    fn send(&self, address: u64, data: u32) {
        self.0.lock().unwrap().messages.push((address, data));
    }
}

/// The surroundings of a device under test.
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) timers: Timers,
    pub(crate) wires: Arc<Wires>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let clock = Clock::manual();
        Self {
            timers: Timers::new(clock.clone()),
            clock,
            wires: Wires::new(),
        }
    }

    /// Lets `nanos` pass in one leap, as if the timer thread came late.
    pub(crate) fn advance(&self, nanos: u64) {
        self.clock.advance(nanos);
        self.timers.poll();
    }

    /// Lets `nanos` pass, with every deadline met on time.
    pub(crate) fn run(&self, nanos: u64) {
        let end = self.clock.now() + nanos;
        while let Some(deadline) = self.timers.next_deadline().filter(|d| *d <= end) {
            self.clock
                .advance(deadline.saturating_sub(self.clock.now()));
            self.timers.poll();
        }
        self.clock.advance(end - self.clock.now());
    }
}

/// A device on a bench.
pub(crate) trait Subject {
    /// A fresh device with everything around it.
    fn on(bench: &Bench) -> Self;

    /// Does one random thing to the device and returns what can be observed.
    fn step(&mut self, random: &mut Random) -> u64;

    /// [`device::Device::reset`].
    fn reset(&mut self);

    /// [`device::Device::save`].
    fn save(&self) -> Vec<Section>;

    /// [`device::Device::restore`].
    fn restore(&mut self, from: &mut Reader) -> Result<(), state::Error>;
}

/// Implements the part of [`Subject`] that is the same for every shared device.
macro_rules! subject_device {
    ($device:tt) => {
        fn reset(&mut self) {
            device::Device::reset(&mut *device::lock(&self.$device));
        }

        fn save(&self) -> Vec<state::Section> {
            let mut writer = state::Writer::new();
            device::Device::save(&*device::lock(&self.$device), "subject", &mut writer);
            writer.into_sections()
        }

        fn restore(&mut self, from: &mut state::Reader) -> Result<(), state::Error> {
            device::Device::restore(&mut *device::lock(&self.$device), "subject", from)
        }
    };
}
pub(crate) use subject_device;

fn random_step<S: Subject>(subject: &mut S, bench: &Bench, random: &mut Random) -> (u64, Seen) {
    let observed = if random.below(8) == 0 {
        bench.advance(random.pick(&[1, 900, 40_000, 1_000_000, 700_000_000, 1 << 38]));
        0
    } else {
        subject.step(random)
    };
    (observed, bench.wires.take())
}

/// A fresh subject at the time of `bench` that took the state over.
fn restored<S: Subject>(bench: &Bench, sections: &[Section]) -> (S, Bench) {
    let copy_bench = Bench::new();
    copy_bench.clock.advance(bench.clock.now());
    let mut copy = S::on(&copy_bench);
    let mut reader = Reader::new(sections.to_vec());
    copy.restore(&mut reader).expect("an own state restores");
    reader.finish().expect("every section is taken");
    (copy, copy_bench)
}

/// Hostile accesses in random order, with snapshots in between: nothing panics, a restored
/// device saves the very same state, and from then on it can't be told from the original.
pub(crate) fn survives_hostile_accesses_and_snapshots<S: Subject>(seed: u64) {
    let mut random = Random::new(seed);
    let mut bench = Bench::new();
    let mut subject = S::on(&bench);
    for _ in 0..STEPS / STEPS_PER_SNAPSHOT {
        let sections = subject.save();
        let (mut copy, copy_bench) = restored::<S>(&bench, &sections);
        assert_eq!(copy.save(), sections, "the restored state is the saved one");
        assert_eq!(
            copy_bench.wires.take().levels,
            bench.wires.take().levels,
            "the restored device drives its lines as the original"
        );
        for step in 0..STEPS_PER_SNAPSHOT {
            let mut copy_random = random.clone();
            let original = random_step(&mut subject, &bench, &mut random);
            let other = random_step(&mut copy, &copy_bench, &mut copy_random);
            assert_eq!(original, other, "step {step} after the restore");
        }
        // Go on with the copy: what it lost, if anything, stays lost.
        (subject, bench) = (copy, copy_bench);
    }
}

/// After a reset the device saves what a fresh one at the same time does.
pub(crate) fn resets_to_power_on<S: Subject>(seed: u64) {
    let mut random = Random::new(seed);
    let bench = Bench::new();
    let mut subject = S::on(&bench);
    for _ in 0..STEPS_PER_SNAPSHOT {
        random_step(&mut subject, &bench, &mut random);
    }
    subject.reset();
    let fresh_bench = Bench::new();
    fresh_bench.clock.advance(bench.clock.now());
    assert_eq!(subject.save(), S::on(&fresh_bench).save());
}

/// No state, however damaged, panics; one that is refused leaves the device as it was.
pub(crate) fn refuses_damaged_states_unchanged<S: Subject>(seed: u64) {
    let mut random = Random::new(seed);
    let bench = Bench::new();
    let mut subject = S::on(&bench);
    for _ in 0..STEPS_PER_SNAPSHOT {
        random_step(&mut subject, &bench, &mut random);
    }
    let good = subject.save();
    for _ in 0..2_000 {
        let mut bad = good.clone();
        let section = random.below(bad.len() as u64) as usize;
        let payload = &mut bad[section].payload;
        let at = random.below(payload.len() as u64) as usize;
        payload[at] ^= 1 << random.below(8);
        let mut other = S::on(&bench);
        let before = other.save();
        match other.restore(&mut Reader::new(bad.clone())) {
            Ok(()) => assert_eq!(canonical(&bad, &other.save()), other.save()),
            Err(_) => assert_eq!(other.save(), before, "a refused state changes nothing"),
        }
        for _ in 0..20 {
            other.step(&mut random);
        }
    }
}

/// What `bad` must be once it was accepted: itself, but where the damage made an overlong
/// encoding of the same or a smaller number, which only changes the length, what was `saved`.
fn canonical(bad: &[Section], saved: &[Section]) -> Vec<Section> {
    let length = |sections: &[Section]| sections.iter().map(|s| s.payload.len()).sum::<usize>();
    if length(bad) == length(saved) {
        bad.to_vec()
    } else {
        saved.to_vec()
    }
}
