//! Random code, in every mode, on the interpreter.
//!
//! The input says in which mode the code begins, what is wrong with its tables, which registers
//! it has, and what happens meanwhile: interrupts, a debugger's requests, writes to its code, a
//! second processor on the same memory. What is checked: `run` comes back soon after a kick, the
//! accesses it makes are ones that a machine can answer, it never gives up, and the state it
//! leaves can be taken over again as it is.

mod instructions;
mod scene;

use crate::input::Input;
use clock::Clock;
use engine::{Access, DebugRequest, Engine, Exit, Platform, Setup, Space, Vcpu, Watchpoint};
use interpreter::Interpreter;
use memory::GuestMemory;
use state::{Reader, Writer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use x86::{Cr4, VcpuState, Xcr0};

/// How long code runs before the kick.
const RUN: Duration = Duration::from_millis(1);
/// How long after the kick a run is a hang. Long, for a machine that is busy.
const HANG: Duration = Duration::from_secs(5);
/// Runs of one input.
const RUNS_MAX: usize = 4;
const TSC_KHZ: u64 = 1_000_000;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let count = input.pick(&[1, 1, 1, 2]);
    let mut stage = Stage::new(count);
    let disturbances = input.bytes(100);
    let state = match input.below(8) {
        0 => damaged_state(&mut input),
        _ => Some(scene::set(&stage.memory, &mut input)),
    };
    // Not every combination is one that a processor can be in.
    let Some(mut state) = state else { return };
    if stage.vcpus[0].set_state(&state).is_err() {
        // Without what this host may not have.
        state.cr4 &= Cr4::PAE | Cr4::PSE | Cr4::OSFXSR;
        state.xcr0 = Xcr0::X87;
        if stage.vcpus[0].set_state(&state).is_err() {
            return;
        }
    }
    if count > 1 {
        let mut other = state;
        other.apic.id = 1;
        other.gpr.reverse();
        let _ = stage.vcpus[1].set_state(&other);
    }
    let mut input = Input::new(disturbances);
    for _ in 0..RUNS_MAX {
        let debugged = stage.disturb(&mut input);
        let exits = stage.run();
        stage.check_states();
        for exit in exits {
            match exit {
                Exit::Kicked => {}
                Exit::Debug(stop) => assert!(debugged, "{stop:?} without a request"),
                Exit::Shutdown(_) => return,
                Exit::Failed(text) => panic!("the engine gave up: {text}"),
            }
        }
    }
}

/// The state after power-on as it may come from a file.
fn damaged_state(input: &mut Input<'_>) -> Option<VcpuState> {
    let mut writer = Writer::new();
    writer.put("vcpu", &VcpuState::after_reset(0));
    let mut sections = writer.into_sections();
    for _ in 0..input.below(8) {
        crate::bench::damage(&mut sections[0].payload, input);
    }
    Reader::new(sections).take("vcpu").ok()
}

/// An engine with its processors, and the machine around them.
struct Stage {
    memory: Arc<GuestMemory>,
    clock: Clock,
    engine: Arc<Interpreter>,
    vcpus: Vec<Box<dyn Vcpu>>,
    platform: Arc<dyn Platform>,
}

impl Stage {
    fn new(count: u32) -> Self {
        let memory = scene::memory();
        let clock = Clock::manual();
        let cpuid = (0..count).map(|index| interpreter::cpuid::table(index, count, TSC_KHZ));
        let setup = Setup {
            memory: memory.clone(),
            clock: clock.clone(),
            cpuid: cpuid.collect(),
            tsc_khz: TSC_KHZ,
            tracer: None,
        };
        let (engine, vcpus) = Interpreter::create(&setup).expect("the interpreter runs here");
        let platform = Arc::new(Answers {
            clock: clock.clone(),
            count: AtomicU64::new(1),
        });
        Self {
            memory,
            clock,
            engine,
            vcpus,
            platform,
        }
    }

