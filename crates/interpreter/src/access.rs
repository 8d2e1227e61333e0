//! Data accesses: effective address, segmentation, paging, then memory or a device.

mod wide;

use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::mailbox::FORGET_WRITES;
use crate::op::{Op, Seg};
use crate::paging::{Intent, Privilege};
use crate::tlb::View;
use engine::{Access, Space};
use memory::{Kind, PAGE_SHIFT, PAGE_SIZE};
use std::sync::PoisonError;
use std::sync::atomic::{Ordering, fence};
use x86::paging::is_canonical;
use x86::{Cr0, Cr4, Exception, Rflags, Segment, Vector};

/// Where an operand that is written lies, after all checks: writing it can't fault any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// RAM, at this offset.
    Ram(usize),
    /// RAM from which code was decoded, at this offset.
    Code(usize),
    /// Not memory, at this guest-physical address; or ROM, whose writes are lost.
    Device(u64),
    /// Across two pages: the physical ends, and how many bytes lie in the first.
    Split {
        first: Part,
        second: Part,
        first_bytes: u8,
    },
}

/// One page's share of an operand that crosses a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Ram(usize),
    Device(u64),
}

impl Cpu {
    /// The effective address of `op`'s memory operand: the offset in its segment.
    #[inline(always)]
    pub(crate) fn address(&self, op: &Op) -> u64 {
        let base = self.gpr[op.base as usize & 31];
        let index = self.gpr[op.index as usize & 31];
        let sum = base
            .wrapping_add(index << (op.scale & 3))
            .wrapping_add(op.disp);
        sum & u64::MAX >> (op.address_cut & 63)
    }

    /// The linear address of `size` bytes at `offset` of a segment, after its checks.
    #[inline(always)]
    pub(crate) fn linear(
        &mut self,
        segment: Seg,
        offset: u64,
        size: usize,
        intent: Intent,
    ) -> Result<u64> {
        if segment.is_checked() {
            return self.checked_linear(segment, offset, size, intent);
        }
        Ok(self.bases[segment.slot()].wrapping_add(offset))
    }

    /// Segmentation outside 64-bit mode (SDM vol. 3, 6.3 to 6.5).
    #[inline(never)]
    fn checked_linear(
        &mut self,
        segment: Seg,
        offset: u64,
        size: usize,
        intent: Intent,
    ) -> Result<u64> {
        let cached = &self.segments[segment.slot()];
        if !allows(cached, offset, size, intent, self.real_addressing()) {
            return self.segment_fault(segment);
        }
        Ok(cached.base.wrapping_add(offset) & 0xffff_ffff)
    }

    #[cold]
    fn segment_fault<T>(&mut self, segment: Seg) -> Result<T> {
        let vector = if segment.is_stack() {
            Vector::StackFault
        } else {
            Vector::GeneralProtection
        };
        self.raise(Exception::with_code(vector, 0))
    }

    /// Loads `op`'s memory operand.
    #[inline(always)]
    pub(crate) fn load<T: Int>(&mut self, op: &Op) -> Result<T> {
        self.load_at(op.segment, self.address(op))
    }

    /// Stores to `op`'s memory operand.
    #[inline(always)]
    pub(crate) fn store<T: Int>(&mut self, op: &Op, value: T) -> Result {
        self.store_at(op.segment, self.address(op), value)
    }

    /// Loads from `offset` in a segment.
    #[inline(always)]
    pub(crate) fn load_at<T: Int>(&mut self, segment: Seg, offset: u64) -> Result<T> {
        let linear = self.linear(segment, offset, T::SIZE, Intent::Read)?;
        match self.tlb.read(self.view, linear, T::SIZE) {
            Some(at) => Ok(self.ram.load(at)),
            None => self.load_slow(segment, linear),
        }
    }

    /// Stores to `offset` in a segment.
    #[inline(always)]
    pub(crate) fn store_at<T: Int>(&mut self, segment: Seg, offset: u64, value: T) -> Result {
        let linear = self.linear(segment, offset, T::SIZE, Intent::Write)?;
        match self.tlb.write(self.view, linear, T::SIZE) {
            Some(at) => self.ram.store(at, value),
            None => {
                let place = self.place_slow(segment, linear, T::SIZE)?;
                self.put(place, value);
            }
        }
        Ok(())
    }

    /// Where `op`'s memory operand of type `T` lies, for reading and writing it.
    #[inline(always)]
    pub(crate) fn place<T: Int>(&mut self, op: &Op) -> Result<Place> {
        let offset = self.address(op);
        self.place_at(op.segment, offset, T::SIZE)
    }

