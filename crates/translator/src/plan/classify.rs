//! What has to be done about an instruction.

use super::Insn;
use crate::mode::Mode;
use iced_x86::{
    Code, CpuidFeature, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic,
    OpAccess, OpKind, Register,
};
use native::Unit;

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Executed as it is.
    Copy,
    /// Executed with its memory operand replaced, after a check.
    Memory(Access),
    /// Does nothing.
    Nothing,
    /// LEA of an address relative to RIP.
    LeaRip,
    /// PUSH of a register or an immediate.
    Push,
    /// POP to a register.
    Pop,
    /// LEAVE.
    Leave,
    /// CALL to an address, relative to the page.
    Call(i64),
    /// CALL of what a register or memory says.
    CallIndirect,
    /// JMP to an address, relative to the page.
    Jump(i64),
    /// JMP where a register or memory says.
    JumpIndirect,
    /// Jcc.
    Branch(i64),
    /// JRCXZ, JECXZ, LOOP: a branch that leaves the flags alone.
    Count(i64),
    /// RET, with the bytes that it releases after the address.
    Return(u16),
    /// CLI at CPL 0.
    Cli,
    /// STI at CPL 0.
    Sti,
    /// SWAPGS at CPL 0.
    SwapGs,
    /// SYSCALL in 64-bit code at CPL 3.
    SystemCall,
    /// SYSRET at CPL 0, to 64-bit code.
    SystemReturn,
    /// PUSHFQ.
    PushFlags,
    /// PUSH of memory.
    PushMemory,
    /// STAC or CLAC at CPL 0: RFLAGS.AC, and with it what may be accessed.
    Access(bool),
    /// MOV from a segment register to a general-purpose one.
    ReadSegment,
    /// MOV from CR2 at CPL 0.
    ReadFaultAddress,
    /// RDFSBASE, or RDGSBASE if `true`.
    ReadBase(bool),
    /// WRFSBASE, or WRGSBASE if `true`.
    WriteBase(bool),
    /// RDTSC, or RDTSCP if `true`.
    ReadCounter(bool),
    /// STOS or MOVS, with or without REP.
    Strings(Strings),
    /// Any string instruction, where memory is at the guest's addresses.
    PlainString,
    /// BT and its kin on a bit string in memory, whose bit offset is in a register.
    BitString(Access),
    /// The interpreter executes it, and the block goes on behind it if nothing speaks against it.
    Callout,
    /// The interpreter executes it, and the block ends.
    End,
}

/// A STOS or MOVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strings {
    /// Bytes of an element.
    pub(crate) size: u8,
    /// Whether it is a MOVS.
    pub(crate) moves: bool,
    /// Whether it has a REP prefix.
    pub(crate) repeats: bool,
}

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Bytes.
    pub(crate) size: u8,
    /// Whether it is written.
    pub(crate) write: bool,
    /// Whether the instruction works on x87, MMX or vector registers.
    pub(crate) vector: bool,
}

impl Class {
    /// Whether it has a memory operand that is accessed.
    pub(crate) fn is_memory(self) -> bool {
        matches!(self, Self::Memory(access) if access.size != 0)
    }

    /// Whether nothing follows in the block.
    pub(crate) fn closes(self) -> bool {
        use Class as C;
        matches!(
            self,
            C::Call(_)
                | C::CallIndirect
                | C::Jump(_)
                | C::JumpIndirect
                | C::Return(_)
                | C::Access(_)
                | C::SystemCall
                | C::SystemReturn
                | C::End
        )
    }

    /// Where control may go other than to the next instruction, relative to the page.
    pub(crate) fn side_exit(self) -> Option<i64> {
        match self {
            Self::Branch(target) | Self::Count(target) => Some(target),
            _ => None,
        }
    }

    /// Whether it runs without the interpreter and falls through.
    pub(crate) fn is_native(self) -> bool {
        !matches!(self, Self::Callout | Self::End) && !self.closes()
    }

    /// Whether its translation needs registers.
    pub(crate) fn needs_scratch(self) -> bool {
        use Class as C;
        match self {
            C::Copy | C::Nothing | C::Callout | C::End | C::Cli | C::Sti | C::ReadSegment => false,
            C::SystemReturn | C::ReadFaultAddress | C::ReadBase(_) | C::WriteBase(_) => false,
            C::Jump(target) | C::Branch(target) | C::Count(target) => !(0..4096).contains(&target),
            _ => true,
        }
    }
}

