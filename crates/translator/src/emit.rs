//! From a plan to host code.
//!
//! A block is, in the cache:
//! 1. its *entry*, where [`Mode::landing`](crate::mode::Mode::landing) says which registers are
//!    spilled: spills the others that the block takes, and notes the page it runs in;
//! 2. its *inner* part, where linked blocks that have spilled enter: the instructions;
//! 3. cold code: what happens on TLB misses, and exits that are not linked; it may end in that of
//!    another block.

mod control;
mod gs_pages;
mod memory;
mod strings;
mod system;
mod window;

use crate::asm::{Asm, EQUAL, Mem, NOT_EQUAL, RCX, Reg, Width};
use crate::block::{BlockId, Exit, KeyHasher, NO_SITE, Site};
use crate::context::{JUMP_CACHES, field};
use crate::plan::{Class, Insn, Plan, may_not_store};
use crate::refill::Refills;
use iced_x86::{Encoder, Instruction, OpKind, Register};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Offsets in the cache of the trampolines to the gates.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gates {
    pub(crate) link: usize,
    /// For each jump cache: where the second one is asked, entered as blocks are
    /// ([`Mode::landing`](crate::mode::Mode::landing)).
    pub(crate) indirect: [usize; JUMP_CACHES],
    /// For each jump cache: where it is asked for the context's `pc`, likewise.
    pub(crate) address: [usize; JUMP_CACHES],
    pub(crate) callout: usize,
    /// Where Rust code is asked for the page of an access.
    pub(crate) miss: usize,
    /// Where the TLB's second level is asked for the page of an access.
    pub(crate) refill: Refills,
    pub(crate) vectors: usize,
}

/// A block's code and what is known about places in it.
#[derive(Default)]
pub(crate) struct Emitted {
    pub(crate) code: Vec<u8>,
    pub(crate) inner: u32,
    pub(crate) insns: Vec<(u32, u16)>,
    pub(crate) sites: Vec<Site>,
    pub(crate) exits: Vec<Exit>,
}

impl Emitted {
    /// Empties it and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.code.clear();
        self.insns.clear();
        self.sites.clear();
        self.exits.clear();
    }
}

/// How ways out of a block end, behind what differs from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tail {
    /// Gives registers back and goes to a gate.
    Leave {
        /// Registers whose guest values are in the context.
        spilled: u16,
        /// Whether RCX is to be returned, as [`Emitter::return_rcx`] does.
        returns_rcx: bool,
        gate: usize,
    },
    /// Goes to a gate with the linear address, in a register, of an access that missed the TLB.
    Miss { linear: Reg, gate: usize },
}

/// Where in the cache there are tails: the first block that needs one has it, and others jump
/// there. Code stays where it is until the cache is emptied, even if its block is dropped.
pub(crate) type Tails = HashMap<Tail, u32, BuildHasherDefault<KeyHasher>>;

/// Code out of the way of the common case. `from` are displacements of jumps to it.
enum Cold {
    /// A check failed.
    Miss {
        from: usize,
        site: u8,
        /// The tag's field, if temporary 0 has the tag added to it.
        tag: Option<Mem>,
        /// For a shared check: where its leader is in the page.
        single: Option<u16>,
    },
    /// The page behind the base of GS, at this distance from it, is not known.
    GsPage {
        from: usize,
        site: u8,
        distance: i32,
        restores_rcx: bool,
    },
    /// The vector registers must be loaded.
    Vectors {
        from: usize,
        resume: usize,
        restores_rcx: bool,
    },
    /// The interpreter is needed after all.
    Callout {
        from: usize,
        site: u8,
        restores_rcx: bool,
    },
    /// A string instruction leaves its page, or needs help for another reason. It has a site for
    /// each operand. Besides RCX, this register was borrowed.
    Strings {
        from: usize,
        destination: u8,
        source: Option<u8>,
        borrowed: Reg,
    },
    /// The time-stamp counter is not what the guest's follows from.
    Counter {
        from: usize,
        site: u8,
        restores_rcx: bool,
    },
    /// A branch to code that is found through the jump cache.
    Distant { from: usize, target: i64 },
}

/// Emits one block.
pub(crate) struct Emitter<'a> {
    asm: Asm,
    encoder: &'a mut Encoder,
    tails: &'a mut Tails,
    plan: &'a Plan,
    gates: &'a Gates,
    /// Code bytes of the page, as [`Plan::new`] takes them.
    page: &'a [u8],
    /// Linear address of the page, in modes whose blocks depend on it.
    linear: u64,
    id: BlockId,
    /// Address at which the cache's offset 0 runs.
    cache: usize,
    cold: Vec<Cold>,
    insns: Vec<(u32, u16)>,
    sites: Vec<Site>,
    /// For each site, the number of its instruction.
    site_insns: Vec<usize>,
    exits: Vec<Exit>,
    vectors_checked: bool,
    /// By how much the guest's RSP is ahead of the register: what pushes and pops in a row have
    /// put off.
    stack_ahead: i32,
    /// Constants that instructions read: where the displacement is, and the value.
    literals: Vec<(usize, u64)>,
}

