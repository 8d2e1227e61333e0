//! Page walks in all formats: 32-bit, PAE, four and five levels (SDM vol. 3, chapter 5).

use crate::cpu::{Cpu, Result};
use crate::structures::{Passed, Table};
use memory::Kind;
use x86::paging::{Entry, FaultCode};
use x86::{Cr0, Cr4, Efer, Exception, Rflags, Vector};

/// Width of guest-physical addresses, as CPUID leaf 0x8000_0008 shows it.
pub(crate) const PHYSICAL_BITS: u32 = 46;
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !0xfff;
/// Address bits of an entry that must be 0.
const RESERVED_ADDRESS: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Data read.
    Read,
    /// Data written, or read and written.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// Who makes an access, as far as permissions care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Code at CPL 3.
    User,
    /// Code at CPL 0 to 2; SMAP as RFLAGS.AC says.
    Supervisor,
    /// The CPU itself: descriptor tables, TSS, interrupt stacks. SMAP applies whatever AC is.
    Implicit,
}

/// What a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The guest-physical address.
    pub(crate) gpa: u64,
    /// Whether the page may be written without another walk: by the intent's privilege, and it is
    /// dirty already.
    pub(crate) writable: bool,
    /// Whether user mode may access it.
    pub(crate) user: bool,
    /// Whether it stays over CR3 writes.
    pub(crate) global: bool,
}

/// How the current page tables are laid out.
struct Format {
    /// Linear-address bits that index the first level, and where they begin.
    top_shift: u32,
    /// Bits of an index: 10 in the 32-bit format, else 9.
    index_bits: u32,
    /// Bytes of an entry.
    entry_bytes: usize,
}

/// How far down a walk is.
#[derive(Clone, Copy)]
struct Step {
    /// Where in guest memory the table is that is looked into next; `None` if it is elsewhere.
    table: Option<(usize, Kind)>,
    /// Where the bits of the linear address begin that index it.
    shift: u32,
    /// Rights gathered above it.
    rights: Entry,
    /// Whether everything above it is in RAM.
    in_ram: bool,
}

/// What the last entry maps, and the rights gathered on the way down to it and there.
struct Leaf {
    entry: Entry,
    /// Where in guest memory the entry is, if it is in RAM: elsewhere it can't be marked.
    at: Option<usize>,
    shift: u32,
    rights: Entry,
}

/// Why a walk ends early.
enum Stop {
    NotPresent,
    Reserved,
    /// Another processor changed an entry on the way: the walk starts over.
    Changed,
}

impl Cpu {
    /// Translates `linear`, sets accessed and dirty bits, and checks permissions.
    ///
    /// # Errors
    /// #PF, with CR2 as its payload.
    #[inline]
    pub(crate) fn walk(&mut self, linear: u64, intent: Intent, by: Privilege) -> Result<Mapping> {
        if !self.cr0.contains(Cr0::PG) {
            let gpa = linear & 0xffff_ffff;
            return Ok(Mapping {
                gpa,
                writable: true,
                user: true,
                global: false,
            });
        }
        // What the caches lead to may be stale: it may permit, only the tables themselves forbid.
        if let Some(leaf) = self.cached_leaf(linear)
            && self.permits(leaf.rights, intent, by)
            && let Some(mapping) = self.use_leaf(&leaf, linear, intent, by)
        {
            return Ok(mapping);
        }
        self.walk_down(linear, intent, by)
    }

