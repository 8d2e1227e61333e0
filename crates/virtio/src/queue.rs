//! The split virtqueue (2.7), device side.
//!
//! The driver runs at the same time on other processors. Each ring field is accessed by one
//! load or store; fences order them as 2.7.13 and 2.7.14 demand. Nothing that was read once is
//! read again to act on it.

use memory::{GuestMemory, OutOfRange};
use serde::{Deserialize, Serialize};
use state::Invalid;
use std::sync::atomic::{Ordering, fence};

/// The largest queue (2.7).
pub const SIZE_MAX: u16 = 32768;
/// The most descriptors in one chain. A driver keeps to the queue's size (2.7.5.3.1), but some
/// count indirect descriptors apart; this bounds what one request can cost.
pub const CHAIN_MAX: usize = 1024;

/// How often [`Queue::begin`] follows a driver that adds buffers meanwhile. Each time the driver
/// won a race of a few nanoseconds; one that always does is after something else.
const RACES_MAX: usize = 64;

/// The rings' layout (2.7.5, 2.7.6, 2.7.8).
mod spec {
    pub(super) const DESCRIPTOR_BYTES: u64 = 16;
    pub(super) const DESCRIPTOR_ALIGN: u64 = 16;
    pub(super) const AVAILABLE_ALIGN: u64 = 2;
    pub(super) const USED_ALIGN: u64 = 4;

    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;

    /// `flags` of the available ring.
    pub(super) const NO_INTERRUPT: u16 = 1;
    /// Offset of `idx` in both rings.
    pub(super) const INDEX: u64 = 2;
    /// Offset of `ring` in both rings.
    pub(super) const RING: u64 = 4;
    pub(super) const AVAILABLE_BYTES: u64 = 2;
    pub(super) const USED_BYTES: u64 = 8;
}

use spec::*;

/// How a driver broke a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A part of the queue is not aligned or wraps (2.7).
    #[error("a part of the queue is misaligned or wraps around")]
    Layout,
    /// A ring, a descriptor or a buffer is not in guest memory.
    #[error("the queue leads outside guest memory")]
    Memory(#[from] OutOfRange),
    /// The driver made more buffers available than the queue holds.
    #[error("more buffers available than the queue has")]
    AvailableIndex,
    /// A descriptor number beyond the table.
    #[error("a descriptor number is beyond its table")]
    Descriptor,
    /// A chain with a loop, or of more than [`CHAIN_MAX`] descriptors.
    #[error("a descriptor chain has a loop or is too long")]
    ChainLength,
    /// An indirect descriptor where none may be, or with a table of no whole descriptors.
    #[error("an indirect descriptor is wrong")]
    Indirect,
    /// A device-readable buffer after a device-writable one (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The buffers of a chain have 4 GiB or more together (2.7.5), or more than the device takes.
    #[error("the buffers of a chain are too long")]
    Length,
}

/// A part of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    gpa: u64,
    len: u32,
}

/// A request: buffers for the device to read, then buffers for it to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    /// Length of what the device reads, in bytes.
    pub fn readable_bytes(&self) -> u32 {
        self.readable.iter().map(|buffer| buffer.len).sum()
    }

    /// Length of what the device may write, in bytes.
    pub fn writable_bytes(&self) -> u32 {
        self.writable.iter().map(|buffer| buffer.len).sum()
    }

    /// What the device reads, from the start.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemory) -> Reader<'a> {
        Reader(Cursor::new(&self.readable, memory))
    }

    /// What the device writes, from the start.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemory) -> Writer<'a> {
        Writer(Cursor::new(&self.writable, memory))
    }
}

struct Cursor<'a> {
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that are done.
    done: u32,
    memory: &'a GuestMemory,
}

impl<'a> Cursor<'a> {
    fn new(buffers: &'a [Buffer], memory: &'a GuestMemory) -> Self {
        Self {
            buffers,
            done: 0,
            memory,
        }
    }

    /// The next piece of at most `max` bytes: address and length.
    fn piece(&mut self, max: usize) -> Option<(u64, usize)> {
        while let Some(first) = self.buffers.first() {
            let left = first.len - self.done;
            if left == 0 {
                self.buffers = &self.buffers[1..];
                self.done = 0;
                continue;
            }
            let len = left.min(u32::try_from(max).unwrap_or(u32::MAX));
            let at = first.gpa.wrapping_add(self.done.into());
            self.done += len;
            return Some((at, len as usize));
        }
        None
    }
}

/// Reads the readable buffers of a [`Chain`] one after the other.
pub struct Reader<'a>(Cursor<'a>);

impl Reader<'_> {
    /// Fills `bytes` as far as there is something left, and returns how far.
    ///
    /// # Errors
    /// If a buffer is not memory.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while done < bytes.len() {
            let Some((gpa, len)) = self.0.piece(bytes.len() - done) else {
                break;
            };
            self.0.memory.read(gpa, &mut bytes[done..done + len])?;
            done += len;
        }
        Ok(done)
    }
}