    /// What happens between two runs. Returns whether a debugger has a request.
    fn disturb(&mut self, input: &mut Input<'_>) -> bool {
        let mut debugged = false;
        for vcpu in &mut self.vcpus {
            vcpu.set_debug(&DebugRequest::default());
            let _ = (vcpu.translate(scene::CODE), vcpu.translate(input.value()));
        }
        for _ in 0..input.below(4) {
            match input.below(7) {
                0 => self
                    .engine
                    .send_message(0xfee0_0000 | input.value(), input.u32()),
                1 => self.engine.send_nmi(0),
                2 => self.engine.set_external_interrupt(input.flag()),
                3 => self.clock.advance(input.value() >> 16),
                4 => {
                    // As a device writes, into code too.
                    let at = scene::CODE + u64::from(input.u8());
                    self.memory
                        .store(at, input.u64())
                        .expect("code is in memory");
                }
                _ => {
                    debugged = true;
                    self.vcpus[0].set_debug(&DebugRequest {
                        single_step: input.below(4) == 0,
                        breakpoints: vec![scene::CODE + u64::from(input.u8())],
                        watchpoints: vec![Watchpoint {
                            address: scene::DATA,
                            len: input.u16().into(),
                            read: input.flag(),
                            write: input.flag(),
                        }],
                    });
                }
            }
        }
        debugged
    }

    /// Runs all processors until they come back, by themselves or by a kick.
    fn run(&mut self) -> Vec<Exit> {
        let (done, wait) = mpsc::channel();
        let (engine, platform, count) = (&self.engine, &self.platform, self.vcpus.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .vcpus
                .iter_mut()
                .map(|vcpu| {
                    let done = done.clone();
                    scope.spawn(move || {
                        let exit = vcpu.run(platform);
                        let _ = done.send(());
                        exit
                    })
                })
                .collect();
            drop(done);
            let mut back = 0;
            if !wait_for(&wait, count, &mut back, RUN) {
                (0..count).for_each(|index| engine.kick(index));
                if !wait_for(&wait, count, &mut back, HANG) {
                    eprintln!("guest code hangs: no return in {HANG:?} after a kick");
                    std::process::abort();
                }
            }
            let exits = threads.into_iter().map(|thread| thread.join());
            exits
                .map(|exit| exit.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// What a processor has become is a state that it can be in.
    fn check_states(&mut self) {
        for vcpu in &mut self.vcpus {
            let state = vcpu.state();
            if let Err(error) = vcpu.set_state(&state) {
                panic!("an own state is refused: {error}");
            }
            assert_eq!(vcpu.state(), state, "a state is taken over as it is");
        }
    }
}

/// Waits until `count` processors are back or panicked; for at most `time` each.
fn wait_for(wait: &mpsc::Receiver<()>, count: usize, back: &mut usize, time: Duration) -> bool {
    while *back < count {
        match wait.recv_timeout(time) {
            Ok(()) => *back += 1,
            // All are gone: one of them by a panic.
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
    true
}

/// A machine that answers anything.
struct Answers {
    clock: Clock,
    count: AtomicU64,
}

impl Answers {
    fn next(&self) -> u64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        count.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Platform for Answers {
    fn access(&self, access: Access) -> u64 {
        let Access {
            space,
            address,
            bytes,
            write,
        } = access;
        let ones = match (space, bytes) {
            (_, 1 | 2 | 4) => (1 << (8 * bytes)) - 1,
            (Space::Memory, 8) => u64::MAX,
            _ => panic!("an access of {bytes} bytes to {space:?}"),
        };
        assert!(
            space == Space::Memory || address <= 0xffff,
            "port {address:#x}"
        );
        assert!(
            address.checked_add(u64::from(bytes) - 1).is_some(),
            "{address:#x} wraps"
        );
        self.clock.advance(1_000);
        match write {
            Some(value) => {
                assert_eq!(value & !ones, 0, "nothing above {bytes} bytes");
                0
            }
            None => self.next() & ones,
        }
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        self.next() as u8
    }
}
