//! The second level of the software TLB, and the code that asks it.
//!
//! The first level is direct-mapped and small enough for the host's caches. What it had no room
//! for is found in the second level, by a gate in the code cache, without Rust code: a few
//! nanoseconds instead of a page walk. Every page that is filled is in the second level until
//! another one takes its place there; the first level is forgotten entry by entry, the second by
//! generations, which are part of its tags and permissions.

use crate::asm::{Asm, EQUAL, Mem, NOT_EQUAL, RCX, Reg};
use crate::context::{
    Context, FILLED_BITS, LINE_ENTRIES, SECOND_ENTRIES, SecondEntry, TLB_ENTRIES, TLB_VIEWS,
    TlbEntry, field, filled_bit, tlb_fields,
};
use std::mem::offset_of;

const RAX: Reg = 0;
const RDX: Reg = 2;
const RBX: Reg = 3;
/// Bits of an address below the page number.
const PAGE_SHIFT: u8 = 12;
/// By how much the page number is shifted before it is added to itself: what is 256 MiB apart does
/// not share an entry, and what is next to each other doesn't either.
const FOLD: u8 = SECOND_ENTRIES.trailing_zeros() as u8;

/// Where the second level has the page around `linear`.
pub(crate) fn index(linear: u64) -> usize {
    let page = linear >> PAGE_SHIFT;
    (page + (page >> FOLD)) as usize % SECOND_ENTRIES
}

/// The gates for accesses that missed the TLB, by view, for reads and writes.
pub(crate) type Refills = [[usize; 2]; TLB_VIEWS];

/// Emits them. They take the context's `linear`, `retry` and `argument`, and go to `miss`, as if they had not been
/// there, if the second level doesn't have the page either. The code cache begins at `cache`.
pub(crate) fn emit(asm: &mut Asm, cache: usize, miss: usize) -> Refills {
    let mut refills = Refills::default();
    for (view, gates) in refills.iter_mut().enumerate() {
        for (gate, write) in gates.iter_mut().zip([false, true]) {
            *gate = asm.here();
            refill(asm, view, write, cache, miss);
        }
    }
    refills
}

fn refill(asm: &mut Asm, view: usize, write: bool, cache: usize, miss: usize) {
    const SLOT: i32 = size_of::<u64>() as i32;
    const HALF_SHIFT: u8 = 63 - FILLED_BITS.trailing_zeros() as u8;
    const LINE_SHIFT: u8 = (LINE_ENTRIES * size_of::<TlbEntry>()).trailing_zeros() as u8;
    const INDEX_SHIFT: u8 = PAGE_SHIFT - size_of::<TlbEntry>().trailing_zeros() as u8;
    const INDEX_MASK: u32 = ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as u32;
    let saved = [RAX, RCX, RDX, RBX].map(|r| (r, field!(saved_for_refill) + SLOT * i32::from(r)));
    let restore = |asm: &mut Asm| {
        asm.return_flags();
        for (register, slot) in saved {
            asm.load_field(register, slot);
        }
    };
    for (register, slot) in saved {
        asm.store_field(slot, register);
    }
    asm.keep_flags();
    // RCX: the index in units of 8 bytes. RDX: the page. RBX: the tag that it must have.
    asm.load_field(RDX, field!(linear));
    asm.mov(RCX, RDX);
    asm.shr(RCX, PAGE_SHIFT);
    asm.mov(RBX, RCX);
    asm.shr(RBX, FOLD);
    asm.lea(RCX, Mem::sum(RCX, RBX, 0));
    asm.and32(RCX, SECOND_ENTRIES as u32 - 1);
    asm.lea(RCX, Mem::sum(RCX, RCX, 0));
    asm.mov(RBX, RDX);
    asm.shr(RBX, 63);
    asm.load_gs(RBX, Mem::scaled(RBX, 3, field!(generations)));
    asm.and(RDX, -1 << PAGE_SHIFT);
    asm.lea(RBX, Mem::sum(RBX, RDX, 0));
    let first = offset_of!(Context, second) + view * size_of::<[SecondEntry; SECOND_ENTRIES]>();
    let member = |offset: usize| Mem::scaled(RCX, 3, (first + offset) as i32);
    asm.cmp_gs(RBX, member(offset_of!(SecondEntry, tag)));
    let unknown = asm.jcc_forward(NOT_EQUAL);
    asm.load_gs(RCX, member(offset_of!(SecondEntry, bias)));
    let denied = write.then(|| {
        asm.mov(RBX, RCX);
        asm.and32(RBX, (1 << PAGE_SHIFT) - 1);
        asm.cmp_gs(RBX, Mem::at(field!(write_generation)));
        asm.jcc_forward(NOT_EQUAL)
    });
    asm.and(RCX, -1 << PAGE_SHIFT);
    // RBX: the offset of the first level's entry. RDX: its tag. RCX: its bias.
    asm.mov(RBX, RDX);
    asm.shr(RBX, INDEX_SHIFT);
    asm.and32(RBX, INDEX_MASK);
    asm.neg(RDX);
    let (tag, bias) = tlb_fields(view, write);
    asm.cmp_gs(RDX, Mem::base(RBX, tag));
    // The page is there already: the access runs on into the next one.
    let crosses = asm.jcc_forward(EQUAL);
    asm.store_gs(Mem::base(RBX, tag), RDX);
    asm.store_gs(Mem::base(RBX, bias), RCX);
    asm.shr(RBX, LINE_SHIFT);
    asm.load_field(RCX, field!(linear));
    asm.shr(RCX, HALF_SHIFT);
    asm.and32(RCX, FILLED_BITS as u32);
    let table = filled_bit(0, view, write, 0) as i32;
    asm.lea(RBX, Mem::sum(RBX, RCX, table));
    asm.set_bit(field!(filled), RBX);
    asm.count_field(field!(refills));
    asm.load_field32(RCX, field!(retry));
    asm.mov_imm(RBX, cache as u64);
    asm.lea(RCX, Mem::sum(RCX, RBX, 0));
    asm.store_field(field!(jump), RCX);
    restore(asm);
    asm.jmp_field(field!(jump));
    for from in [Some(unknown), denied, Some(crosses)].into_iter().flatten() {
        asm.set_target(from, asm.here());
    }
    restore(asm);
    asm.jmp(miss);
}
