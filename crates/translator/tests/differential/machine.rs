//! A machine under some engine, and what is left when a program has run.

use crate::layout::*;
use clock::Clock;
use engine::{Access, Engine, Exit, Platform, Setup, Space, Vcpu};
use interpreter::Interpreter;
use memory::{GuestMemory, Kind, RegionSpec};
use std::num::NonZeroU32;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use translator::{Options, Translator, When};
use x86::VcpuState;

/// Makes an engine.
pub(crate) type Create = fn(&Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>);

pub(crate) fn interpreter(setup: &Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>) {
    let (engine, vcpus) = Interpreter::create(setup).expect("an interpreter");
    (engine, vcpus)
}

/// A translator that checks all accesses.
pub(crate) fn translator(setup: &Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>) {
    let options = Options {
        windows: When::Never,
        ..Options::default()
    };
    let (engine, vcpus) = Translator::create(setup, &options).expect("a translator");
    (engine, vcpus)
}

/// A translator that holds every block against the interpreter by itself.
pub(crate) fn lock_step(setup: &Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>) {
    let options = Options {
        lockstep: Some(NonZeroU32::MIN),
        ..Options::default()
    };
    let (engine, vcpus) = Translator::create(setup, &options).expect("a translator");
    (engine, vcpus)
}

/// A translator that must evict all the time.
pub(crate) fn small_translator(setup: &Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>) {
    let options = Options {
        code_cache: 1 << 20,
        windows: When::Never,
        ..Options::default()
    };
    let (engine, vcpus) = Translator::create(setup, &options).expect("a translator");
    (engine, vcpus)
}

/// A translator that runs all user code that it can in jails.
pub(crate) fn windows(setup: &Setup) -> (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>) {
    let options = Options {
        windows: When::Always,
        code_cache: 8 << 20,
        ..Options::default()
    };
    let (engine, vcpus) = Translator::create(setup, &options).expect("a translator");
    (engine, vcpus)
}

/// Devices that answer with pseudo-random numbers and note every access.
pub(crate) struct Devices {
    engine: OnceLock<Weak<dyn Engine>>,
    pub(crate) log: Mutex<Vec<Access>>,
    ended: AtomicBool,
}

/// The most accesses that are noted.
const LOG_MAX: usize = 100_000;

impl Platform for Devices {
    fn access(&self, access: Access) -> u64 {
        let mut log = self.log.lock().expect("no panic while locked");
        if log.len() < LOG_MAX {
            log.push(access);
        }
        let count = log.len() as u64;
        drop(log);
        if access.write.is_some() {
            if access.space == Space::Port && access.address == END_PORT.into() {
                self.ended.store(true, Ordering::Release);
                if let Some(engine) = self.engine.get().and_then(Weak::upgrade) {
                    engine.kick(0);
                }
            }
            return 0;
        }
        let mixed = (access.address ^ count << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.rotate_left(23) & (u64::MAX >> (64 - 8 * u32::from(access.bytes)))
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        INTERRUPT_VECTOR
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The program's end was reached.
    Reached,
    /// It was not, in [`Machine::patience`].
    TimedOut,
    /// Triple fault.
    Shutdown,
    /// The engine panicked.
    Panicked(String),
    /// Anything else.
    Other(Exit),
}

/// The longest run of a program, whose normal length is less than a millisecond, or 200 where it
/// rewrites itself all the time; hosts are busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest run of a program that may well be endless.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(300);

/// What is left when a program has run.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) state: VcpuState,
    pub(crate) lower: Vec<u8>,
    pub(crate) upper: Vec<u8>,
    pub(crate) accesses: Vec<Access>,
}

impl Outcome {
    /// The number of events that the handlers have logged.
    pub(crate) fn events(&self, mode: Mode) -> u64 {
        let at = LOG_POINTER as usize;
        let bytes = self.lower[at..at + 8].try_into().expect("8 bytes");
        (u64::from_le_bytes(bytes) - mode.system(LOG)) / LOG_ENTRY
    }
}

/// A machine with one vCPU, or several.
pub(crate) struct Machine {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) devices: Arc<Devices>,
    /// The longest run.
    pub(crate) patience: Duration,
    /// The states after power-on.
    pub(crate) reset: Vec<VcpuState>,
    watchdog: Watchdog,
}

