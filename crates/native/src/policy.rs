//! What may run on the host, and in which form.
//!
//! # The argument
//! A guest chooses the instruction, so everything is refused that is not shown to be harmless:
//!
//! 1. Its CPUID features are all in [`host_has`]'s list, and the host has them. The list holds
//!    computational extensions only: no XSAVE, FSGSBASE, RDRAND, CLFLUSH, PREFETCH, MONITOR,
//!    MPX, CET, TSX, AVX-512, 3DNow!, SSE4A, and not the 8086 to 686 base sets.
//! 2. Its encoding is legacy or VEX, it falls through to the next instruction, and is not
//!    privileged, a stack, string, state-saving, LOCK- or VSIB-instruction (iced-x86's tables).
//! 3. Each operand is a general-purpose, XMM, YMM, MM or ST register, an immediate, or one
//!    ordinary memory operand of 1 to 32 bytes. Masked stores through rDI are not ordinary;
//!    they, masked moves and gathers never become stubs.
//! 4. It has a vector operand (or converts a scalar in memory, [`is_scalar_conversion`]), or is
//!    EMMS, or an x87 instruction that is not in [`is_x87_denied`], or is on the short list of
//!    integer instructions [`is_integer_allowed`]. That leaves out fences, prefetches, LDMXCSR,
//!    STMXCSR, MOVNTI, VZEROALL and their like, which share features with what is allowed.
//! 5. It is re-encoded by us from its *code* (opcode and operand kinds), operands replaced by
//!    our own registers and a constant address; no byte of the guest's encoding is copied.
//!    Immediates, ST(i) and, in conversions to and from XMM, MMn are left of its choice.
//!
//! So the instruction reads and writes registers that the stub owns, and at most 32 bytes at
//! the start of the frame. It can raise `#XM`, which `fault` catches, and nothing else: `#MF`
//! (which would be caught likewise) as no waiting x87 instruction runs with one pending, `#AC` and
//! `#DB` as EFLAGS.AC and TF are never loaded, `#UD` by 1, `#GP` as the operand is aligned.
//!
//! # Finitely many stubs
//! Registers are renamed by operand position, memory operands are all alike. What is left is
//! the code (about 1200), register or memory form, an immediate byte, and which of at
//! most three general-purpose operands are the same. A test adds up the stubs of all of them
//! and finds them to fit the pool.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory,
    InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

use crate::features::Features;
use crate::frame::{Frame, SCRATCH_BYTES};
use std::mem::offset_of;

/// Why an instruction is not run on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not on the allow-list: the interpreter executes it itself, or raises `#UD`.
    #[error("not an instruction that is run on the host")]
    NotAllowed,
    /// The host lacks an extension that it belongs to: `#UD`.
    #[error("the host lacks the instruction's extension")]
    HostLacks,
    /// Its operands are illegal together (a gather with overlapping registers): `#UD`.
    #[error("invalid operands")]
    InvalidOperands,
    /// The pool has no room. Can't happen while every canonical form fits (tested).
    #[error("the pool of stubs is full")]
    Full,
}

/// What executes an instruction: decides the checks the interpreter makes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// x87: `#NM` if CR0.EM or CR0.TS. FWAIT, which only waits, is not run here.
    X87,
    /// MMX registers, perhaps with XMM registers or memory: `#UD` if CR0.EM, `#NM` if CR0.TS.
    Mmx,
    /// Legacy-encoded SSE: `#UD` if CR0.EM or not CR4.OSFXSR, `#NM` if CR0.TS.
    Sse,
    /// VEX-encoded vector instruction: `#UD` unless CR4.OSXSAVE and XCR0\[2:1\] = 3, `#NM` if
    /// CR0.TS; `#UD` in real and virtual-8086 mode (which the decoder does not know).
    Avx,
    /// General-purpose registers only. `vex` ones are `#UD` in real and virtual-8086 mode.
    Integer {
        /// Whether it is VEX-encoded.
        vex: bool,
    },
}

/// The memory operand of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Its size in bytes, 1 to 32.
    pub bytes: u8,
    /// Whether it is read.
    pub read: bool,
    /// Whether it is written. Translate the address for writing *before* running the routine:
    /// afterwards the registers have changed.
    pub write: bool,
    /// The alignment whose violation is `#GP(0)`: 1, 16 or 32.
    pub alignment: u8,
}