/// Classifies instructions; holds what iced-x86 needs for it.
pub(crate) struct Classifier {
    info: InstructionInfoFactory,
}

impl Classifier {
    pub(crate) fn new() -> Self {
        Self {
            info: InstructionInfoFactory::new(),
        }
    }

    /// The instruction at offset `at` of the page at `linear`.
    pub(crate) fn classify(
        &mut self,
        instruction: Instruction,
        at: u16,
        linear: u64,
        mode: Mode,
    ) -> Insn {
        let mut instruction = instruction;
        let is_relative = instruction.is_ip_rel_memory_operand();
        plain_form(&mut instruction);
        if !mode.is_relocatable() && !mode.is_windowed() {
            absolute_form(&mut instruction, linear);
        }
        let info = self.info.info(&instruction);
        let (mut uses, mut writes) = (0, 0);
        for used in info.used_registers() {
            if used.register().is_gpr() {
                let bit = 1 << used.register().full_register().number();
                uses |= bit;
                if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                    writes |= bit;
                }
            }
        }
        let memory = info.used_memory().first().copied();
        let class = match instruction.flow_control() {
            FlowControl::Next => data_class(&instruction, memory, mode),
            _ => control_class(&instruction, mode),
        };
        // Executed as it is, it would speak of the host's RIP.
        let class = match class {
            Class::Copy if is_relative => Class::Callout,
            class => class,
        };
        Insn {
            instruction,
            at,
            class,
            uses,
            writes,
            flags_live: true,
            live: super::STATUS,
            vectors: works_on_vectors(&instruction),
            shared: None,
        }
    }
}

/// Whether `instruction` may work on x87, MMX or vector registers, or on their whole state.
fn works_on_vectors(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    !instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::CMOV
                | F::CPUID
                | F::MSR
                | F::TSC
                | F::RDTSCP
                | F::SYSCALL
                | F::SEP
                | F::CX8
                | F::CMPXCHG16B
                | F::FSGSBASE
                | F::SMAP
                | F::INVPCID
                | F::RDRAND
                | F::RDSEED
                | F::CLFSH
                | F::CLFLUSHOPT
                | F::CLWB
                | F::PAUSE
                | F::RDPMC
                | F::RDPID
                | F::SMM
                | F::MULTIBYTENOP
                | F::BMI1
                | F::BMI2
                | F::MOVBE
                | F::POPCNT
                | F::LZCNT
        )
    })
}

/// Whether `instruction`, which has an operand in memory, may raise a floating-point exception: what
/// it would write is left as it is then.
pub(crate) fn may_not_store(instruction: &Instruction) -> bool {
    let is_x87 = instruction.cpuid_features().contains(&CpuidFeature::FPU);
    is_x87 || instruction.mnemonic() == Mnemonic::Vcvtps2ph
}

/// Whether an operand is AH, CH, DH or BH.
pub(crate) fn has_high_byte(instruction: &Instruction) -> bool {
    let high = [Register::AH, Register::CH, Register::DH, Register::BH];
    (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == OpKind::Register && high.contains(&instruction.op_register(i))
    })
}

/// Replaces encodings that 64-bit code has not, or that take an absolute address, by their
/// general forms.
fn plain_form(instruction: &mut Instruction) {
    let code = match instruction.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        _ => return,
    };
    instruction.set_code(code);
}

/// Replaces an address relative to RIP in a segment with a base, as kernels have it for what
/// belongs to a CPU, by the constant that it is.
fn absolute_form(instruction: &mut Instruction, linear: u64) {
    // LEA has nothing to do with segments.
    let is_based = matches!(instruction.memory_segment(), Register::FS | Register::GS)
        && instruction.mnemonic() != Mnemonic::Lea;
    let address = linear.wrapping_add(instruction.memory_displacement64());
    if instruction.memory_base() == Register::RIP
        && is_based
        && i32::try_from(address as i64).is_ok()
    {
        instruction.set_memory_base(Register::None);
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(address);
    }
}