/// Fills the writable buffers of a [`Chain`] one after the other.
pub struct Writer<'a>(Cursor<'a>);

impl Writer<'_> {
    /// Writes `bytes` as far as there is room left, and returns how far.
    ///
    /// # Errors
    /// If a buffer is not memory that a device may write.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while done < bytes.len() {
            let Some((gpa, len)) = self.0.piece(bytes.len() - done) else {
                break;
            };
            self.0.memory.write(gpa, &bytes[done..done + len])?;
            done += len;
        }
        Ok(done)
    }
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn load(memory: &GuestMemory, table: u64, index: u16) -> Result<Self, QueueError> {
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        let at = table
            .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
            .ok_or(QueueError::Layout)?;
        memory.read(at, &mut bytes)?;
        let [a, b] = [&bytes[..8], &bytes[8..]]
            .map(|half| u64::from_le_bytes(half.try_into().expect("half of 16 bytes")));
        Ok(Self {
            gpa: a,
            len: b as u32,
            flags: (b >> 32) as u16,
            next: (b >> 48) as u16,
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Where the driver put a queue, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Number of descriptors, a power of two.
    pub(crate) size: u16,
    /// Descriptor table.
    pub(crate) descriptors: u64,
    /// Available ring, which the driver writes.
    pub(crate) available: u64,
    /// Used ring, which the device writes.
    pub(crate) used: u64,
}

impl Layout {
    fn check(&self) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        let parts = [
            (self.descriptors, DESCRIPTOR_ALIGN, DESCRIPTOR_BYTES * size),
            (
                self.available,
                AVAILABLE_ALIGN,
                RING + AVAILABLE_BYTES * size + 2,
            ),
            (self.used, USED_ALIGN, RING + USED_BYTES * size + 2),
        ];
        let fits = |(at, align, len): (u64, u64, u64)| {
            at.is_multiple_of(align) && at.checked_add(len).is_some()
        };
        if parts.into_iter().all(fits) {
            Ok(())
        } else {
            Err(QueueError::Layout)
        }
    }
}

/// The options that the driver accepted for all queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC: descriptors may refer to tables of descriptors.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX: each side says at which index it wants to be told.
    pub event_idx: bool,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    size_max: u16,
    pub(crate) layout: Layout,
    enabled: bool,
    pub(crate) features: RingFeatures,
    next_available: u16,
    /// Where this round of [`Queue::pop`] ends.
    batch_end: u16,
    next_used: u16,
    /// `next_used` when it was last decided whether to interrupt.
    signalled: u16,
}

impl Queue {
    /// A queue of at most `size_max` descriptors, not enabled.
    pub fn new(size_max: u16) -> Self {
        assert!(size_max.is_power_of_two() && size_max <= SIZE_MAX);
        Self {
            size_max,
            layout: Layout {
                size: size_max,
                descriptors: 0,
                available: 0,
                used: 0,
            },
            enabled: false,
            features: RingFeatures::default(),
            next_available: 0,
            batch_end: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// Whether the driver enabled it.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self) {
        *self = Self::new(self.size_max);
    }

    /// Sets the size; what is no size of a queue is ignored.
    pub(crate) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.size_max {
            self.layout.size = size;
        }
    }

    /// Puts the queue into service.
    ///
    /// # Errors
    /// If it can't lie where the driver put it.
    pub(crate) fn enable(&mut self) -> Result<(), QueueError> {
        self.layout.check()?;
        self.enabled = true;
        Ok(())
    }

    /// Starts a round of [`Queue::pop`], which ends with the buffers that are available now, and
    /// returns how many these are. Buffers added later are notified again, so that a round is
    /// both bounded and enough.
    ///
    /// # Errors
    /// If the driver broke the queue.
    pub fn begin(&mut self, memory: &GuestMemory) -> Result<u16, QueueError> {
        let mut index = self.available_index(memory)?;
        if self.features.event_idx {
            let event = self.layout.used + RING + USED_BYTES * u64::from(self.layout.size);
            // The driver notifies when it adds the buffer of this index. What it added before it
            // could see the event belongs to this round (2.7.10.1, 2.7.7.2).
            for _ in 0..RACES_MAX {
                memory.store(event, index)?;
                fence(Ordering::SeqCst);
                let now = self.available_index(memory)?;
                if now == index {
                    break;
                }
                index = now;
            }
        }
        self.batch_end = index;
        Ok(index.wrapping_sub(self.next_available))
    }

    fn available_index(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        let index: u16 = memory.load(self.layout.available + INDEX)?;
        // What the index announces is read after it (2.7.13).
        fence(Ordering::Acquire);
        if index.wrapping_sub(self.next_available) > self.layout.size {
            return Err(QueueError::AvailableIndex);
        }
        Ok(index)
    }