/// What an instruction does to one of its vector operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VectorSlot {
    pub(crate) class: VectorClass,
    pub(crate) load: bool,
    pub(crate) store: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorClass {
    Mm,
    Xmm,
    Ymm,
}

/// What an instruction does to one of the general-purpose registers of the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GprSlot {
    pub(crate) used: bool,
    pub(crate) written: bool,
}

/// An instruction in canonical form, with all that a stub depends on. Equal for instructions
/// that differ only in register numbers and addresses.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) canonical: Instruction,
    pub(crate) unit: Unit,
    pub(crate) memory: Option<Memory>,
    /// Whether MXCSR is read or written.
    pub(crate) mxcsr: bool,
    /// Whether the whole x87 state is loaded (x87 instructions and [`is_mixed`]).
    pub(crate) fx: bool,
    /// Whether MM registers are operands one by one: the x87 state goes to MMX mode.
    pub(crate) mmx: bool,
    /// Whether a pending x87 exception is raised first.
    pub(crate) waiting: bool,
    pub(crate) flags_read: u32,
    pub(crate) flags_written: u32,
    /// Whether it is VEX-encoded: vector results clear the register's upper half.
    pub(crate) vex: bool,
    pub(crate) vectors: [Option<VectorSlot>; 4],
    pub(crate) gprs: [GprSlot; 4],
}

/// The guest's registers for the slots of a [`Shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Offsets into [`Frame`] of the vector registers.
    pub(crate) vectors: [u16; 4],
    /// Numbers of the general-purpose registers.
    pub(crate) gprs: [u8; 4],
}

/// The stub's general-purpose registers, by slot.
pub(crate) const GPR_SLOTS: [Register; 4] =
    [Register::RAX, Register::RCX, Register::RDX, Register::RSI];

/// The slot of an implicit XMM0.
const IMPLICIT_XMM0: usize = 3;

/// CF, PF, AF, ZF, SF and OF in EFLAGS.
pub(crate) const STATUS_FLAGS: u32 = 0x8d5;

/// Whether the host has `feature`; `None` if it is not on the allow-list.
fn host_has(feature: CpuidFeature) -> Option<bool> {
    use CpuidFeature as F;
    let host = Features::host();
    Some(match feature {
        F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX | F::SSE | F::SSE2 => true,
        F::SSE3 => host.sse3,
        F::SSSE3 => host.ssse3,
        F::SSE4_1 => host.sse4_1,
        F::SSE4_2 => host.sse4_2,
        F::POPCNT => host.popcnt,
        F::AES => host.aes,
        F::PCLMULQDQ => host.pclmulqdq,
        F::SHA => host.sha,
        F::GFNI => host.gfni,
        F::AVX => host.avx,
        F::AVX2 => host.avx2,
        F::FMA => host.fma,
        F::F16C => host.f16c,
        F::VAES => host.vaes,
        F::VPCLMULQDQ => host.vpclmulqdq,
        F::BMI1 => host.bmi1,
        F::BMI2 => host.bmi2,
        F::LZCNT => host.lzcnt,
        F::ADX => host.adx,
        _ => return None,
    })
}

/// Integer instructions that run on the host.
fn is_integer_allowed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Adcx
            | M::Adox
    )
}

/// Moves of the elements that a mask selects, see [`crate::masked`].
fn is_masked_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
    )
}

/// Vector instructions that in their memory form name no vector register.
fn is_scalar_conversion(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cvtss2si
            | M::Cvttss2si
            | M::Cvtsd2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvttss2si
            | M::Vcvtsd2si
            | M::Vcvttsd2si
    )
}

/// x87 instructions that are not run on the host: whole-state moves ([`crate::image`]), the
/// two-instruction forms with FWAIT (which a decoder never returns), and 8087/287 relics.
fn is_x87_denied(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Finit
            | M::Fclex
            | M::Fstcw
            | M::Fstsw
            | M::Feni
            | M::Fneni
            | M::Fdisi
            | M::Fndisi
            | M::Fsetpm
            | M::Fnsetpm
            | M::Frstpm
            | M::Fstdw
            | M::Fnstdw
            | M::Fstsg
            | M::Fnstsg
    )
}

