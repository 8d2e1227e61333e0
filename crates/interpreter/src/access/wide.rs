//! Accesses of vector operands, and of images that are longer than any operand.

use super::Place;
use crate::cpu::{Cpu, Result};
use crate::op::{Op, Seg};
use crate::paging::Intent;
use memory::{PAGE_SIZE, Ram};

/// Images are moved in pieces of this many bytes.
const PIECE_BYTES: usize = 64;

impl Cpu {
    /// Loads `op`'s memory operand of 1 to 64 bytes. #GP(0) if its linear address has any bit of
    /// `misaligned`, which is 0 or the alignment less 1.
    #[inline(always)]
    pub(crate) fn load_array<const N: usize>(
        &mut self,
        op: &Op,
        misaligned: u64,
    ) -> Result<[u8; N]> {
        let linear = self.linear(op.segment, self.address(op), N, Intent::Read)?;
        if linear & misaligned != 0 {
            return self.general_protection(0);
        }
        match self.tlb.read(self.view, linear, N) {
            Some(at) => Ok(ram_load(&self.ram, at)),
            None => self.load_array_slow(op.segment, linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_array_slow<const N: usize>(&mut self, segment: Seg, linear: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let place = self.locate(segment, linear, N, Intent::Read)?;
        self.get_bytes(place, &mut bytes);
        Ok(bytes)
    }

    /// Where `op`'s memory operand of `size` (1 to 64) bytes lies, for writing it. `misaligned` as
    /// for [`Cpu::load_array`].
    #[inline(always)]
    pub(crate) fn place_array(&mut self, op: &Op, size: usize, misaligned: u64) -> Result<Place> {
        let linear = self.linear(op.segment, self.address(op), size, Intent::Write)?;
        if linear & misaligned != 0 {
            return self.general_protection(0);
        }
        match self.tlb.write(self.view, linear, size) {
            Some(at) => Ok(Place::Ram(at)),
            None => self.place_slow(op.segment, linear, size),
        }
    }

    /// Stores to the operand at `place`.
    #[inline(always)]
    pub(crate) fn put_array<const N: usize>(&mut self, place: Place, bytes: &[u8; N]) {
        match place {
            Place::Ram(at) => ram_store(&self.ram, at, bytes),
            _ => self.put_bytes(place, bytes),
        }
    }

    /// Loads `bytes.len()` bytes from `offset` of a segment: a saved state.
    pub(crate) fn load_image(&mut self, segment: Seg, offset: u64, bytes: &mut [u8]) -> Result {
        for (n, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
            self.load_bytes(
                segment,
                offset.wrapping_add((n * PIECE_BYTES) as u64),
                piece,
            )?;
        }
        Ok(())
    }

    /// Stores `bytes` to `offset` of a segment: a saved state. Where another processor may change
    /// page tables meanwhile, a fault can leave a part stored; [`Cpu::probe_image`] finds all
    /// others first.
    pub(crate) fn store_image(&mut self, segment: Seg, offset: u64, bytes: &[u8]) -> Result {
        for (n, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            self.store_bytes(
                segment,
                offset.wrapping_add((n * PIECE_BYTES) as u64),
                piece,
            )?;
        }
        Ok(())
    }

    /// Checks that `len` bytes (1 to 4096) at `offset` of a segment can be written.
    pub(crate) fn probe_image(&mut self, segment: Seg, offset: u64, len: usize) -> Result {
        let linear = self.linear(segment, offset, len, Intent::Write)?;
        self.place_at(segment, offset, 1)?;
        let room = PAGE_SIZE - (linear as usize & (PAGE_SIZE - 1));
        if len > room {
            self.place_at(segment, offset.wrapping_add(room as u64), 1)?;
        }
        Ok(())
    }

    /// The linear address of `op`'s memory operand, the first of `len` bytes.
    pub(crate) fn linear_of(&mut self, op: &Op, len: usize, intent: Intent) -> Result<u64> {
        self.linear(op.segment, self.address(op), len, intent)
    }
}

/// Loads with one host instruction for each 16 bytes, as a CPU would.
#[inline(always)]
fn ram_load<const N: usize>(ram: &Ram, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    match N {
        4 => bytes.copy_from_slice(&ram.load::<u32>(at).to_le_bytes()),
        8 => bytes.copy_from_slice(&ram.load::<u64>(at).to_le_bytes()),
        16 | 32 => {
            for (at, half) in (at..).step_by(16).zip(bytes.chunks_exact_mut(16)) {
                half.copy_from_slice(&ram.load::<u128>(at).to_le_bytes());
            }
        }
        _ => ram.read(at, &mut bytes),
    }
    bytes
}

/// Stores with one host instruction for each 16 bytes.
#[inline(always)]
fn ram_store<const N: usize>(ram: &Ram, at: usize, bytes: &[u8; N]) {
    match N {
        4 => ram.store(at, u32::from_le_bytes(prefix(bytes))),
        8 => ram.store(at, u64::from_le_bytes(prefix(bytes))),
        16 | 32 => {
            let (halves, _) = bytes.as_chunks::<16>();
            for (at, half) in (at..).step_by(16).zip(halves) {
                ram.store(at, u128::from_le_bytes(*half));
            }
        }
        _ => ram.write(at, bytes),
    }
}

/// The first `M` of `bytes`.
#[inline(always)]
fn prefix<const N: usize, const M: usize>(bytes: &[u8; N]) -> [u8; M] {
    let mut first = [0; M];
    first.copy_from_slice(&bytes[..M]);
    first
}
