//! One virtual machine, from its shape to its end.

use crate::board::{Board, Consoles, Inputs};
use crate::control::{self, Control, Event, SharedVcpu};
use crate::cpu::{self, CpuError};
use crate::engines::{self, Created};
use crate::report::VcpuReport;
use crate::snapshot::{self, MachineV2, Snapshot};
use crate::trace::TraceSink;
use boot::{BootPlan, Content, Layout};
use clock::Clock;
use config::{EngineKind, KernelEntry};
use device::lock;
use engine::{DebugRequest, Engine, Setup, Vcpu};
use memory::{GuestMemory, Pages};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use x86::VcpuState;
use x86::cpuid::Table;

/// Frequency of the guest's TSC in kHz, if nobody says otherwise and the engine can: a tick is a
/// nanosecond of machine time, so that no conversion rounds.
pub(crate) const TSC_KHZ: u64 = 1_000_000;

/// What the guest starts with. It is read at each start: a reset reads it again.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The kernel file.
    pub kernel: Arc<dyn Content>,
    /// Parts of the initrd, in order.
    pub initrd: Vec<Arc<dyn Content>>,
    /// The kernel's command line.
    pub command_line: String,
}

impl Default for Payload {
    /// Nothing, which is no kernel.
    fn default() -> Self {
        Self {
            kernel: Arc::new([]),
            initrd: Vec::new(),
            command_line: String::new(),
        }
    }
}

