//! What firmware does on a board that has one: giving every base address register an address.

use crate::config::spec;
use crate::{BarKind, Root, Slot, gsi};
use device::{Width, lock};
use std::ops::Range;

/// 64-bit registers of at least this size go above 4 GiB while there is room; smaller ones stay
/// where 32-bit software reaches them.
const HIGH_FROM: u64 = 16 << 20;

/// The ranges of addresses that base address registers may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Below 4 GiB.
    pub memory32: Range<u64>,
    /// Above 4 GiB; may be empty.
    pub memory64: Range<u64>,
    /// Ports; may be empty.
    pub io: Range<u64>,
}

/// A base address register that no range has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for the {size:#x} bytes of PCI function {slot}")]
pub struct NoRoom {
    /// Which function.
    pub slot: Slot,
    /// How much its register wants.
    pub size: u64,
}

struct Wish {
    slot: Slot,
    bar: u8,
    kind: BarKind,
    size: u64,
}

impl Root {
    /// Gives every base address register an address in `space`, enables the decoders, and tells
    /// each function its interrupt line: the global system interrupt that its pin is wired to.
    ///
    /// # Errors
    /// If the registers do not fit; those placed so far stay.
    pub fn assign(&self, space: &Space) -> Result<(), NoRoom> {
        let mut free = space.clone();
        let mut wishes = self.wishes();
        // Largest first: what is aligned to its size leaves no gaps then.
        wishes.sort_by_key(|wish| std::cmp::Reverse(wish.size));
        for wish in wishes {
            let no_room = NoRoom {
                slot: wish.slot,
                size: wish.size,
            };
            let base = place(&mut free, &wish).ok_or(no_room)?;
            self.set_bar(&wish, base);
        }
        for (slot, _) in self.functions() {
            self.enable(slot);
        }
        Ok(())
    }

    fn wishes(&self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for (slot, function) in self.functions() {
            let function = lock(&function);
            let bars = function.config().bars();
            wishes.extend(bars.map(|(bar, kind, size)| Wish {
                slot,
                bar,
                kind,
                size,
            }));
        }
        wishes
    }

    fn set_bar(&self, wish: &Wish, base: u64) {
        let at = (spec::BARS + 4 * usize::from(wish.bar)) as u16;
        self.config_write(wish.slot, at, Width::Dword, base as u32);
        if wish.kind == BarKind::Memory64 {
            self.config_write(wish.slot, at + 4, Width::Dword, (base >> 32) as u32);
        }
    }

    fn enable(&self, slot: Slot) {
        let command = spec::COMMAND as u16;
        let enable = u32::from(spec::COMMAND_IO | spec::COMMAND_MEMORY);
        let value = self.config_read(slot, command, Width::Word) | enable;
        self.config_write(slot, command, Width::Word, value);
        let pin = self.config_read(slot, spec::INTERRUPT_PIN as u16, Width::Byte) as u8;
        if let Some(pin) = pin.checked_sub(1) {
            let line = gsi(slot.device(), pin);
            self.config_write(slot, spec::INTERRUPT_LINE as u16, Width::Byte, line);
        }
    }
}

fn place(free: &mut Space, wish: &Wish) -> Option<u64> {
    match wish.kind {
        BarKind::Io => take(&mut free.io, wish.size),
        BarKind::Memory32 => take(&mut free.memory32, wish.size),
        BarKind::Memory64 if wish.size >= HIGH_FROM => {
            take(&mut free.memory64, wish.size).or_else(|| take(&mut free.memory32, wish.size))
        }
        BarKind::Memory64 => {
            take(&mut free.memory32, wish.size).or_else(|| take(&mut free.memory64, wish.size))
        }
    }
}

/// Takes `size` bytes, aligned to their size, from the start of `free`.
fn take(free: &mut Range<u64>, size: u64) -> Option<u64> {
    let base = free.start.checked_next_multiple_of(size)?;
    let end = base.checked_add(size)?;
    (end <= free.end).then(|| {
        free.start = end;
        base
    })
}