fn control_class(instruction: &Instruction, mode: Mode) -> Class {
    let near = if mode.is_32bit() {
        OpKind::NearBranch32
    } else {
        OpKind::NearBranch64
    };
    let full = if mode.is_32bit() { 4 } else { 8 };
    let is_near = instruction.op_count() > 0 && instruction.op0_kind() == near;
    let target = || {
        let target = instruction.near_branch_target();
        if mode.is_32bit() {
            i64::from(target as u32 as i32)
        } else {
            target as i64
        }
    };
    let indirect = |class| match instruction.op0_kind() {
        OpKind::Register if instruction.op0_register().size() == full => class,
        OpKind::Memory
            if instruction.memory_size().size() == full && address_is_plain(instruction, mode) =>
        {
            class
        }
        _ => Class::End,
    };
    if instruction.is_jcc_short_or_near() && is_near {
        Class::Branch(target())
    } else if instruction.is_jmp_short_or_near() && is_near {
        Class::Jump(target())
    } else if instruction.is_call_near() && is_near {
        Class::Call(target())
    } else if instruction.is_jmp_near_indirect() {
        indirect(Class::JumpIndirect)
    } else if instruction.is_call_near_indirect() {
        indirect(Class::CallIndirect)
    } else {
        match instruction.code() {
            Code::Jrcxz_rel8_64 | Code::Jecxz_rel8_64 | Code::Loop_rel8_64_RCX if is_near => {
                Class::Count(target())
            }
            Code::Syscall
                if mode.contains(Mode::USER) && !mode.is_32bit() && !mode.is_windowed() =>
            {
                Class::SystemCall
            }
            Code::Sysretq if !mode.contains(Mode::USER) && !mode.is_32bit() => Class::SystemReturn,
            Code::Retnq if !mode.is_32bit() => Class::Return(0),
            Code::Retnq_imm16 if !mode.is_32bit() => Class::Return(instruction.immediate16()),
            Code::Retnd if mode.is_32bit() => Class::Return(0),
            Code::Retnd_imm16 if mode.is_32bit() => Class::Return(instruction.immediate16()),
            _ => Class::End,
        }
    }
}