    /// Translates `linear` as [`Cpu::walk`] does, with paging on, for what needs more than a cached
    /// page table. Only a walk from CR3 finds a fault.
    #[inline(never)]
    fn walk_down(&mut self, linear: u64, intent: Intent, by: Privilege) -> Result<Mapping> {
        let format = self.format();
        let mut cached = self.cached_directory(linear);
        loop {
            let from = cached.take();
            let is_cached = from.is_some();
            let mut passed = Passed::default();
            let found = match from.map_or_else(|| self.root(linear, &format), Ok) {
                Ok(from) => self.descend(linear, &format, from, Some(&mut passed)),
                Err(stop) => Err(stop),
            };
            let cause = match found {
                Ok(leaf) if self.permits(leaf.rights, intent, by) => {
                    if let Some(mapping) = self.use_leaf(&leaf, linear, intent, by) {
                        if self.trial.is_none() {
                            self.tlb.structures.keep(linear, &passed);
                        }
                        return Ok(mapping);
                    }
                    continue;
                }
                Err(Stop::Changed) => continue,
                Ok(_) => FaultCode::PROTECTION,
                Err(Stop::NotPresent) => FaultCode::empty(),
                Err(Stop::Reserved) => FaultCode::PROTECTION | FaultCode::RESERVED,
            };
            if !is_cached {
                return self.page_fault(linear, intent, by, cause);
            }
        }
    }

    /// The last entry for `linear`, if the page table that holds it is cached and the entry may be
    /// used.
    #[inline(always)]
    fn cached_leaf(&self, linear: u64) -> Option<Leaf> {
        let table = self.tlb.structures.table(linear)?;
        // Only the 32-bit format has other entries than these, and larger tables.
        let (at, bits) = if self.cr4.contains(Cr4::PAE) {
            let at = table.offset + (linear >> 12 & 0x1ff) as usize * 8;
            (at, self.ram.load::<u64>(at))
        } else {
            let at = table.offset + (linear >> 12 & 0x3ff) as usize * 4;
            (at, self.ram.load::<u32>(at).into())
        };
        let entry = Entry::from_bits_retain(bits);
        let is_usable = entry.contains(Entry::PRESENT)
            && !(self.cr4.contains(Cr4::PAE) && bits & self.reserved_anywhere() != 0);
        is_usable.then(|| Leaf {
            entry,
            at: Some(at),
            shift: 12,
            rights: gathered(table.rights, entry),
        })
    }

    /// The step at the page directory for `linear`, if that is cached.
    fn cached_directory(&self, linear: u64) -> Option<Step> {
        let directory = self.tlb.structures.directory(linear)?;
        Some(Step {
            table: Some((directory.offset, Kind::Ram)),
            shift: 21,
            rights: directory.rights,
            in_ram: true,
        })
    }

    /// Sets the accessed and dirty bits of `leaf`, which permits the access; `None` if it is no
    /// longer what it was.
    #[inline(always)]
    fn use_leaf(
        &mut self,
        leaf: &Leaf,
        linear: u64,
        intent: Intent,
        by: Privilege,
    ) -> Option<Mapping> {
        let mut dirty = leaf.entry.contains(Entry::DIRTY);
        let wanted = if intent == Intent::Write {
            dirty = true;
            Entry::ACCESSED | Entry::DIRTY
        } else {
            Entry::ACCESSED
        };
        if !leaf.entry.contains(wanted)
            && let Some(at) = leaf.at
            && !self.mark_entry(at, leaf.entry, wanted)
        {
            return None;
        }
        if leaf.shift > 12 {
            self.tlb.note_large(linear, leaf.shift);
        }
        let within = (1u64 << leaf.shift) - 1;
        Some(Mapping {
            gpa: page_address(leaf.entry, leaf.shift) & !within | linear & within,
            writable: dirty && self.may_write(leaf.rights, by),
            user: leaf.rights.contains(Entry::USER),
            global: leaf.entry.contains(Entry::GLOBAL) && self.cr4.contains(Cr4::PGE),
        })
    }

    /// Translates `linear` for a debugger: nothing is set, no permission is asked for.
    pub(crate) fn peek(&self, linear: u64) -> Option<u64> {
        if !self.cr0.contains(Cr0::PG) {
            return Some(linear & 0xffff_ffff);
        }
        let format = self.format();
        let root = self.root(linear, &format).ok()?;
        let leaf = self.descend(linear, &format, root, None).ok()?;
        let within = (1u64 << leaf.shift) - 1;
        Some(page_address(leaf.entry, leaf.shift) & !within | linear & within)
    }

