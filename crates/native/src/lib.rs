//! Runs single data instructions on the host CPU: the host is the specification.
//!
//! The interpreter is safe Rust and computes integer instructions itself. For everything that
//! works on x87, MMX, XMM and YMM registers (and a few integer extensions) it asks this crate:
//! the guest's instruction is re-encoded into a small stub which loads the registers it reads
//! from a [`Frame`], executes it with its memory operand inside the frame, and stores the
//! registers it writes. The result is what the host computes, bit for bit, flags and
//! exceptions included.
//!
//! # Use
//! Once per decoded instruction: [`Native::translate`] gives an [`Operation`]. Once per
//! execution of an [`Operation::Run`]: copy the memory operand into [`Frame::scratch`] if
//! [`Routine::memory`] says that it is read, call [`Routine::run`], copy it out if it is
//! written. Masked moves and gathers touch memory element by element and take closures
//! ([`MaskedMove`], [`Gather`]).
//!
//! What the CPU does around the instruction stays with the interpreter: `#NM`, `#UD` by CR0,
//! CR4 and XCR0 ([`Routine::unit`]), address computation, paging, alignment faults
//! ([`Memory::alignment`]), `#MF` and `#XM` ([`Outcome`]), the x87 instruction and operand
//! pointers, FWAIT, fences, prefetches, MOVNTI, LDMXCSR, STMXCSR, VZEROUPPER and VZEROALL
//! ([`VectorState::zero_upper`], [`VectorState::zero_all`]), and the instructions that move
//! whole state ([`image`]).
//!
//! # Security
//! A guest chooses the instruction, so what reaches the host is an allow-list, see `policy`:
//! instruction-set classes whose members compute on registers and at most one small memory
//! operand. Nothing that transfers control, touches the stack, segment or system registers,
//! or forms an address of its own is ever encoded. The memory operand's address is replaced
//! by a constant offset into the frame, so that no guest value is ever an address on the host.
//!
//! Stubs live in one memory object mapped twice, writable here and executable there
//! (never both at one address), are written once and never freed.
mod code;
mod fault;
mod features;
mod frame;
pub mod image;
mod masked;
pub mod oracle;
mod policy;
mod pool;
mod routine;
pub mod signal;
mod state;
mod stub;
#[cfg(test)]
mod tests;
mod time_stamp;

pub use features::{Features, host_vendor};
pub use frame::{Frame, SCRATCH_BYTES};
pub use masked::{Gather, MaskedMove};
pub use policy::{Memory, Refusal, Unit, inspect};
pub use pool::{Error, Native, Operation};
pub use routine::{Outcome, Routine};
pub use state::{Fpu, MXCSR_MASK, MXCSR_RESET, VectorState};
pub use time_stamp::time_stamp;
