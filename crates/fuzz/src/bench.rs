//! A bench on which a device is driven by an input.
//!
//! What is checked of every device: no access, no passage of time and no damaged snapshot makes
//! it panic; its timer does not spin; its own snapshot restores into a twin that saves the same,
//! and from then on the twin can't be told from the original.

use crate::input::Input;
use clock::Clock;
use device::{Device, InterruptLine, LineTarget, Mmio, Msi, MsiTarget, PortIo};
use device::{Shared, Timers, Width, lock};
use memory::GuestMemory;
use state::{Reader, Section, Writer};
use std::sync::{Arc, Mutex};

/// Steps that one input may take.
const STEPS_MAX: usize = 4096;
/// Snapshots in one input that are damaged or become twins.
const SNAPSHOTS_MAX: usize = 32;
/// Calls of expired timers without time passing, until they have to be quiet.
const POLLS_MAX: usize = 16;
/// The name of the device in its snapshot.
const INSTANCE: &str = "subject";

/// What a device drove and sent.
#[derive(Debug, Default)]
pub(crate) struct Wires(Mutex<Seen>);

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    levels: u64,
    messages: Vec<(u64, u32)>,
}

impl LineTarget for Wires {
    fn set_line(&self, line: u32, high: bool) {
        let levels = &mut lock(&self.0).levels;
        *levels = *levels & !(1 << line) | u64::from(high) << line;
    }
}

impl MsiTarget for Wires {
    fn send(&self, address: u64, data: u32) {
        lock(&self.0).messages.push((address, data));
    }
}

/// The surroundings of a device.
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) timers: Timers,
    wires: Arc<Wires>,
}

impl Bench {
    fn at(now: u64) -> Self {
        let clock = Clock::manual();
        clock.advance(now);
        Self {
            timers: Timers::new(clock.clone()),
            clock,
            wires: Arc::default(),
        }
    }

    /// A line whose level is watched; `line` is below 64.
    pub(crate) fn line(&self, line: u32) -> InterruptLine {
        InterruptLine::new(self.wires.clone(), line)
    }

    pub(crate) fn msi(&self) -> Msi {
        Msi::new(self.wires.clone())
    }

    /// Lets `nanos` pass in one leap, as if the timer thread came late.
    fn advance(&self, nanos: u64) {
        self.clock.advance(nanos);
        for _ in 0..POLLS_MAX {
            self.timers.poll();
            let now = self.clock.now();
            if self
                .timers
                .next_deadline()
                .is_none_or(|deadline| deadline > now)
            {
                return;
            }
        }
        panic!("the timer expires for ever without time passing");
    }

    /// Levels now, and messages since the last call.
    fn seen(&self) -> Seen {
        let mut seen = lock(&self.wires.0);
        let levels = seen.levels;
        Seen {
            levels,
            messages: std::mem::take(&mut seen.messages),
        }
    }
}

/// A device, and the ways to it.
pub(crate) struct Subject {
    /// Its lifecycle.
    pub(crate) device: Shared<dyn Device>,
    /// Does one thing to it that the input says, from the guest's side or from the host's.
    /// Returns what was observed.
    pub(crate) access: Box<dyn FnMut(&mut Input<'_>) -> u64>,
    /// The guest memory that it works in, which is not its own state.
    pub(crate) memory: Option<Arc<GuestMemory>>,
}

/// Makes an access to the ports of a device that decodes `ranges`.
pub(crate) fn access_ports(
    device: &Shared<impl PortIo>,
    ranges: &[(u16, u16)],
    input: &mut Input<'_>,
) -> u64 {
    let (first, count) = input.pick(ranges);
    let offset = input.below(count.into()) as u16;
    // An access lies wholly in a range.
    let room = match count - offset {
        1 => Width::Byte,
        2 | 3 => Width::Word,
        _ => Width::Dword,
    };
    let width = input.width(room);
    let port = first + offset;
    if input.flag() {
        let value = input.value() & width.ones();
        lock(device).port_write(port, width, value as u32);
        0
    } else {
        u64::from(lock(device).port_read(port, width)) & width.ones()
    }
}

/// Makes an access to the `len` bytes of registers that a device has in memory space.
pub(crate) fn access_memory(device: &Shared<impl Mmio>, len: u64, input: &mut Input<'_>) -> u64 {
    let width = input.width(Width::Qword);
    let places = len - width.bytes() as u64 + 1;
    let offset = match input.below(4) {
        0 => input.value() % places,
        // Registers are aligned.
        _ => (u64::from(input.u16()) * 4 % places) & !3,
    };
    if input.flag() {
        lock(device).mmio_write(offset, width, input.value() & width.ones());
        0
    } else {
        lock(device).mmio_read(offset, width) & width.ones()
    }
}

/// A subject on its bench.
struct Rig {
    bench: Bench,
    subject: Subject,
}

impl Rig {
    fn at(now: u64, make: fn(&Bench) -> Subject) -> Self {
        let bench = Bench::at(now);
        Self {
            subject: make(&bench),
            bench,
        }
    }

