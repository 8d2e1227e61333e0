//! The translations of a vCPU: making, finding, linking and dropping them.

use crate::asm::{Asm, Mem, NOT_EQUAL, RCX, Reg, relative};
use crate::block::{
    BLOCKS_MAX, Block, BlockId, Blocks, Exit, Key, NO_SITE, RECORD_ALIGNMENT, RECORD_MAX, Record,
    Second,
};
use crate::code_memory::CodeMemory;
use crate::context::{Context, JUMP_CACHES, field, jump_fields};
use crate::crossing;
use crate::emit::{Emitted, Emitter, Gates, Tails};
use crate::gate::{self, Reason};
use crate::lockstep::Recipe;
use crate::lookup::{Lookup, SECOND_ROTATION};
use crate::mode::{LANDING, Mode};
use crate::perf_map::PerfMap;
use crate::plan::{Classifier, Insn, Plan};
use crate::refill::{self, Refills};
use iced_x86::Encoder;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Bytes of guest code in a page.
pub(crate) const PAGE: usize = 4096;
/// Room that a block or an adapter may need at most.
const BLOCK_MAX: usize = 32 << 10;
const ALIGNMENT: usize = 16;

/// What a store counts.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) translated: u64,
    pub(crate) translated_insns: u64,
    pub(crate) translated_bytes: u64,
    pub(crate) record_bytes: u64,
    pub(crate) linked: u64,
    pub(crate) adapters: u64,
    pub(crate) flushes: u64,
}

impl Counters {
    /// Takes what `other` has counted since the last time.
    pub(crate) fn take(&mut self, other: &mut Self) {
        let Self {
            translated,
            translated_insns,
            translated_bytes,
            record_bytes,
            linked,
            adapters,
            flushes,
        } = std::mem::take(other);
        self.translated += translated;
        self.translated_insns += translated_insns;
        self.translated_bytes += translated_bytes;
        self.record_bytes += record_bytes;
        self.linked += linked;
        self.adapters += adapters;
        self.flushes += flushes;
    }
}

/// The translations of a vCPU.
pub(crate) struct Store {
    pub(crate) memory: CodeMemory,
    pub(crate) gates: Gates,
    pub(crate) blocks: Blocks,
    /// The first byte that is free, and where the first block began.
    used: usize,
    first: usize,
    /// The last block's record: records fill the cache from its end.
    records: usize,
    classifier: Classifier,
    encoder: Encoder,
    /// Memory that translations use one after the other.
    insns: Vec<Insn>,
    emitted: Emitted,
    tails: Tails,
    record: Vec<u8>,
    perf_maps: Vec<PerfMap>,
    /// In lock-step: what a check has to know of blocks, by their entry; also of those that were
    /// dropped.
    pub(crate) recipes: Option<HashMap<u32, Arc<Recipe>>>,
    /// Changes when the cache is emptied, and with it the meaning of blocks' numbers.
    pub(crate) generation: u64,
    pub(crate) counters: Counters,
}

impl Store {
    /// An empty store with room for `capacity` bytes of code.
    ///
    /// # Errors
    /// If the host gives no executable memory.
    pub(crate) fn new(capacity: usize, context: &mut Context, perf_map: bool) -> io::Result<Self> {
        let memory = CodeMemory::new(capacity)?;
        context.assist_gate = gate::assist as *const () as u64;
        context.vectors_gate = gate::load_vectors as *const () as u64;
        context.syscall_gate = crossing::syscall as *const () as u64;
        context.sysret_gate = crossing::sysret as *const () as u64;
        let map = perf_map.then(|| PerfMap::of(std::process::id()));
        let mut store = Self::create(memory, 0, LANDING, context)?;
        store.perf_maps.extend(map.transpose()?);
        Ok(store)
    }