impl<'a> Emitter<'a> {
    /// For the block `id`, whose code will be at offset `start` of the cache. The memory of `room`,
    /// which is empty, is used.
    pub(crate) fn new(
        encoder: &'a mut Encoder,
        room: Emitted,
        tails: &'a mut Tails,
        plan: &'a Plan,
        gates: &'a Gates,
        page: &'a [u8],
        linear: u64,
        id: BlockId,
        start: usize,
        cache: usize,
    ) -> Self {
        Self {
            asm: Asm::new(start, room.code),
            encoder,
            tails,
            plan,
            gates,
            page,
            linear,
            id,
            cache,
            cold: Vec::new(),
            insns: room.insns,
            sites: room.sites,
            site_insns: Vec::with_capacity(plan.insns.len()),
            exits: room.exits,
            // A jail has them whenever it runs.
            vectors_checked: plan.mode.is_windowed(),
            stack_ahead: 0,
            literals: Vec::new(),
        }
    }

    /// Emits everything.
    pub(crate) fn emit(mut self) -> Emitted {
        self.entry();
        let inner = self.asm.here() as u32;
        let plan = self.plan;
        for (number, insn) in plan.insns.iter().enumerate() {
            self.insns.push((self.asm.here() as u32, insn.at));
            self.instruction(number, insn);
        }
        self.settle_stack();
        if !plan.is_closed {
            let (last, next) = plan.insns.last().map_or((0, 0), |i| (i.at, i.next()));
            self.insns.push((self.asm.here() as u32, next));
            self.go(last, next.into());
        }
        self.finish_sites();
        let cold = self.asm.here() as u32;
        self.cold_code();
        self.place_literals();
        // Cold code belongs to no instruction; nothing in it can fault.
        self.insns.push((cold, u16::MAX));
        Emitted {
            code: self.asm.code,
            inner,
            insns: self.insns,
            sites: self.sites,
            exits: self.exits,
        }
    }

    /// Temporary `n`.
    fn temporary(&self, n: usize) -> Reg {
        self.plan.scratch[n]
    }

    fn entry(&mut self) {
        let (landing, scratch) = (self.plan.mode.landing(), self.plan.scratch_mask());
        if self.plan.mode.is_relocatable() {
            let at = i32::from(self.plan.insns[0].at);
            self.asm.load_field(RCX, field!(pc));
            self.asm.lea(RCX, Mem::base(RCX, -at));
            self.asm.store_field(field!(page), RCX);
        }
        self.asm.restore(landing & !scratch);
        self.asm.spill(scratch & !landing);
    }

    fn instruction(&mut self, number: usize, insn: &Insn) {
        if self.plan.mode.is_windowed() && self.plain(number, insn) {
            return;
        }
        if !self.may_leave_stack(number, insn) {
            self.settle_stack();
        }
        match insn.class {
            Class::Nothing => {}
            Class::Copy => self.copy(insn),
            Class::Memory(access) => self.memory(number, insn, access),
            Class::LeaRip => self.lea_rip(insn),
            Class::Push => self.push(number, insn),
            Class::Pop => self.pop(number, insn),
            Class::Leave => self.leave(number, insn),
            Class::Call(target) => self.call(number, insn, target),
            Class::CallIndirect => self.call_indirect(number, insn),
            Class::Jump(target) => self.go(insn.at, target),
            Class::JumpIndirect => self.jump_indirect(number, insn),
            Class::Branch(target) => self.branch(insn, target),
            Class::Count(target) => self.count(insn, target),
            Class::Return(release) => self.ret(number, insn, release),
            Class::Cli => self.cli(),
            Class::Sti => self.sti(number, insn),
            Class::SwapGs => self.swap_gs(),
            Class::SystemCall => self.system_call(number, insn),
            Class::SystemReturn => self.system_return(number, insn),
            Class::PushFlags => self.push_flags(number, insn),
            Class::PushMemory => self.push_memory(number, insn),
            Class::Access(on) => self.set_access(number, insn, on),
            Class::ReadSegment => self.read_segment(insn),
            Class::ReadFaultAddress => self.read_fault_address(insn),
            Class::ReadBase(gs) => self.read_base(insn, gs),
            Class::WriteBase(gs) => self.write_base(number, insn, gs),
            Class::ReadCounter(ordered) => self.read_counter(number, insn, ordered),
            Class::Strings(strings) => self.strings(number, insn, strings),
            Class::PlainString => self.copy(insn),
            Class::BitString(access) => self.bit_string(number, insn, access),
            Class::Callout | Class::End => self.callout(number, insn),
        }
    }

