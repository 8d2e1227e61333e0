//! What a device is to its transport.

use crate::queue::{Chain, Queue, QueueError};
use memory::GuestMemory;
use state::Persist;

/// A virtio device without its transport.
pub trait VirtioDevice: Persist + Send {
    /// Device type (section 5).
    const TYPE: u16;
    /// PCI class: base class, sub-class, programming interface.
    const CLASS: [u8; 3];

    /// The features of its own that it offers (bits 0 to 23 and 50 to 127; the first 64 here).
    fn features(&self) -> u64;

    /// The largest size of each of its queues, powers of two up to 32768.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads its configuration from `offset` on. Bytes beyond the end stay 0.
    fn config_read(&self, offset: usize, bytes: &mut [u8]);

    /// Writes its configuration.
    fn config_write(&mut self, offset: usize, bytes: &[u8]);

    /// The driver is ready and accepted `features`. Also called when a device is restored that
    /// was active.
    fn activate(&mut self, features: u64);

    /// The driver made buffers available in queue `index`, or may have.
    ///
    /// # Errors
    /// If the driver broke a rule; the device then needs a reset.
    fn notify(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), QueueError>;

    /// Returns to the state after power-on.
    fn reset(&mut self);
}

/// The queues of a device that is active.
pub struct Queues<'a> {
    pub(crate) queues: &'a mut [Queue],
    pub(crate) memory: &'a GuestMemory,
}

impl Queues<'_> {
    /// Queue `index`, if the driver enabled it.
    pub fn get(&mut self, index: u16) -> Option<ActiveQueue<'_>> {
        let queue = self.queues.get_mut(usize::from(index))?;
        queue.enabled().then_some(ActiveQueue {
            queue,
            memory: self.memory,
        })
    }
}

/// A queue together with the memory it is in.
pub struct ActiveQueue<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
}

impl ActiveQueue<'_> {
    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        self.memory
    }

    /// See [`Queue::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(&mut self) -> Result<u16, QueueError> {
        self.queue.begin(self.memory)
    }

    /// See [`Queue::pop`].
    ///
    /// # Errors
    /// As there.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        self.queue.pop(self.memory)
    }

    /// See [`Queue::push`].
    ///
    /// # Errors
    /// As there.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), QueueError> {
        self.queue.push(self.memory, chain, written)
    }
}