    /// Where user code may read the page of `linear`, and whether it may write there, as far as
    /// that was done before: accessed, and dirty if it is to be written. Nothing is set.
    pub(crate) fn peek_user(&self, linear: u64) -> Option<(u64, bool)> {
        if !self.cr0.contains(Cr0::PG) {
            return None;
        }
        let format = self.format();
        let root = self.root(linear, &format).ok()?;
        let leaf = self.descend(linear, &format, root, None).ok()?;
        let is_used = leaf.entry.contains(Entry::ACCESSED);
        if !is_used || !self.permits(leaf.rights, Intent::Read, Privilege::User) {
            return None;
        }
        let within = (1u64 << leaf.shift) - 1;
        let writable = leaf.entry.contains(Entry::DIRTY)
            && self.permits(leaf.rights, Intent::Write, Privilege::User);
        let page = page_address(leaf.entry, leaf.shift) & !within | linear & within;
        Some((page, writable))
    }

    fn format(&self) -> Format {
        let (top_shift, index_bits, entry_bytes) =
            if self.cr4.contains(Cr4::LA57) && self.long_mode() {
                (48, 9, 8)
            } else if self.long_mode() {
                (39, 9, 8)
            } else if self.cr4.contains(Cr4::PAE) {
                // The PDPTEs are registers: the walk begins at the page directory.
                (21, 9, 8)
            } else {
                (22, 10, 4)
            };
        Format {
            top_shift,
            index_bits,
            entry_bytes,
        }
    }

    /// The step at the first table.
    fn root(&self, linear: u64, format: &Format) -> std::result::Result<Step, Stop> {
        let table = if format.top_shift == 21 {
            let pdpte = self.pdpte[(linear >> 30 & 3) as usize];
            if pdpte & 1 == 0 {
                return Err(Stop::NotPresent);
            }
            pdpte & ADDRESS
        } else if format.entry_bytes == 4 {
            self.cr3 & 0xffff_f000
        } else {
            self.cr3 & ADDRESS
        };
        Ok(Step {
            table: self.memory.page(table),
            shift: format.top_shift,
            rights: Entry::WRITABLE | Entry::USER,
            in_ram: true,
        })
    }

    /// Goes down to the entry that maps `linear`. With `passed`, sets accessed bits of the tables
    /// and notes there which of them may be cached.
    fn descend(
        &self,
        linear: u64,
        format: &Format,
        from: Step,
        mut passed: Option<&mut Passed>,
    ) -> std::result::Result<Leaf, Stop> {
        let mut step = from;
        loop {
            let shift = step.shift;
            let index = (linear >> shift) as usize & ((1 << format.index_bits) - 1);
            let place = step
                .table
                .map(|(table, _)| table + index * format.entry_bytes);
            let entry = self.load_entry(place, format.entry_bytes);
            if !entry.contains(Entry::PRESENT) {
                return Err(Stop::NotPresent);
            }
            let last = shift == 12 || self.maps_large_page(entry, shift, format);
            if self.reserved_bits(entry, shift, last, format) {
                return Err(Stop::Reserved);
            }
            let is_ram = matches!(step.table, Some((_, Kind::Ram)));
            let markable = place.filter(|_| is_ram);
            if let (Some(passed), Some((offset, _)), true) =
                (&mut passed, step.table, is_ram && step.in_ram)
            {
                let rights = step.rights;
                passed.note(shift, Table { offset, rights });
            }
            let rights = gathered(step.rights, entry);
            if last {
                return Ok(Leaf {
                    entry,
                    at: markable,
                    shift,
                    rights,
                });
            }
            if passed.is_some()
                && !entry.contains(Entry::ACCESSED)
                && let Some(at) = markable
                && !self.mark_entry(at, entry, Entry::ACCESSED)
            {
                return Err(Stop::Changed);
            }
            step = Step {
                table: self.memory.page(entry.bits() & ADDRESS),
                shift: shift - format.index_bits,
                rights,
                in_ram: step.in_ram && is_ram,
            };
        }
    }