    /// The instruction as it is.
    fn copy(&mut self, insn: &Insn) {
        if self.plan.mode.is_32bit() {
            return self.encode(&widened(&insn.instruction));
        }
        let bytes = &self.page[usize::from(insn.at)..usize::from(insn.next())];
        self.asm.bytes(bytes);
    }

    /// Encodes `instruction`, which classification has found to have a 64-bit form.
    fn encode(&mut self, instruction: &Instruction) {
        let code = std::mem::take(&mut self.asm.code);
        self.encoder.set_buffer(code);
        let result = self.encoder.encode(instruction, 0);
        self.asm.code = self.encoder.take_buffer();
        assert!(result.is_ok(), "no encoding for {instruction}");
    }

    /// Makes RCX free in a sequence that leaves the flags alone.
    fn borrow_rcx(&mut self) {
        if !self.plan.rcx_free {
            self.asm.store_field(field!(saved_rcx), RCX);
        }
    }

    /// Ends [`Emitter::borrow_rcx`].
    fn return_rcx(&mut self) {
        if !self.plan.rcx_free {
            self.asm.load_field(RCX, field!(saved_rcx));
        }
    }

    /// Jumps to cold code if a field of the context is (or is not) 0. Returns the displacement,
    /// and whether the cold code has to return RCX.
    fn jump_if_field(&mut self, field: i32, zero: bool, flags_live: bool) -> (usize, bool) {
        if !flags_live {
            self.asm.is_field_zero(field);
            let condition = if zero { EQUAL } else { NOT_EQUAL };
            return (self.asm.jcc_forward(condition), false);
        }
        self.borrow_rcx();
        self.asm.load_field32(RCX, field);
        let from = if zero {
            let is_zero = self.asm.jrcxz();
            let skip = self.asm.jmp_short();
            self.asm.land(is_zero);
            let from = self.asm.jmp_forward();
            self.asm.land(skip);
            from
        } else {
            self.asm.jrcxnz_forward()
        };
        self.return_rcx();
        (from, true)
    }

    /// Makes sure that the vector registers are the guest's, once in a block.
    fn need_vectors(&mut self, insn: &Insn) {
        if self.vectors_checked {
            return;
        }
        self.vectors_checked = true;
        let (from, restores_rcx) =
            self.jump_if_field(field!(vectors_loaded), true, insn.flags_live);
        self.cold.push(Cold::Vectors {
            from,
            resume: self.asm.here(),
            restores_rcx,
        });
    }

    /// A new site for instruction `number`. Its `next` is found when all code is there.
    fn site(&mut self, number: usize, insn: &Insn, size: u16, write: bool) -> u8 {
        self.sites.push(Site {
            at: insn.at,
            size,
            write,
            if_dirty: write && may_not_store(&insn.instruction),
            alignment: memory::alignment(&insn.instruction),
            skew: 0,
            vectors: self.vectors_checked,
            works_on_vectors: insn.vectors,
            gs_page: false,
            single: None,
            moved: 0,
            retry: self.asm.here() as u32,
            next: None,
        });
        self.site_insns.push(number);
        u8::try_from(self.sites.len() - 1).expect("a block has less than 256 sites")
    }

    fn finish_sites(&mut self) {
        for (site, number) in self.sites.iter_mut().zip(&self.site_insns) {
            // Behind a leader the code takes for granted that its check was made.
            if !self.plan.insns[*number].class.closes() && !self.plan.is_leader(*number) {
                site.next = Some(self.insns[number + 1].0);
            }
        }
    }

    fn argument(&self, place: u8) -> u32 {
        self.id << 8 | u32::from(place)
    }

    fn callout(&mut self, number: usize, insn: &Insn) {
        let site = self.site(number, insn, 0, false);
        self.ask(self.gates.callout, site);
    }

