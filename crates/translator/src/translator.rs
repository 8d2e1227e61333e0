//! The engine.

use engine::{Engine, Setup, Vcpu};
use interpreter::Interpreter;
use std::sync::Arc;

/// What a user may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of translated code that each vCPU keeps.
    pub code_cache: usize,
    /// Whether the host's `perf` is told where translated code is, in `/tmp/perf-PID.map`.
    pub perf_map: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            code_cache: 64 << 20,
            perf_map: false,
        }
    }
}

/// Why the translator can't run here.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The interpreter, which it needs, can't.
    #[error(transparent)]
    Interpreter(#[from] interpreter::NewError),
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
    /// If the host does not allow executable memory.
    pub fn create(setup: &Setup, _options: &Options) -> Result<(Arc<Self>, Vcpus), NewError> {
        let (interpreter, vcpus) = Interpreter::create(setup)?;
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
