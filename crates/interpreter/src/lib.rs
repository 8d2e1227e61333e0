//! The reference CPU engine: x86 in software, in every mode.
//!
//! It is the oracle for the other engines, so it is complete and exact before it is fast; and it
//! is fast enough to work with. How an instruction comes to be executed:
//!
//! 1. `vcpu` runs block after block; between blocks it looks at interrupts and requests.
//! 2. `decode` makes a block of `op::Op`s from code bytes, once; `cache` keeps it by
//!    guest-physical place until somebody writes there (`shared`).
//! 3. An `Op` names its handler (`ops`), a function made for just these operand kinds and sizes.
//! 4. Handlers access memory through `access`: segmentation, then the software TLB (`tlb`), and
//!    on a miss the page walk (`paging`), which remembers where tables are (`structures`).
//! 5. A fault is recorded in the `cpu::Cpu`, and delivered by `events`.
//!
//! An engine that runs code of its own may borrow all of this (`borrow`): events, rare
//! instructions, page tables, and the truth about code. One that is held against this one has
//! instructions tried here (`trial`).
//!
//! Integer instructions are Rust. Data instructions on x87, MMX and vector registers are executed
//! by the host CPU through the crate `native`, which is exact by construction. There is no unsafe
//! code here.
#![forbid(unsafe_code)]

mod access;
mod apic;
mod borrow;
mod cache;
mod cpu;
pub mod cpuid;
mod debug;
mod decode;
mod descriptors;
mod events;
mod flags;
mod int;
mod interpreter;
mod journal;
mod mailbox;
mod mode;
mod model;
mod op;
mod ops;
mod paging;
mod paravirt;
mod report;
mod save;
mod shared;
mod stack;
mod structures;
#[cfg(test)]
mod testing;
mod tlb;
mod trial;
mod vcpu;

pub use borrow::{CodePage, Crossings, DataPage};
pub use interpreter::{Interpreter, NewError};
pub use journal::Changes;
pub use mailbox::{Doorbell, Remote};
pub use mode::Mode;
pub use tlb::View;
pub use trial::{Effects, Snapshot, Tried};
pub use vcpu::{InterpreterVcpu, Next};
