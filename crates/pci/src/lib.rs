//! PCI (PCI Local Bus Specification 3.0; ECAM from PCI Express Base Specification 5.0).
//!
//! A [`Function`] is a device's presence on the bus: its [`ConfigSpace`] and what is behind its
//! base address registers. [`Root`] holds the functions of bus 0 and brings accesses to them:
//! configuration accesses by slot, memory and port accesses by what the base address registers
//! say at the moment. [`ConfigPorts`], [`Ecam`], [`MemoryWindow`] and [`IoWindow`] are its doors
//! on the machine's buses.
//!
//! Lock order: a door, then a function, then the routing table or the interrupt router. No lock
//! of the root is held while a function is called.
#![forbid(unsafe_code)]

mod assign;
mod bar;
mod bridge;
mod config;
mod doors;
mod intx;
mod msi;
mod msix;
mod root;

pub use assign::{NoRoom, Space};
pub use bar::{BarKind, Decoded, Decoder};
pub use bridge::Bridge;
pub use config::{CONFIG_BYTES, ConfigSpace, ConfigSpaceV1, Identity, Wires};
pub use doors::{ConfigPorts, ECAM_BYTES, Ecam, IoWindow, MemoryWindow};
pub use intx::gsi;
pub use root::{Function, Root, Slot, SlotTaken};
