//! The local APIC in software, for engines whose host has none.
//!
//! Each vCPU's thread owns a [`Lapic`]: registers, priorities, timer. Whatever comes from outside
//! (other vCPUs, I/O APICs, devices) goes through the vCPU's [`Inbox`], which is shared and takes
//! no lock; the owner merges it with [`Lapic::take_inbox`]. [`send`] finds the inboxes that a
//! [`Message`] is for.
//!
//! ```text
//! IOAPIC, MSI -> Message::from_msi --+
//!                                    +--> send --> Inbox --(wake)--> take_inbox --> pending
//! ICR write ---> Effect::Message ----+
//! ```
//!
//! Nothing here wakes a thread or calls out: what is to be done outside is returned as data.
#![forbid(unsafe_code)]

mod inbox;
mod message;
mod registers;
mod route;
mod spec;
#[cfg(test)]
mod tests;
mod timer;

pub use inbox::{Inbox, Requests};
pub use message::{Delivery, Destination, Message};
pub use registers::{Effect, GeneralProtection, Lapic};
pub use route::{send, visit_targets};
pub use spec::BUS_HZ;
pub use timer::Tsc;