/// Instructions on the x87 state that do not check for pending exceptions first. CVTPI2PS with
/// a memory operand does on some processors; the routine leaves that to the host.
fn is_non_waiting(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Fninit | M::Fnclex | M::Fnstcw | M::Fnstsw => true,
        M::Cvtpi2ps => instruction.op1_kind() == OpKind::Memory,
        _ => false,
    }
}

/// Whether all of the x87 state is loaded for an instruction of MMX: EMMS, and conversions
/// between MM and XMM. When exactly the latter enter MMX mode (with a memory operand, with a
/// SIMD exception) differs between processors, so the host decides.
fn is_mixed(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Emms | M::Cvtpi2ps | M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => true,
        // With a memory operand it is an ordinary SSE2 instruction (SDM vol. 2A, CVTPI2PD).
        M::Cvtpi2pd => instruction.op1_kind() == OpKind::Register,
        _ => false,
    }
}

/// Whether `mnemonic` (of a vector instruction) reads its rounding and masks from MXCSR and
/// reports exceptions there (Intel SDM vol. 1, rev. 082, 11.5 and E.4).
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    // Several hundred mnemonics, named regularly: the root says what is computed. This runs
    // once per distinct instruction.
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let root = name.strip_prefix('v').unwrap_or(&name);
    let float_type = ["ps", "pd", "ss", "sd"]
        .iter()
        .any(|suffix| root.ends_with(suffix));
    let arithmetic = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "round", "dp", "hadd", "hsub",
        "addsub", "comis", "ucomis", "fmadd", "fmsub", "fnmadd", "fnmsub", "fmaddsub", "fmsubadd",
    ];
    (float_type && arithmetic.iter().any(|prefix| root.starts_with(prefix)))
        || root.starts_with("cvt")
}

/// Non-temporal stores, as the ordinary stores that have the same effect. On the scratch
/// buffer a weakly ordered store would only cost a flush of the write-combining buffer.
fn temporal(code: Code) -> Code {
    match code {
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => {
            Code::Movaps_xmmm128_xmm
        }
        Code::VEX_Vmovntps_m128_xmm | Code::VEX_Vmovntpd_m128_xmm | Code::VEX_Vmovntdq_m128_xmm => {
            Code::VEX_Vmovaps_xmmm128_xmm
        }
        Code::VEX_Vmovntps_m256_ymm | Code::VEX_Vmovntpd_m256_ymm | Code::VEX_Vmovntdq_m256_ymm => {
            Code::VEX_Vmovaps_ymmm256_ymm
        }
        Code::Movntq_m64_mm => Code::Movq_mmm64_mm,
        code => code,
    }
}

/// The alignment that an instruction demands of its memory operand of `bytes` bytes
/// (Intel SDM vol. 2A, 2.4, exception types 1, 2, 4 and 5; legacy SSE aligns by default, VEX
/// does not).
fn alignment(mnemonic: Mnemonic, unit: Unit, bytes: u8) -> u8 {
    use Mnemonic as M;
    match unit {
        Unit::Sse | Unit::Mmx if bytes == 16 => match mnemonic {
            M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm => 1,
            _ => 16,
        },
        Unit::Avx => match mnemonic {
            M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa => bytes,
            _ => 1,
        },
        _ => 1,
    }
}

/// The status flags in `rflags` (a set of [`RflagsBits`]) at their places in EFLAGS.
fn eflags(rflags: u32) -> u32 {
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ]
    .into_iter()
    .fold(0, |flags, (flag, bit)| {
        flags | u32::from(rflags & flag != 0) << bit
    })
}

/// Checks that every extension of `instruction` is allowed and present.
fn check_features(instruction: &Instruction) -> Result<(), Refusal> {
    let mut present = true;
    for &feature in instruction.cpuid_features() {
        present &= host_has(feature).ok_or(Refusal::NotAllowed)?;
    }
    if present {
        Ok(())
    } else {
        Err(Refusal::HostLacks)
    }
}

