//! What is known about a block, packed: its *record*, in the code cache beside the code.
//!
//! A record has a head of [`HEAD`] bytes, [`SECOND`] more if the block has bytes in two pages,
//! then exits, sites, and for each instruction by how much it lies behind the one before, in the
//! guest and in the cache. Numbers are little-endian.

use super::{Block, BlockId, Exit, Key, Second, Site};
use crate::code_memory::CodeMemory;
use crate::mode::Mode;
use crate::store::PAGE;

/// The most bytes of a record.
pub(crate) const RECORD_MAX: usize = HEAD + SECOND + 256 * (EXIT + SITE) + 64 * INSN;
/// Records begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 4;

const HEAD: usize = 48;
const SECOND: usize = 16;
const EXIT: usize = 16;
const SITE: usize = 12;
const INSN: usize = 2;

/// Where in a head these are.
const INCOMING: usize = 20;
const NEXT: usize = 24;
const FLAGS: usize = 42;
/// Where in an exit these are.
const EXIT_NEXT: usize = 4;
const EXIT_FLAGS: usize = 15;

/// Bits of a head's flags.
const FLAGS_LIVE: u8 = 1 << 0;
const HAS_SECOND: u8 = 1 << 1;
const DROPPED: u8 = 1 << 2;
/// Bits of an exit's flags.
const SINGLE: u8 = 1 << 0;
const POLLS: u8 = 1 << 1;
const LINKED: u8 = 1 << 2;
/// The mode of the target differs from that of the block in [`Mode::USER_PAGES`].
const TOGGLES_USER_PAGES: u8 = 1 << 3;

/// No block, and no exit: the end of a chain.
const NONE: u32 = u32::MAX;

/// A chain of blocks that have bytes in the same page of guest memory, or depend on being at the
/// same linear page. A block with bytes in two pages is in two of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// By page (offset / 4096) of guest memory.
    Page(usize),
    /// By page (address / 4096) of the linear address space.
    Linear(u64),
}

/// Where a record is, and how many of each it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// As an offset in the cache.
    position: u32,
    insns: u8,
    sites: u8,
    exits: u8,
    /// Where the cold code begins, from the block's first byte.
    cold: u16,
}

/// Packs a block into `room`, which is empty. `insns` are as [`crate::emit::Emitted`] has them.
///
/// # Panics
/// If something is larger than emission makes it.
pub(super) fn pack(
    room: &mut Vec<u8>,
    block: &Block,
    insns: &[(u32, u16)],
    sites: &[Site],
    exits: &[Exit],
) {
    let ((cold, _), insns) = insns.split_last().expect("cold code comes last");
    let relative = |position: u32| narrow(position - block.entry);
    let count = |len: usize| u8::try_from(len).expect("an instruction has few of anything");
    room.extend((block.key.offset as u64).to_le_bytes());
    room.extend(block.key.linear.to_le_bytes());
    room.extend(block.entry.to_le_bytes());
    // Incoming links, and the chains' next blocks.
    room.extend([NONE; 3].iter().flat_map(|n| n.to_le_bytes()));
    room.extend(narrow(block.len).to_le_bytes());
    room.extend(relative(block.inner).to_le_bytes());
    room.extend(relative(*cold).to_le_bytes());
    room.extend(block.key.mode.bits().to_le_bytes());
    room.extend(block.scratch.to_le_bytes());
    let mut flags = 0;
    flags |= u8::from(block.flags_live) * FLAGS_LIVE;
    flags |= u8::from(block.second.is_some()) * HAS_SECOND;
    room.push(flags);
    room.extend([count(insns.len()), count(sites.len()), count(exits.len())]);
    room.extend(block.held.to_le_bytes());
    assert_eq!(room.len(), HEAD, "a head is full");
    if let Some(second) = block.second {
        // Pages begin at multiples of 4096.
        let place = second.offset as u64 | u64::from(second.global);
        room.extend(place.to_le_bytes());
        room.extend([NONE; 2].iter().flat_map(|n| n.to_le_bytes()));
    }
    for exit in exits {
        pack_exit(room, exit, block.key.mode);
    }
    for site in sites {
        pack_site(room, site, block.entry);
    }
    let mut before = (block.entry, (block.key.offset % PAGE) as u16);
    for (host, guest) in insns {
        let (code, bytes) = (host - before.0, guest - before.1);
        assert!(code < 1 << 12 && bytes < 1 << 4, "an instruction's bounds");
        room.extend((code as u16 | bytes << 12).to_le_bytes());
        before = (*host, *guest);
    }
}