/// Why a machine can't be made, started, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shape can't be.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The kernel, the initrd or the command line can't be used.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// No layout for so much memory.
    #[error(transparent)]
    Layout(#[from] boot::LayoutError),
    /// The host gives no memory.
    #[error(transparent)]
    Memory(memory::SetupError),
    /// The guest can't have its CPU.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The interpreter can't run on this host.
    #[error(transparent)]
    Interpreter(#[from] interpreter::NewError),
    /// KVM can't run on this host.
    #[error(transparent)]
    Kvm(#[from] kvm::NewError),
    /// KVM can't run on this host, as was found before.
    #[error("{0}")]
    NoKvm(&'static kvm::NewError),
    /// The host's KVM emulates the guest's code.
    #[error(
        "the host's KVM emulates instructions: a loop takes {0:.0} times as long as on its CPU"
    )]
    SlowKvm(f64),
    /// The translator can't run on this host.
    #[error(transparent)]
    Translator(#[from] translator::NewError),
    /// The board can't be put together; a mistake of ours.
    #[error("the board can't be put together: {0}")]
    Board(String),
    /// A thread can't be started.
    #[error("can't start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// Guest memory can't be read for a snapshot.
    #[error("can't read the guest's memory: {0}")]
    Snapshot(#[source] std::io::Error),
    /// A saved state does not fit.
    #[error("can't restore: {0}")]
    State(#[from] state::Error),
    /// A saved machine has another shape.
    #[error("can't restore: the saved machine has {0}")]
    Shape(String),
}

/// A virtual machine.
pub struct Machine {
    config: config::Machine,
    tsc_khz: u64,
    layout: Layout,
    payload: Payload,
    memory: Arc<GuestMemory>,
    clock: Clock,
    kind: EngineKind,
    /// What CPUID answers on the first vCPU.
    cpuid: Table,
    engine: Arc<dyn Engine>,
    passed_over: Vec<(&'static str, Error)>,
    vcpus: Vec<SharedVcpu>,
    board: Arc<Board>,
    inputs: Inputs,
    control: Arc<Control>,
    events: Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
    running: bool,
}

/// How much slower time passes for a guest whose translations are checked. It is executed a hundred
/// times as slowly, and would do little else than look at its timers.
const CHECKED_SLOWNESS: NonZeroU64 = NonZeroU64::new(16).unwrap();

impl Machine {
    /// A machine of the shape `config`, paused, with nothing in memory.
    ///
    /// # Errors
    /// If the shape can't be, or the host lacks something.
    pub fn new(
        config: config::Machine,
        consoles: Consoles,
        trace: Option<Arc<TraceSink>>,
    ) -> Result<Self, Error> {
        config.validate()?;
        cpu::check_cpu(&config)?;
        let layout = Layout::new(config.memory)?;
        let clock = match config.check_translation {
            None => Clock::following_tsc(native::time_stamp, 0),
            Some(_) => Clock::slowed(CHECKED_SLOWNESS, 0),
        };
        let Created {
            kind,
            engine,
            vcpus,
            setup,
            passed_over,
        } = engines::create(&config, |kind| {
            let tsc_khz = tsc_khz(&config, kind)?;
            Ok(Setup {
                cpuid: cpu::tables(&config, kind, tsc_khz)?,
                memory: GuestMemory::with_pages(&layout.regions(), pages(&config, kind))
                    .map_err(Error::Memory)?,
                clock: clock.clone(),
                tsc_khz,
                tracer: trace
                    .as_ref()
                    .map(|t| (t.clone() as Arc<dyn engine::Tracer>, t.kinds())),
            })
        })?;
        let Setup {
            memory,
            cpuid,
            tsc_khz,
            ..
        } = setup;
        let cpuid = cpuid.into_iter().next().expect("there is a vCPU");
        let (control, events) = Control::new(engine.clone(), vcpus.len());
        let (board, inputs) = Board::new(
            &layout,
            &memory,
            &clock,
            &engine,
            Arc::downgrade(&control),
            consoles,
            trace,
        )
        .map_err(|error| Error::Board(error.to_string()))?;
        let mut machine = Self {
            config,
            tsc_khz,
            layout,
            payload: Payload::default(),
            memory,
            clock,
            kind,
            cpuid,
            engine,
            passed_over,
            vcpus: vcpus
                .into_iter()
                .map(|vcpu| Arc::new(Mutex::new(vcpu)))
                .collect(),
            board,
            inputs,
            control,
            events,
            threads: Vec::new(),
            running: false,
        };
        machine.spawn().map_err(Error::Thread)?;
        Ok(machine)
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let platform = self.board.clone();
            self.threads
                .push(control::spawn(&self.control, index, vcpu, platform)?);
        }
        let timers = self.board.timers.clone();
        self.threads
            .push(control::spawn_timers(&self.control, timers)?);
        Ok(())
    }

    /// Puts the payload and the firmware's tables into memory and the vCPUs where they start.
    ///
    /// # Errors
    /// If the payload is not one that can be started. The machine is then of no further use.
    pub fn load(&mut self, payload: Payload) -> Result<(), Error> {
        self.payload = payload;
        self.start_up()
    }

    fn start_up(&mut self) -> Result<(), Error> {
        assert!(!self.running, "a machine is loaded while it is paused");
        self.board
            .assign_pci(&self.layout)
            .map_err(|e| Error::Board(e.to_string()))?;
        let initrd: Vec<&dyn Content> = self.payload.initrd.iter().map(|part| &**part).collect();
        let mut seed = [0; 32];
        let seeded = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        let plan = BootPlan {
            board: boot::firmware::Board {
                layout: self.layout,
                vcpus: self.config.cpus,
                uuid: self.config.uuid,
            },
            kernel: &*self.payload.kernel,
            initrd: &initrd,
            command_line: &self.payload.command_line,
            entry: match self.config.entry {
                KernelEntry::Auto => boot::Entry::Auto,
                KernelEntry::Bits64 => boot::Entry::Bits64,
                KernelEntry::Bits32 => boot::Entry::Bits32,
            },
            rng_seed: seeded.is_ok_and(|n| n == seed.len()).then_some(seed),
        };
        let boot_processor = boot::load(&self.memory, &plan)?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let state = match index {
                0 => boot_processor.clone(),
                _ => boot::firmware::processor(index as u32),
            };
            set_state(vcpu, &state)?;
        }
        Ok(())
    }

    /// Lets the guest run.
    pub fn resume(&mut self) {
        if !self.running {
            self.running = true;
            self.clock.resume();
            self.board.timers.resume();
            self.control.resume();
        }
    }

    /// Lets the guest run, but of its vCPUs only `index`: a debugger's single step.
    pub(crate) fn resume_only(&mut self, index: Option<usize>) {
        self.running = true;
        self.clock.resume();
        self.board.timers.resume();
        self.control.resume_only(index);
    }

    /// Stops the guest; its time stands still.
    pub fn pause(&mut self) {
        self.control.pause();
        self.clock.pause();
        self.board.timers.pause();
        self.running = false;
    }

    /// Waits for the guest to do something that is the owner's to act on; the machine is paused
    /// then. `None` after `timeout`: the machine goes on.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Option<Event> {
        let event = match timeout {
            Some(timeout) => match self.events.recv_timeout(timeout) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => Event::Quit,
            },
            None => self.events.recv().unwrap_or(Event::Quit),
        };
        self.pause();
        Some(event)
    }

    /// A way for other threads to make [`Machine::wait`] return.
    pub fn events(&self) -> Sender<Event> {
        self.control.events()
    }

    /// Does what the reset button does, and loads the payload again.
    ///
    /// # Errors
    /// As [`Machine::load`].
    pub fn reset(&mut self) -> Result<(), Error> {
        self.pause();
        let kept: Vec<Event> = self
            .events
            .try_iter()
            .filter(Event::is_from_outside)
            .collect();
        for event in kept {
            // The receiver is ours.
            let _ = self.control.events().send(event);
        }
        self.board.reset();
        self.start_up()
    }

    /// Saves the whole machine, which must be paused.
    ///
    /// # Errors
    /// If the host can't tell which memory was written.
    pub fn save(&self) -> Result<Snapshot, Error> {
        assert!(!self.running, "a machine is saved while it is paused");
        let mut out = state::Writer::new();
        out.put(snapshot::INSTANCE, &self.shape());
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            out.put(&format!("vcpu{index}"), &lock(vcpu).state());
        }
        self.board.save(&mut out);
        Snapshot::new(out.into_bytes(), &self.memory).map_err(Error::Snapshot)
    }

    /// Takes over a saved machine of the same shape. Called on a fresh one, before anything was
    /// loaded; on an error it is of no further use.
    ///
    /// # Errors
    /// If the state is damaged, or of a machine of another shape.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        assert!(!self.running, "a machine is restored while it is paused");
        let mut from = state::Reader::from_bytes(&snapshot.state)?;
        let MachineV2 {
            cpus,
            memory,
            tsc_khz,
            now,
            cpu,
            cpuid,
        } = MachineV2::take(&mut from)?;
        let ours = (self.config.cpus, self.config.memory, self.tsc_khz);
        if (cpus, memory, tsc_khz) != ours {
            let shape = format!("{cpus} CPUs, {memory} bytes of memory, a TSC of {tsc_khz} kHz");
            return Err(Error::Shape(shape));
        }
        cpu::check_saved(&cpuid, &cpu, &self.cpuid, self.kind)?;
        self.clock.set(now);
        snapshot.fill(&self.memory);
        self.board.restore(&mut from)?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let state: VcpuState = from.take(&format!("vcpu{index}"))?;
            set_state(vcpu, &state)?;
        }
        Ok(from.finish()?)
    }

    fn shape(&self) -> MachineV2 {
        MachineV2 {
            cpus: self.config.cpus,
            memory: self.config.memory,
            tsc_khz: self.tsc_khz,
            now: self.clock.now(),
            cpu: self.config.cpu.to_string(),
            cpuid: self.cpuid.clone(),
        }
    }

    /// Pictures of all vCPUs, which must stand.
    pub fn reports(&self) -> Vec<VcpuReport> {
        let numbered = self.vcpus.iter().enumerate();
        numbered
            .map(|(i, vcpu)| VcpuReport::new(i, &**lock(vcpu), &self.memory))
            .collect()
    }

    /// What the engine counted, by vCPU.
    pub fn statistics(&self) -> Vec<Vec<engine::Statistic>> {
        self.vcpus
            .iter()
            .map(|vcpu| lock(vcpu).statistics())
            .collect()
    }

    /// The engine's name.
    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    /// The faster engines that [`config::EngineKind::Auto`] passed over, and why.
    pub fn passed_over(&self) -> &[(&'static str, Error)] {
        &self.passed_over
    }

    /// Input of the consoles.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Calls `look` with vCPU `index`, which must stand.
    pub fn with_vcpu<T>(&self, index: usize, look: impl FnOnce(&mut dyn Vcpu) -> T) -> T {
        look(&mut **lock(&self.vcpus[index]))
    }

    /// What a debugger wants to stop for, on all vCPUs.
    pub fn set_debug(&self, request: &DebugRequest) {
        for vcpu in &self.vcpus {
            lock(vcpu).set_debug(request);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.stop();
        self.board.timers.stop();
        self.inputs.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn set_state(vcpu: &SharedVcpu, state: &VcpuState) -> Result<(), Error> {
    lock(vcpu).set_state(state).map_err(|source| {
        Error::State(state::Error::Invalid {
            kind: <VcpuState as state::Saved>::KIND,
            instance: "a vCPU".into(),
            source,
        })
    })
}

/// What host pages the memory is made of. Windows map it by small pages, which reserved huge ones
/// are not divided into.
fn pages(config: &config::Machine, kind: EngineKind) -> Pages {
    match (config.hugepages, kind) {
        (false, _) => Pages::Plain,
        (true, EngineKind::Translator) if config.windows != config::Windows::Never => {
            Pages::HugeInParts
        }
        (true, _) => Pages::Huge,
    }
}

/// Frequency of the guest's TSC in kHz under the engine `kind`.
fn tsc_khz(config: &config::Machine, kind: config::EngineKind) -> Result<u64, Error> {
    match (config.tsc_khz, kind) {
        (Some(khz), _) => Ok(khz),
        (None, config::EngineKind::Kvm) => {
            let host = kvm::Host::open().map_err(kvm::NewError::from)?;
            Ok(host.tsc_khz(TSC_KHZ)?)
        }
        (None, _) => Ok(TSC_KHZ),
    }
}