    /// Where `size` (1 to 64) bytes at `offset` of a segment lie, for reading and writing them.
    #[inline(always)]
    pub(crate) fn place_at(&mut self, segment: Seg, offset: u64, size: usize) -> Result<Place> {
        let linear = self.linear(segment, offset, size, Intent::Write)?;
        match self.tlb.write(self.view, linear, size) {
            Some(at) => Ok(Place::Ram(at)),
            None => self.place_slow(segment, linear, size),
        }
    }

    /// Replaces the operand at `place` by `change` of it, atomically if `lock`. Returns the old
    /// and the new value.
    #[inline(always)]
    pub(crate) fn update<T: Int>(
        &mut self,
        place: Place,
        lock: bool,
        mut change: impl FnMut(T) -> T,
    ) -> (T, T) {
        if let (Place::Ram(at), false) = (place, lock) {
            let old = self.ram.load(at);
            let new = change(old);
            self.ram.store(at, new);
            return (old, new);
        }
        self.update_slow(place, lock, &mut change)
    }

    #[inline(never)]
    fn update_slow<T: Int>(
        &mut self,
        place: Place,
        lock: bool,
        change: &mut dyn FnMut(T) -> T,
    ) -> (T, T) {
        if let (Place::Ram(at) | Place::Code(at), true) = (place, lock) {
            let mut old: T = self.ram.load(at);
            loop {
                let new = change(old);
                let seen = self.ram.compare_exchange(at, old, new);
                if seen == old {
                    if let Place::Code(_) = place {
                        self.code_written(at, T::SIZE);
                    }
                    return (old, new);
                }
                old = seen;
            }
        }
        let shared = self.shared.clone();
        let _guard = lock.then(|| {
            shared
                .bus_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        });
        let old = self.get(place);
        let new = change(old);
        self.put(place, new);
        (old, new)
    }

    /// Loads the operand at `place`.
    pub(crate) fn get<T: Int>(&mut self, place: Place) -> T {
        match place {
            Place::Ram(at) | Place::Code(at) => self.ram.load(at),
            Place::Device(gpa) => T::of(self.device(gpa, T::SIZE, None)),
            Place::Split {
                first,
                second,
                first_bytes,
            } => {
                let low = self.get_part(first, first_bytes.into());
                let high = self.get_part(second, T::SIZE - usize::from(first_bytes));
                T::of(low | high << (8 * first_bytes))
            }
        }
    }

    /// Stores to the operand at `place`.
    pub(crate) fn put<T: Int>(&mut self, place: Place, value: T) {
        match place {
            Place::Ram(at) => self.ram.store(at, value),
            Place::Code(at) => {
                self.ram.store(at, value);
                self.code_written(at, T::SIZE);
            }
            Place::Device(gpa) => {
                self.device(gpa, T::SIZE, Some(value.zx()));
            }
            Place::Split {
                first,
                second,
                first_bytes,
            } => {
                let bytes = value.zx().to_le_bytes();
                self.put_part(first, &bytes[..first_bytes.into()]);
                self.put_part(second, &bytes[first_bytes.into()..T::SIZE]);
            }
        }
    }

    /// Loads `bytes.len()` bytes at `place`.
    pub(crate) fn get_bytes(&mut self, place: Place, bytes: &mut [u8]) {
        match place {
            Place::Ram(at) | Place::Code(at) => self.ram.read(at, bytes),
            Place::Device(gpa) => self.get_part_bytes(Part::Device(gpa), bytes),
            Place::Split {
                first,
                second,
                first_bytes,
            } => {
                let (low, high) = bytes.split_at_mut(first_bytes.into());
                self.get_part_bytes(first, low);
                self.get_part_bytes(second, high);
            }
        }
    }

    /// Stores `bytes` at `place`.
    pub(crate) fn put_bytes(&mut self, place: Place, bytes: &[u8]) {
        match place {
            Place::Ram(at) | Place::Code(at) => self.put_part(Part::Ram(at), bytes),
            Place::Device(gpa) => self.put_part(Part::Device(gpa), bytes),
            Place::Split {
                first,
                second,
                first_bytes,
            } => {
                let (low, high) = bytes.split_at(first_bytes.into());
                self.put_part(first, low);
                self.put_part(second, high);
            }
        }
    }

    /// Loads up to 64 bytes from `offset` of a segment: vector operands, saved states.
    pub(crate) fn load_bytes(&mut self, segment: Seg, offset: u64, bytes: &mut [u8]) -> Result {
        let linear = self.linear(segment, offset, bytes.len(), Intent::Read)?;
        if let Some(at) = self.tlb.read(self.view, linear, bytes.len()) {
            self.ram.read(at, bytes);
            return Ok(());
        }
        let place = self.locate(segment, linear, bytes.len(), Intent::Read)?;
        self.get_bytes(place, bytes);
        Ok(())
    }