fn narrow(value: u32) -> u16 {
    u16::try_from(value).expect("a block fits its bound")
}

fn pack_exit(room: &mut Vec<u8>, exit: &Exit, mode: Mode) {
    let toggled = exit.mode ^ (mode - Mode::SINGLE);
    assert!((toggled - Mode::USER_PAGES).is_empty(), "what exits change");
    assert!(exit.target.abs() < 1 << 39, "branches reach 2 GiB");
    room.extend(exit.jump.to_le_bytes());
    room.extend(NONE.to_le_bytes());
    room.extend((exit.target as u32).to_le_bytes());
    room.extend(narrow(exit.unlinked - exit.jump).to_le_bytes());
    room.push((exit.target >> 32) as u8);
    let mut flags = 0;
    flags |= u8::from(exit.single) * SINGLE;
    flags |= u8::from(exit.polls) * POLLS;
    flags |= u8::from(exit.linked) * LINKED;
    flags |= u8::from(!toggled.is_empty()) * TOGGLES_USER_PAGES;
    room.push(flags);
}

fn unpack_exit(bytes: &[u8; EXIT], mode: Mode) -> Exit {
    let (jump, flags) = (u32_at(bytes, 0), bytes[EXIT_FLAGS]);
    let mut mode = mode - Mode::SINGLE;
    if flags & TOGGLES_USER_PAGES != 0 {
        mode.toggle(Mode::USER_PAGES);
    }
    Exit {
        jump,
        unlinked: jump + u32::from(u16_at(bytes, 12)),
        target: i64::from(bytes[14] as i8) << 32 | i64::from(u32_at(bytes, 8)),
        mode,
        single: flags & SINGLE != 0,
        polls: flags & POLLS != 0,
        linked: flags & LINKED != 0,
    }
}

/// Bits of each field of a site, from the lowest: instruction, size, skew, alignment's logarithm,
/// flags, exit if it is single, movement of RSP, retry, next.
const SITE_BITS: [u32; 9] = [12, 10, 10, 3, 5, 8, 17, 15, 16];
/// No exit.
const NO_EXIT: u8 = u8::MAX;
/// What is added to how much RSP was moved, so that it is not negative: a slot is pushed.
const MOVED_BIAS: i32 = 8;

fn pack_site(room: &mut Vec<u8>, site: &Site, entry: u32) {
    let relative = |position: u32| u128::from(position - entry);
    let flags = [
        site.write,
        site.vectors,
        site.works_on_vectors,
        site.gs_page,
        site.if_dirty,
    ];
    let flags = flags
        .iter()
        .rev()
        .fold(0, |all, f| all << 1 | u128::from(*f));
    let moved = u32::try_from(site.moved + MOVED_BIAS).expect("RSP moves by a slot or upwards");
    let values = [
        site.at.into(),
        site.size.into(),
        site.skew.into(),
        site.alignment.trailing_zeros().into(),
        flags,
        site.single.unwrap_or(NO_EXIT).into(),
        moved.into(),
        relative(site.retry),
        site.next.map_or(0, relative),
    ];
    let (mut packed, mut shift) = (0u128, 0);
    for (value, bits) in values.into_iter().zip(SITE_BITS) {
        assert!(value >> bits == 0, "a site's fields are small: {site:?}");
        packed |= value << shift;
        shift += bits;
    }
    room.extend(&packed.to_le_bytes()[..SITE]);
}