    /// Loads the entry at `place` in guest memory.
    fn load_entry(&self, place: Option<usize>, bytes: usize) -> Entry {
        // Tables outside of memory read as all ones, as an unclaimed bus does: a reserved bit.
        let bits = match (place, bytes) {
            (Some(at), 4) => self.ram.load::<u32>(at).into(),
            (Some(at), _) => self.ram.load::<u64>(at),
            (None, 4) => u32::MAX.into(),
            (None, _) => u64::MAX,
        };
        Entry::from_bits_retain(bits)
    }

    /// Sets accessed and dirty bits in `entry` as the CPU does (SDM vol. 3, 5.8): in one locked
    /// step, and only if the entry at `offset`, in RAM, is still what the walk read. Returns
    /// whether it was: an entry that another processor took away meanwhile must stay as that one
    /// left it.
    #[inline(never)]
    fn mark_entry(&self, offset: usize, entry: Entry, bits: Entry) -> bool {
        let (old, new) = (entry.bits(), (entry | bits).bits());
        let was_same = if self.cr4.contains(Cr4::PAE) {
            self.ram.compare_exchange(offset, old, new) == old
        } else {
            self.ram.compare_exchange(offset, old as u32, new as u32) == old as u32
        };
        self.memory.watch().written(offset >> memory::PAGE_SHIFT);
        if let Some(trial) = &self.trial {
            trial.marked(offset);
        }
        was_same
    }

    fn maps_large_page(&self, entry: Entry, shift: u32, format: &Format) -> bool {
        if !entry.contains(Entry::LARGE) {
            return false;
        }
        match (format.entry_bytes, shift) {
            (4, _) => self.cr4.contains(Cr4::PSE),
            (_, 21) => true,
            (_, 30) => true,
            _ => false,
        }
    }

    /// Whether bits are set that must be 0 (SDM vol. 3, tables 5-14 to 5-20).
    fn reserved_bits(&self, entry: Entry, shift: u32, last: bool, format: &Format) -> bool {
        let bits = entry.bits();
        if format.entry_bytes == 4 {
            // A 4 MiB page with PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved.
            return last && shift == 22 && bits >> 21 & 1 != 0;
        }
        let mut reserved = self.reserved_anywhere();
        if last && shift > 12 {
            // Bit 12 is PAT; the address is aligned to the page.
            reserved |= ((1u64 << shift) - 1) & !0x1fff;
        }
        if shift >= 39 {
            reserved |= Entry::LARGE.bits();
        }
        bits & reserved != 0
    }

    /// Bits that must be 0 in all 64-bit entries.
    #[inline]
    fn reserved_anywhere(&self) -> u64 {
        let mut reserved = RESERVED_ADDRESS;
        if !self.efer.contains(Efer::NXE) {
            reserved |= Entry::NO_EXECUTE.bits();
        }
        if !self.long_mode() {
            reserved |= 0x7ff << 52;
        }
        reserved
    }

    #[inline]
    fn may_write(&self, rights: Entry, by: Privilege) -> bool {
        match by {
            Privilege::User => rights.contains(Entry::WRITABLE | Entry::USER),
            _ => rights.contains(Entry::WRITABLE) || !self.cr0.contains(Cr0::WP),
        }
    }

    /// Access rights (SDM vol. 3, 5.6.1).
    #[inline]
    fn permits(&self, rights: Entry, intent: Intent, by: Privilege) -> bool {
        let user_page = rights.contains(Entry::USER);
        let executable = !(rights.contains(Entry::NO_EXECUTE) && self.efer.contains(Efer::NXE));
        match (by, intent) {
            (Privilege::User, Intent::Read) => user_page,
            (Privilege::User, Intent::Fetch) => user_page && executable,
            (Privilege::User, Intent::Write) => self.may_write(rights, by),
            (_, Intent::Fetch) => executable && !(user_page && self.cr4.contains(Cr4::SMEP)),
            (_, intent) => {
                let shut = user_page
                    && self.cr4.contains(Cr4::SMAP)
                    && (by == Privilege::Implicit || !self.flags.system().contains(Rflags::AC));
                !shut && (intent == Intent::Read || self.may_write(rights, by))
            }
        }
    }

