//! Who may run when: the vCPU threads and their owner.

use chipset::PowerControl;
use device::{Timers, lock};
use engine::{Engine, Exit, Platform, Stop, Vcpu};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

/// What the owner of a machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest ended the machine with a status.
    Exit(u8),
    /// A vCPU shut down after a triple fault.
    TripleFault {
        /// Which vCPU.
        vcpu: usize,
        /// What happened, for people.
        text: String,
    },
    /// The machine can't go on, by a fault of ours.
    Failed {
        /// Which vCPU met it, if one did.
        vcpu: Option<usize>,
        /// Why, for people.
        text: String,
    },
    /// The debugger's request was met.
    Debug {
        /// Which vCPU.
        vcpu: usize,
        /// How.
        stop: Stop,
    },
    /// Somebody outside asks the owner for something; the words are between those two.
    Request(String),
    /// A debugger called or said something: [`crate::GdbServer::serve`].
    Debugger,
    /// Somebody outside wants the owner to end the machine.
    Quit,
}

impl Event {
    /// Whether it comes from people, not from the guest: it outlives a reset.
    pub(crate) fn is_from_outside(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Debugger | Self::Quit)
    }
}

/// A vCPU, locked by its thread while it runs.
pub(crate) type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Paused,
    Running,
    Stopped,
}

struct State {
    mode: Mode,
    /// vCPU threads that may be executing.
    running: usize,
    /// vCPUs that the debugger holds while the others run.
    held: Vec<bool>,
}

/// The switch that all vCPU threads obey.
pub(crate) struct Control {
    engine: Arc<dyn Engine>,
    state: Mutex<State>,
    changed: Condvar,
    events: Sender<Event>,
    vcpus: usize,
}

impl Control {
    pub(crate) fn new(engine: Arc<dyn Engine>, vcpus: usize) -> (Arc<Self>, Receiver<Event>) {
        let (events, receiver) = channel();
        let state = State {
            mode: Mode::Paused,
            running: 0,
            held: vec![false; vcpus],
        };
        let state = Mutex::new(state);
        let control = Self {
            engine,
            state,
            changed: Condvar::new(),
            events,
            vcpus,
        };
        (Arc::new(control), receiver)
    }

    /// A way to send events to the owner.
    pub(crate) fn events(&self) -> Sender<Event> {
        self.events.clone()
    }

    /// Lets the vCPUs run.
    pub(crate) fn resume(&self) {
        self.resume_only(None);
    }

    /// Lets only vCPU `index` run (a debugger's step), until the next [`Control::resume`].
    pub(crate) fn resume_only(&self, index: Option<usize>) {
        let held = (0..self.vcpus)
            .map(|i| index.is_some_and(|only| only != i))
            .collect();
        lock(&self.state).held = held;
        self.set_mode(Mode::Running);
    }

    /// Stops the vCPUs and waits until they stand. Not to be called by a vCPU's thread.
    pub(crate) fn pause(&self) {
        self.request_pause();
        let mut state = lock(&self.state);
        while state.running > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the vCPUs stop soon.
    fn request_pause(&self) {
        let mut state = lock(&self.state);
        if state.mode == Mode::Running {
            state.mode = Mode::Paused;
        }
        drop(state);
        self.kick();
    }

    /// Ends the vCPU threads.
    pub(crate) fn stop(&self) {
        self.set_mode(Mode::Stopped);
        self.kick();
    }

    /// Tells the owner, and makes the vCPUs stop.
    pub(crate) fn report(&self, event: Event) {
        self.request_pause();
        // The owner may be gone already; then nobody wants to know.
        let _ = self.events.send(event);
    }

    fn set_mode(&self, mode: Mode) {
        lock(&self.state).mode = mode;
        self.changed.notify_all();
    }

    fn kick(&self) {
        for index in 0..self.vcpus {
            self.engine.kick(index);
        }
    }

    /// Waits until vCPU `index` may run; whether it is to end instead.
    fn wait(&self, index: usize) -> bool {
        let mut state = lock(&self.state);
        loop {
            match state.mode {
                Mode::Stopped => return true,
                Mode::Running if !state.held[index] => {
                    state.running += 1;
                    return false;
                }
                _ => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    fn stands(&self) {
        lock(&self.state).running -= 1;
        self.changed.notify_all();
    }
}

/// Requests of devices, on their way to the owner.
pub(crate) struct Requests(pub(crate) Weak<Control>);

impl Requests {
    fn report(&self, event: Event) {
        if let Some(control) = self.0.upgrade() {
            control.report(event);
        }
    }
}

impl PowerControl for Requests {
    fn power_off(&self) {
        self.report(Event::PowerOff);
    }
    fn reset(&self) {
        self.report(Event::Reset);
    }
    fn exit(&self, status: u8) {
        self.report(Event::Exit(status));
    }
}

/// Starts the thread of vCPU `index`.
pub(crate) fn spawn(
    control: &Arc<Control>,
    index: usize,
    vcpu: &SharedVcpu,
    platform: Arc<dyn Platform>,
) -> std::io::Result<JoinHandle<()>> {
    let control = control.clone();
    let vcpu = vcpu.clone();
    std::thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || run(&control, index, &vcpu, &platform))
}

/// Starts the thread of the devices' timers.
pub(crate) fn spawn_timers(
    control: &Arc<Control>,
    timers: Timers,
) -> std::io::Result<JoinHandle<()>> {
    let control = control.clone();
    std::thread::Builder::new()
        .name("timers".to_owned())
        .spawn(move || {
            // A guest without timers would just stand there.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| timers.run())) {
                let text = describe(&*panic);
                control.report(Event::Failed { vcpu: None, text });
            }
        })
}

/// What a thread panicked with.
fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("no message"))
}

