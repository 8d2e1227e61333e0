//! Windows: guest user code at native speed.
//!
//! A check in front of each access costs more than the access. So where user code computes for
//! long, it gets a process of its own in which the guest's pages are at the guest's addresses: the
//! host's MMU does the guest's translation, and instructions are copied as they are. In there is
//! nothing but what the guest's program owns anyway ([`jail`]), so no check is needed to keep the
//! code from anything else; and what is not there raises a signal, by which the monitor learns
//! that the guest faults, or that a page is missing ([`space`]).
//!
//! To go into a jail and out again costs two switches of processes, some microseconds. That pays
//! for a program that runs for longer between two system calls, and for nobody else; so a window
//! is opened where the guest's timer finds the same address space in user mode again and again,
//! and closed when it has cost more than it gained ([`heat`]). All other code runs behind checks.

mod heat;
mod jail;
mod orders;
mod pages;
pub(crate) mod place;
mod run;
mod space;
mod stub;

pub use heat::When;
pub(crate) use jail::interrupt;
pub(crate) use space::Windows;