    /// Takes the next request of this round, if there is one.
    ///
    /// # Errors
    /// If the driver broke the queue; the request is not taken then.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if self.next_available == self.batch_end {
            return Ok(None);
        }
        let slot = u64::from(self.next_available % self.layout.size);
        let head = memory.load(self.layout.available + RING + AVAILABLE_BYTES * slot)?;
        let chain = self.chain(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Follows the chain that begins with descriptor `head`.
    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut builder = Builder::new(head);
        let mut table = self.layout.descriptors;
        let mut entries = u32::from(self.layout.size);
        let mut indirect = false;
        let mut index = head;
        loop {
            if u32::from(index) >= entries {
                return Err(QueueError::Descriptor);
            }
            let descriptor = Descriptor::load(memory, table, index)?;
            if descriptor.has(INDIRECT) {
                // Once, negotiated, last of its chain, of whole descriptors (2.7.5.3).
                let bytes = u64::from(descriptor.len);
                if indirect
                    || !self.features.indirect
                    || descriptor.has(NEXT)
                    || bytes == 0
                    || !bytes.is_multiple_of(DESCRIPTOR_BYTES)
                {
                    return Err(QueueError::Indirect);
                }
                indirect = true;
                table = descriptor.gpa;
                entries = (bytes / DESCRIPTOR_BYTES) as u32;
                index = 0;
                continue;
            }
            builder.add(&descriptor)?;
            if !descriptor.has(NEXT) {
                return Ok(builder.chain);
            }
            // A loop is a chain longer than its table.
            if builder.count >= CHAIN_MAX || !indirect && builder.count >= entries as usize {
                return Err(QueueError::ChainLength);
            }
            index = descriptor.next;
        }
    }

    /// Gives `chain` back to the driver with `written` bytes in its writable buffers.
    ///
    /// # Errors
    /// If the used ring is not memory.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used % self.layout.size);
        let element = u64::from(chain.head) | u64::from(written) << 32;
        memory.store(self.layout.used + RING + USED_BYTES * slot, element)?;
        // The element is there before the index says so (2.7.14).
        fence(Ordering::Release);
        self.next_used = self.next_used.wrapping_add(1);
        memory.store(self.layout.used + INDEX, self.next_used)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since this was last asked.
    ///
    /// # Errors
    /// If the available ring is not memory.
    pub(crate) fn interrupt_due(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let (old, new) = (self.signalled, self.next_used);
        if !self.enabled || old == new {
            return Ok(false);
        }
        self.signalled = new;
        // The index is visible before the driver's wish is read (2.7.7.2, 2.7.14).
        fence(Ordering::SeqCst);
        if !self.features.event_idx {
            let flags: u16 = memory.load(self.layout.available)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let at = self.layout.available + RING + AVAILABLE_BYTES * u64::from(self.layout.size);
        let event: u16 = memory.load(at)?;
        // Whether the index passed the event on its way from old to new (2.7.10).
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    pub(crate) fn save(&self) -> QueueState {
        let Self {
            size_max: _,
            layout,
            enabled,
            // The transport's.
            features: _,
            next_available,
            // Nothing of a round outlasts it.
            batch_end: _,
            next_used,
            signalled,
        } = self;
        QueueState {
            layout: *layout,
            enabled: *enabled,
            next_available: *next_available,
            next_used: *next_used,
            signalled: *signalled,
        }
    }

    pub(crate) fn restored(
        size_max: u16,
        features: RingFeatures,
        state: QueueState,
    ) -> Result<Self, Invalid> {
        let QueueState {
            layout,
            enabled,
            next_available,
            next_used,
            signalled,
        } = state;
        let size_wrong = !layout.size.is_power_of_two() || layout.size > size_max;
        if size_wrong || enabled && layout.check().is_err() {
            return Err(Invalid::new("a virtqueue that can't be"));
        }
        Ok(Self {
            size_max,
            layout,
            enabled,
            features,
            next_available,
            batch_end: next_available,
            next_used,
            signalled,
        })
    }
}

/// The saved state of a queue. What it holds is in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueState {
    layout: Layout,
    enabled: bool,
    next_available: u16,
    next_used: u16,
    signalled: u16,
}

/// Collects a chain.
struct Builder {
    chain: Chain,
    count: usize,
    bytes: u32,
}

impl Builder {
    fn new(head: u16) -> Self {
        let chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        Self {
            chain,
            count: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let Descriptor { gpa, len, .. } = *descriptor;
        self.count += 1;
        self.bytes = self.bytes.checked_add(len).ok_or(QueueError::Length)?;
        if descriptor.has(WRITE) {
            self.chain.writable.push(Buffer { gpa, len });
        } else if self.chain.writable.is_empty() {
            self.chain.readable.push(Buffer { gpa, len });
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
