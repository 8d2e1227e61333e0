//! Architectural facts of x86: registers and their bits, descriptors, page-table entries, MSRs,
//! CPUID, and the one register-state type that every x86 engine loads and stores.
//!
//! Facts only: nothing here executes anything. Sources: Intel 64 and IA-32 Architectures Software
//! Developer's Manual (SDM), order 325462-084, and AMD64 Architecture Programmer's Manual (APM),
//! publications 24592-24594 revision 3.36.
#![forbid(unsafe_code)]

pub mod cpuid;
mod exception;
pub mod msr;
pub mod paging;
mod registers;
mod segment;
mod vcpu;

pub use exception::{Exception, Vector};
pub use registers::{Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Mxcsr, Rflags, Xcr0};
pub use segment::{Descriptor, DescriptorTable, Segment, SegmentRegister, Selector, SystemType};
pub use vcpu::{
    Activity, ApicState, Events, FpuState, MtrrState, ParavirtState, SyscallMsrs, VcpuState,
};