    /// Ends a way out of the block for `place`, a site or an exit, if there is one.
    fn end(&mut self, tail: Tail, place: Option<u8>) {
        let argument = place.map_or(NO_SITE, |place| self.argument(place));
        self.asm.store_field_imm(field!(argument), argument);
        if let Some(known) = self.tails.get(&tail) {
            return self.asm.jmp(*known as usize);
        }
        self.tails.insert(tail, self.asm.here() as u32);
        match tail {
            Tail::Leave {
                spilled,
                returns_rcx,
                gate,
            } => {
                if returns_rcx {
                    self.asm.load_field(RCX, field!(saved_rcx));
                }
                self.asm.restore(spilled);
                self.asm.jmp(gate);
            }
            Tail::Miss { linear, gate } => {
                self.asm.store_field(field!(linear), linear);
                self.asm.jmp(gate);
            }
        }
    }

    /// Goes to `gate` for `place`, a site or an exit.
    fn ask(&mut self, gate: usize, place: u8) {
        let argument = self.argument(place);
        self.asm.store_field_imm(field!(argument), argument);
        self.asm.jmp(gate);
    }

    fn cold_code(&mut self) {
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Miss {
                    from,
                    site,
                    tag,
                    single,
                } => self.miss(from, site, tag, single),
                Cold::GsPage {
                    from,
                    site,
                    distance,
                    restores_rcx,
                } => self.missed_gs_page(from, site, distance, restores_rcx),
                Cold::Vectors {
                    from,
                    resume,
                    restores_rcx,
                } => {
                    self.load_vectors(from, resume, restores_rcx);
                }
                Cold::Callout {
                    from,
                    site,
                    restores_rcx,
                } => {
                    self.asm.set_target(from, self.asm.here());
                    if restores_rcx {
                        self.return_rcx();
                    }
                    self.ask(self.gates.callout, site);
                }
                Cold::Strings {
                    from,
                    destination,
                    source,
                    borrowed,
                } => self.missed_strings(from, destination, source, borrowed),
                Cold::Counter {
                    from,
                    site,
                    restores_rcx,
                } => self.counter_below_floor(from, site, restores_rcx),
                Cold::Distant { from, target } => {
                    self.asm.set_target(from, self.asm.here());
                    self.distant(target);
                }
            }
        }
        for number in 0..self.exits.len() {
            let here = self.asm.here();
            self.exits[number].unlinked = here as u32;
            self.asm.set_target(self.exits[number].jump as usize, here);
            let leave = Tail::Leave {
                spilled: self.plan.scratch_mask(),
                returns_rcx: false,
                gate: self.gates.link,
            };
            self.end(leave, Some(number as u8));
        }
    }

    fn load_vectors(&mut self, from: usize, resume: usize, restores_rcx: bool) {
        self.asm.set_target(from, self.asm.here());
        if !restores_rcx {
            self.asm.store_field(field!(saved_rcx), RCX);
        }
        self.asm.mov_imm(RCX, (self.cache + resume) as u64);
        self.asm.store_field(field!(jump), RCX);
        self.asm.load_field(RCX, field!(saved_rcx));
        self.asm.jmp(self.gates.vectors);
    }
}

/// A 32-bit instruction in a form that 64-bit code has: address registers widened.
fn widened(instruction: &Instruction) -> Instruction {
    let mut wide = *instruction;
    // LEA: its address is cut to 32 bits by the operand, or by the address size.
    let has_memory = (0..wide.op_count()).any(|i| wide.op_kind(i) == OpKind::Memory);
    if has_memory && wide.memory_base() == Register::None && wide.memory_index() == Register::None {
        // An absolute address: sign-extended in 64-bit code, which the 32-bit result cuts.
        wide.set_memory_displ_size(8);
        let disp = wide.memory_displacement64() as u32 as i32;
        wide.set_memory_displacement64(i64::from(disp) as u64);
    }
    wide
}

/// The instruction with its memory operand at `mem`.
fn relocated(instruction: &Instruction, mem: Mem) -> Instruction {
    let mut moved = *instruction;
    moved.set_segment_prefix(Register::None);
    moved.set_memory_base(mem.base.map_or(Register::None, wide_register));
    let (index, scale) = mem.index.unwrap_or((0, 0));
    let index = mem.index.map_or(Register::None, |_| wide_register(index));
    moved.set_memory_index(index);
    moved.set_memory_index_scale(1 << scale);
    moved.set_memory_displacement64(i64::from(mem.disp) as u64);
    moved.set_memory_displ_size(match mem.disp {
        0 => 0,
        disp if i8::try_from(disp).is_ok() => 1,
        _ => 8,
    });
    moved
}

fn wide_register(number: Reg) -> Register {
    const ALL: [Register; 16] = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    ALL[usize::from(number)]
}

fn narrow_register(number: Reg) -> Register {
    Register::EAX + u32::from(number)
}

/// The register width of addresses and full operands.
fn full_width(is_32bit: bool) -> Width {
    if is_32bit { Width::W32 } else { Width::W64 }
}
