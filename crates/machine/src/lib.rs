//! Config to board: the only place where an engine meets a device.
//!
//! [`Machine`] is one virtual machine: memory, an engine with its vCPUs, and a board of devices
//! (`board`). Its life is a small state machine:
//!
//! ```text
//!            resume            pause
//!   paused ---------> running ---------> paused     save and restore: only while paused
//!     |                  |  guest: power-off, reset, exit status, triple fault, debug stop
//!     |                  +----> paused, with an Event for the owner
//!     +--- drop ---> stopped (threads ended)
//! ```
//!
//! Order when pausing: vCPUs first (so that no access is under way), then the clock (so that no
//! timer expires), then the state is read. Resuming goes the other way round. Nobody who holds a
//! device's lock may pause: devices only *request*, and the owner acts on the [`Event`].
#![forbid(unsafe_code)]

mod board;
mod console;
mod control;
mod cpu;
mod engines;
mod gdb;
mod interrupts;
mod kvm_speed;
mod machine;
mod report;
mod snapshot;
mod trace;
mod virtio;

pub use board::{Consoles, Inputs};
pub use boot::Content;
pub use console::ConsoleInput;
pub use control::Event;
pub use cpu::{CpuError, CpuReport, check_cpu, cpu_models};
pub use engines::{EngineReport, engines};
pub use gdb::{GdbServer, Handler, Visit};
pub use kvm_speed::{assume_kvm_speed, has_kvm, kvm_speed};
pub use machine::{Error, Machine, Payload};
pub use report::VcpuReport;
pub use snapshot::Snapshot;
pub use trace::{TraceSink, parse_kinds};

pub use engine::{Kinds, Quantity, RUNNING, Statistic, TIME};
pub use kvm::Speed;