fn unpack_site(bytes: &[u8; SITE], entry: u32) -> Site {
    let mut packed = [0; 16];
    packed[..SITE].copy_from_slice(bytes);
    let mut packed = u128::from_le_bytes(packed);
    let [at, size, skew, alignment, flags, single, moved, retry, next] = SITE_BITS.map(|bits| {
        let value = packed as u32 & ((1 << bits) - 1);
        packed >>= bits;
        value
    });
    Site {
        at: at as u16,
        size: size as u16,
        write: flags & 1 != 0,
        alignment: 1 << alignment,
        skew: skew as u16,
        vectors: flags & 2 != 0,
        works_on_vectors: flags & 4 != 0,
        gs_page: flags & 8 != 0,
        if_dirty: flags & 16 != 0,
        single: Some(single as u8).filter(|exit| *exit != NO_EXIT),
        moved: moved as i32 - MOVED_BIAS,
        retry: entry + retry,
        next: (next != 0).then_some(entry + next),
    }
}

/// The block whose record is at `position`; `None` if it was dropped.
pub(super) fn block(memory: &CodeMemory, position: u32) -> Option<Block> {
    let head = memory.bytes(position as usize, HEAD);
    let flags = head[FLAGS];
    if flags & DROPPED != 0 {
        return None;
    }
    let second = (flags & HAS_SECOND != 0).then(|| {
        let place = u64_at(memory.bytes(position as usize + HEAD, SECOND), 0);
        Second {
            offset: place as usize & !(PAGE - 1),
            global: place & 1 != 0,
        }
    });
    let entry = u32_at(head, 16);
    Some(Block {
        key: Key {
            offset: u64_at(head, 0) as usize,
            linear: u64_at(head, 8),
            mode: Mode::from_bits_retain(u16_at(head, 38)),
        },
        second,
        entry,
        inner: entry + u32::from(u16_at(head, 34)),
        len: u16_at(head, 32).into(),
        scratch: u16_at(head, 40),
        held: u16_at(head, 46),
        flags_live: flags & FLAGS_LIVE != 0,
        record: Record {
            position,
            insns: head[43],
            sites: head[44],
            exits: head[45],
            cold: u16_at(head, 36),
        },
    })
}

/// Where the code of the block whose record is at `position` begins, or began if it was dropped.
pub(super) fn entry(memory: &CodeMemory, position: u32) -> u32 {
    u32_at(memory.bytes(position as usize, HEAD), 16)
}

impl Block {
    fn exits_at(&self) -> usize {
        let second = self.second.map_or(0, |_| SECOND);
        self.record.position as usize + HEAD + second
    }

    fn sites_at(&self) -> usize {
        self.exits_at() + usize::from(self.record.exits) * EXIT
    }

    fn insns_at(&self) -> usize {
        self.sites_at() + usize::from(self.record.sites) * SITE
    }

    fn exit_at(&self, number: u8) -> usize {
        assert!(
            number < self.record.exits,
            "a block has the exits that it takes"
        );
        self.exits_at() + usize::from(number) * EXIT
    }

    /// How many exits it has.
    pub(crate) fn exits(&self) -> u8 {
        self.record.exits
    }

