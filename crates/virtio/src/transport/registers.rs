//! The common configuration structure (4.1.4.3) and what it controls.

use super::{features, status};
use crate::queue::{Queue, QueueState, RingFeatures};
use device::Width;
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Length of the structure, with the fields of version 1.2.
pub(super) const COMMON_BYTES: u64 = 0x3c;
/// No vector (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Offsets of the fields.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_AVAILABLE: u64 = 0x28;
    pub(super) const QUEUE_USED: u64 = 0x30;
    pub(super) const QUEUE_NOTIFY_DATA: u64 = 0x38;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// What a write asks of the transport.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Nothing,
    Reset,
    Activate,
    NeedsReset,
}

#[derive(Debug)]
pub(super) struct Registers {
    offered: u64,
    vectors: u16,
    queue_sizes: &'static [u16],
    pub(super) queues: Vec<Queue>,
    pub(super) queue_vectors: Vec<u16>,
    pub(super) config_vector: u16,
    pub(super) driver_features: u64,
    pub(super) status: u8,
    pub(super) generation: u8,
    pub(super) isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

impl Registers {
    /// Registers of a device that offers these features and has these queues.
    pub(super) fn new(offered: u64, queue_sizes: &'static [u16], vectors: u16) -> Self {
        Self {
            offered,
            vectors,
            queue_sizes,
            queues: queue_sizes.iter().map(|size| Queue::new(*size)).collect(),
            queue_vectors: vec![NO_VECTOR; queue_sizes.len()],
            config_vector: NO_VECTOR,
            driver_features: 0,
            status: 0,
            generation: 0,
            isr: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
        }
    }

    /// Returns to the state after power-on, but for the generation: a driver that reads the
    /// configuration meanwhile shall see that something happened.
    pub(super) fn reset(&mut self) {
        let generation = self.generation;
        *self = Self::new(self.offered, self.queue_sizes, self.vectors);
        self.generation = generation;
    }

    /// Whether requests are to be served.
    pub(super) fn live(&self) -> bool {
        let needed = status::FEATURES_OK | status::DRIVER_OK;
        self.status & (needed | status::DEVICE_NEEDS_RESET) == needed
    }

    fn selected(&self) -> Option<(&Queue, u16)> {
        let index = usize::from(self.queue_select);
        Some((self.queues.get(index)?, self.queue_vectors[index]))
    }

    /// Reads. Fields are read at their own width, 64-bit ones also in halves (4.1.3.1); any other
    /// access gets the bytes that it covers.
    pub(super) fn read(&self, offset: u64, width: Width) -> u64 {
        let image = self.image();
        let mut bytes = [0; 8];
        for (i, byte) in bytes.iter_mut().enumerate().take(width.bytes()) {
            *byte = image.get(offset as usize + i).copied().unwrap_or(0);
        }
        u64::from_le_bytes(bytes)
    }