    /// An empty store for a jail: its code memory begins with the code in `stub`, which is asked
    /// for assists at offset `ask`.
    ///
    /// # Errors
    /// If the host gives no executable memory.
    pub(crate) fn in_jail(
        capacity: usize,
        stub: &[u8],
        ask: usize,
        context: &mut Context,
    ) -> io::Result<Self> {
        let memory = CodeMemory::in_jail(capacity)?;
        Self::begin_in_jail(memory, stub, ask, context)
    }

    /// As new, for a jail that holds another program from now on, and for `context`, which is new.
    ///
    /// # Errors
    /// If the host does not empty the memory.
    pub(crate) fn renew(
        mut self,
        stub: &[u8],
        ask: usize,
        context: &mut Context,
    ) -> io::Result<Self> {
        self.memory.erase_behind(stub.len())?;
        let mut store = Self::begin_in_jail(self.memory, stub, ask, context)?;
        store.perf_maps = self.perf_maps;
        Ok(store)
    }

    /// Names the code in the perf map of process `pid`, in which it is, from now on. If the file
    /// can't be made, it has no names there.
    pub(crate) fn name_code_of(&mut self, pid: u32) {
        self.perf_maps.extend(PerfMap::of(pid));
    }

    fn begin_in_jail(
        mut memory: CodeMemory,
        stub: &[u8],
        ask: usize,
        context: &mut Context,
    ) -> io::Result<Self> {
        // Where it is there already nothing changes: the jail's second thread is in it.
        memory.write(0, stub);
        context.assist_gate = memory.address(ask) as u64;
        Self::create(memory, stub.len(), Mode::WINDOW.landing(), context)
    }

    /// A store in `memory`, the first `taken` bytes of which are in use.
    /// [`Mode::landing`] is `landing` for all of its blocks.
    fn create(
        mut memory: CodeMemory,
        taken: usize,
        landing: u16,
        context: &mut Context,
    ) -> io::Result<Self> {
        let begin = taken.next_multiple_of(ALIGNMENT);
        let mut asm = Asm::new(begin, Vec::new());
        let mut trampoline = |reason: Option<Reason>, gate: i32| {
            let here = asm.here();
            if let Some(reason) = reason {
                asm.store_field_imm(field!(reason), reason as u32);
            }
            asm.jmp_field(gate);
            here
        };
        let mut gates = Gates {
            link: trampoline(Some(Reason::Link), field!(assist_gate)),
            indirect: [0; JUMP_CACHES],
            address: [0; JUMP_CACHES],
            callout: trampoline(Some(Reason::Callout), field!(assist_gate)),
            miss: 0,
            refill: Refills::default(),
            vectors: trampoline(None, field!(vectors_gate)),
        };
        let indirect = trampoline(Some(Reason::Indirect), field!(assist_gate));
        let miss = trampoline(Some(Reason::Memory), field!(assist_gate));
        gates.miss = miss;
        gates.refill = refill::emit(&mut asm, memory.address(0), miss);
        let unknown = asm.here();
        asm.restore(landing);
        asm.jmp(indirect);
        // Code that finds an entry may not have told where it goes.
        let zero = asm.here();
        asm.store_field_imm(field!(pc), 0);
        asm.store_field_imm(field!(pc) + 4, 0);
        asm.jmp(unknown);
        for (slot, gate) in gates.indirect.iter_mut().enumerate() {
            *gate = asm.here();
            let table = JUMP_CACHES + slot;
            ask_cache(&mut asm, landing, table, Some(SECOND_ROTATION), unknown);
        }
        for (slot, gate) in gates.address.iter_mut().enumerate() {
            *gate = asm.here();
            asm.store_field_imm(field!(argument), NO_SITE);
            ask_cache(&mut asm, landing, slot, None, gates.indirect[slot]);
        }
        let user_miss = memory.address(gates.indirect[Mode::USER.slot()]);
        context.crossing.set_up(user_miss as u64);
        let first = asm.here().next_multiple_of(ALIGNMENT);
        memory.write(begin, &asm.code);
        let records = memory.capacity();
        // Entry 0, the only one that is asked while somebody rings, is empty and matches address 0.
        for cache in &mut context.jumps {
            cache[0].host = memory.address(zero) as u64;
        }
        Ok(Self {
            memory,
            gates,
            blocks: Blocks::default(),
            used: first,
            first,
            records,
            classifier: Classifier::new(),
            encoder: Encoder::new(64),
            insns: Vec::new(),
            emitted: Emitted::default(),
            tails: Tails::default(),
            record: Vec::new(),
            generation: 0,
            perf_maps: Vec::new(),
            recipes: None,
            counters: Counters::default(),
        })
    }

