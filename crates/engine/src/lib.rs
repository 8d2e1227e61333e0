//! What a CPU engine is.
//!
//! An [`Engine`] owns the vCPUs of one machine and everything between them that its host does not
//! do: local APICs, inter-processor interrupts, halting. Interrupts come in as messages and as
//! the level of the PIC's line; what a vCPU wants of the machine goes out as an [`Access`], which
//! is plain data, so that a vCPU may just as well be a process of its own. The rare events that
//! end [`Vcpu::run`] are an [`Exit`].
//!
//! An engine does not know what a device is, and no device can name a vCPU: they meet in
//! `machine`.
#![forbid(unsafe_code)]

mod exit;
mod statistics;
mod trace;

pub use exit::{Access, Exit, Platform, Space, Stop};
pub use statistics::{Quantity, RUNNING, Statistic, TIME};
pub use trace::{Event, Kinds, Tracer};

use clock::Clock;
use memory::GuestMemory;
use std::sync::Arc;
use x86::VcpuState;
use x86::cpuid::Table;

/// What an engine is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's memory.
    pub memory: Arc<GuestMemory>,
    /// The machine's clock: source of the TSC, the APIC timers and kvmclock.
    pub clock: Clock,
    /// What CPUID answers, one table for each vCPU. Their number is the number of vCPUs; the
    /// APIC ID of a vCPU is its index.
    pub cpuid: Vec<Table>,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u64,
    /// Where events are reported, and which.
    pub tracer: Option<(Arc<dyn Tracer>, Kinds)>,
}

/// The CPU side of one machine.
pub trait Engine: Send + Sync {
    /// The name by which a user selects it, such as `"interpreter"`.
    fn name(&self) -> &'static str;

    /// A message on the interrupt bus: a write of `data` to `address` (SDM vol. 3, 11.11), from an
    /// I/O APIC or a device. Never blocks for long.
    fn send_message(&self, address: u64, data: u32);

    /// The level of the PIC's INTR line, wired to LINT0 of the boot processor.
    fn set_external_interrupt(&self, high: bool);

    /// An NMI for vCPU `index`.
    fn send_nmi(&self, index: usize);

    /// Makes the [`Vcpu::run`] of vCPU `index`, or its next one, return [`Exit::Kicked`] soon,
    /// also out of a halt. Kicks do not add up.
    fn kick(&self, index: usize);
}

/// One vCPU. It is run by one thread at a time.
pub trait Vcpu: Send {
    /// Runs guest code (or waits in a halt) until something happens that is not the engine's to
    /// handle.
    fn run(&mut self, platform: &Arc<dyn Platform>) -> Exit;

    /// The architectural state. Call between runs.
    fn state(&self) -> VcpuState;

    /// Takes `state` over, all or nothing.
    ///
    /// # Errors
    /// If no vCPU of this engine can be in this state.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), state::Invalid>;

    /// What a debugger wants to stop for. Replaces the last request.
    fn set_debug(&mut self, request: &DebugRequest);

    /// The guest-physical address behind a linear one, by the current page tables, without
    /// setting bits in them; `None` where nothing is mapped.
    fn translate(&self, linear: u64) -> Option<u64>;

    /// What the engine counted, for people. [`RUNNING`] is among it.
    fn statistics(&self) -> Vec<Statistic>;
}

/// What a debugger wants to stop for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DebugRequest {
    /// Stop after one instruction, or after the exception that it raised. Meanwhile interrupts are
    /// held off.
    pub single_step: bool,
    /// Stop before instructions at these linear addresses.
    pub breakpoints: Vec<u64>,
    /// Stop after accesses to these linear ranges.
    pub watchpoints: Vec<Watchpoint>,
}

impl DebugRequest {
    /// Whether there is nothing to stop for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A range of linear addresses that a debugger watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchpoint {
    /// First linear address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Stop on reads.
    pub read: bool,
    /// Stop on writes.
    pub write: bool,
}