/// Points 1 and 2 of the argument above.
pub(crate) fn check_class(instruction: &Instruction) -> Result<(), Refusal> {
    let ordinary = matches!(
        instruction.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX
    ) && instruction.flow_control() == FlowControl::Next
        && !instruction.is_privileged()
        && !instruction.is_stack_instruction()
        && !instruction.is_save_restore_instruction()
        && !instruction.is_string_instruction()
        && !instruction.has_lock_prefix();
    if !ordinary {
        return Err(Refusal::NotAllowed);
    }
    check_features(instruction)
}

fn is_x87(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    instruction
        .cpuid_features()
        .iter()
        .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387))
}

/// Which of four slots are taken.
#[derive(Default)]
struct Taken([bool; 4]);

impl Taken {
    /// The first free slot.
    fn first(&mut self) -> Result<usize, Refusal> {
        let slot = self
            .0
            .iter()
            .position(|&taken| !taken)
            .ok_or(Refusal::NotAllowed)?;
        self.0[slot] = true;
        Ok(slot)
    }
}

fn reads(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess
    )
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Where in [`Frame`] the register is, and its class.
fn vector_place(register: Register) -> Option<(u16, VectorClass)> {
    let number = register.number();
    let ymm = offset_of!(Frame, state.ymm) + 32 * number;
    let (offset, class) = if register.is_xmm() {
        (ymm, VectorClass::Xmm)
    } else if register.is_ymm() {
        (ymm, VectorClass::Ymm)
    } else if register.is_mm() {
        // The routine turns the stack so that TOP is 0 and MMn is st[n].
        (
            offset_of!(Frame, state.fpu.st) + 10 * number,
            VectorClass::Mm,
        )
    } else {
        return None;
    };
    (number < 16).then_some((offset as u16, class))
}

/// `slot`'s register in the size of `like`, which is a general-purpose register.
fn renamed_gpr(slot: usize, like: Register) -> Register {
    const SIZES: [[Register; 4]; 4] = [
        [Register::AL, Register::CL, Register::DL, Register::SIL],
        [Register::AX, Register::CX, Register::DX, Register::SI],
        [Register::EAX, Register::ECX, Register::EDX, Register::ESI],
        GPR_SLOTS,
    ];
    const HIGH: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];
    match like {
        Register::AH | Register::CH | Register::DH | Register::BH => HIGH[slot],
        like => SIZES[like.size().trailing_zeros() as usize & 3][slot],
    }
}

/// Reduces `instruction` to canonical form, or refuses it.
pub(crate) fn analyse(instruction: &Instruction) -> Result<(Shape, Binding), Refusal> {
    check_class(instruction)?;
    if instruction.is_vsib() || is_masked_move(instruction.mnemonic()) {
        return Err(Refusal::NotAllowed);
    }
    let mut analysis = Analysis::new(instruction)?;
    analysis.take_implicit();
    for operand in 0..instruction.op_count() {
        analysis.rename_operand(operand)?;
    }
    // What is read and written is asked of the canonical form, whose vector registers all
    // differ: `vpxor xmm1, xmm2, xmm2` counts as reading nothing.
    let canonical = analysis.shape.canonical;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(&canonical, InstructionInfoOptions::NO_REGISTER_USAGE);
    for operand in 0..instruction.op_count() {
        analysis.take_access(operand, info.op_access(operand))?;
    }
    analysis.finish()
}

/// Which unit executes `instruction`, if it may run on the host at all. A binary translator, which
/// places its memory operand by itself, asks no more.
///
/// # Errors
/// Why it may not.
pub fn inspect(instruction: &Instruction) -> Result<Unit, Refusal> {
    analyse(instruction).map(|(shape, _)| shape.unit)
}

/// [`analyse`]'s work in progress.
struct Analysis<'a> {
    source: &'a Instruction,
    shape: Shape,
    binding: Binding,
    vectors_taken: Taken,
    gprs_taken: Taken,
    /// The slot of each register operand.
    operand_slots: [usize; 5],
}