fn data_class(
    instruction: &Instruction,
    memory: Option<iced_x86::UsedMemory>,
    mode: Mode,
) -> Class {
    use Mnemonic as M;
    let full = if mode.is_32bit() { 4 } else { 8 };
    match instruction.mnemonic() {
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw => return Class::Nothing,
        // Translated code always runs with DF clear.
        M::Cld => return Class::Nothing,
        M::Cli if !mode.contains(Mode::USER) => return Class::Cli,
        M::Sti if !mode.contains(Mode::USER) => return Class::Sti,
        M::Swapgs if !mode.contains(Mode::USER) => return Class::SwapGs,
        M::Stac | M::Clac if !mode.contains(Mode::USER) && mode.contains(Mode::SMAP) => {
            return Class::Access(instruction.mnemonic() == M::Stac);
        }
        M::Mov
            if instruction.op1_kind() == OpKind::Register
                && instruction.op1_register().is_segment_register()
                && instruction.op0_kind() == OpKind::Register =>
        {
            return Class::ReadSegment;
        }
        M::Mov if is_read_of_cr2(instruction) && !mode.contains(Mode::USER) => {
            return Class::ReadFaultAddress;
        }
        M::Rdfsbase | M::Rdgsbase if has_bases(mode) => {
            return Class::ReadBase(instruction.mnemonic() == M::Rdgsbase);
        }
        M::Wrfsbase | M::Wrgsbase if has_bases(mode) => {
            return Class::WriteBase(instruction.mnemonic() == M::Wrgsbase);
        }
        M::Rdtsc if !mode.contains(Mode::TSD) => return Class::ReadCounter(false),
        M::Rdtscp if !mode.contains(Mode::TSD) && mode.contains(Mode::RDTSCP) => {
            return Class::ReadCounter(true);
        }
        M::Pushfq if full == 8 && !mode.is_windowed() => return Class::PushFlags,
        M::Bt | M::Bts | M::Btr | M::Btc
            if instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register =>
        {
            return bit_string_class(instruction, mode);
        }
        M::Push | M::Pop => return stack_class(instruction, full, mode),
        M::Leave if instruction.code() == Code::Leaveq && full == 8 => return Class::Leave,
        M::Lea => return lea_class(instruction, mode),
        M::Enter | M::Pushf | M::Popf | M::Popfq | M::Pushfd | M::Popfd => {
            return Class::Callout;
        }
        _ => {}
    }
    if mode.is_windowed() && is_plain_string(instruction) {
        return Class::PlainString;
    }
    if let Some(strings) = strings(instruction, mode) {
        return Class::Strings(strings);
    }
    if instruction.is_privileged() || instruction.is_string_instruction() {
        return Class::Callout;
    }
    if mode.is_32bit() && !instruction.op_code().mode64() {
        return Class::Callout;
    }
    // In 32-bit code, these reach eight registers only.
    let zeroes = matches!(instruction.mnemonic(), M::Vzeroupper | M::Vzeroall);
    if zeroes && mode.contains(Mode::AVX) && !mode.is_32bit() {
        return Class::Memory(Access {
            size: 0,
            write: false,
            vector: true,
        });
    }
    let vector = match native::inspect(instruction) {
        Ok(unit) => {
            let runs = match unit {
                Unit::X87 => mode.contains(Mode::X87),
                Unit::Mmx => mode.contains(Mode::X87 | Mode::SSE),
                Unit::Sse => mode.contains(Mode::SSE),
                Unit::Avx => mode.contains(Mode::AVX),
                Unit::Integer { .. } => true,
            };
            if !runs {
                return Class::Callout;
            }
            !matches!(unit, Unit::Integer { .. })
        }
        Err(_) if is_integer(instruction) => false,
        Err(_) => return Class::Callout,
    };
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    if has_memory && mode.is_windowed() && instruction.mnemonic() == M::Vcvtps2ph {
        // Where its store faults, hosts have set flags of MXCSR.
        return Class::Callout;
    }
    if has_memory && has_high_byte(instruction) {
        // AL is an operand beside the high byte. In a window, the access may fault, and no register
        // may be elsewhere then.
        let is_relative = instruction.is_ip_rel_memory_operand();
        if instruction.mnemonic() == M::Cmpxchg || mode.is_windowed() && is_relative {
            return Class::Callout;
        }
    }
    let Some(used) = memory.filter(|_| has_memory) else {
        // What accesses memory by other means than an operand is not for us.
        return match (memory, vector) {
            (None, false) => Class::Copy,
            (None, true) => Class::Memory(Access {
                size: 0,
                write: false,
                vector,
            }),
            _ => Class::Callout,
        };
    };
    let size = instruction.memory_size().size();
    if size == 0
        || size > 64
        || instruction.memory_size() == MemorySize::Unknown
        || !address_is_plain(instruction, mode)
    {
        return Class::Callout;
    }
    Class::Memory(Access {
        size: size as u8,
        write: !matches!(used.access(), OpAccess::Read | OpAccess::CondRead),
        vector,
    })
}

/// Whether this is MOV of CR2 to a register, in 64-bit code.
fn is_read_of_cr2(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r64_cr && instruction.op1_register() == Register::CR2
}

/// Whether RDFSBASE and its kin are executed, and the bases are in the context only.
fn has_bases(mode: Mode) -> bool {
    mode.contains(Mode::FSGSBASE) && !mode.is_32bit() && !mode.is_windowed()
}

fn strings(instruction: &Instruction, mode: Mode) -> Option<Strings> {
    let (size, moves) = match instruction.code() {
        Code::Stosb_m8_AL => (1, false),
        Code::Stosw_m16_AX => (2, false),
        Code::Stosd_m32_EAX => (4, false),
        Code::Stosq_m64_RAX => (8, false),
        Code::Movsb_m8_m8 => (1, true),
        Code::Movsw_m16_m16 => (2, true),
        Code::Movsd_m32_m32 => (4, true),
        Code::Movsq_m64_m64 => (8, true),
        _ => return None,
    };
    let destination = instruction.op0_kind() == OpKind::MemoryESRDI;
    let source = !moves
        || instruction.op1_kind() == OpKind::MemorySegRSI
            && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    (destination && source && !mode.is_32bit()).then_some(Strings {
        size,
        moves,
        repeats: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
    })
}

/// Whether this is a string instruction on memory at 64-bit addresses.
fn is_plain_string(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let in_memory = match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsq | M::Cmpsb | M::Cmpsw | M::Cmpsq => true,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => true,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => true,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => true,
        // Their names are those of SSE2 instructions, too.
        M::Movsd | M::Cmpsd => instruction.is_string_instruction(),
        _ => false,
    };
    in_memory
        && instruction.memory_segment() != Register::GS
        && (0..instruction.op_count()).all(|operand| {
            matches!(
                instruction.op_kind(operand),
                OpKind::Register | OpKind::MemorySegRSI | OpKind::MemoryESRDI
            )
        })
}