    /// All fields as they read.
    fn image(&self) -> [u8; COMMON_BYTES as usize] {
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let offered = half(self.offered, self.device_feature_select);
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(
            field::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(field::DEVICE_FEATURE, &offered.to_le_bytes());
        put(
            field::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(field::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(field::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(field::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(field::STATUS, &[self.status]);
        put(field::GENERATION, &[self.generation]);
        put(field::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that there is not has size 0 (4.1.4.3.1).
        if let Some((queue, vector)) = self.selected() {
            put(field::QUEUE_SIZE, &queue.layout.size.to_le_bytes());
            put(field::QUEUE_VECTOR, &vector.to_le_bytes());
            put(
                field::QUEUE_ENABLE,
                &u16::from(queue.enabled()).to_le_bytes(),
            );
            put(field::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(
                field::QUEUE_DESCRIPTORS,
                &queue.layout.descriptors.to_le_bytes(),
            );
            put(
                field::QUEUE_AVAILABLE,
                &queue.layout.available.to_le_bytes(),
            );
            put(field::QUEUE_USED, &queue.layout.used.to_le_bytes());
            put(field::QUEUE_NOTIFY_DATA, &self.queue_select.to_le_bytes());
            // A reset is over before it can be read, so queue_reset stays 0 (4.1.4.3.1).
        }
        image
    }

    /// Writes a field; what is not one, or is read-only, is ignored.
    pub(super) fn write(&mut self, offset: u64, width: Width, value: u64) -> Request {
        match (offset, width) {
            (field::DEVICE_FEATURE_SELECT, Width::Dword) => {
                self.device_feature_select = value as u32;
            }
            (field::DRIVER_FEATURE_SELECT, Width::Dword) => {
                self.driver_feature_select = value as u32;
            }
            (field::DRIVER_FEATURE, Width::Dword) => self.set_driver_features(value as u32),
            (field::CONFIG_VECTOR, Width::Word) => self.config_vector = self.vector(value),
            (field::STATUS, Width::Byte) => return self.set_status(value as u8),
            (field::QUEUE_SELECT, Width::Word) => self.queue_select = value as u16,
            (field::QUEUE_SIZE..=field::QUEUE_RESET, _) => {
                return self.write_queue(offset, width, value);
            }
            _ => {}
        }
        Request::Nothing
    }

    /// The vector as it is stored: none if there is no such one (4.1.5.1.2.1).
    fn vector(&self, value: u64) -> u16 {
        let vector = value as u16;
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        // What was agreed on is agreed on (2.2.2).
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = 0xffff_ffffu64 << shift;
        self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
    }

    fn set_status(&mut self, value: u8) -> Request {
        const DRIVERS: u8 = status::ACKNOWLEDGE
            | status::DRIVER
            | status::DRIVER_OK
            | status::FEATURES_OK
            | status::FAILED;
        if value == 0 {
            return Request::Reset;
        }
        // A driver never takes a bit back (2.1.1).
        let mut added = value & DRIVERS & !self.status;
        if added & status::FEATURES_OK != 0 && !self.agree() {
            added &= !status::FEATURES_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 && self.live() {
            Request::Activate
        } else {
            Request::Nothing
        }
    }

    /// Takes the driver's features over if they are possible (2.2.2, 6.1).
    fn agree(&mut self) -> bool {
        let possible = self.driver_features & !self.offered == 0
            && self.driver_features & features::VERSION_1 != 0;
        if possible {
            let ring = self.ring_features();
            self.queues
                .iter_mut()
                .for_each(|queue| queue.features = ring);
        }
        possible
    }

    fn ring_features(&self) -> RingFeatures {
        RingFeatures {
            indirect: self.driver_features & features::INDIRECT_DESC != 0,
            event_idx: self.driver_features & features::EVENT_IDX != 0,
        }
    }

    fn write_queue(&mut self, offset: u64, width: Width, value: u64) -> Request {
        let index = usize::from(self.queue_select);
        let vector = self.vector(value);
        let ring = self.ring_features();
        let resettable = self.driver_features & features::RING_RESET != 0;
        let Some(queue) = self.queues.get_mut(index) else {
            return Request::Nothing;
        };
        match (offset, width) {
            (field::QUEUE_VECTOR, Width::Word) => self.queue_vectors[index] = vector,
            (field::QUEUE_RESET, Width::Word) if value == 1 && resettable => {
                queue.reset();
                queue.features = ring;
            }
            // The rest is fixed once the queue is in service.
            _ if queue.enabled() => {}
            (field::QUEUE_SIZE, Width::Word) => queue.set_size(value as u16),
            (field::QUEUE_ENABLE, Width::Word) if value == 1 => match queue.enable() {
                Ok(()) => {}
                Err(_) => return Request::NeedsReset,
            },
            (field::QUEUE_DESCRIPTORS..field::QUEUE_NOTIFY_DATA, _) => {
                let address = match offset & !7 {
                    field::QUEUE_DESCRIPTORS => &mut queue.layout.descriptors,
                    field::QUEUE_AVAILABLE => &mut queue.layout.available,
                    _ => &mut queue.layout.used,
                };
                match (offset & 7, width) {
                    (0, Width::Qword) => *address = value,
                    (0, Width::Dword) => *address = *address >> 32 << 32 | value,
                    (4, Width::Dword) => *address = *address & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            _ => {}
        }
        Request::Nothing
    }
}

/// The saved state of a virtio device's transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransportV1 {
    queues: Vec<QueueState>,
    queue_vectors: Vec<u16>,
    config_vector: u16,
    driver_features: u64,
    status: u8,
    generation: u8,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

impl Saved for TransportV1 {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
}

impl Persist for Registers {
    type State = TransportV1;

    fn save(&self) -> TransportV1 {
        let Self {
            // What the device is.
            offered: _,
            vectors: _,
            queue_sizes: _,
            queues,
            queue_vectors,
            config_vector,
            driver_features,
            status,
            generation,
            isr,
            device_feature_select,
            driver_feature_select,
            queue_select,
        } = self;
        TransportV1 {
            queues: queues.iter().map(Queue::save).collect(),
            queue_vectors: queue_vectors.clone(),
            config_vector: *config_vector,
            driver_features: *driver_features,
            status: *status,
            generation: *generation,
            isr: *isr,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            queue_select: *queue_select,
        }
    }

    fn restore(&mut self, state: TransportV1) -> Result<(), Invalid> {
        let TransportV1 {
            queues,
            queue_vectors,
            config_vector,
            driver_features,
            status,
            generation,
            isr,
            device_feature_select,
            driver_feature_select,
            queue_select,
        } = state;
        let agreed = status & status::FEATURES_OK != 0;
        let possible =
            driver_features & !self.offered == 0 && driver_features & features::VERSION_1 != 0;
        let no_vector = |vector: &u16| *vector != NO_VECTOR && *vector >= self.vectors;
        if queues.len() != self.queues.len()
            || queue_vectors.len() != self.queue_vectors.len()
            || queue_vectors.iter().any(no_vector)
            || no_vector(&config_vector)
            || agreed && !possible
        {
            return Err(Invalid::new("not a state of this virtio device"));
        }
        let mut restored = Self::new(self.offered, self.queue_sizes, self.vectors);
        restored.driver_features = driver_features;
        let ring = if agreed {
            restored.ring_features()
        } else {
            RingFeatures::default()
        };
        restored.queues = queues
            .into_iter()
            .zip(self.queue_sizes)
            .map(|(queue, size)| Queue::restored(*size, ring, queue))
            .collect::<Result<_, _>>()?;
        restored.queue_vectors = queue_vectors;
        restored.config_vector = config_vector;
        restored.status = status;
        restored.generation = generation;
        restored.isr = isr;
        restored.device_feature_select = device_feature_select;
        restored.driver_feature_select = driver_feature_select;
        restored.queue_select = queue_select;
        *self = restored;
        Ok(())
    }
}