    fn save(&self) -> Vec<Section> {
        let mut writer = Writer::new();
        lock(&self.subject.device).save(INSTANCE, &mut writer);
        writer.into_sections()
    }

    /// A fresh rig at the same time that takes `sections` over.
    fn restored(
        &self,
        sections: &[Section],
        make: fn(&Bench) -> Subject,
    ) -> Result<Self, state::Error> {
        let other = Self::at(self.bench.clock.now(), make);
        if let (Some(from), Some(to)) = (&self.subject.memory, &other.subject.memory) {
            copy_memory(from, to);
        }
        let mut reader = Reader::new(sections.to_vec());
        lock(&other.subject.device).restore(INSTANCE, &mut reader)?;
        reader.finish()?;
        Ok(other)
    }

    /// Takes one step and returns what is seen of it from outside.
    fn step(&mut self, step: Step, input: &mut Input<'_>) -> (u64, Seen) {
        let observed = match step {
            Step::Access => (self.subject.access)(input),
            Step::Advance(nanos) => {
                self.bench.advance(nanos);
                0
            }
            Step::Reset => {
                lock(&self.subject.device).reset();
                0
            }
        };
        (observed, self.bench.seen())
    }
}

fn copy_memory(from: &GuestMemory, to: &GuestMemory) {
    let mut bytes = vec![0; from.ram().len()];
    from.ram().read(0, &mut bytes);
    to.ram().write(0, &bytes);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Access,
    Advance(u64),
    Reset,
}

/// Drives the subject that `make` makes by `data`.
pub(crate) fn drive(data: &[u8], make: fn(&Bench) -> Subject) {
    let mut input = Input::new(data);
    let mut rig = Rig::at(0, make);
    let mut twin: Option<Rig> = None;
    let mut snapshots = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let step = match input.u8() {
            0..=3 if snapshots < SNAPSHOTS_MAX => {
                snapshots += 1;
                twin = Some(make_twin(&rig, make));
                continue;
            }
            4..=7 if snapshots < SNAPSHOTS_MAX => {
                snapshots += 1;
                if let Some(damaged) = make_damaged(&rig, make, &mut input) {
                    rig = damaged;
                    twin = None;
                }
                continue;
            }
            8..=11 => Step::Reset,
            12..=63 => Step::Advance(leap(&mut input)),
            _ => Step::Access,
        };
        let mut same_input = input.clone();
        let seen = rig.step(step, &mut input);
        if let Some(twin) = &mut twin {
            let twins = twin.step(step, &mut same_input);
            assert_eq!(
                twins, seen,
                "a restored device behaves as the original: {step:?}"
            );
        }
    }
}

/// Nanoseconds from one to hours.
fn leap(input: &mut Input<'_>) -> u64 {
    let most = input.pick(&[1, 1_000, 40_000, 1_000_000, 700_000_000, 1 << 38, 1 << 44]);
    most - u64::from(input.u8()) % most
}

fn make_twin(rig: &Rig, make: fn(&Bench) -> Subject) -> Rig {
    let sections = rig.save();
    let twin = rig
        .restored(&sections, make)
        .expect("an own snapshot restores");
    assert_eq!(twin.save(), sections, "the restored state is the saved one");
    // Messages that a restore sends are sent once more.
    let _ = rig.bench.seen();
    assert_eq!(
        twin.bench.seen().levels,
        rig.bench.seen().levels,
        "lines are driven again"
    );
    twin
}

/// What comes of a snapshot after the input has changed some of its bytes, if it is accepted.
fn make_damaged(rig: &Rig, make: fn(&Bench) -> Subject, input: &mut Input<'_>) -> Option<Rig> {
    let mut sections = rig.save();
    for _ in 0..1 + input.below(4) {
        if sections.is_empty() {
            return None;
        }
        let section = input.below(sections.len());
        damage(&mut sections[section].payload, input);
    }
    rig.restored(&sections, make).ok()
}

/// Changes one byte, or the length.
pub(crate) fn damage(payload: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = usize::from(input.u16()) % (payload.len() + 1);
    let byte = input.u8();
    match payload.get_mut(at) {
        Some(place) => *place = byte,
        None if byte & 1 == 0 => payload.push(byte),
        None => payload.truncate(at / 2),
    }
}