impl Machine {
    pub(crate) fn new(create: Create, vcpus: u32) -> Self {
        let regions = [(0, SYSTEM_BYTES), (PROGRAM_MEMORY, PROGRAM_MEMORY_BYTES)];
        let regions = regions.map(|(gpa, len)| RegionSpec {
            gpa,
            len,
            kind: Kind::Ram,
        });
        let memory = GuestMemory::new(&regions).expect("memory");
        let setup = Setup {
            memory: memory.clone(),
            clock: Clock::manual(),
            cpuid: (0..vcpus)
                .map(|index| interpreter::cpuid::table(index, vcpus, 1_000_000))
                .collect(),
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (engine, vcpus) = create(&setup);
        let devices = Arc::new(Devices {
            engine: OnceLock::new(),
            log: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&engine);
        assert!(devices.engine.set(weak).is_ok(), "it is set once");
        Self {
            memory,
            patience: PATIENCE,
            reset: vcpus.iter().map(|vcpu| vcpu.state()).collect(),
            vcpus,
            watchdog: Watchdog::new(engine.clone()),
            engine,
            devices,
        }
    }

    /// Writes memory whole and forgets the accesses of the run before.
    pub(crate) fn fill(&self, [lower, upper]: &[Vec<u8>; 2]) {
        self.memory.write(0, lower).expect("the lower region");
        self.memory
            .write(PROGRAM_MEMORY, upper)
            .expect("the upper region");
        self.devices
            .log
            .lock()
            .expect("no panic while locked")
            .clear();
    }

    /// Runs vCPU 0 from `state` to the program's end.
    pub(crate) fn run(&mut self, state: &VcpuState) -> Outcome {
        self.vcpus[0].set_state(state).expect("a possible state");
        self.devices.ended.store(false, Ordering::Release);
        self.watchdog.start(self.patience);
        let platform: Arc<dyn Platform> = self.devices.clone();
        let vcpu = &mut self.vcpus[0];
        let exit = panic::catch_unwind(panic::AssertUnwindSafe(|| vcpu.run(&platform)));
        self.watchdog.stop();
        let end = match exit {
            Ok(Exit::Kicked) if self.devices.ended.load(Ordering::Acquire) => End::Reached,
            Ok(Exit::Kicked) => End::TimedOut,
            Ok(Exit::Shutdown(_)) => End::Shutdown,
            Ok(other) => End::Other(other),
            Err(panic) => End::Panicked(match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(_) => String::new(),
            }),
        };
        let mut lower = vec![0; SYSTEM_BYTES as usize];
        let mut upper = vec![0; PROGRAM_MEMORY_BYTES as usize];
        self.memory.read(0, &mut lower).expect("the lower region");
        self.memory
            .read(PROGRAM_MEMORY, &mut upper)
            .expect("the upper region");
        Outcome {
            end,
            state: self.vcpus[0].state(),
            lower,
            upper,
            accesses: self
                .devices
                .log
                .lock()
                .expect("no panic while locked")
                .clone(),
        }
    }
}

/// Ends runs that take too long.
struct Watchdog {
    shared: Arc<Watched>,
}

struct Watched {
    /// Milliseconds after `epoch` at which the run has taken too long; 0 while there is none.
    deadline: AtomicU64,
    epoch: Instant,
    gone: AtomicBool,
}

impl Watchdog {
    fn new(engine: Arc<dyn Engine>) -> Self {
        let shared = Arc::new(Watched {
            deadline: AtomicU64::new(0),
            epoch: Instant::now(),
            gone: AtomicBool::new(false),
        });
        let watched = shared.clone();
        std::thread::spawn(move || watched.watch(&*engine));
        Self { shared }
    }

    fn start(&self, patience: Duration) {
        let deadline = self.shared.epoch.elapsed() + patience;
        self.shared
            .deadline
            .store(deadline.as_millis() as u64, Ordering::Release);
    }

    fn stop(&self) {
        self.shared.deadline.store(0, Ordering::Release);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
    }
}

impl Watched {
    fn watch(&self, engine: &dyn Engine) {
        while !self.gone.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(50));
            let deadline = self.deadline.load(Ordering::Acquire);
            if deadline != 0 && self.epoch.elapsed().as_millis() as u64 > deadline {
                engine.kick(0);
            }
        }
    }
}
