//! Console device (5.3): one port, with the size of the terminal and emergency output.

use crate::device::{Queues, VirtioDevice};
use crate::queue::QueueError;
use crate::transport::VirtioPci;
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};
use std::io::Write;
use std::sync::Arc;

/// Queues (5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// Features (5.3.3): cols and rows are valid; emerg_wr is there.
const F_SIZE: u64 = 1 << 0;
const F_EMERG_WRITE: u64 = 1 << 2;

/// Configuration (5.3.4): cols u16, rows u16, max_nr_ports u32, emerg_wr u32.
const CONFIG_BYTES: usize = 12;
const EMERG_WRITE: usize = 8;

/// The most bytes that one request may send. Drivers send pages; without a limit, requests that
/// name the same memory over and over would keep the device, and the pausing of the machine,
/// waiting for hours.
pub const REQUEST_BYTES_MAX: u32 = 16 << 20;
/// Bytes that go to the output at once.
const CHUNK_BYTES: usize = 4096;

/// Told when input is taken again.
///
/// It is called under the device's lock: it may wake a thread but must not wait for one, nor call
/// the device.
pub type Room = Arc<dyn Fn() + Send + Sync>;

/// A console.
pub struct Console {
    output: Box<dyn Write + Send>,
    room: Room,
    cols: u16,
    rows: u16,
    /// A caller of [`VirtioPci::receive`] waits for room.
    starved: bool,
}

impl Console {
    /// A console that writes to `output` and calls `room` when input was refused and can be taken
    /// now.
    ///
    /// What the guest sends is written before its notification completes, so `output` should not
    /// be buffered. While it blocks, the guest's processor waits, and so does whoever wants the
    /// device; what it refuses is lost.
    pub fn new(output: Box<dyn Write + Send>, room: Room) -> Self {
        Self {
            output,
            room,
            cols: 80,
            rows: 25,
            starved: false,
        }
    }

    fn write_out(&mut self, bytes: &[u8]) {
        // Nobody is there to tell of a failure.
        let _ = self.output.write_all(bytes);
        let _ = self.output.flush();
    }

    fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut queue) = queues.get(TRANSMIT) else {
            return Ok(());
        };
        queue.begin()?;
        while let Some(chain) = queue.pop()? {
            if chain.readable_bytes() > REQUEST_BYTES_MAX {
                return Err(QueueError::Length);
            }
            let mut reader = chain.reader(queue.memory());
            let mut chunk = [0; CHUNK_BYTES];
            loop {
                let len = reader.read(&mut chunk)?;
                if len == 0 {
                    break;
                }
                self.write_out(&chunk[..len]);
            }
            queue.push(chain, 0)?;
        }
        Ok(())
    }

    /// Fills the driver's buffers with `bytes`, counting in `taken`.
    fn fill(
        &mut self,
        bytes: &[u8],
        taken: &mut usize,
        queues: &mut Queues<'_>,
    ) -> Result<(), QueueError> {
        let Some(mut queue) = queues.get(RECEIVE) else {
            return Ok(());
        };
        queue.begin()?;
        while *taken < bytes.len() {
            let Some(chain) = queue.pop()? else {
                break;
            };
            let written = chain.writer(queue.memory()).write(&bytes[*taken..])?;
            queue.push(chain, written as u32)?;
            *taken += written;
        }
        Ok(())
    }

    fn announce_room(&mut self) {
        if std::mem::take(&mut self.starved) {
            (self.room)();
        }
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        config[0..2].copy_from_slice(&self.cols.to_le_bytes());
        config[2..4].copy_from_slice(&self.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        config
    }
}

impl VirtioPci<Console> {
    /// Bytes from the terminal. Returns how many were taken; the rest is the caller's to offer
    /// again, at the latest when the console's `room` is called.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        self.with_queues(|console, queues| console.fill(bytes, &mut taken, queues));
        self.device_mut().starved |= taken < bytes.len();
        taken
    }

    /// The terminal has `cols` columns and `rows` rows now.
    pub fn resize(&mut self, cols: u16, rows: u16) {
        if (self.device().cols, self.device().rows) != (cols, rows) {
            self.change_config(|console| (console.cols, console.rows) = (cols, rows));
        }
    }
}

impl VirtioDevice for Console {
    const TYPE: u16 = 3;
    const CLASS: [u8; 3] = [0x07, 0x80, 0x00];

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_read(&self, offset: usize, bytes: &mut [u8]) {
        let config = self.config();
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = config.get(offset + i).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, offset: usize, bytes: &[u8]) {
        if offset == EMERG_WRITE
            && let Some(byte) = bytes.first()
        {
            self.write_out(&[*byte]);
        }
    }

    fn activate(&mut self, _: u64) {}

    fn notify(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        match index {
            TRANSMIT => self.transmit(queues)?,
            _ => self.announce_room(),
        }
        Ok(())
    }

    fn reset(&mut self) {
        let Self {
            output: _,
            room: _,
            // The terminal is what it was.
            cols: _,
            rows: _,
            // Whoever waits still does.
            starved: _,
        } = self;
    }
}

/// The saved state of a [`Console`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleV1 {
    cols: u16,
    rows: u16,
}

impl Saved for ConsoleV1 {
    const KIND: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

impl Persist for Console {
    type State = ConsoleV1;

    fn save(&self) -> ConsoleV1 {
        let Self {
            output: _,
            room: _,
            cols,
            rows,
            // The new machine's callers find out for themselves.
            starved: _,
        } = self;
        ConsoleV1 {
            cols: *cols,
            rows: *rows,
        }
    }

    fn restore(&mut self, state: ConsoleV1) -> Result<(), Invalid> {
        let ConsoleV1 { cols, rows } = state;
        (self.cols, self.rows) = (cols, rows);
        // There may be room that was announced to a machine that is no more.
        self.starved = false;
        (self.room)();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