    /// Whether there is room for a block. If not, [`Store::clear`] makes some.
    pub(crate) fn has_room(&self) -> bool {
        let is_free = self.records - self.used >= BLOCK_MAX + RECORD_MAX;
        is_free && (self.blocks.next_id() as usize) < BLOCKS_MAX
    }

    /// Bytes of code and records.
    pub(crate) fn used(&self) -> usize {
        self.used + self.memory.capacity() - self.records
    }

    /// The block with `key`.
    pub(crate) fn find(&self, key: &Key) -> Option<BlockId> {
        self.blocks.find(&self.memory, key)
    }

    /// Block `id`, unless it was dropped.
    pub(crate) fn block(&self, id: BlockId) -> Option<Block> {
        self.blocks.get(&self.memory, id)
    }

    /// Exit `number` of block `id`, unless that was dropped.
    pub(crate) fn exit(&self, id: BlockId, number: u8) -> Option<(Block, Exit)> {
        let block = self.block(id)?;
        Some((block, block.exit(&self.memory, number)))
    }

    /// Translates the code at `key`, whose page has the bytes in `page`, at `linear`.
    /// The page is `global` if it is there in every address space. If the first instruction
    /// straddles its end, `page` goes on with bytes of the `second` one. The block is about to be
    /// reached from one that has taken the registers in `before`.
    pub(crate) fn translate(
        &mut self,
        key: Key,
        page: &[u8],
        linear: u64,
        global: bool,
        second: Option<Second>,
        before: u16,
    ) -> BlockId {
        let at = (key.offset % PAGE) as u16;
        let base = linear & !(PAGE as u64 - 1);
        let insns = std::mem::take(&mut self.insns);
        let plan = Plan::new(
            &mut self.classifier,
            page,
            at,
            base,
            key.mode,
            before,
            insns,
        );
        let id = self.blocks.next_id();
        let start = self.used;
        let mut emitted = Emitter::new(
            &mut self.encoder,
            std::mem::take(&mut self.emitted),
            &mut self.tails,
            &plan,
            &self.gates,
            page,
            base,
            id,
            start,
            self.memory.address(0),
        )
        .emit();
        assert!(emitted.code.len() <= BLOCK_MAX, "a block fits its bound");
        self.memory.write(start, &emitted.code);
        self.used = (start + emitted.code.len()).next_multiple_of(ALIGNMENT);
        self.counters.translated += 1;
        self.counters.translated_insns += plan.insns.len() as u64;
        self.counters.translated_bytes += emitted.code.len() as u64;
        for map in &mut self.perf_maps {
            let address = self.memory.address(start);
            // A map that can't be written is only a profile with less names.
            let _ = map.add(
                address,
                emitted.code.len(),
                format_args!("guest {linear:#x}"),
            );
        }
        if let Some(recipes) = &mut self.recipes {
            let recipe = Recipe::new(&plan, &emitted.exits, &page[..PAGE]);
            recipes.insert(start as u32, Arc::new(recipe));
        }
        let block = Block {
            key,
            second,
            entry: start as u32,
            inner: emitted.inner,
            len: emitted.code.len() as u32,
            scratch: plan.scratch_mask(),
            held: plan.held(),
            flags_live: plan.flags_live,
            record: Record::NONE,
        };
        self.record.clear();
        Blocks::pack(
            &mut self.record,
            &block,
            &emitted.insns,
            &emitted.sites,
            &emitted.exits,
        );
        self.records = (self.records - self.record.len()) & !(RECORD_ALIGNMENT - 1);
        assert!(self.records >= self.used, "a record fits its bound");
        self.memory.write_data(self.records, &self.record);
        self.counters.record_bytes += self.record.len() as u64;
        emitted.clear();
        self.emitted = emitted;
        self.insns = plan.insns;
        self.insns.clear();
        let position = self.records as u32;
        self.blocks.insert(&mut self.memory, position, global);
        id
    }

