//! The engine.

use crate::context::JAILS;
use crate::store::PAGE;
use crate::vcpu::TranslatorVcpu;
use crate::window::When;
use engine::{Engine, Setup, Vcpu};
use interpreter::Interpreter;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;

/// What a user may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes that each vCPU keeps of translated code and of what is known about it.
    pub code_cache: usize,
    /// When user code runs in a process of its own instead of behind checks.
    pub windows: When,
    /// Whether the host's `perf` is told where translated code is, in `/tmp/perf-PID.map`.
    pub perf_map: bool,
    /// Hold every block against the interpreter, and end with [`engine::Exit::Failed`] at the first
    /// that differs: its first executions, and one in this many of the others. For one vCPU.
    pub lockstep: Option<NonZeroU32>,
}

impl Options {
    /// How many bytes of the code cache each vCPU has for code behind checks, and for each jail.
    pub(crate) fn shares(&self) -> (usize, usize) {
        let jail = self.code_cache / 16 / PAGE * PAGE;
        match self.windows {
            When::Never => (self.code_cache, jail),
            _ => (self.code_cache - JAILS * jail, jail),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            code_cache: 64 << 20,
            windows: When::Auto,
            perf_map: false,
            lockstep: None,
        }
    }
}

/// Why the translator can't run here.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The interpreter, which it needs, can't.
    #[error(transparent)]
    Interpreter(#[from] interpreter::NewError),
    /// The host lacks instructions that translated code is made of.
    #[error("the translator needs a CPU with AVX and BMI2: use --engine interpreter")]
    Cpu,
    /// The host gives no memory, or none that is executable.
    #[error("the translator needs executable memory: {0}")]
    Memory(#[from] io::Error),
}

/// The vCPUs of one machine, by index.
type Vcpus = Vec<Box<dyn Vcpu>>;

/// The translator of one machine.
pub struct Translator {
    interpreter: Arc<Interpreter>,
}

impl Translator {
    /// An engine and its vCPUs, in their state after power-on.
    ///
    /// # Errors
    /// If the host does not allow executable memory, or its CPU is too old.
    pub fn create(setup: &Setup, options: &Options) -> Result<(Arc<Self>, Vcpus), NewError> {
        let host = native::Features::host();
        if !(host.avx && host.bmi2) {
            return Err(NewError::Cpu);
        }
        let (interpreter, cores) = Interpreter::create_vcpus(setup)?;
        let mut vcpus: Vcpus = Vec::with_capacity(cores.len());
        for core in cores {
            vcpus.push(Box::new(TranslatorVcpu::new(core, options)?));
        }
        Ok((Arc::new(Self { interpreter }), vcpus))
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "translator"
    }

    fn send_message(&self, address: u64, data: u32) {
        self.interpreter.send_message(address, data);
    }

    fn set_external_interrupt(&self, high: bool) {
        self.interpreter.set_external_interrupt(high);
    }

    fn send_nmi(&self, index: usize) {
        self.interpreter.send_nmi(index);
    }

    fn kick(&self, index: usize) {
        self.interpreter.kick(index);
    }
}
