//! The process's stubs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{fmt, io};

use iced_x86::{Encoder, Instruction};

use crate::code::CodeMemory;
use crate::fault;
use crate::features::Features;
use crate::masked::{Gather, MaskedMove};
use crate::policy::{Refusal, Shape, VectorClass, analyse};
use crate::routine::{Kind, Routine, Stub};
use crate::stub::{assemble, fault_exit};

/// Why nothing can be run on this host.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Executable memory is not to be had.
    #[error("can't map executable memory")]
    Memory(#[source] rustix::io::Errno),
    /// The handler for SIGFPE can't be installed.
    #[error("can't handle SIGFPE: {0}")]
    Signal(String),
}

/// How to execute a guest's instruction.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    /// Run it on the host.
    Run(Routine),
    /// It moves the elements that a mask selects: VMASKMOV, VPMASKMOV, MASKMOVQ, MASKMOVDQU.
    Masked(MaskedMove),
    /// It loads elements from computed addresses: VGATHER, VPGATHER.
    Gather(Gather),
}

/// All stubs of the process. Any number of threads may translate and run at once.
pub struct Native {
    pool: Mutex<Pool>,
    stubs: Range<usize>,
}

struct Pool {
    memory: CodeMemory,
    /// By the encoding of the canonical instruction.
    stubs: HashMap<Vec<u8>, &'static Stub>,
}

impl Pool {
    /// Puts the way out of faults before the first stub. It is not there earlier: assembling
    /// anything makes iced-x86 make tables of more than half a MiB.
    fn put_fault_exit(&mut self) -> Result<(), Refusal> {
        if !self.memory.is_empty() {
            return Ok(());
        }
        let exit = fault_exit().map_err(|_| Refusal::NotAllowed)?;
        let at = self.memory.append(&exit).map(|at| at.as_ptr() as usize);
        assert_eq!(
            at,
            Some(self.memory.range().start),
            "the fault exit is where the handler jumps to"
        );
        Ok(())
    }
}

impl Native {
    /// The process's pool. The first call maps its memory and takes over SIGFPE, passing on
    /// to the previous handler all that stubs did not raise. Whoever replaces the handler
    /// later, or blocks SIGFPE in a thread that runs stubs, must expect the process to end
    /// by a guest's unmasked floating-point exception.
    ///
    /// # Errors
    /// [`Error`] if the host forbids either; the same each time.
    pub fn shared() -> Result<&'static Self, Error> {
        static SHARED: OnceLock<Result<Native, Error>> = OnceLock::new();
        SHARED.get_or_init(Self::new).as_ref().map_err(Clone::clone)
    }

    fn new() -> Result<Self, Error> {
        let memory = CodeMemory::new().map_err(Error::Memory)?;
        let stubs = memory.range();
        fault::install(stubs.clone()).map_err(|e: io::Error| Error::Signal(e.to_string()))?;
        Ok(Self {
            pool: Mutex::new(Pool {
                memory,
                stubs: HashMap::new(),
            }),
            stubs,
        })
    }

    /// The host's extensions, which bound those that CPUID may show.
    pub fn features(&self) -> &'static Features {
        Features::host()
    }

    /// How to execute `instruction`, which was decoded in any mode. Takes a lock and up to some
    /// microseconds: keep the result.
    ///
    /// # Errors
    /// [`Refusal`] if it is none of this crate's instructions, or invalid on this host.
    pub fn translate(&self, instruction: &Instruction) -> Result<Operation, Refusal> {
        if let Some(masked) = MaskedMove::decode(instruction)? {
            return Ok(Operation::Masked(masked));
        }
        if let Some(gather) = Gather::decode(instruction)? {
            return Ok(Operation::Gather(gather));
        }
        let (shape, binding) = analyse(instruction)?;
        let stub = self.stub(&shape)?;
        Ok(Operation::Run(Routine { stub, binding }))
    }

    fn stub(&self, shape: &Shape) -> Result<&'static Stub, Refusal> {
        let mut encoder = Encoder::new(64);
        encoder
            .encode(&shape.canonical, 0)
            .map_err(|_| Refusal::NotAllowed)?;
        let key = encoder.take_buffer();
        // A panic can't leave the pool half-changed: memory is appended to, then the map.
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stub) = pool.stubs.get(&key) {
            return Ok(stub);
        }
        pool.put_fault_exit()?;
        let code = assemble(shape).map_err(|_| Refusal::NotAllowed)?;
        let entry = pool.memory.append(&code).ok_or(Refusal::Full)?;
        // Leaked on purpose: routines refer to it for ever, and there are finitely many.
        let stub: &'static Stub = Box::leak(Box::new(Stub {
            entry,
            unit: shape.unit,
            memory: shape.memory,
            mxcsr: shape.mxcsr,
            kind: kind(shape),
            waiting: shape.waiting,
            flags_read: shape.flags_read,
            flags_written: shape.flags_written,
            any_gpr: shape.gprs.iter().any(|slot| slot.used),
            gprs: shape.gprs,
        }));
        pool.stubs.insert(key, stub);
        Ok(stub)
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("stubs", &self.stubs)
            .finish_non_exhaustive()
    }
}

fn kind(shape: &Shape) -> Kind {
    if shape.fx {
        Kind::Fx
    } else if shape.mmx {
        let writes =
            shape.vectors[0].is_some_and(|vector| vector.class == VectorClass::Mm && vector.store);
        Kind::Mmx { writes }
    } else {
        Kind::Plain
    }
}
