//! Who may run when: the vCPU threads and their owner.

use chipset::PowerControl;
use device::lock;
use engine::{Engine, Exit, Platform, Stop, Vcpu};
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
    /// An engine can't go on.
    Failed {
        /// Which vCPU.
        vcpu: usize,
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

fn run(control: &Control, index: usize, vcpu: &SharedVcpu, platform: &Arc<dyn Platform>) {
    while !control.wait(index) {
        let exit = lock(vcpu).run(platform);
        let event = match exit {
            Exit::Kicked => None,
            Exit::Shutdown(text) => Some(Event::TripleFault { vcpu: index, text }),
            Exit::Failed(text) => Some(Event::Failed { vcpu: index, text }),
            Exit::Debug(stop) => Some(Event::Debug { vcpu: index, stop }),
        };
        if let Some(event) = event {
            control.report(event);
        }
        control.stands();
    }
}
