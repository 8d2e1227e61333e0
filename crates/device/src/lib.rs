//! What a device sees of the machine.
//!
//! A device is handed its wires when it is made: [`InterruptLine`]s, an [`Msi`] target, the
//! machine's [`clock::Clock`], [`Timer`]s, memory and its backend. It never learns an interrupt
//! number, a host clock, a vCPU or an engine.
//!
//! The base trait [`Device`] is what every device must answer: reset, save, restore. What a
//! device decodes is said by the narrow traits [`PortIo`] and [`Mmio`]; a test device implements
//! just one of them.
//!
//! Lock order: a device's own lock, then an interrupt controller's, then the engine's. An
//! interrupt controller never calls a device.
#![forbid(unsafe_code)]

mod access;
mod bus;
mod timer;
mod wire;

pub use access::{Mmio, PortIo, Width};
pub use bus::{Bus, Overlap};
pub use timer::{Timed, Timer, Timers};
pub use wire::{InterruptLine, LineTarget, Msi, MsiTarget, testing};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What every device of a machine must answer.
///
/// There are no defaults: a device without state says so by saving nothing.
pub trait Device: Send {
    /// Returns to the state after power-on, as the machine's reset line demands.
    fn reset(&mut self);

    /// Adds the state to `out` under `instance`. Called only while the machine is paused.
    fn save(&self, instance: &str, out: &mut state::Writer);

    /// Takes the state from `from`, into a device that is otherwise like the saved one.
    ///
    /// # Errors
    /// If the state is missing or can't be; the machine is then given up.
    fn restore(&mut self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error>;
}

/// The saving half of a [`Device`] that is [`state::Persist`]: its one section, under the
/// instance's name. Stands inside the `impl`, beside `reset`.
#[macro_export]
macro_rules! saved_by_persist {
    () => {
        fn save(&self, instance: &str, out: &mut ::state::Writer) {
            out.save(instance, self);
        }

        fn restore(
            &mut self,
            instance: &str,
            from: &mut ::state::Reader,
        ) -> Result<(), ::state::Error> {
            from.restore(instance, self)
        }
    };
}

/// A device that is shared between the bus, the timers and the machine.
pub type Shared<T> = Arc<Mutex<T>>;

/// Makes `device` shareable.
pub fn shared<T>(device: T) -> Shared<T> {
    Arc::new(Mutex::new(device))
}

/// Locks a shared device. A device that panicked is a bug of ours that was reported already; its
/// neighbours go on with the state as it is.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