    /// The host address at which block `id` is entered with all registers the guest's.
    pub(crate) fn entry(&self, id: BlockId) -> Option<u64> {
        let entry = self.block(id)?.entry;
        Some(self.memory.address(entry as usize) as u64)
    }

    /// In lock-step: what a check has to know of the block at `entry`.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn recipe(&self, entry: u32) -> Arc<Recipe> {
        let recipes = self.recipes.as_ref().expect("this is lock-step");
        recipes[&entry].clone()
    }

    /// The block whose code is at `position` of the cache.
    pub(crate) fn block_at(&self, position: usize) -> Option<Block> {
        self.blocks.at(&self.memory, position as u32)
    }

    /// Lets exit `number` of block `from` go to block `to` without a detour.
    pub(crate) fn link(&mut self, from: BlockId, number: u8, to: BlockId) {
        if !self.has_room() {
            return;
        }
        let (Some((source, exit)), Some(target)) = (self.exit(from, number), self.block(to)) else {
            return;
        };
        if exit.linked {
            return;
        }
        if target.is_guarded() {
            return self.link_to_address(&source, &exit);
        }
        let restored = source.scratch & !target.scratch;
        let spilled = target.scratch & !source.scratch;
        let mut destination = target.inner as usize;
        if exit.polls || restored != 0 || spilled != 0 {
            let rcx_free = source.scratch >> RCX & 1 != 0;
            let mut asm = Asm::new(self.used, Vec::new());
            if exit.polls {
                poll(
                    &mut asm,
                    target.flags_live,
                    rcx_free,
                    exit.unlinked as usize,
                );
            }
            asm.restore(restored);
            asm.spill(spilled);
            asm.jmp(target.inner as usize);
            self.memory.write(self.used, &asm.code);
            destination = self.used;
            self.used = (self.used + asm.code.len()).next_multiple_of(ALIGNMENT);
            self.counters.adapters += 1;
        }
        self.counters.linked += 1;
        let displacement = relative(exit.jump as usize, destination);
        self.memory.patch32(exit.jump as usize, displacement);
        source.set_linked(&mut self.memory, number, &target);
    }

    /// Lets an exit of block `source` ask the jump cache, for a target that is guarded. Whatever
    /// becomes of the target, this stays right.
    fn link_to_address(&mut self, source: &Block, exit: &Exit) {
        if exit.single {
            // What is in the jump cache shares checks.
            return;
        }
        let mut asm = Asm::new(self.used, Vec::new());
        let mode = source.key.mode;
        asm.restore(source.scratch & !mode.landing());
        asm.spill(mode.landing() & !source.scratch);
        if mode.is_windowed() {
            asm.store_field(field!(saved_rcx), RCX);
        }
        if mode.is_relocatable() {
            asm.load_field(RCX, field!(page));
        } else {
            asm.mov_imm(RCX, source.key.linear & !(PAGE as u64 - 1));
        }
        // Only exits to the block's own page are linked to what is guarded.
        let target = Mem::base(RCX, exit.target as i32);
        if mode.is_32bit() {
            asm.lea32(RCX, target);
        } else {
            asm.lea(RCX, target);
        }
        asm.store_field(field!(pc), RCX);
        if mode.is_windowed() {
            asm.load_field(RCX, field!(saved_rcx));
        }
        asm.jmp(self.gates.address[exit.mode.slot()]);
        let jump = exit.jump as usize;
        let displacement = relative(jump, self.used);
        self.memory.write(self.used, &asm.code);
        self.memory.patch32(jump, displacement);
        self.used = (self.used + asm.code.len()).next_multiple_of(ALIGNMENT);
        self.counters.adapters += 1;
        self.counters.linked += 1;
    }

    /// Drops the blocks in `ids`.
    pub(crate) fn drop_blocks(
        &mut self,
        ids: &[BlockId],
        lookup: &mut Lookup,
        context: &mut Context,
    ) {
        if ids.is_empty() {
            return;
        }
        let mut entries = Vec::new();
        for id in ids {
            let Some(block) = self.blocks.remove(&mut self.memory, *id) else {
                continue;
            };
            entries.push(self.memory.address(block.entry as usize) as u64);
            // The exits of dropped blocks are among them, and do no harm: nothing takes their
            // place before the cache is emptied.
            while let Some(exit) = block.take_incoming(&mut self.memory) {
                let displacement = relative(exit.jump as usize, exit.unlinked as usize);
                self.memory.patch32(exit.jump as usize, displacement);
            }
        }
        entries.sort_unstable();
        lookup.forget_jumps_to(context, |host| entries.binary_search(&host).is_ok());
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, lookup: &mut Lookup, context: &mut Context) {
        self.counters.flushes += 1;
        self.generation += 1;
        self.blocks.clear();
        self.tails.clear();
        if let Some(recipes) = &mut self.recipes {
            recipes.clear();
        }
        self.used = self.first;
        self.records = self.memory.capacity();
        lookup.forget_jumps(context);
    }
}

