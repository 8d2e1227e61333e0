//! Which device decodes an address.

use crate::{Mmio, PortIo, Shared, Width, lock};

/// Two devices claim the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The first address of the range that was refused.
    pub base: u64,
}

impl std::fmt::Display for Overlap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the range at {:#x} is taken by another device",
            self.base
        )
    }
}

impl std::error::Error for Overlap {}

struct Range<D: ?Sized> {
    base: u64,
    len: u64,
    device: Shared<D>,
}

/// Ranges of one address space and the devices behind them. It is filled when the machine is put
/// together and never changes afterwards, so look-ups take no lock; what moves (PCI BARs) is
/// behind one fixed range.
pub struct Bus<D: ?Sized> {
    ranges: Vec<Range<D>>,
}

impl<D: ?Sized> Default for Bus<D> {
    fn default() -> Self {
        Self { ranges: Vec::new() }
    }
}

impl<D: ?Sized> Bus<D> {
    /// Puts `device` behind `len` addresses from `base` on.
    ///
    /// # Errors
    /// If another device has one of them.
    pub fn insert(&mut self, base: u64, len: u64, device: Shared<D>) -> Result<(), Overlap> {
        assert!(
            len > 0 && base.checked_add(len - 1).is_some(),
            "a range within the space"
        );
        let at = self.ranges.partition_point(|r| r.base < base);
        let before = at.checked_sub(1).map(|i| &self.ranges[i]);
        let hits_before = before.is_some_and(|r| base - r.base < r.len);
        let hits_after = self.ranges.get(at).is_some_and(|r| r.base - base < len);
        if hits_before || hits_after {
            return Err(Overlap { base });
        }
        self.ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// The device behind all `width` addresses from `address` on, and the offset in its range.
    fn find(&self, address: u64, width: Width) -> Option<(&Shared<D>, u64)> {
        let at = self
            .ranges
            .partition_point(|r| r.base <= address)
            .checked_sub(1)?;
        let range = &self.ranges[at];
        let offset = address - range.base;
        let last = offset.checked_add(width as u64 - 1)?;
        (last < range.len).then_some((&range.device, offset))
    }
}

impl Bus<dyn PortIo> {
    /// Reads a port; all ones where no device answers.
    pub fn read(&self, port: u16, width: Width) -> u32 {
        match self.find(port.into(), width) {
            Some((device, _)) => lock(device).port_read(port, width) & width.ones() as u32,
            None => width.ones() as u32,
        }
    }

    /// Writes a port; lost where no device answers.
    pub fn write(&self, port: u16, width: Width, value: u32) {
        if let Some((device, _)) = self.find(port.into(), width) {
            lock(device).port_write(port, width, value & width.ones() as u32);
        }
    }
}

impl Bus<dyn Mmio> {
    /// Reads memory space; all ones where no device answers.
    pub fn read(&self, address: u64, width: Width) -> u64 {
        match self.find(address, width) {
            Some((device, offset)) => lock(device).mmio_read(offset, width) & width.ones(),
            None => width.ones(),
        }
    }

    /// Writes memory space; lost where no device answers.
    pub fn write(&self, address: u64, width: Width, value: u64) {
        if let Some((device, offset)) = self.find(address, width) {
            lock(device).mmio_write(offset, width, value & width.ones());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared;

    struct Echo(u64);

    impl Mmio for Echo {
        fn mmio_read(&mut self, offset: u64, _: Width) -> u64 {
            self.0 << 8 | offset
        }
        fn mmio_write(&mut self, _: u64, _: Width, value: u64) {
            self.0 = value;
        }
    }

    fn bus() -> Bus<dyn Mmio> {
        let mut bus = Bus::<dyn Mmio>::default();
        bus.insert(0x100, 0x10, shared(Echo(1))).unwrap();
        bus.insert(0x110, 0x10, shared(Echo(2))).unwrap();
        bus
    }

    #[test]
    fn finds_the_range_and_the_offset() {
        let bus = bus();
        assert_eq!(bus.read(0x104, Width::Dword), 0x104);
        assert_eq!(bus.read(0x11c, Width::Dword), 0x20c);
        bus.write(0x104, Width::Byte, 0x1fe);
        assert_eq!(bus.read(0x100, Width::Dword), 0xfe00);
    }

    #[test]
    fn nothing_answers_outside_and_across_ranges() {
        let bus = bus();
        assert_eq!(bus.read(0xff, Width::Byte), 0xff);
        assert_eq!(bus.read(0x10e, Width::Dword), 0xffff_ffff);
        assert_eq!(bus.read(u64::MAX, Width::Qword), u64::MAX);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus();
        for (base, len) in [(0x100, 1), (0xff, 2), (0x11f, 5), (0x80, 0x200)] {
            assert_eq!(
                bus.insert(base, len, shared(Echo(3))),
                Err(Overlap { base })
            );
        }
        bus.insert(0x120, 1, shared(Echo(3))).unwrap();
    }
}