impl<'a> Analysis<'a> {
    fn new(source: &'a Instruction) -> Result<Self, Refusal> {
        let mut canonical = *source;
        canonical.set_code(temporal(source.code()));
        canonical.set_segment_prefix(Register::None);
        canonical.set_has_repe_prefix(false);
        canonical.set_has_repne_prefix(false);
        canonical.set_has_xacquire_prefix(false);
        canonical.set_has_xrelease_prefix(false);
        let x87 = is_x87(source);
        if x87 && is_x87_denied(source.mnemonic()) {
            return Err(Refusal::NotAllowed);
        }
        let vex = source.encoding() == EncodingKind::VEX;
        let mixed = is_mixed(source);
        let unit = match (x87, mixed) {
            (true, _) => Unit::X87,
            (_, true) => Unit::Mmx,
            _ => Unit::Integer { vex },
        };
        let shape = Shape {
            canonical,
            unit,
            memory: None,
            mxcsr: false,
            fx: x87 || mixed,
            mmx: false,
            waiting: (mixed || x87) && !is_non_waiting(source),
            flags_read: eflags(source.rflags_read()),
            flags_written: eflags(source.rflags_modified()),
            vex,
            vectors: [None; 4],
            gprs: [GprSlot::default(); 4],
        };
        let binding = Binding {
            vectors: [0; 4],
            gprs: [0; 4],
        };
        Ok(Self {
            source,
            shape,
            binding,
            vectors_taken: Taken::default(),
            gprs_taken: Taken::default(),
            operand_slots: [0; 5],
        })
    }

    /// Takes the slots of registers that the opcode implies.
    fn take_implicit(&mut self) {
        use Mnemonic as M;
        const RAX: usize = 0;
        const RCX: usize = 1;
        const RDX: usize = 2;
        let mnemonic = self.source.mnemonic();
        match mnemonic {
            M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpestrm
            | M::Vpcmpestrm64 => {
                self.take_gpr(RAX, 0, false);
                self.take_gpr(RDX, 2, false);
            }
            M::Mulx => self.take_gpr(RDX, 2, false),
            _ => {}
        }
        match mnemonic {
            M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpistri
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpistri => {
                self.take_gpr(RCX, 1, true);
            }
            M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistrm
            | M::Vpcmpestrm
            | M::Vpcmpestrm64
            | M::Vpcmpistrm => {
                self.take_xmm0(!self.shape.vex, true);
            }
            M::Blendvps | M::Blendvpd | M::Pblendvb | M::Sha256rnds2 => self.take_xmm0(true, false),
            _ => {}
        }
    }

    fn take_gpr(&mut self, slot: usize, number: u8, written: bool) {
        self.gprs_taken.0[slot] = true;
        self.shape.gprs[slot].used = true;
        self.shape.gprs[slot].written |= written;
        self.binding.gprs[slot] = number;
    }

    fn take_xmm0(&mut self, load: bool, store: bool) {
        self.vectors_taken.0[IMPLICIT_XMM0] = true;
        self.shape.vectors[IMPLICIT_XMM0] = Some(VectorSlot {
            class: VectorClass::Xmm,
            load,
            store,
        });
        self.binding.vectors[IMPLICIT_XMM0] = offset_of!(Frame, state.ymm) as u16;
    }

    /// Puts the stub's register or memory in place of operand `operand`.
    fn rename_operand(&mut self, operand: u32) -> Result<(), Refusal> {
        match self.source.op_kind(operand) {
            OpKind::Register => {
                let register = self.source.op_register(operand);
                if register.is_gpr() {
                    self.rename_gpr(operand, register)
                } else if self.shape.fx && (register.is_st() || register.is_mm()) {
                    // Loaded with the whole x87 state, under its own number.
                    Ok(())
                } else {
                    self.rename_vector(operand, register)
                }
            }
            OpKind::Memory => {
                self.rename_memory();
                Ok(())
            }
            OpKind::Immediate8 => Ok(()),
            _ => Err(Refusal::NotAllowed),
        }
    }

    fn rename_gpr(&mut self, operand: u32, register: Register) -> Result<(), Refusal> {
        // Equal registers share a slot, so that of two results in one register the right one
        // remains (MULX). An implicit register's slot is not shared: it is either read or
        // written, and nothing explicit is the other.
        let shared = (0..operand).find(|&other| {
            self.source.op_kind(other) == OpKind::Register
                && self.source.op_register(other).full_register() == register.full_register()
        });
        let slot = match shared {
            Some(other) => self.operand_slots[other as usize],
            None => self.gprs_taken.first()?,
        };
        self.operand_slots[operand as usize] = slot;
        self.take_gpr(slot, register.full_register().number() as u8, false);
        self.shape
            .canonical
            .set_op_register(operand, renamed_gpr(slot, register));
        Ok(())
    }

