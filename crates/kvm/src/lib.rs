//! x86 on the host's CPU, by hardware virtualization: Linux's KVM.
//!
//! The local APICs are the kernel's (*split irqchip*), everything else that a PC has is the
//! machine's own, as under every engine. The path of an exit:
//!
//! 1. `vcpu` enters the guest by `KVM_RUN`. What the kernel can't do it tells in a page that it
//!    shares with the monitor: `run_page`, read into plain data there.
//! 2. `exit` makes the accesses of an exit, one by one, and answers them in that page. Nothing is
//!    allocated and no lock is taken, but for a device's own.
//! 3. What others want of a vCPU (`mailbox`) reaches it by a flag in that page and a signal.
//!
//! Interrupts: messages go to the kernel (`KVM_SIGNAL_MSI`). The PIC's line is looked at between
//! two entries; its vector is asked for when the guest can take it, and not before (`external`).
//! Which ends of interrupts the I/O APIC wants to know the kernel learns with the first
//! level-triggered message of a vector (`routes`).
//!
//! State goes to and from the form that all engines share (`save`, `load`, and a module for each
//! part of it). Guest time is that of the machine's clock: the TSC, kvmclock and the APIC's timer
//! are set when a vCPU runs for the first time after the clock was resumed, and stand while it does
//! (`time`).
//!
//! Sources: Linux, Documentation/virt/kvm/api.rst, by the names of the ioctls, and
//! Documentation/virt/kvm/x86/; Intel SDM and AMD APM where registers are meant.

mod apic;
mod calls;
mod debug;
mod exit;
mod external;
mod failure;
mod fpu;
mod host;
mod load;
mod mailbox;
mod msrs;
mod pending;
mod probe;
mod registers;
mod routes;
mod run_page;
mod save;
mod system_calls;
#[cfg(test)]
mod testing;
mod time;
mod vcpu;
mod vm;

pub use host::{Host, HostError, NewError};
pub use probe::{Speed, speed};
pub use vm::Kvm;