fn bit_string_class(instruction: &Instruction, mode: Mode) -> Class {
    let size = instruction.memory_size().size();
    if size < 4 || mode.is_32bit() || !address_is_plain(instruction, mode) {
        return Class::Callout;
    }
    Class::BitString(Access {
        size: size as u8,
        write: instruction.mnemonic() != Mnemonic::Bt,
        vector: false,
    })
}

fn stack_class(instruction: &Instruction, full: usize, mode: Mode) -> Class {
    let is_full = match instruction.op0_kind() {
        OpKind::Register => {
            let register = instruction.op0_register();
            register.is_gpr() && register.size() == full
        }
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => full == 8,
        OpKind::Immediate8to32 | OpKind::Immediate32 => full == 4,
        _ => false,
    };
    let in_memory = full == 8
        && instruction.code() == Code::Push_rm64
        && instruction.op0_kind() == OpKind::Memory
        && address_is_plain(instruction, mode);
    if in_memory {
        return Class::PushMemory;
    }
    match (is_full, instruction.mnemonic()) {
        (false, _) => Class::Callout,
        (true, Mnemonic::Push) => Class::Push,
        (true, _) => Class::Pop,
    }
}

fn lea_class(instruction: &Instruction, mode: Mode) -> Class {
    if instruction.is_ip_rel_memory_operand() {
        let plain =
            instruction.memory_base() == Register::RIP && instruction.op0_register().size() == 8;
        return if plain { Class::LeaRip } else { Class::Callout };
    }
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    if mode.is_32bit() && [base, index].iter().any(|r| r.size() == 2) {
        return Class::Callout;
    }
    Class::Copy
}

/// Whether the address of the memory operand is one that emission can compute.
fn address_is_plain(instruction: &Instruction, mode: Mode) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let width = if mode.is_32bit() { 4 } else { 8 };
    let fits = |r: Register| r == Register::None || r.is_gpr() && r.size() == width;
    // FS and GS have limits in 32-bit code.
    let segment = instruction.memory_segment();
    let is_based = matches!(segment, Register::FS | Register::GS);
    if mode.is_windowed() && segment == Register::GS {
        // There, the host's GS base is the context's.
        return false;
    }
    let relative = base == Register::RIP && index == Register::None && !is_based;
    let plain = fits(base) && fits(index) || relative;
    // An absolute address of 32 bits in 64-bit code may be a 16- or 32-bit one that was cut.
    let absolute = base == Register::None && index == Register::None;
    plain
        && !(is_based && mode.is_32bit())
        && !(absolute && !mode.is_32bit() && instruction.memory_displ_size() == 4)
}

/// Integer instructions that compute on registers and one ordinary memory operand, and that no
/// privilege level, mode or hypervisor has a say in.
fn is_integer(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let is_control = (0..instruction.op_count()).any(|i| {
        let register = instruction.op_register(i);
        instruction.op_kind(i) == OpKind::Register
            && (register.is_segment_register()
                || register.is_cr()
                || register.is_dr()
                || register.is_tr())
    });
    if is_control {
        return false;
    }
    let in_memory = instruction.op0_kind() == OpKind::Memory;
    match instruction.mnemonic() {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movbe | M::Movnti | M::Xchg | M::Xadd => true,
        M::Add | M::Adc | M::Sub | M::Sbb | M::Cmp | M::Test | M::And | M::Or | M::Xor => true,
        M::Not | M::Neg | M::Inc | M::Dec | M::Mul | M::Imul | M::Div | M::Idiv => true,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => true,
        M::Shld
        | M::Shrd
        | M::Bsf
        | M::Bsr
        | M::Bswap
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b => true,
        // The memory forms with a register as bit offset reach beyond the operand.
        M::Bt | M::Bts | M::Btr | M::Btc => {
            !in_memory || instruction.op1_kind() == OpKind::Immediate8
        }
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => true,
        M::Lahf | M::Sahf | M::Clc | M::Stc | M::Cmc => true,
        M::Lfence | M::Mfence | M::Sfence | M::Pause => true,
        M::Wait => false,
        mnemonic => is_conditional(mnemonic),
    }
}

fn is_conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}
