//! The engine: its vCPUs, and messages to them.

use crate::cache::Cache;
use crate::cpu::Cpu;
use crate::mailbox::{KICK, Mailbox};
use crate::paging::PHYSICAL_BITS;
use crate::shared::Shared;
use crate::vcpu::InterpreterVcpu;
use engine::{Engine, Setup, Vcpu};
use lapic::Lapic;
use std::sync::Arc;

/// Why the interpreter can't run here.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The host can't execute data instructions for it.
    #[error("the interpreter needs executable memory for vector instructions")]
    Native(#[from] native::Error),
}

/// The vCPUs of one machine, by index.
type Vcpus = Vec<Box<dyn Vcpu>>;

/// The interpreter of one machine.
pub struct Interpreter {
    shared: Arc<Shared>,
}

impl Interpreter {
    /// An engine and its vCPUs, in their state after power-on.
    ///
    /// # Errors
    /// If the host does not allow executable memory.
    pub fn create(setup: &Setup) -> Result<(Arc<Self>, Vcpus), NewError> {
        let (engine, vcpus) = Self::create_vcpus(setup)?;
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| -> Box<dyn Vcpu> { Box::new(vcpu) });
        Ok((engine, vcpus.collect()))
    }

    /// As [`Interpreter::create`], for an engine that runs code of its own and borrows the rest
    /// from these vCPUs (see `borrow`).
    ///
    /// # Errors
    /// If the host does not allow executable memory.
    pub fn create_vcpus(setup: &Setup) -> Result<(Arc<Self>, Vec<InterpreterVcpu>), NewError> {
        let native = native::Native::shared()?;
        let count = setup.cpuid.len();
        let lapics: Vec<_> = (0..count as u32)
            .map(|id| Lapic::new(id, PHYSICAL_BITS))
            .collect();
        let mailboxes: Box<[Arc<Mailbox>]> = lapics
            .iter()
            .map(|lapic| Arc::new(Mailbox::new(lapic.inbox().clone())))
            .collect();
        let shared = Arc::new(Shared::new(setup, native, mailboxes));
        let observer: std::sync::Weak<Shared> = Arc::downgrade(&shared);
        setup.memory.watch().set_observer(observer);
        let vcpus = lapics
            .into_iter()
            .enumerate()
            .map(|(index, lapic)| InterpreterVcpu {
                cpu: Cpu::new(setup, shared.clone(), lapic, index),
                cache: Cache::new(),
            });
        let vcpus = vcpus.collect();
        Ok((Arc::new(Self { shared }), vcpus))
    }
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn send_message(&self, address: u64, data: u32) {
        self.shared.send_message(address, data);
    }

    fn set_external_interrupt(&self, high: bool) {
        self.shared.set_external_interrupt(high);
    }

    fn send_nmi(&self, index: usize) {
        self.shared.send_nmi(index);
    }

    fn kick(&self, index: usize) {
        self.shared.mailboxes[index].post(KICK);
    }
}