    fn rename_vector(&mut self, operand: u32, register: Register) -> Result<(), Refusal> {
        let (place, class) = vector_place(register).ok_or(Refusal::NotAllowed)?;
        let slot = self.vectors_taken.first()?;
        self.operand_slots[operand as usize] = slot;
        self.shape.vectors[slot] = Some(VectorSlot {
            class,
            load: true,
            store: false,
        });
        self.binding.vectors[slot] = place;
        self.shape
            .canonical
            .set_op_register(operand, host_vector(slot, class));
        self.shape.mmx |= class == VectorClass::Mm;
        Ok(())
    }

    fn rename_memory(&mut self) {
        const { assert!(SCRATCH_BYTES >= 32 && offset_of!(Frame, scratch) == 0) };
        let canonical = &mut self.shape.canonical;
        canonical.set_memory_base(Register::RDI);
        canonical.set_memory_index(Register::None);
        canonical.set_memory_index_scale(1);
        canonical.set_memory_displacement64(0);
        canonical.set_memory_displ_size(0);
    }

    /// Notes that operand `operand` is accessed as `access` says.
    fn take_access(&mut self, operand: u32, access: OpAccess) -> Result<(), Refusal> {
        let slot = self.operand_slots[operand as usize];
        match self.source.op_kind(operand) {
            OpKind::Register if self.source.op_register(operand).is_gpr() => {
                self.shape.gprs[slot].written |= writes(access);
            }
            OpKind::Register if self.shape.fx && !self.source.op_register(operand).is_xmm() => {}
            OpKind::Register => {
                // Legacy SSE keeps the bits that it does not compute, so a destination is
                // loaded too; what a VEX instruction only writes, it writes whole.
                let load = reads(access) || !self.shape.vex;
                if let Some(vector) = &mut self.shape.vectors[slot] {
                    *vector = VectorSlot {
                        load,
                        store: writes(access),
                        ..*vector
                    };
                }
            }
            OpKind::Memory => return self.take_memory(access),
            _ => {}
        }
        Ok(())
    }

    fn take_memory(&mut self, access: OpAccess) -> Result<(), Refusal> {
        let bytes = self.shape.canonical.memory_size().size();
        let (read, write) = (reads(access), writes(access));
        if !(read || write) || bytes == 0 || bytes > 32 || self.shape.memory.is_some() {
            return Err(Refusal::NotAllowed);
        }
        self.shape.memory = Some(Memory {
            bytes: bytes as u8,
            read,
            write,
            alignment: 1,
        });
        Ok(())
    }

    /// Point 4 of the argument, and what depends on all operands.
    fn finish(mut self) -> Result<(Shape, Binding), Refusal> {
        let mnemonic = self.source.mnemonic();
        let shape = &mut self.shape;
        let vector = shape.vectors.iter().any(Option::is_some)
            || is_scalar_conversion(mnemonic)
            || is_mixed(self.source);
        if shape.mmx {
            shape.unit = Unit::Mmx;
            shape.waiting = true;
        } else if shape.fx {
            // `new` has set it.
        } else if vector {
            shape.unit = if shape.vex { Unit::Avx } else { Unit::Sse };
        } else if !is_integer_allowed(mnemonic) {
            return Err(Refusal::NotAllowed);
        }
        shape.mxcsr = vector && uses_mxcsr(mnemonic);
        if let Some(memory) = &mut shape.memory {
            memory.alignment = alignment(mnemonic, shape.unit, memory.bytes);
        }
        Ok((self.shape, self.binding))
    }
}

/// The stub's vector register for `slot`. Explicit operands never use register 0, which
/// belongs to the implicit XMM0.
pub(crate) fn host_vector(slot: usize, class: VectorClass) -> Register {
    let number = if slot == IMPLICIT_XMM0 {
        0
    } else {
        slot as u32 + 1
    };
    let first = match class {
        VectorClass::Mm => Register::MM0,
        VectorClass::Xmm => Register::XMM0,
        VectorClass::Ymm => Register::YMM0,
    };
    first + number
}
