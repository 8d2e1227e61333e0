//! Message-signalled interrupts (PCI 3.0, 6.8.1), with 64-bit addresses and per-vector masking.

use device::Msi;

/// Capability id.
pub(crate) const ID: u8 = 0x05;
/// Length of the structure after its id and next pointer.
pub(crate) const BODY_BYTES: usize = 22;

const ENABLE: u16 = 1 << 0;
const ADDRESS_64: u16 = 1 << 7;
const PER_VECTOR_MASK: u16 = 1 << 8;

/// Offsets from the capability's start.
const CONTROL: usize = 0x02;
const ADDRESS: usize = 0x04;
const DATA: usize = 0x0c;
const MASK: usize = 0x10;
pub(crate) const PENDING: usize = 0x14;

/// What is not in the configuration registers themselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MsiState {
    /// Where the capability is.
    pub(crate) at: usize,
    /// Vectors that were triggered while masked.
    pub(crate) pending: u32,
}

/// The structure's body and its writable bits, for `1 << log2_vectors` vectors.
pub(crate) fn body(log2_vectors: u8) -> ([u8; BODY_BYTES], [u8; BODY_BYTES]) {
    assert!(log2_vectors <= 5, "at most 32 vectors");
    let mut body = [0; BODY_BYTES];
    let mut writable = [0; BODY_BYTES];
    let control = ADDRESS_64 | PER_VECTOR_MASK | u16::from(log2_vectors) << 1;
    body[..2].copy_from_slice(&control.to_le_bytes());
    // Enable and Multiple Message Enable.
    writable[0] = 0x71;
    let set = |range: std::ops::Range<usize>, bits: &[u8], out: &mut [u8; BODY_BYTES]| {
        out[range.start - 2..range.end - 2].copy_from_slice(bits);
    };
    set(ADDRESS..ADDRESS + 8, &(!3u64).to_le_bytes(), &mut writable);
    set(DATA..DATA + 2, &[0xff; 2], &mut writable);
    let vectors = (1u64 << (1 << log2_vectors)) - 1;
    set(
        MASK..MASK + 4,
        &(vectors as u32).to_le_bytes(),
        &mut writable,
    );
    (body, writable)
}

impl MsiState {
    fn control(&self, config: &[u8]) -> u16 {
        u16::from_le_bytes(take(config, self.at + CONTROL))
    }

    pub(crate) fn enabled(&self, config: &[u8]) -> bool {
        self.control(config) & ENABLE != 0
    }

    /// Sends the message of `vector`, or remembers it while it is masked.
    pub(crate) fn trigger(&mut self, config: &[u8], msi: &Msi, vector: u16) {
        // As many vectors as software enabled, at most as many as there are.
        let control = self.control(config);
        let log2 = (control >> 4 & 7).min(control >> 1 & 7).min(5);
        let low = u32::from(vector) & ((1 << log2) - 1);
        let mask = u32::from_le_bytes(take(config, self.at + MASK));
        if mask & 1 << low != 0 {
            self.pending |= 1 << low;
            return;
        }
        let address = u64::from_le_bytes(take(config, self.at + ADDRESS));
        let data = u32::from(u16::from_le_bytes(take(config, self.at + DATA)));
        msi.send(address, data & !((1 << log2) - 1) | low);
    }

    /// Sends what is pending and no longer masked.
    pub(crate) fn deliver(&mut self, config: &[u8], msi: &Msi) {
        let mask = u32::from_le_bytes(take(config, self.at + MASK));
        let due = self.pending & !mask;
        if due == 0 || !self.enabled(config) {
            return;
        }
        self.pending &= mask;
        for vector in (0..32).filter(|vector| due & 1 << vector != 0) {
            self.trigger(config, msi, vector);
        }
    }
}

fn take<const N: usize>(config: &[u8], at: usize) -> [u8; N] {
    config[at..at + N]
        .try_into()
        .expect("a capability lies in configuration space")
}