    /// Exit `number`.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn exit(&self, memory: &CodeMemory, number: u8) -> Exit {
        unpack_exit(
            array(memory.bytes(self.exit_at(number), EXIT)),
            self.key.mode,
        )
    }

    /// Site `number`.
    pub(crate) fn site(&self, memory: &CodeMemory, number: u8) -> Option<Site> {
        let at = self.sites_at() + usize::from(number) * SITE;
        let is_there = number < self.record.sites;
        is_there.then(|| unpack_site(array(memory.bytes(at, SITE)), self.entry))
    }

    /// The offset in the guest's page of the instruction whose code holds `position`; `u16::MAX`
    /// in cold code, which belongs to no instruction.
    pub(crate) fn guest_offset(&self, memory: &CodeMemory, position: u32) -> u16 {
        let wanted = position - self.entry;
        if wanted >= self.record.cold.into() {
            return u16::MAX;
        }
        let len = usize::from(self.record.insns) * INSN;
        let (mut host, mut guest) = (0, (self.key.offset % PAGE) as u16);
        for insn in memory.bytes(self.insns_at(), len).chunks_exact(INSN) {
            let insn = u16_at(insn, 0);
            host += u32::from(insn & 0xfff);
            if host > wanted {
                break;
            }
            guest += insn >> 12;
        }
        guest
    }

    /// Where in the guest's page the guest is if `position` is next, and the registers that are
    /// spilled there; `None` in the middle of an instruction's code.
    pub(crate) fn boundary(&self, memory: &CodeMemory, position: u32) -> Option<(u16, u16)> {
        let wanted = position - self.entry;
        if wanted == 0 {
            return Some(((self.key.offset % PAGE) as u16, self.key.mode.landing()));
        }
        let len = usize::from(self.record.insns) * INSN;
        let insns = memory.bytes(self.insns_at(), len).chunks_exact(INSN);
        let mut hosts = insns.scan(0, |host, insn| {
            *host += u32::from(u16_at(insn, 0) & 0xfff);
            Some(*host)
        });
        let begins = hosts.any(|host| host == wanted);
        // Where the cold code begins, too, there is no instruction.
        let offset = begins.then(|| self.guest_offset(memory, position));
        offset
            .filter(|offset| *offset != u16::MAX)
            .map(|offset| (offset, self.scratch))
    }

    /// The registers that are spilled where the instruction at `position` has faulted.
    pub(crate) fn spilled_at(&self, memory: &CodeMemory, position: u32) -> u16 {
        if self.held == 0 || self.boundary(memory, position).is_some() {
            self.scratch
        } else {
            self.held
        }
    }

    /// Notes that exit `number` is linked to `target`.
    pub(crate) fn set_linked(&self, memory: &mut CodeMemory, number: u8, target: &Self) {
        let exit = self.exit_at(number);
        let incoming = target.record.position as usize + INCOMING;
        let next = u32_at(memory.bytes(incoming, 4), 0);
        memory.write_data(exit + EXIT_NEXT, &next.to_le_bytes());
        memory.write_data(incoming, &(exit as u32).to_le_bytes());
        let flags = memory.bytes(exit + EXIT_FLAGS, 1)[0];
        memory.write_data(exit + EXIT_FLAGS, &[flags | LINKED]);
    }

    /// Takes one of the exits that are linked to this block, and notes that it is linked no
    /// longer. Its block may have been dropped meanwhile.
    pub(crate) fn take_incoming(&self, memory: &mut CodeMemory) -> Option<Exit> {
        let incoming = self.record.position as usize + INCOMING;
        let exit = u32_at(memory.bytes(incoming, 4), 0);
        if exit == NONE {
            return None;
        }
        let at = exit as usize;
        let bytes: [u8; EXIT] = *array(memory.bytes(at, EXIT));
        memory.write_data(incoming, &bytes[EXIT_NEXT..EXIT_NEXT + 4]);
        memory.write_data(at + EXIT_FLAGS, &[bytes[EXIT_FLAGS] & !LINKED]);
        Some(unpack_exit(&bytes, self.key.mode))
    }

    /// Notes that it was dropped.
    pub(super) fn set_dropped(&self, memory: &mut CodeMemory) {
        let at = self.record.position as usize + FLAGS;
        let flags = memory.bytes(at, 1)[0];
        memory.write_data(at, &[flags | DROPPED]);
    }

    /// The block behind it in `chain`, in which it is.
    pub(super) fn next(&self, memory: &CodeMemory, chain: Chain) -> Option<BlockId> {
        let next = u32_at(memory.bytes(self.next_at(chain), 4), 0);
        (next != NONE).then_some(next)
    }

    pub(super) fn set_next(&self, memory: &mut CodeMemory, chain: Chain, next: Option<BlockId>) {
        let next = next.unwrap_or(NONE);
        memory.write_data(self.next_at(chain), &next.to_le_bytes());
    }

    fn next_at(&self, chain: Chain) -> usize {
        let (is_first, kind) = match chain {
            Chain::Page(page) => (page == self.key.offset / PAGE, 0),
            Chain::Linear(page) => (page == self.key.linear >> 12, 4),
        };
        let links = if is_first { NEXT } else { HEAD + 8 };
        self.record.position as usize + links + kind
    }
}