fn run(control: &Control, index: usize, vcpu: &SharedVcpu, platform: &Arc<dyn Platform>) {
    while !control.wait(index) {
        // The engine keeps whatever a panic leaves behind; the owner is told and ends the machine.
        let exit = catch_unwind(AssertUnwindSafe(|| lock(vcpu).run(platform)))
            .unwrap_or_else(|panic| Exit::Failed(describe(&*panic)));
        let event = match exit {
            Exit::Kicked => None,
            Exit::Shutdown(text) => Some(Event::TripleFault { vcpu: index, text }),
            Exit::Failed(text) => Some(Event::Failed {
                vcpu: Some(index),
                text,
            }),
            Exit::Debug(stop) => Some(Event::Debug { vcpu: index, stop }),
        };
        if let Some(event) = event {
            control.report(event);
        }
        control.stands();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clock::Clock;
    use engine::{Access, DebugRequest};
    use std::sync::atomic::{AtomicBool, Ordering};
    use x86::VcpuState;

    /// Kicks of each vCPU.
    struct Kicks(Vec<AtomicBool>);

    impl Engine for Kicks {
        fn name(&self) -> &'static str {
            "test"
        }
        fn send_message(&self, _: u64, _: u32) {}
        fn set_external_interrupt(&self, _: bool) {}
        fn send_nmi(&self, _: usize) {}
        fn kick(&self, index: usize) {
            self.0[index].store(true, Ordering::SeqCst);
        }
    }

    struct Nothing;

    impl Platform for Nothing {
        fn access(&self, _: Access) -> u64 {
            0
        }
        fn end_of_interrupt(&self, _: u8) {}
        fn acknowledge_external(&self) -> u8 {
            0
        }
    }

    /// Spins until it is kicked, but for the first run of some.
    struct Spinning {
        kicks: Arc<Kicks>,
        index: usize,
        first: Option<fn() -> Exit>,
    }

    impl Vcpu for Spinning {
        fn run(&mut self, _: &Arc<dyn Platform>) -> Exit {
            if let Some(first) = self.first.take() {
                return first();
            }
            while !self.kicks.0[self.index].swap(false, Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Exit::Kicked
        }
        fn state(&self) -> VcpuState {
            VcpuState::after_reset(0)
        }
        fn set_state(&mut self, _: &VcpuState) -> Result<(), state::Invalid> {
            Ok(())
        }
        fn set_debug(&mut self, _: &DebugRequest) {}
        fn translate(&self, _: u64) -> Option<u64> {
            None
        }
        fn statistics(&self) -> Vec<engine::Statistic> {
            Vec::new()
        }
    }

    struct Threads {
        control: Arc<Control>,
        events: Receiver<Event>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Threads {
        fn new(first: &[Option<fn() -> Exit>]) -> Self {
            let kicks = Arc::new(Kicks(first.iter().map(|_| AtomicBool::default()).collect()));
            let (control, events) = Control::new(kicks.clone(), first.len());
            let spawn = |(index, first): (usize, &Option<fn() -> Exit>)| {
                let vcpu: SharedVcpu = Arc::new(Mutex::new(Box::new(Spinning {
                    kicks: kicks.clone(),
                    index,
                    first: *first,
                })));
                spawn(&control, index, &vcpu, Arc::new(Nothing)).unwrap()
            };
            let threads = first.iter().enumerate().map(spawn).collect();
            Self {
                control,
                events,
                threads,
            }
        }

        fn end(self) {
            self.control.stop();
            for thread in self.threads {
                thread.join().unwrap();
            }
        }
    }

    #[test]
    fn a_vcpu_that_panics_is_reported_and_the_machine_can_be_paused_and_ended() {
        let threads = Threads::new(&[None, Some(|| panic!("out of {}", "luck"))]);
        threads.control.resume();
        let failed = Event::Failed {
            vcpu: Some(1),
            text: "panicked: out of luck".to_owned(),
        };
        assert_eq!(threads.events.recv(), Ok(failed));
        threads.control.pause();
        threads.end();
    }

    #[test]
    fn a_device_that_panics_in_its_timer_is_reported() {
        struct Faulty;
        impl device::Timed for Faulty {
            fn expired(&mut self, _: u64) {
                panic!("at the wrong time");
            }
        }
        let threads = Threads::new(&[]);
        let timers = Timers::new(Clock::manual());
        let timer = timers.create();
        let faulty = device::shared(Faulty);
        timers.attach(&timer, &faulty);
        timer.arm(0);
        timers.resume();
        let thread = spawn_timers(&threads.control, timers).unwrap();
        let failed = Event::Failed {
            vcpu: None,
            text: "panicked: at the wrong time".to_owned(),
        };
        assert_eq!(threads.events.recv(), Ok(failed));
        thread.join().unwrap();
        threads.end();
    }

    #[test]
    fn of_two_vcpus_that_end_at_once_neither_is_lost() {
        let shutdown: fn() -> Exit = || Exit::Shutdown("twice".to_owned());
        let threads = Threads::new(&[Some(shutdown), Some(shutdown)]);
        // One of them may be stopped by the other before it starts.
        let mut seen = Vec::new();
        while seen.len() < 2 {
            threads.control.resume();
            match threads.events.recv().unwrap() {
                Event::TripleFault { vcpu, .. } => seen.push(vcpu),
                event => panic!("{event:?}"),
            }
            threads.control.pause();
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
        threads.end();
    }

    #[test]
    fn pausing_and_resuming_at_any_moment_never_hangs() {
        let threads = Threads::new(&[None; 3]);
        for _ in 0..2000 {
            threads.control.resume();
            threads.control.pause();
            assert_eq!(lock(&threads.control.state).running, 0);
        }
        threads.control.resume();
        threads.end();
    }
}
