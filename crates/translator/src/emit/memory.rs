//! Memory accesses: address, check, access.

use super::{Cold, Emitter, Tail, full_width, narrow_register, relocated, wide_register};
use crate::asm::{ABOVE, Mem, RCX, RSP, Reg, Width};
use crate::block::Site;
use crate::context::{TLB_ENTRIES, TlbEntry, field, tlb_fields};
use crate::plan::{Access, Base, Class, Insn};
use iced_x86::{Instruction, OpKind, Register};

/// A guest address that emission can compute.
#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    /// Registers and a displacement.
    Plain(Mem),
    /// Added to the base of FS or GS, a field of the context.
    Based(i32, Mem),
    /// A constant.
    Constant(u64),
    /// Relative to the page that the code runs in.
    Page(i64),
}

/// A page of the TLB that a check has found to hold all of an access.
struct Checked {
    address: Address,
    /// Where the entry's tag and bias are, through GS. They may depend on temporary 1.
    tag: Mem,
    bias: Mem,
    /// Whether temporary 0 is the linear address. If not, it is the offset in the page.
    is_linear: bool,
}

impl Emitter<'_> {
    /// An instruction with a memory operand, or one that works on vector registers only.
    pub(super) fn memory(&mut self, number: usize, insn: &Insn, access: Access) {
        if access.vector {
            self.need_vectors(insn);
        }
        if access.size == 0 {
            return self.copy(insn);
        }
        let mem = self.place(number, insn, access);
        match high_byte(&insn.instruction) {
            Some((operand, register)) => {
                // The register may be part of the address.
                let mem = self.in_temporary(mem);
                let moved = relocated(&insn.instruction, mem);
                self.high_byte(&moved, operand, register);
            }
            None => self.encode(&relocated(&insn.instruction, mem)),
        }
    }

    /// An instruction with AH, CH, DH or BH as `operand`, which can't be encoded beside R8 to R15:
    /// what it names is made the low byte meanwhile.
    fn high_byte(&mut self, instruction: &Instruction, operand: u32, register: Reg) {
        let mut low = *instruction;
        low.set_op_register(operand, Register::AL + u32::from(register));
        self.asm.rotate_right(register, register, 8);
        self.encode(&low);
        self.asm.rotate_right(register, register, 56);
    }

    /// Checks the access of `insn`'s memory operand and says where on the host it is.
    pub(super) fn place(&mut self, number: usize, insn: &Insn, access: Access) -> Mem {
        match self.share_check(number, insn) {
            Some(mem) => mem,
            None => self.single(number, insn, access),
        }
    }

    fn single(&mut self, number: usize, insn: &Insn, access: Access) -> Mem {
        let address = self.operand_address(&insn.instruction);
        self.check_one(number, insn, address, access.size.into(), access.write)
    }

    /// If `insn` is in a group: makes the group's check if it is the leader, and returns where
    /// its operand is.
    fn share_check(&mut self, number: usize, insn: &Insn) -> Option<Mem> {
        let group = &self.plan.groups[insn.shared?.group];
        let register = self.plan.scratch[2 + group.slot];
        if group.leader == number {
            let first = i64::from(group.first);
            let address = match group.base {
                Base::Register(base) => Address::Plain(Mem::base(base, group.first)),
                Base::Fs => Address::Based(field!(fs_base), Mem::at(group.first)),
                Base::Gs => Address::Based(field!(gs_base), Mem::at(group.first)),
                Base::Page => Address::Page(first),
            };
            let checked = self.check(number, insn, address, group.range, group.write, true);
            let site = self.sites.last_mut().expect("the check made one");
            site.if_dirty = group.if_dirty;
            self.asm.load_gs(register, checked.bias);
            let base = match group.base {
                Base::Register(_) => None,
                Base::Fs => Some(field!(fs_base)),
                Base::Gs => Some(field!(gs_base)),
                Base::Page => Some(field!(page)),
            };
            match base {
                // The difference between host and guest addresses will do.
                None => {}
                Some(_) if checked.is_linear => {
                    let t0 = self.temporary(0);
                    self.asm.lea(register, Mem::sum(register, t0, -group.first));
                }
                Some(field) => self.asm.add_gs(register, Mem::at(field)),
            }
            if insn.class.is_memory() {
                let disp = insn.instruction.memory_displacement64() as i64;
                let site = self.sites.last_mut().expect("the check made one");
                site.skew = (disp - first) as u16;
            }
        }
        let disp = if insn.class.is_memory() {
            insn.instruction.memory_displacement64() as i32
        } else {
            stack_disp(insn)
        };
        Some(match group.base {
            Base::Register(RSP) => Mem::sum(RSP, register, disp + self.stack_ahead),
            Base::Register(base) => Mem::sum(base, register, disp),
            _ => Mem::base(register, disp),
        })
    }

    /// BT, BTS, BTR, BTC: the bit offset, which is signed, chooses the operand in memory.
    pub(super) fn bit_string(&mut self, number: usize, insn: &Insn, access: Access) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let offset = insn.instruction.op1_register().full_register().number() as Reg;
        let is_wide = access.size == 8;
        let address = self.operand_address(&insn.instruction);
        self.address(address, t0, t1);
        self.asm.mov_imm(t1, if is_wide { 6 } else { 5 });
        self.asm.sarx(full_width(!is_wide), t1, offset, t1);
        if is_wide {
            self.asm.lea(
                t0,
                Mem {
                    base: Some(t0),
                    index: Some((t1, 3)),
                    disp: 0,
                },
            );
        } else {
            self.asm.movsxd(t1, t1);
            self.asm.lea(
                t0,
                Mem {
                    base: Some(t0),
                    index: Some((t1, 2)),
                    disp: 0,
                },
            );
        }
        let address = Address::Plain(Mem::base(t0, 0));
        let mem = self.check_one(number, insn, address, access.size.into(), access.write);
        let mem = self.in_temporary(mem);
        // What is left of the offset stays inside of the operand.
        let mask = if is_wide {
            field!(bits_of_64)
        } else {
            field!(bits_of_32)
        };
        self.asm.pext(t1, offset, mask);
        let mut moved = relocated(&insn.instruction, mem);
        moved.set_op1_register(if is_wide {
            wide_register(t1)
        } else {
            narrow_register(t1)
        });
        self.encode(&moved);
    }

    /// The access of an instruction that uses the stack.
    pub(super) fn stack_place(&mut self, number: usize, insn: &Insn, write: bool) -> Mem {
        if let Some(mem) = self.share_check(number, insn) {
            return mem;
        }
        let size = self.slot_bytes();
        let disp = if write { -size } else { 0 };
        let address = Address::Plain(Mem::base(RSP, disp));
        self.check_one(number, insn, address, size as u16, write)
    }

    /// As [`Emitter::stack_place`] for a write, with a temporary that the place does not depend on.
    pub(super) fn stack_place_and_temporary(&mut self, number: usize, insn: &Insn) -> (Mem, Reg) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let mem = self.stack_place(number, insn, true);
        if mem.base == Some(t0) {
            (self.in_temporary(mem), t1)
        } else {
            // The stack pointer and what is added to it.
            (mem, t0)
        }
    }

    /// Checks one access and returns its place, which may depend on both temporaries.
    pub(super) fn check_one(
        &mut self,
        number: usize,
        insn: &Insn,
        address: Address,
        size: u16,
        write: bool,
    ) -> Mem {
        if let Some(mem) = self.gs_page(number, insn, address, size, write) {
            return mem;
        }
        let checked = self.check(number, insn, address, size, write, false);
        self.host_address(&checked)
    }

    /// The host address of a checked access. The entry's bias is in temporary 1 then, so that the
    /// processor can compute the address before it knows the outcome of the check.
    fn host_address(&mut self, checked: &Checked) -> Mem {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let again = match checked.address {
            Address::Plain(Mem {
                base: Some(base),
                index: None,
                disp,
            }) if base != t0 && !self.plan.mode.is_32bit() => {
                self.asm.load_gs(t1, checked.bias);
                return Mem::sum(base, t1, disp);
            }
            Address::Constant(value) if i32::try_from(value as i64).is_ok() => {
                self.asm.load_gs(t1, checked.bias);
                return Mem::base(t1, value as i32);
            }
            Address::Plain(mem) if mem.base != Some(t0) => true,
            Address::Constant(_) => true,
            Address::Plain(_) | Address::Based(..) | Address::Page(_) => false,
        };
        if !checked.is_linear && !again {
            self.asm.sub_gs(t0, checked.tag);
        }
        self.asm.load_gs(t1, checked.bias);
        if !checked.is_linear && again {
            self.address(checked.address, t0, t1);
        }
        Mem::sum(t0, t1, 0)
    }

    /// What is at `mem`, a checked access's place, by way of temporary 0: temporary 1 is free then.
    pub(super) fn in_temporary(&mut self, mem: Mem) -> Mem {
        let t0 = self.temporary(0);
        if mem != Mem::base(t0, 0) {
            self.asm.lea(t0, mem);
        }
        Mem::base(t0, 0)
    }

    /// Looks `size` bytes at `address` up in the TLB. If that fails for a `shared` check, nothing
    /// behind it may run: the block is left for one that checks every access by itself.
    fn check(
        &mut self,
        number: usize,
        insn: &Insn,
        address: Address,
        size: u16,
        write: bool,
        shared: bool,
    ) -> Checked {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let site = self.site(number, insn, size, write);
        let single = shared.then_some(insn.at);
        if insn.flags_live {
            self.address(address, t0, t1);
            let (tag, bias) = self.tlb_entry(address, t0, write, true);
            self.borrow_rcx();
            self.asm.load_gs(RCX, tag);
            // The last byte's offset in the page that has the first byte's entry.
            self.asm.lea(RCX, Mem::sum(RCX, t0, i32::from(size) - 1));
            self.asm.pext(RCX, RCX, field!(page_mask));
            let from = self.asm.jrcxnz_forward();
            self.return_rcx();
            self.cold.push(Cold::Miss {
                from,
                site,
                tag: None,
                single,
            });
            return Checked {
                address,
                tag,
                bias,
                is_linear: true,
            };
        }
        // An address that is a register is looked up while it is copied.
        let (tag, bias) = match address {
            Address::Plain(Mem {
                base: Some(base),
                index: None,
                disp: 0,
            }) if !self.plan.mode.is_32bit() => {
                let entry = self.tlb_entry(address, base, write, false);
                if base != t0 {
                    self.asm.mov(t0, base);
                }
                entry
            }
            _ => {
                self.address(address, t0, t1);
                self.tlb_entry(address, t0, write, false)
            }
        };
        self.asm.add_gs(t0, tag);
        self.asm.cmp_imm(t0, 4096 - i32::from(size));
        let from = self.asm.jcc_forward(ABOVE);
        self.cold.push(Cold::Miss {
            from,
            site,
            tag: Some(tag),
            single,
        });
        Checked {
            address,
            tag,
            bias,
            is_linear: false,
        }
    }

    /// Where the TLB's entry for `address`, which is in `register`, has its tag and its bias. May use
    /// temporary 1 and, unless `flags_live`, the flags.
    fn tlb_entry(
        &mut self,
        address: Address,
        register: Reg,
        write: bool,
        flags_live: bool,
    ) -> (Mem, Mem) {
        const BYTES: usize = size_of::<TlbEntry>();
        const SHIFT: u8 = 12 - BYTES.trailing_zeros() as u8;
        const MASK: u32 = (TLB_ENTRIES as u32 - 1) * BYTES as u32;
        const _: () = assert!(BYTES == 16, "an index is doubled and scaled by 8");
        let t1 = self.temporary(1);
        let (tag, bias) = tlb_fields(self.plan.mode.view(), write);
        if let Address::Constant(value) = address {
            let offset = ((value >> 12) as usize % TLB_ENTRIES * BYTES) as i32;
            return (Mem::at(tag + offset), Mem::at(bias + offset));
        }
        if flags_live {
            self.asm.pext(t1, register, field!(tlb_mask));
            self.asm.lea(t1, Mem::sum(t1, t1, 0));
            return (Mem::scaled(t1, 3, tag), Mem::scaled(t1, 3, bias));
        }
        self.asm.rotate_right(t1, register, SHIFT);
        self.asm.and32(t1, MASK);
        (Mem::base(t1, tag), Mem::base(t1, bias))
    }

    /// Cold: a check failed. `single` is the offset in the page of a shared check's leader.
    pub(super) fn miss(&mut self, from: usize, site: u8, tag: Option<Mem>, single: Option<u16>) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        self.asm.set_target(from, self.asm.here());
        match tag {
            Some(tag) => self.asm.sub_gs(t0, tag),
            None => self.return_rcx(),
        }
        let Site {
            size, write, retry, ..
        } = self.sites[usize::from(site)];
        let mut crosses = None;
        if single.is_some() && tag.is_some() {
            // A range that crosses into the next page can't be served by one check.
            self.asm.mov(t1, t0);
            self.asm.and32(t1, 0xfff);
            self.asm.cmp_imm32(t1, 4096 - i32::from(size));
            crosses = Some(self.asm.jcc_forward(ABOVE));
        }
        self.asm.store_field_imm(field!(retry), retry);
        let miss = Tail::Miss {
            linear: t0,
            gate: self.gates.refill[self.plan.mode.view()][usize::from(write)],
        };
        self.end(miss, Some(site));
        let Some(at) = single else {
            return;
        };
        let jump = self.asm.jmp_patchable();
        if let Some(crosses) = crosses {
            self.asm.set_target(crosses, jump - 1);
        }
        let exit = self.exit(jump, at.into(), true, at);
        self.sites[usize::from(site)].single = Some(exit);
    }

    /// Computes a linear address into `to`. `other` is free.
    fn address(&mut self, address: Address, to: Reg, other: Reg) {
        let is_32bit = self.plan.mode.is_32bit();
        match address {
            Address::Plain(mem) if is_32bit => self.asm.lea32(to, mem),
            Address::Plain(mem) => self.asm.lea(to, mem),
            Address::Based(base, mem) if mem.base.is_none() && mem.index.is_none() => {
                self.asm.load_field(to, base);
                if mem.disp != 0 {
                    self.asm.lea(to, Mem::base(to, mem.disp));
                }
            }
            Address::Based(base, mem) => {
                self.asm.load_field(other, base);
                self.asm.lea(to, mem);
                self.asm.lea(to, Mem::sum(to, other, 0));
            }
            Address::Constant(value) => self.asm.mov_imm(to, value),
            Address::Page(offset) => {
                self.asm.load_field(to, field!(page));
                // Code reaches 2 GiB either way.
                self.asm.lea(to, Mem::base(to, offset as i32));
            }
        }
    }

    /// The address of an instruction's memory operand.
    pub(super) fn operand_address(&self, instruction: &Instruction) -> Address {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let disp = instruction.memory_displacement64();
        if base == Register::RIP {
            return if self.plan.mode.is_relocatable() {
                Address::Page(disp as i64)
            } else {
                Address::Constant(self.linear.wrapping_add(disp))
            };
        }
        let number = |r: Register| (r != Register::None).then(|| r.full_register().number() as Reg);
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let mem = Mem {
            base: number(base),
            index: number(index).map(|i| (i, scale)),
            disp: disp as i32,
        };
        let field = match instruction.memory_segment() {
            Register::FS => field!(fs_base),
            Register::GS => field!(gs_base),
            _ if mem.base.is_none() && mem.index.is_none() => {
                return Address::Constant(if self.plan.mode.is_32bit() {
                    disp & 0xffff_ffff
                } else {
                    disp
                });
            }
            _ => return Address::Plain(mem),
        };
        Address::Based(field, mem)
    }

    /// LEA of a RIP-relative address.
    pub(super) fn lea_rip(&mut self, insn: &Insn) {
        let to = insn.instruction.op0_register().number() as Reg;
        let rel = insn.instruction.memory_displacement64();
        if self.plan.mode.is_relocatable() {
            self.asm.load_field(to, field!(page));
            self.asm.lea(to, Mem::base(to, rel as i32));
        } else {
            self.asm.mov_imm(to, self.linear.wrapping_add(rel));
        }
    }

    pub(super) fn push(&mut self, number: usize, insn: &Insn) {
        let mem = self.stack_place(number, insn, true);
        let width = full_width(self.plan.mode.is_32bit());
        let instruction = &insn.instruction;
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register().full_register().number() as Reg;
            self.asm.store(width, mem, register);
        } else {
            self.asm
                .store_imm(width, mem, instruction.immediate(0) as i32);
        }
        self.put_off(insn, -self.slot_bytes());
    }

    /// PUSH of memory.
    pub(super) fn push_memory(&mut self, number: usize, insn: &Insn) {
        let t0 = self.temporary(0);
        let address = self.operand_address(&insn.instruction);
        let mem = self.check_one(number, insn, address, 8, false);
        self.asm.load(Width::W64, t0, mem);
        self.asm.store_field(field!(target), t0);
        let (mem, free) = self.stack_place_and_temporary(number, insn);
        self.asm.load_field(free, field!(target));
        self.asm.store(Width::W64, mem, free);
        self.move_stack(-8);
    }

    pub(super) fn pop(&mut self, number: usize, insn: &Insn) {
        let mem = self.stack_place(number, insn, false);
        let width = full_width(self.plan.mode.is_32bit());
        let register = insn.instruction.op0_register().full_register().number() as Reg;
        self.asm.load(width, register, mem);
        if register != RSP {
            self.put_off(insn, self.slot_bytes());
        }
    }

    pub(super) fn leave(&mut self, number: usize, insn: &Insn) {
        const RBP: Reg = 5;
        let address = Address::Plain(Mem::base(RBP, 0));
        let mem = self.check_one(number, insn, address, 8, false);
        let t0 = self.temporary(0);
        self.asm.load(Width::W64, t0, mem);
        self.asm.lea(RSP, Mem::base(RBP, 8));
        self.asm.mov(RBP, t0);
    }

    /// Bytes of a stack slot.
    pub(super) fn slot_bytes(&self) -> i32 {
        if self.plan.mode.is_32bit() { 4 } else { 8 }
    }

    /// Whether `insn` may come while RSP is not what the guest thinks: it makes nobody look at
    /// RSP, and knows of it or does not use it.
    pub(super) fn may_leave_stack(&self, number: usize, insn: &Insn) -> bool {
        use iced_x86::Mnemonic as M;
        let mnemonic = insn.instruction.mnemonic();
        match insn.class {
            Class::Nothing => true,
            // What can raise nothing: no division, nothing that works on vectors.
            Class::Copy if insn.uses & 1 << RSP == 0 => matches!(
                mnemonic,
                M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Test | M::Cmp | M::Xor
            ),
            Class::Push | Class::Pop => {
                let names_stack = insn.instruction.op0_register().full_register() == Register::RSP;
                !names_stack && self.is_behind_leader(number, insn)
            }
            Class::Call(_) | Class::Return(_) => self.is_behind_leader(number, insn),
            _ => false,
        }
    }

    fn is_behind_leader(&self, number: usize, insn: &Insn) -> bool {
        insn.shared.is_some() && !self.plan.is_leader(number)
    }

    /// Adds to RSP after a push or a pop; later, if its check was made already or is shared with
    /// what follows.
    fn put_off(&mut self, insn: &Insn, bytes: i32) {
        if insn.shared.is_some() {
            self.stack_ahead += bytes;
        } else {
            self.move_stack(bytes);
        }
    }

    /// Makes RSP the guest's.
    pub(super) fn settle_stack(&mut self) {
        if self.stack_ahead != 0 {
            self.move_stack(0);
        }
    }

    /// Adds to RSP, and leaves the flags alone.
    pub(super) fn move_stack(&mut self, bytes: i32) {
        let mem = Mem::base(RSP, bytes + std::mem::take(&mut self.stack_ahead));
        if self.plan.mode.is_32bit() {
            self.asm.lea32(RSP, mem);
        } else {
            self.asm.lea(RSP, mem);
        }
    }
}

/// The operand that is AH, CH, DH or BH, and the number of the register that it is part of.
fn high_byte(instruction: &Instruction) -> Option<(u32, Reg)> {
    let high = [Register::AH, Register::CH, Register::DH, Register::BH];
    (0..instruction.op_count()).find_map(|operand| {
        let register = instruction.op_register(operand);
        let is_register = instruction.op_kind(operand) == OpKind::Register;
        let number = high.iter().position(|h| is_register && *h == register)?;
        Some((operand, number as Reg))
    })
}

/// The alignment that `instruction` demands of what it writes, if nothing else allows it not to be
/// aligned; 1 of reads.
pub(super) fn alignment(instruction: &Instruction) -> u8 {
    use iced_x86::Mnemonic as M;
    if instruction.op0_kind() != OpKind::Memory {
        return 1;
    }
    match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq => 16,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq => {
            instruction.memory_size().size() as u8
        }
        M::Cmpxchg16b => 16,
        _ => 1,
    }
}

/// Where an instruction with a shared check, which is 64-bit code, accesses the stack.
fn stack_disp(insn: &Insn) -> i32 {
    match insn.class {
        Class::Push | Class::PushFlags | Class::PushMemory | Class::Call(_) => -8,
        _ => 0,
    }
}
