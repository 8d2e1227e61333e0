//! System instructions that leave the program's surroundings as they were, or nearly.

use super::address::Use;
use super::writer::Writer;
use crate::layout::{Mode, PAGE, SYSCALL_END, SYSCALL_UNLOGGED};
use crate::program::ins;
use crate::tables::{ACCESSED, DIRTY, PRESENT, USER, WRITABLE};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use x86::{Cr0, Cr4, Rflags};

/// What makes a return address another one: of the upper half, or not canonical, or of nothing.
const FAR_AWAY: [u64; 3] = [0xffff_8000 << 32, 1 << 63, 1 << 46];

impl Writer<'_> {
    pub(super) fn system(&mut self) {
        match self.mode() {
            Mode::Kernel64 | Mode::Kernel32 if self.random.percent(70) => self.privileged(),
            Mode::User64 if self.random.percent(40) => self.system_call(),
            _ => self.unprivileged(),
        }
    }

    fn unprivileged(&mut self) {
        match self.random.below(8) {
            0 => self.kernel_call(),
            1 => self.program_bytes(&[0xcc]),
            2 => self.store_system_register(),
            3 => self.identify(),
            4 => self.segment_rights(),
            5 if self.is_64bit() => self.segment_base(),
            6 => self.selector(),
            _ => self.extended_control(),
        }
    }

    fn any_reserved(&self, numbers: &[usize]) -> bool {
        numbers.iter().any(|&number| self.is_reserved(number))
    }

    /// SYSCALL, mostly with a return that changes nothing but arithmetic flags.
    pub(super) fn system_call(&mut self) {
        if self.any_reserved(&[0, 1, 10, 11]) {
            return;
        }
        self.grouped(|writer| {
            let number = match writer.calm {
                true => SYSCALL_UNLOGGED.into(),
                false => writer.random.below(SYSCALL_END.into()),
            };
            let flags = writer.changed_flags();
            let away = if !writer.calm && writer.random.percent(2) {
                writer.random.one_of(&FAR_AWAY)
            } else {
                0
            };
            writer.set(0, number | away);
            writer.set(10, flags);
            writer.program_bytes(&[0x0f, 0x05]);
            for register in [0, 1, 11] {
                writer.known[register] = None;
            }
        });
    }

    /// What to change in the flags with which SYSRET returns.
    fn changed_flags(&mut self) -> u64 {
        let status = self.random.next() & Rflags::STATUS.bits();
        if self.calm || self.random.percent(70) {
            return status;
        }
        // What returns, or what SYSRET leaves alone: bit 1, reserved bits, RF and VM.
        const ALL: [Rflags; 8] = [
            Rflags::ID,
            Rflags::NT,
            Rflags::IOPL,
            Rflags::FIXED,
            Rflags::RF,
            Rflags::VM,
            Rflags::AC,
            Rflags::TF,
        ];
        status | self.random.one_of(&ALL).bits() | self.random.one_of(&[0, 1 << 15, 1 << 40])
    }

    /// SGDT, SIDT, SLDT, STR, SMSW.
    fn store_system_register(&mut self) {
        self.grouped(|writer| {
            let (sgdt, sidt) = if writer.is_64bit() {
                (Code::Sgdt_m1664, Code::Sidt_m1664)
            } else {
                (Code::Sgdt_m1632, Code::Sidt_m1632)
            };
            let (code, bytes) = match writer.random.below(5) {
                0 => (sgdt, 10),
                1 => (sidt, 10),
                2 => (Code::Sldt_r32m16, 2),
                3 => (Code::Str_r32m16, 2),
                _ => (Code::Smsw_r32m16, 2),
            };
            let number = writer.free();
            let instruction = if bytes == 2 && writer.random.percent(50) {
                Instruction::with1(code, Register::EAX + number as u32)
            } else {
                let operand = writer.operand(Use::of(bytes), &[]);
                Instruction::with1(code, operand)
            };
            writer.emit(instruction.expect("an operand that fits"));
        });
    }

    /// CPUID.
    fn identify(&mut self) {
        if self.any_reserved(&[0, 1, 2, 3]) {
            return;
        }
        const LEAVES: [u64; 8] = [0, 1, 7, 0xd, 0x15, 0x4000_0000, 0x8000_0000, 0x8000_0001];
        self.grouped(|writer| {
            let leaf = writer.random.one_of(&LEAVES);
            writer.set(0, leaf);
            let subleaf = writer.random.below(3);
            writer.set(1, subleaf);
            writer.raw(Instruction::with(Code::Cpuid));
        });
    }

    /// LAR, LSL, VERR, VERW of all kinds of selectors.
    fn segment_rights(&mut self) {
        self.grouped(|writer| {
            let selector = writer.random.below(0x60);
            let number = writer.free();
            let other = writer.free();
            writer.set(number, selector);
            let (from, to) = (Register::EAX + number as u32, Register::EAX + other as u32);
            let instruction = match writer.random.below(4) {
                0 => Instruction::with2(Code::Lar_r32_r32m16, to, from),
                1 => Instruction::with2(Code::Lsl_r32_r32m16, to, from),
                2 => Instruction::with1(Code::Verr_r32m16, from),
                _ => Instruction::with1(Code::Verw_r32m16, from),
            };
            writer.emit(instruction.expect("registers"));
        });
    }

    /// Changes the base of FS or GS and uses it; sets it back.
    fn segment_base(&mut self) {
        self.grouped(|writer| {
            let number = writer.free();
            let wide = writer.wide(number);
            let gs = writer.random.percent(50);
            let (read, write, old) = if gs {
                (Code::Rdgsbase_r64, Code::Wrgsbase_r64, writer.scene.gs_base)
            } else {
                (Code::Rdfsbase_r64, Code::Wrfsbase_r64, writer.scene.fs_base)
            };
            let target = writer.target(Use::of(8));
            writer.set(number, target);
            let one = |code, register| Instruction::with1(code, register).expect("a register");
            writer.raw(one(write, wide));
            let segment = if gs { Register::GS } else { Register::FS };
            let none = Register::None;
            let memory = MemoryOperand::new(none, none, 1, 0, 8, false, segment);
            let other = writer.free_but(&[number]);
            let value = writer.wide(other);
            if writer.random.percent(50) {
                writer.raw(ins::load(value, memory));
            } else {
                writer.raw(ins::store(memory, value));
            }
            if writer.random.percent(25) {
                let (read, write) = match gs {
                    true => (Code::Rdgsbase_r32, Code::Wrgsbase_r32),
                    false => (Code::Rdfsbase_r32, Code::Wrfsbase_r32),
                };
                let narrow = Register::EAX + number as u32;
                writer.raw(one(write, narrow));
                writer.raw(one(read, narrow));
            }
            writer.set(number, old);
            writer.raw(one(write, wide));
            writer.raw(one(read, wide));
        });
    }

    /// MOV from a segment register; to ES or DS, of the segment that is there.
    fn selector(&mut self) {
        self.grouped(|writer| {
            let segment = writer
                .random
                .one_of(&[Register::ES, Register::DS, Register::SS]);
            let number = writer.free();
            let register = Register::EAX + number as u32;
            let get = match writer.random.percent(50) {
                true => Instruction::with2(Code::Mov_r32m16_Sreg, register, segment),
                false => {
                    let half = Register::AX + number as u32;
                    Instruction::with2(Code::Mov_rm16_Sreg, half, segment)
                }
            };
            writer.raw(get.expect("MOV from a segment register"));
            if segment != Register::SS {
                let set = Instruction::with2(Code::Mov_Sreg_r32m16, segment, register);
                writer.raw(set.expect("MOV to a segment register"));
            }
        });
    }

    /// XGETBV.
    fn extended_control(&mut self) {
        if self.any_reserved(&[0, 1, 2]) {
            return;
        }
        self.grouped(|writer| {
            let index = writer.random.below(2) * writer.random.below(2);
            writer.set(1, index);
            writer.raw(Instruction::with(Code::Xgetbv));
        });
    }

    /// What only CPL 0 may do.
    fn privileged(&mut self) {
        match self.random.below(9) {
            0 => self.control_register(),
            1 => self.flush(),
            2 | 3 => self.page_table(),
            4 => self.ports(),
            5 => self.model_specific(),
            6 => self.write_protection(),
            7 if self.scene.cr4.contains(Cr4::SMAP) => self.access_user_pages(),
            _ => self.interrupt_flag(),
        }
    }

    fn control_codes(&self) -> (Code, Code) {
        if self.is_64bit() {
            (Code::Mov_r64_cr, Code::Mov_cr_r64)
        } else {
            (Code::Mov_r32_cr, Code::Mov_cr_r32)
        }
    }

    /// Reads `control` into register `number`.
    fn read_control(&mut self, number: usize, control: Register) {
        let (read, _) = self.control_codes();
        let wide = self.wide(number);
        let read = Instruction::with2(read, wide, control).expect("MOV from a control register");
        self.raw(read);
        self.define_flags();
    }

    /// Writes `control` from register `number`.
    fn write_control(&mut self, number: usize, control: Register) {
        let (_, write) = self.control_codes();
        let wide = self.wide(number);
        let write = Instruction::with2(write, control, wide).expect("MOV to a control register");
        self.raw(write);
        self.define_flags();
    }

    /// MOV from CR0, CR2, CR3, CR4; to CR2.
    fn control_register(&mut self) {
        const READ: [Register; 4] = [Register::CR0, Register::CR2, Register::CR3, Register::CR4];
        self.grouped(|writer| {
            let number = writer.free();
            if writer.random.percent(30) {
                writer.write_control(number, Register::CR2);
            }
            let control = writer.random.one_of(&READ);
            writer.read_control(number, control);
        });
    }

    /// Writes CR3 with itself, or INVLPG of some page.
    fn flush(&mut self) {
        self.grouped(|writer| {
            if writer.random.percent(50) {
                let number = writer.free();
                writer.read_control(number, Register::CR3);
                writer.write_control(number, Register::CR3);
            } else {
                let operand = writer.operand(Use::of(1), &[]);
                writer.raw(Instruction::with1(Code::Invlpg_m, operand).expect("INVLPG"));
            }
        });
    }

    /// Changes bits of a window's page-table entry, invalidates the page and accesses it.
    fn page_table(&mut self) {
        let windows = &self.scene.windows;
        let window = &windows[self.random.below(windows.len() as u64) as usize];
        let n = self.random.below(window.pages.len() as u64);
        let linear = window.linear + PAGE * n;
        let entry = self.mode().system(self.scene.entry(linear));
        let bits = [PRESENT, WRITABLE, USER, ACCESSED, DIRTY, ACCESSED | DIRTY];
        let bit = self.random.one_of(&bits) as i32;
        let codes = [
            Code::Xor_rm32_imm32,
            Code::Or_rm32_imm32,
            Code::And_rm32_imm32,
        ];
        self.grouped(|writer| {
            let place = writer.absolute(entry);
            let code = writer.random.one_of(&codes);
            let value = if code == Code::And_rm32_imm32 {
                !bit
            } else {
                bit
            };
            let mut change = Instruction::with2(code, place, value).expect("memory");
            change.set_has_lock_prefix(writer.random.percent(30));
            writer.raw(change);
            let number = writer.free();
            writer.set(number, linear);
            let memory = MemoryOperand::with_base(writer.wide(number));
            writer.raw(Instruction::with1(Code::Invlpg_m, memory).expect("INVLPG"));
            let other = writer.free_but(&[number]);
            let wide = writer.wide(other);
            let within = writer.random.below(PAGE - 8).cast_signed();
            let operand = ins::at(writer.wide(number), within);
            match writer.random.below(3) {
                0 => writer.raw(ins::load(wide, operand)),
                1 => writer.raw(ins::store(operand, wide)),
                _ => {}
            }
        });
    }

    /// IN and OUT.
    fn ports(&mut self) {
        if self.any_reserved(&[0, 2]) {
            return;
        }
        const FORMS: [&[u8]; 8] = [
            &[0xec],
            &[0x66, 0xed],
            &[0xed],
            &[0xee],
            &[0x66, 0xef],
            &[0xef],
            &[0xe4, 0x71],
            &[0xe6, 0x70],
        ];
        self.grouped(|writer| {
            let port = 0x100 + writer.random.below(0x1000);
            writer.set(2, port);
            let bytes = writer.random.one_of(&FORMS);
            writer.program_bytes(bytes);
            writer.known[0] = None;
        });
    }

    /// RDMSR, and WRMSR with what was read.
    fn model_specific(&mut self) {
        use x86::msr;
        if self.any_reserved(&[0, 1, 2]) {
            return;
        }
        const UNKNOWN: u32 = 0x1234_5678;
        const NUMBERS: [u32; 9] = [
            msr::IA32_APIC_BASE,
            msr::IA32_PAT,
            msr::IA32_EFER,
            msr::IA32_LSTAR,
            msr::IA32_STAR,
            msr::IA32_FS_BASE,
            msr::IA32_GS_BASE,
            msr::IA32_KERNEL_GS_BASE,
            UNKNOWN,
        ];
        self.grouped(|writer| {
            let number = writer.random.one_of(&NUMBERS);
            writer.set(1, number.into());
            writer.raw(Instruction::with(Code::Rdmsr));
            if number == msr::IA32_KERNEL_GS_BASE {
                let value = writer.random.below(1 << 31);
                writer.set(0, value);
                writer.set(2, 0);
            }
            // Where RDMSR raised an exception, the values are not those of a register.
            if number != UNKNOWN && writer.is_64bit() {
                writer.raw(Instruction::with(Code::Wrmsr));
            }
        });
    }

    /// Toggles CR0.WP around a few units.
    fn write_protection(&mut self) {
        if self.reserved != 0 {
            return;
        }
        self.grouped(|writer| {
            for pass in 0..2 {
                let number = writer.free();
                writer.read_control(number, Register::CR0);
                let bit = Cr0::WP.bits().trailing_zeros();
                let register = Register::EAX + number as u32;
                let toggle = Instruction::with2(Code::Btc_rm32_imm8, register, bit);
                writer.emit(toggle.expect("BTC"));
                writer.write_control(number, Register::CR0);
                if pass == 0 {
                    writer.ungrouped(|writer| writer.inner_units(3));
                }
            }
        });
    }

    /// STAC, a few units, CLAC.
    fn access_user_pages(&mut self) {
        self.grouped(|writer| {
            writer.program_bytes(&[0x0f, 0x01, 0xcb]);
            writer.ungrouped(|writer| writer.inner_units(3));
            writer.program_bytes(&[0x0f, 0x01, 0xca]);
        });
    }

    /// STI, something, CLI. No interrupt comes, in the tests without.
    fn interrupt_flag(&mut self) {
        self.grouped(|writer| {
            writer.program_bytes(&[0xfb]);
            writer.ungrouped(|writer| writer.inner_units(2));
            if !writer.scene.interruptible {
                writer.program_bytes(&[0xfa]);
            }
        });
    }
}
