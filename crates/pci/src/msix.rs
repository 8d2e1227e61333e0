//! MSI-X (PCI 3.0, 6.8.2): a table of messages and an array of pending bits behind a base address
//! register.

use device::{Msi, Width};
use serde::{Deserialize, Serialize};
use state::Invalid;

/// Capability id.
pub(crate) const ID: u8 = 0x11;
/// The most vectors of a function.
pub(crate) const VECTORS_MAX: u16 = 2048;
const ENTRY_BYTES: u64 = 16;

/// Message control.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Writable bits of the message control's high byte.
pub(crate) const CONTROL_HIGH_WRITABLE: u8 = ((ENABLE | FUNCTION_MASK) >> 8) as u8;

/// Vector control.
const MASKED: u32 = 1;

/// A table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// "The state after reset" of an entry: masked.
const RESET: Entry = Entry {
    address: 0,
    data: 0,
    control: MASKED,
};

#[derive(Debug)]
pub(crate) struct Msix {
    /// Where the capability is.
    at: usize,
    bar: u8,
    table_at: u64,
    pending_at: u64,
    table: Vec<Entry>,
    pending: Vec<u64>,
}

impl Msix {
    /// `vectors` in `bar`: the table at its start, the pending bits after it.
    pub(crate) fn new(at: usize, bar: u8, vectors: u16) -> Self {
        assert!((1..=VECTORS_MAX).contains(&vectors));
        Self {
            at,
            bar,
            table_at: 0,
            pending_at: u64::from(vectors) * ENTRY_BYTES,
            table: vec![RESET; vectors.into()],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
        }
    }

    /// Bytes that table and pending bits take in the BAR.
    pub(crate) fn bytes(vectors: u16) -> u64 {
        u64::from(vectors) * ENTRY_BYTES + u64::from(vectors).div_ceil(64) * 8
    }

    /// The capability's body.
    pub(crate) fn body(&self) -> [u8; 10] {
        let mut body = [0; 10];
        let size = self.table.len() as u16 - 1;
        body[..2].copy_from_slice(&size.to_le_bytes());
        let table = self.table_at as u32 | u32::from(self.bar);
        let pending = self.pending_at as u32 | u32::from(self.bar);
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..10].copy_from_slice(&pending.to_le_bytes());
        body
    }

    pub(crate) fn vectors(&self) -> u16 {
        self.table.len() as u16
    }

    fn control(&self, config: &[u8]) -> u16 {
        u16::from_le_bytes([config[self.at + 2], config[self.at + 3]])
    }

    pub(crate) fn enabled(&self, config: &[u8]) -> bool {
        self.control(config) & ENABLE != 0
    }

    fn function_masked(&self, config: &[u8]) -> bool {
        self.control(config) & FUNCTION_MASK != 0
    }

    pub(crate) fn reset(&mut self) {
        self.table.fill(RESET);
        self.pending.fill(0);
    }

    /// Sends the message of `vector`, or remembers it while it is masked. There is no vector
    /// beyond the table.
    pub(crate) fn trigger(&mut self, config: &[u8], msi: &Msi, vector: u16) {
        let Some(entry) = self.table.get(usize::from(vector)) else {
            return;
        };
        if self.function_masked(config) || entry.control & MASKED != 0 {
            self.pending[usize::from(vector) / 64] |= 1 << (vector % 64);
        } else {
            msi.send(entry.address, entry.data);
        }
    }

    /// Sends what is pending and no longer masked.
    pub(crate) fn deliver(&mut self, config: &[u8], msi: &Msi) {
        if !self.enabled(config) || self.function_masked(config) {
            return;
        }
        for (word, pending) in self.pending.iter_mut().enumerate() {
            let mut left = *pending;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let entry = self.table[word * 64 + bit as usize];
                if entry.control & MASKED == 0 {
                    *pending &= !(1 << bit);
                    msi.send(entry.address, entry.data);
                }
            }
        }
    }

    /// Whether the table or the pending bits are at `offset` of `bar`.
    pub(crate) fn covers(&self, bar: u8, offset: u64) -> bool {
        let bytes = self.pending_at + self.pending.len() as u64 * 8;
        bar == self.bar && offset < bytes
    }

    /// Reads at `offset`, which is covered. Software must read aligned 4 or 8 bytes; it gets the
    /// addressed part of the aligned 8 otherwise.
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        let qword = if offset < self.pending_at {
            let entry = self.table[(offset / ENTRY_BYTES) as usize];
            match offset / 8 % 2 {
                0 => entry.address,
                _ => u64::from(entry.data) | u64::from(entry.control) << 32,
            }
        } else {
            self.pending[((offset - self.pending_at) / 8) as usize]
        };
        qword >> (offset % 8 * 8) & width.ones()
    }

    /// Writes at `offset`, which is covered. Anything but aligned 4 or 8 bytes is undefined, here
    /// lost; so are writes to the pending bits.
    pub(crate) fn write(&mut self, offset: u64, width: Width, value: u64) {
        let Some(entry) = self.table.get_mut((offset / ENTRY_BYTES) as usize) else {
            return;
        };
        match (offset % ENTRY_BYTES, width) {
            (0, Width::Qword) => entry.address = value & !3,
            (0, Width::Dword) => entry.address = entry.address >> 32 << 32 | value & !3,
            (4, Width::Dword) => entry.address = entry.address & 0xffff_ffff | value << 32,
            (8, Width::Dword) => entry.data = value as u32,
            (8, Width::Qword) => {
                entry.data = value as u32;
                entry.control = (value >> 32) as u32 & MASKED;
            }
            (12, Width::Dword) => entry.control = value as u32 & MASKED,
            _ => {}
        }
    }

    pub(crate) fn save(&self) -> MsixState {
        let Self {
            // Layout, the same in every machine with this function.
            at: _,
            bar: _,
            table_at: _,
            pending_at: _,
            table,
            pending,
        } = self;
        MsixState {
            table: table.clone(),
            pending: pending.clone(),
        }
    }

    pub(crate) fn check(&self, state: &MsixState) -> Result<(), Invalid> {
        let MsixState { table, pending } = state;
        let beyond = self.table.len() % 64;
        let stray = beyond != 0 && pending.last().is_some_and(|last| last >> beyond != 0);
        let reserved = |e: &Entry| e.address & 3 != 0 || e.control & !MASKED != 0;
        if table.len() != self.table.len()
            || pending.len() != self.pending.len()
            || stray
            || table.iter().any(reserved)
        {
            return Err(Invalid::new("the MSI-X table is not this function's"));
        }
        Ok(())
    }

    /// Takes over what [`Msix::check`] accepted.
    pub(crate) fn set(&mut self, state: MsixState) {
        let MsixState { table, pending } = state;
        self.table = table;
        self.pending = pending;
    }
}

/// The saved part of MSI-X that is not in configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MsixState {
    table: Vec<Entry>,
    pending: Vec<u64>,
}
