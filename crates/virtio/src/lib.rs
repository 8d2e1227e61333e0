//! virtio devices over PCI (OASIS Virtual I/O Device 1.2, committee specification 01; sections
//! named by its numbers).
//!
//! - [`queue`]: the split virtqueue, device side; everything in it is the guest's word and is
//!   checked.
//! - [`device`]: what a device is to its transport.
//! - [`transport`]: virtio over PCI, modern interface only.
//! - [`console`], [`rng`]: devices.
//! - [`testing`]: a driver's side, for tests.
//!
//! A device works while its transport is locked: in the guest's notification, or in the call of a
//! host thread that brings input. What it does there is bounded by the size of a queue. A guest
//! that breaks the rules of a ring finds its device in state `DEVICE_NEEDS_RESET`.
#![forbid(unsafe_code)]

pub mod console;
pub mod device;
pub mod queue;
pub mod rng;
pub mod testing;
pub mod transport;

pub use self::device::VirtioDevice;
pub use console::Console;
pub use rng::Rng;
pub use transport::VirtioPci;