/// Goes to the context's `pc` if the jump cache `table` has it, else to `unknown`. The registers in
/// `landing` are spilled, here and there. The index is the address, or its sum with itself rotated.
fn ask_cache(asm: &mut Asm, landing: u16, table: usize, rotation: Option<u8>, unknown: usize) {
    const R14: Reg = 14;
    const R15: Reg = 15;
    let taken = LANDING & !landing;
    let (tags, hosts) = jump_fields(table);
    asm.spill(taken);
    asm.load_field(R15, field!(pc));
    match rotation {
        Some(count) => {
            asm.rotate_right(R14, R15, count);
            asm.lea(R14, Mem::sum(R14, R15, 0));
            asm.pext(R14, R14, field!(jump_mask));
        }
        None => asm.pext(R14, R15, field!(jump_mask)),
    }
    asm.lea(R14, Mem::sum(R14, R14, 0));
    asm.load_gs(RCX, Mem::scaled(R14, 3, tags));
    asm.lea(RCX, Mem::sum(RCX, R15, 0));
    let hit = asm.jrcxz();
    asm.restore(taken);
    asm.jmp(unknown);
    asm.land(hit);
    if rotation.is_some() {
        asm.load_field(RCX, field!(second_hits));
        asm.lea(RCX, Mem::base(RCX, 1));
        asm.store_field(field!(second_hits), RCX);
    }
    asm.load_gs(RCX, Mem::scaled(R14, 3, hosts));
    if taken == 0 {
        return asm.jmp_register(RCX);
    }
    asm.store_field(field!(jump), RCX);
    asm.restore(taken);
    asm.jmp_field(field!(jump));
}

/// Jumps to `leave` if somebody wants attention.
fn poll(asm: &mut Asm, flags_live: bool, rcx_free: bool, leave: usize) {
    if !flags_live {
        asm.is_field_zero(field!(attention));
        asm.jcc(NOT_EQUAL, leave);
        return;
    }
    if !rcx_free {
        asm.store_field(field!(saved_rcx), RCX);
    }
    asm.load_field32(RCX, field!(attention));
    let quiet = asm.jrcxz();
    if !rcx_free {
        asm.load_field(RCX, field!(saved_rcx));
    }
    asm.jmp(leave);
    asm.land(quiet);
    if !rcx_free {
        asm.load_field(RCX, field!(saved_rcx));
    }
}

/// The mode for a block that checks every access by itself.
pub(crate) fn with_single(mode: Mode, single: bool) -> Mode {
    if single { mode | Mode::SINGLE } else { mode }
}