    /// Stores up to 64 bytes to `offset` of a segment.
    pub(crate) fn store_bytes(&mut self, segment: Seg, offset: u64, bytes: &[u8]) -> Result {
        let place = self.place_at(segment, offset, bytes.len())?;
        self.put_bytes(place, bytes);
        Ok(())
    }

    fn get_part(&mut self, part: Part, bytes: usize) -> u64 {
        let mut value = [0; 8];
        self.get_part_bytes(part, &mut value[..bytes]);
        u64::from_le_bytes(value)
    }

    fn get_part_bytes(&mut self, part: Part, bytes: &mut [u8]) {
        match part {
            Part::Ram(at) => self.ram.read(at, bytes),
            Part::Device(gpa) => {
                for (at, chunk) in (gpa..).step_by(8).zip(bytes.chunks_mut(8)) {
                    self.read_device_bytes(at, chunk);
                }
            }
        }
    }

    /// Reads at most 8 bytes: in one access where there is one of this size.
    fn read_device_bytes(&mut self, gpa: u64, bytes: &mut [u8]) {
        if bytes.len().is_power_of_two() {
            let value = self.device(gpa, bytes.len(), None).to_le_bytes();
            bytes.copy_from_slice(&value[..bytes.len()]);
        } else {
            for (at, byte) in (gpa..).zip(bytes) {
                *byte = self.device(at, 1, None) as u8;
            }
        }
    }

    fn put_part(&mut self, part: Part, bytes: &[u8]) {
        match part {
            Part::Ram(at) => {
                self.ram.write(at, bytes);
                // The bytes are there before the look at the watch, as in `PageWatch::written`.
                fence(Ordering::SeqCst);
                if self.memory.watch().is_watched(at >> PAGE_SHIFT) {
                    self.code_written(at, bytes.len());
                }
            }
            Part::Device(gpa) => {
                for (at, chunk) in (gpa..).step_by(8).zip(bytes.chunks(8)) {
                    self.write_device_bytes(at, chunk);
                }
            }
        }
    }

    fn write_device_bytes(&mut self, gpa: u64, bytes: &[u8]) {
        if bytes.len().is_power_of_two() {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            self.device(gpa, bytes.len(), Some(u64::from_le_bytes(value)));
        } else {
            for (at, byte) in (gpa..).zip(bytes) {
                self.device(at, 1, Some(u64::from(*byte)));
            }
        }
    }

    /// An access to what is not memory: the local APIC's page, ROM, or the machine's devices.
    fn device(&mut self, gpa: u64, bytes: usize, write: Option<u64>) -> u64 {
        if let Some(value) = self.apic_access(gpa, bytes, write) {
            return value;
        }
        if self.memory.region(gpa).is_some() {
            // ROM: its bytes are read like RAM's, and writes are lost.
            let mut value = [0; 8];
            if write.is_none() {
                let _ = self.memory.read(gpa, &mut value[..bytes]);
            }
            return u64::from_le_bytes(value);
        }
        self.machine_access(Access {
            space: Space::Memory,
            address: gpa,
            bytes: bytes as u8,
            write,
        })
    }

    /// Hands an access to the machine. Meanwhile, this vCPU counts as standing still.
    pub(crate) fn machine_access(&mut self, access: Access) -> u64 {
        let platform = self.platform();
        self.mailbox.set_running(false);
        let value = platform.access(access);
        self.stand_up();
        value
    }

    /// Guest instructions may execute again after [`crate::mailbox::Mailbox::set_running`] was
    /// set to false.
    pub(crate) fn stand_up(&mut self) {
        self.mailbox.set_running(true);
        if self.mailbox.take_one(FORGET_WRITES) {
            self.tlb.forget_writes();
        }
    }

    /// This vCPU wrote to code.
    #[cold]
    fn code_written(&mut self, at: usize, bytes: usize) {
        for page in at >> PAGE_SHIFT..=(at + bytes - 1) >> PAGE_SHIFT {
            self.memory.watch().written(page);
        }
        // The mailbox has the pages; the block that runs may be one of theirs.
        self.stop = true;
        self.attend();
    }

