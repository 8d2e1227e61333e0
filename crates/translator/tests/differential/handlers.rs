//! The guest's kernel: handlers that log what happened and go on behind it.

use crate::layout::*;
use crate::program::ins::{
    absolute, add, add_registers, at, compare, copy, load, pop, push, set, store, store_immediate,
    subtract_registers, test,
};
use crate::program::{Label, Piece, Program};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use x86::Rflags;

/// The handlers' code, and where its parts are.
pub(crate) struct Handlers {
    /// At [`ENTRIES`].
    pub(crate) entries: Vec<u8>,
    /// At [`HANDLERS`].
    pub(crate) code: Vec<u8>,
    /// The linear address of SYSCALL's entry.
    pub(crate) syscall: u64,
}

/// Vectors that push an error code.
const WITH_ERROR_CODE: [u64; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: u64 = 16;

/// What the code is made with: its word size.
struct Builder {
    program: Program,
    mode: Mode,
    /// RAX, RCX, RDX, RBX, RSP or their lower halves.
    ax: Register,
    cx: Register,
    dx: Register,
    sp: Register,
    word: i64,
}

/// The handlers for `mode`.
pub(crate) fn handlers(mode: Mode) -> Handlers {
    let bits = mode.kernel_bits();
    let (ax, cx, dx, sp) = match bits {
        64 => (Register::RAX, Register::RCX, Register::RDX, Register::RSP),
        _ => (Register::EAX, Register::ECX, Register::EDX, Register::ESP),
    };
    let mut builder = Builder {
        program: Program::new(bits),
        mode,
        ax,
        cx,
        dx,
        sp,
        word: i64::from(bits / 8),
    };
    let common = builder.program.label();
    let end = builder.program.label();
    let interrupt = builder.program.label();
    let syscall = builder.program.label();
    builder.program.mark(common);
    builder.exception(end);
    builder.program.mark(end);
    builder.end();
    builder.program.mark(interrupt);
    builder.interrupt();
    builder.program.mark(syscall);
    if bits == 64 {
        builder.syscall(end);
    }
    let image = builder
        .program
        .assemble(mode.system(HANDLERS))
        .expect("fixed code");
    assert!(image.bytes.len() < 0x1000, "the handlers fit their page");
    let entries = (0..256).flat_map(|vector| {
        let target = match vector {
            v if v == u64::from(END_VECTOR) => image.address(end),
            v if v == u64::from(INTERRUPT_VECTOR) => image.address(interrupt),
            _ => image.address(common),
        };
        entry(mode, vector, target)
    });
    Handlers {
        entries: entries.collect(),
        syscall: image.address(syscall),
        code: image.bytes,
    }
}

/// Pushes the vector, after a 0 where there is no error code, and jumps to `target`.
fn entry(mode: Mode, vector: u64, target: u64) -> Vec<u8> {
    let mut program = Program::new(mode.kernel_bits());
    let plain = [END_VECTOR, INTERRUPT_VECTOR]
        .map(u64::from)
        .contains(&vector);
    if !plain {
        if !WITH_ERROR_CODE.contains(&vector) {
            program.bytes(&[0x6a, 0]);
        }
        program.bytes(&[0x68, vector as u8, 0, 0, 0]);
    }
    let code = match mode.kernel_bits() {
        64 => Code::Jmp_rel32_64,
        _ => Code::Jmp_rel32_32,
    };
    program.add(Instruction::with_branch(code, target).expect("a branch"));
    let base = mode.system(ENTRIES + ENTRY_BYTES * vector);
    let mut bytes = program.assemble(base).expect("fixed code").bytes;
    bytes.resize(ENTRY_BYTES as usize, 0xcc);
    bytes
}

impl Builder {
    fn add(&mut self, instruction: Instruction) {
        self.program.add(instruction);
    }

    fn is_64bit(&self) -> bool {
        self.program.bits == 64
    }

    /// `[variable]`, of the lower region.
    fn variable(&self, address: u64) -> MemoryOperand {
        absolute(self.program.bits, self.mode.system(address))
    }

    fn jump(&mut self, code64: Code, code32: Code, to: Label) {
        let code = if self.is_64bit() { code64 } else { code32 };
        self.program.branch(code, to);
    }

    fn je(&mut self, to: Label) {
        self.jump(Code::Je_rel8_64, Code::Je_rel8_32, to);
    }

    fn jae(&mut self, to: Label) {
        self.jump(Code::Jae_rel8_64, Code::Jae_rel8_32, to);
    }

    fn jmp(&mut self, to: Label) {
        self.jump(Code::Jmp_rel8_64, Code::Jmp_rel8_32, to);
    }

    /// Reserves a log entry, its address in CX; jumps to `full` if there is none. Changes AX.
    fn reserve(&mut self, full: Label) {
        let end = self.mode.system(LOG_END);
        self.add(load(self.cx, self.variable(LOG_POINTER)));
        self.add(set(self.ax, end));
        self.add(subtract_registers(self.ax, self.cx));
        self.je(full);
        self.add(copy(self.ax, self.cx));
        self.add(add(self.ax, LOG_ENTRY as i32));
        self.add(store(self.variable(LOG_POINTER), self.ax));
    }

    /// Stack: DX, CX, AX, vector, error code, (R)IP, CS, (R)FLAGS, (R)SP, SS.
    fn exception(&mut self, end: Label) {
        let (ax, cx, dx, sp, word) = (self.ax, self.cx, self.dx, self.sp, self.word);
        let stop = self.program.label();
        let done = self.program.label();
        let outside = self.program.label();
        for register in [ax, cx, dx] {
            self.add(push(register));
        }
        self.forget_flags();
        self.reserve(stop);
        for n in 0..7 {
            self.add(load(ax, at(sp, (3 + n) * word)));
            self.add(store(at(cx, 8 * n), ax));
        }
        let control = if self.is_64bit() {
            Code::Mov_r64_cr
        } else {
            Code::Mov_r32_cr
        };
        self.add(Instruction::with2(control, ax, Register::CR2).expect("MOV from CR2"));
        self.add(store(at(cx, 56), ax));
        // Traps have their next instruction on the stack.
        self.if_trap(done);
        // Faults go on behind the instruction.
        self.add(load(ax, at(sp, 5 * word)));
        self.add(set(dx, self.mode.code()));
        self.add(subtract_registers(ax, dx));
        self.add(compare(ax, (CODE_PAGES * PAGE) as i32));
        self.jae(outside);
        let successor = MemoryOperand::with_base_index_scale(cx, ax, 2);
        self.add(set(cx, self.mode.system(SUCCESSORS)));
        let load_half = Instruction::with2(Code::Movzx_r32_rm16, Register::EAX, successor);
        self.add(load_half.expect("MOVZX"));
        self.add(add_registers(ax, dx));
        self.add(store(at(sp, 5 * word), ax));
        self.jmp(done);
        // Or where the program has said.
        self.program.mark(outside);
        self.add(load(ax, self.variable(RECOVERY)));
        self.add(test(ax));
        self.je(stop);
        self.add(store(at(sp, 5 * word), ax));
        self.add(store_immediate(self.variable(RECOVERY), 0));
        if self.is_64bit() {
            self.add(store_immediate(self.variable(RECOVERY + 4), 0));
        }
        self.program.mark(done);
        for register in [dx, cx, ax] {
            self.add(pop(register));
        }
        self.add(add(sp, 2 * word as i32));
        self.interrupt_return();
        self.program.mark(stop);
        for register in [dx, cx, ax] {
            self.add(pop(register));
        }
        self.jmp(end);
    }

    /// Jumps to `target` if the vector on the stack is a trap's: #DB, #BP, #OF, INT n. Changes AX.
    fn if_trap(&mut self, target: Label) {
        let ax = self.ax;
        self.add(load(ax, at(self.sp, 3 * self.word)));
        for trap in [1, 3, 4] {
            self.add(compare(ax, trap));
            self.je(target);
        }
        self.add(compare(ax, 32));
        self.jae(target);
    }

    /// Clears the arithmetic flags in what a fault has pushed. An engine may have dropped them when
    /// the instruction, or what follows it, would overwrite them before anybody reads them; an
    /// operating system that returns to the instruction can't tell. Changes AX.
    fn forget_flags(&mut self) {
        let trap = self.program.label();
        self.if_trap(trap);
        let pushed = at(self.sp, 7 * self.word);
        let others = !(Rflags::STATUS.bits() as u32);
        let and = Instruction::with2(Code::And_rm32_imm32, pushed, others);
        self.add(and.expect("an operand in memory"));
        self.program.mark(trap);
    }

    fn interrupt_return(&mut self) {
        let bytes: &[u8] = if self.is_64bit() {
            &[0x48, 0xcf]
        } else {
            &[0xcf]
        };
        self.program.bytes(bytes);
    }

    /// CLI, so that no interrupt comes; the write that makes the engine stop; a loop, so that it
    /// does not matter when it does.
    fn end(&mut self) {
        let forever = self.program.label();
        self.program.bytes(&[0xfa]);
        self.program.bytes(&[0xe6, END_PORT]);
        self.program.mark(forever);
        self.jmp(forever);
    }

    /// Counts, and ends the interrupt in the local APIC.
    fn interrupt(&mut self) {
        let ax = self.ax;
        self.add(push(ax));
        self.add(load(ax, self.variable(INTERRUPTS)));
        self.add(add(ax, 1));
        self.add(store(self.variable(INTERRUPTS), ax));
        self.add(store_immediate(
            absolute(self.program.bits, self.mode.apic() + 0xb0),
            0,
        ));
        self.add(pop(ax));
        self.interrupt_return();
    }

    /// SYSCALL from CPL 3: logs RIP, RFLAGS and RSP. Returns with the flags changed by R10, and
    /// RIP by the upper half of RAX.
    fn syscall(&mut self, end: Label) {
        let (ax, cx, sp) = (self.ax, self.cx, self.sp);
        let stop = self.program.label();
        let logged = self.program.label();
        let user_stack = self.variable(USER_STACK_POINTER);
        self.add(store(user_stack, sp));
        self.add(set(sp, self.mode.system(KERNEL_STACK)));
        self.add(push(ax));
        self.add(push(cx));
        self.add(compare(Register::EAX, SYSCALL_UNLOGGED as i32));
        self.je(logged);
        self.reserve(stop);
        self.add(set(ax, SYSCALL_VECTOR));
        self.add(store(at(cx, 0), ax));
        self.add(load(ax, at(sp, 0)));
        self.add(store(at(cx, 16), ax));
        self.add(store(at(cx, 32), Register::R11));
        self.add(load(ax, user_stack));
        self.add(store(at(cx, 40), ax));
        self.add(load(ax, at(sp, 8)));
        self.add(compare(Register::EAX, SYSCALL_END as i32));
        self.je(stop);
        self.program.mark(logged);
        self.add(pop(cx));
        self.add(pop(ax));
        self.add(load(sp, user_stack));
        // xor r11, r10; shr rax, 32; shl rax, 32; xor rcx, rax; sysretq
        self.program.push(Piece::Bytes(vec![
            0x4d, 0x31, 0xd3, 0x48, 0xc1, 0xe8, 32, 0x48, 0xc1, 0xe0, 32, 0x48, 0x31, 0xc1, 0x48,
            0x0f, 0x07,
        ]));
        self.program.mark(stop);
        self.add(pop(cx));
        self.add(pop(ax));
        self.add(load(sp, user_stack));
        self.jmp(end);
    }
}