impl Record {
    /// That of a block that has none yet.
    pub(crate) const NONE: Self = Self {
        position: 0,
        insns: 0,
        sites: 0,
        exits: 0,
        cold: 0,
    };
}

fn array<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes
        .first_chunk()
        .expect("as many bytes as were asked for")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*array(&bytes[at..]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*array(&bytes[at..]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*array(&bytes[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u32 = 0x140;

    fn site() -> Site {
        Site {
            at: 0xfff,
            size: 512,
            write: true,
            if_dirty: true,
            alignment: 64,
            skew: 511,
            vectors: true,
            works_on_vectors: false,
            gs_page: true,
            single: Some(254),
            moved: 0,
            retry: ENTRY + 0x7fff,
            next: Some(ENTRY + 0x7fff),
        }
    }

    #[test]
    fn sites_are_as_they_were() {
        let plain = Site {
            write: false,
            if_dirty: false,
            alignment: 1,
            works_on_vectors: true,
            gs_page: false,
            single: None,
            next: None,
            ..site()
        };
        // What the widest RET releases, and what a CALL pushes.
        let moved = [-8, 0, 8 + 0xffff].map(|moved| Site { moved, ..plain });
        for site in moved.into_iter().chain([site(), plain]) {
            let mut room = Vec::new();
            pack_site(&mut room, &site, ENTRY);
            assert_eq!(unpack_site(array(&room), ENTRY), site);
        }
    }

    #[test]
    fn exits_are_as_they_were() {
        let mode = Mode::SMAP | Mode::AVX | Mode::SINGLE;
        let exit = Exit {
            jump: 0x7fff_0004,
            unlinked: 0x7fff_0004 + 0x7000,
            target: i64::from(i32::MIN),
            mode: mode - Mode::SINGLE,
            single: true,
            polls: false,
            linked: false,
        };
        let far = Exit {
            target: i64::from(i32::MAX) + 4095,
            mode: exit.mode | Mode::USER_PAGES,
            single: false,
            polls: true,
            linked: true,
            ..exit
        };
        for exit in [exit, far] {
            let mut room = Vec::new();
            pack_exit(&mut room, &exit, mode);
            assert_eq!(unpack_exit(array(&room), mode), exit);
        }
    }

    #[test]
    fn positions_belong_to_instructions() {
        let block = Block {
            key: Key {
                offset: 0x5ffa,
                linear: 0,
                mode: Mode::USER,
            },
            second: Some(Second {
                offset: 0x9000,
                global: true,
            }),
            entry: ENTRY,
            inner: ENTRY + 8,
            len: 0x400,
            scratch: 0x300,
            held: 0,
            flags_live: true,
            record: Record::NONE,
        };
        // The second one has no code of its own.
        let insns = [(8, 0xffa), (20, 0xffb), (20, 0xffd), (300, u16::MAX)];
        let insns = insns.map(|(host, guest)| (ENTRY + host, guest));
        let mut room = Vec::new();
        pack(&mut room, &block, &insns, &[site()], &[]);
        assert!(room.len() <= RECORD_MAX);
        let mut memory = CodeMemory::new(PAGE).expect("memory for code");
        memory.write_data(256, &room);
        let found = super::block(&memory, 256).expect("it is there");
        let record = found.record;
        assert_eq!(found, Block { record, ..block });
        assert_eq!(found.site(&memory, 0), Some(site()));
        assert_eq!(found.site(&memory, 1), None);
        let cases = [
            (0, 0xffa),
            (19, 0xffa),
            (20, 0xffd),
            (299, 0xffd),
            (300, u16::MAX),
            (0x3ff, u16::MAX),
        ];
        for (position, guest) in cases {
            assert_eq!(found.guest_offset(&memory, ENTRY + position), guest);
        }
        found.set_dropped(&mut memory);
        assert_eq!(super::block(&memory, 256), None);
        assert_eq!(entry(&memory, 256), ENTRY);
    }
}