    /// Privilege of a data access by the running code.
    pub(crate) fn privilege(&self) -> Privilege {
        if self.cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Int>(&mut self, segment: Seg, linear: u64) -> Result<T> {
        let place = self.locate(segment, linear, T::SIZE, Intent::Read)?;
        Ok(self.get(place))
    }

    #[cold]
    #[inline(never)]
    fn place_slow(&mut self, segment: Seg, linear: u64, size: usize) -> Result<Place> {
        self.locate(segment, linear, size, Intent::Write)
    }

    /// All that an access needs which the TLB did not answer.
    fn locate(&mut self, segment: Seg, linear: u64, size: usize, intent: Intent) -> Result<Place> {
        let last = linear.wrapping_add(size as u64 - 1);
        let in_range = segment.is_checked() || self.canonical(linear) && self.canonical(last);
        if !in_range {
            return self.segment_fault(segment);
        }
        if self.view == View::Checked {
            self.check_alignment(linear, size)?;
            self.note_access(linear, size as u64, intent == Intent::Write);
        }
        let place = self.locate_linear(linear, size, intent, self.privilege())?;
        if self.trial.is_some() {
            return self.try_access(place, size, intent);
        }
        Ok(place)
    }

    /// Whether `linear` is canonical under the current paging.
    #[inline(always)]
    pub(crate) fn canonical(&self, linear: u64) -> bool {
        is_canonical(linear, if self.cr4.contains(Cr4::LA57) { 57 } else { 48 })
    }

    /// #AC (SDM vol. 3, 7.15): for CPL 3 with CR0.AM and RFLAGS.AC.
    fn check_alignment(&mut self, linear: u64, size: usize) -> Result {
        let on =
            self.cpl == 3 && self.cr0.contains(Cr0::AM) && self.flags.system().contains(Rflags::AC);
        // Wider operands have rules of their own, which their instructions check.
        if on && size <= 8 && !linear.is_multiple_of(size as u64) {
            return self.raise(Exception::new(Vector::AlignmentCheck));
        }
        Ok(())
    }

    fn locate_linear(
        &mut self,
        linear: u64,
        size: usize,
        intent: Intent,
        by: Privilege,
    ) -> Result<Place> {
        let room = PAGE_SIZE - (linear as usize & (PAGE_SIZE - 1));
        if size <= room {
            return Ok(match self.translate(linear, intent, by)? {
                Part::Ram(at) if self.memory.watch().is_watched(at >> PAGE_SHIFT) => {
                    Place::Code(at)
                }
                Part::Ram(at) => Place::Ram(at),
                Part::Device(gpa) => Place::Device(gpa),
            });
        }
        let first = self.translate(linear, intent, by)?;
        let mut next = linear.wrapping_add(room as u64);
        if !self.long_mode() {
            next &= 0xffff_ffff;
        }
        let second = self.translate(next, intent, by)?;
        Ok(Place::Split {
            first,
            second,
            first_bytes: room as u8,
        })
    }

    /// Walks the page tables for `linear` and fills the TLB.
    fn translate(&mut self, linear: u64, intent: Intent, by: Privilege) -> Result<Part> {
        self.fill(linear, intent, by).map(|(part, _)| part)
    }

    /// Walks the page tables for `linear` and fills the TLB. Returns what is there, and whether
    /// the TLB permits writes to it.
    pub(crate) fn fill(
        &mut self,
        linear: u64,
        intent: Intent,
        by: Privilege,
    ) -> Result<(Part, bool)> {
        let mapping = self.walk(linear, intent, by)?;
        if let Some(gpa) = self.apic_page(mapping.gpa) {
            return Ok((Part::Device(gpa), false));
        }
        let within = mapping.gpa as usize & (PAGE_SIZE - 1);
        let (page, writable) = match self.memory.page(mapping.gpa) {
            Some((page, Kind::Ram)) => (page, true),
            Some((page, Kind::Rom)) if intent != Intent::Write => (page, false),
            _ => return Ok((Part::Device(mapping.gpa), false)),
        };
        let writable =
            writable && mapping.writable && self.shared.claim_write(self.index, page >> PAGE_SHIFT);
        if self.trial.is_none() {
            let view = self.view_of(by);
            self.tlb.fill(view, linear, page, writable, mapping.global);
        }
        Ok((Part::Ram(page + within), writable))
    }

    /// The view that holds what `by` may access. CPL and breakpoints have no say in it.
    #[inline(always)]
    fn view_of(&self, by: Privilege) -> View {
        let smap = self.cr4.contains(Cr4::SMAP);
        match by {
            Privilege::User => View::User,
            Privilege::Implicit if smap => View::SupervisorOnly,
            Privilege::Supervisor if smap && !self.flags.system().contains(Rflags::AC) => {
                View::SupervisorOnly
            }
            _ => View::Supervisor,
        }
    }

    /// Loads from a linear address with the rights of `by`, without looking at segments.
    pub(crate) fn load_as<T: Int>(&mut self, linear: u64, by: Privilege) -> Result<T> {
        if let Some(at) = self.tlb.read(self.view_of(by), linear, T::SIZE) {
            return Ok(self.ram.load(at));
        }
        let place = self.locate_linear(linear, T::SIZE, Intent::Read, by)?;
        Ok(self.get(place))
    }

    /// Stores to a linear address with the rights of `by`, without looking at segments.
    pub(crate) fn store_as<T: Int>(&mut self, linear: u64, value: T, by: Privilege) -> Result {
        if let Some(at) = self.tlb.write(self.view_of(by), linear, T::SIZE) {
            self.ram.store(at, value);
            return Ok(());
        }
        let place = self.locate_linear(linear, T::SIZE, Intent::Write, by)?;
        self.put(place, value);
        Ok(())
    }

    /// Loads from a linear address as the CPU itself: descriptor tables, TSS.
    pub(crate) fn load_system<T: Int>(&mut self, linear: u64) -> Result<T> {
        let linear = self.system_linear(linear, T::SIZE)?;
        self.load_as(linear, Privilege::Implicit)
    }

    /// Stores to a linear address as the CPU itself.
    pub(crate) fn store_system<T: Int>(&mut self, linear: u64, value: T) -> Result {
        let linear = self.system_linear(linear, T::SIZE)?;
        self.store_as(linear, value, Privilege::Implicit)
    }

    /// Where the CPU itself reads `size` (up to a page) bytes at a linear address.
    pub(crate) fn find_system(&mut self, linear: u64, size: usize) -> Result<Place> {
        let linear = self.system_linear(linear, size)?;
        self.locate_linear(linear, size, Intent::Read, Privilege::Implicit)
    }

    /// Where the CPU itself writes `size` bytes at a linear address.
    pub(crate) fn place_system(&mut self, linear: u64, size: usize) -> Result<Place> {
        let linear = self.system_linear(linear, size)?;
        self.locate_linear(linear, size, Intent::Write, Privilege::Implicit)
    }

    /// The linear address of a system structure.
    fn system_linear(&mut self, linear: u64, size: usize) -> Result<u64> {
        if !self.long_mode() {
            return Ok(linear & 0xffff_ffff);
        }
        if self.canonical(linear) && self.canonical(linear.wrapping_add(size as u64 - 1)) {
            return Ok(linear);
        }
        self.general_protection(0)
    }

    /// SS as the segment of stack accesses.
    #[inline(always)]
    pub(crate) fn stack_segment(&self) -> Seg {
        if self.is_64bit() {
            Seg::long(2)
        } else {
            Seg::legacy(2)
        }
    }

    /// Pushes `value`.
    #[inline(always)]
    pub(crate) fn push<T: Int>(&mut self, value: T) -> Result {
        let rsp = self.gpr[4];
        let new = rsp.wrapping_sub(T::SIZE as u64) & self.stack_mask;
        self.store_at(self.stack_segment(), new, value)?;
        self.gpr[4] = rsp & !self.stack_mask | new;
        Ok(())
    }

    /// Pops a value.
    #[inline(always)]
    pub(crate) fn pop<T: Int>(&mut self) -> Result<T> {
        let rsp = self.gpr[4];
        let value = self.load_at(self.stack_segment(), rsp & self.stack_mask)?;
        let new = rsp.wrapping_add(T::SIZE as u64) & self.stack_mask;
        self.gpr[4] = rsp & !self.stack_mask | new;
        Ok(value)
    }
}

/// Segmentation outside 64-bit mode (SDM vol. 3, 6.3 to 6.5): whether `size` bytes at `offset`
/// of `segment` may be accessed.
pub(crate) fn allows(
    segment: &Segment,
    offset: u64,
    size: usize,
    intent: Intent,
    real_addressing: bool,
) -> bool {
    let kind = segment.kind();
    let is_code = kind & 8 != 0;
    let allowed = match intent {
        // Any data segment, or readable code.
        Intent::Read => !is_code || kind & 2 != 0,
        // A writable data segment. Real mode writes through any segment.
        Intent::Write => !is_code && kind & 2 != 0 || real_addressing,
        Intent::Fetch => true,
    };
    let last = offset.wrapping_add(size as u64 - 1);
    let limit = u64::from(segment.limit);
    let inside = if segment.expands_down() {
        let top = if segment.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top && last >= offset
    } else {
        last <= limit && last >= offset
    };
    allowed && inside && !segment.unusable
}
