//! Entropy device (5.4).

use crate::device::{Queues, VirtioDevice};
use crate::queue::QueueError;
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

const REQUESTS: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [64];

/// The most bytes that one request is given. A device may give less than was asked for
/// (5.4.6.1); this bounds what a guest can cost the host at a time.
pub const REQUEST_BYTES_MAX: u32 = 64 << 10;
const CHUNK_BYTES: usize = 256;

/// Where random bytes come from: fills all of the slice, or fails.
pub type Source = Box<dyn FnMut(&mut [u8]) -> std::io::Result<()> + Send>;

/// An entropy device.
pub struct Rng {
    source: Source,
}

impl Rng {
    /// A device that gives what the host's `getrandom(2)` gives.
    pub fn host() -> Self {
        Self::new(Box::new(host_random))
    }

    /// A device that gives what `source` gives.
    pub fn new(source: Source) -> Self {
        Self { source }
    }
}

fn host_random(mut bytes: &mut [u8]) -> std::io::Result<()> {
    use rustix::io::Errno;
    use rustix::rand::{GetRandomFlags, getrandom};
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(len) => bytes = &mut bytes[len..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl VirtioDevice for Rng {
    const TYPE: u16 = 4;
    const CLASS: [u8; 3] = [0x00, 0xff, 0x00];

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_read(&self, _: usize, _: &mut [u8]) {}

    fn config_write(&mut self, _: usize, _: &[u8]) {}

    fn activate(&mut self, _: u64) {}

    fn notify(&mut self, _: u16, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut queue) = queues.get(REQUESTS) else {
            return Ok(());
        };
        queue.begin()?;
        while let Some(chain) = queue.pop()? {
            let wanted = chain.writable_bytes().min(REQUEST_BYTES_MAX);
            let mut writer = chain.writer(queue.memory());
            let mut given = 0;
            while given < wanted {
                let mut chunk = [0; CHUNK_BYTES];
                let len = (wanted - given).min(CHUNK_BYTES as u32);
                let chunk = &mut chunk[..len as usize];
                // Without a source the request is answered as far as it got: the guest's driver
                // must never take for random what is not.
                if (self.source)(chunk).is_err() {
                    break;
                }
                writer.write(chunk)?;
                given += len;
            }
            queue.push(chain, given)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

/// The saved state of an [`Rng`]: it has none, but the machine has the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngV1 {}

impl Saved for RngV1 {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

impl Persist for Rng {
    type State = RngV1;

    fn save(&self) -> RngV1 {
        let Self { source: _ } = self;
        RngV1 {}
    }

    fn restore(&mut self, state: RngV1) -> Result<(), Invalid> {
        let RngV1 {} = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