    #[cold]
    fn page_fault<T>(
        &mut self,
        linear: u64,
        intent: Intent,
        by: Privilege,
        cause: FaultCode,
    ) -> Result<T> {
        let mut code = cause;
        code.set(FaultCode::WRITE, intent == Intent::Write);
        code.set(FaultCode::USER, by == Privilege::User);
        let fetches = self.cr4.contains(Cr4::SMEP)
            || self.cr4.contains(Cr4::PAE) && self.efer.contains(Efer::NXE);
        code.set(FaultCode::FETCH, intent == Intent::Fetch && fetches);
        // The old translation may be cached: a fault invalidates it (SDM vol. 3, 5.10.4.1).
        if self.trial.is_none() {
            self.tlb.forget(linear);
        }
        self.raise(Exception {
            vector: Vector::PageFault,
            error_code: code.bits(),
            payload: linear,
        })
    }

    /// Loads the PAE page-directory-pointer registers from the table at `cr3` (SDM vol. 3, 5.4.1).
    ///
    /// # Errors
    /// #GP(0) if one is present and has reserved bits set; the registers are then unchanged.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Result {
        let mut pdpte = [0; 4];
        for (index, entry) in (0..).zip(&mut pdpte) {
            let address = (cr3 & 0xffff_ffe0) + 8 * index;
            *entry = self.memory.load(address).unwrap_or(u64::MAX);
            if !is_valid_pdpte(*entry) {
                return self.general_protection(0);
            }
        }
        self.pdpte = pdpte;
        // What is cached was found through the old ones.
        self.tlb.structures.flush();
        Ok(())
    }
}

/// Whether `entry` may be loaded as a page-directory-pointer register: not present, or without
/// reserved bits (2:1, 8:5 and the address bits that the CPU has not).
pub(crate) const fn is_valid_pdpte(entry: u64) -> bool {
    entry & 1 == 0 || entry & (0x1e6 | RESERVED_ADDRESS | 0xfff << 52) == 0
}

/// Whether all eight memory types in `pat` exist (SDM vol. 3, 12.12.2).
pub(crate) fn is_valid_pat(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

/// The rights that are left of `rights` below `entry`.
#[inline]
fn gathered(rights: Entry, entry: Entry) -> Entry {
    const PERMISSIONS: Entry = Entry::WRITABLE.union(Entry::USER);
    rights & entry & PERMISSIONS | (rights | entry) & Entry::NO_EXECUTE
}

/// The address in an entry that maps a page of `1 << shift` bytes.
fn page_address(entry: Entry, shift: u32) -> u64 {
    if shift == 22 {
        // PSE-36 (SDM vol. 3, table 5-4).
        return entry.bits() & 0xffc0_0000 | (entry.bits() >> 13 & 0xff) << 32;
    }
    entry.bits() & ADDRESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Mode};

    #[test]
    fn sdm_5_8_only_the_entry_that_was_read_is_marked() {
        let bench = Bench::new(Mode::User64);
        let (cpu, at) = (&bench.cpu, 0x8000);
        let read = Entry::from_bits_retain(0x9003);
        for (now, marked) in [(0x9003, 0x9043), (0, 0), (0xa003, 0xa003), (0x9001, 0x9001)] {
            cpu.ram.store::<u64>(at, now);
            assert_eq!(cpu.mark_entry(at, read, Entry::DIRTY), now == read.bits());
            assert_eq!(cpu.ram.load::<u64>(at), marked);
        }
    }
}
