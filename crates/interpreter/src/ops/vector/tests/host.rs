//! Every vector and x87 instruction of 64-bit code, in random forms on random operands, against
//! the host CPU. `DOPPEL_CASES` sets the number of cases for each form.

use super::random::Operands;
use crate::testing::{Bench, Mode, Random};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction,
    MemoryOperand, Mnemonic, OpCodeOperandKind, OpKind, Register,
};
use native::oracle::{Case, Effect, Oracle, Signal};
use x86::{Exception, Vector};

/// Cases for each of register and memory form.
fn cases() -> usize {
    let wanted = std::env::var("DOPPEL_CASES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(100)
}

/// Status flags in RFLAGS.
const STATUS: u64 = 0x8d5;
/// Exception flags in MXCSR.
const SIMD_FLAGS: u32 = 0x3f;

/// Where memory operands are: the first data page of the oracle's layout.
const DATA: u64 = 0x2010_0000;

/// Whether `code` is one that this family must execute.
fn is_ours(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let features = code.cpuid_features();
    let vector = features.iter().any(|feature| {
        matches!(
            feature,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::GFNI
                | F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
                | F::VAES
                | F::VPCLMULQDQ
        )
    });
    // What shares these features but works on none of their registers.
    let other = matches!(
        code.mnemonic(),
        M::Sfence
            | M::Lfence
            | M::Mfence
            | M::Clflush
            | M::Pause
            | M::Movnti
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Monitor
            | M::Mwait
            | M::Crc32
            | M::Popcnt
    );
    // Two instructions in one code: FWAIT and another.
    let double = matches!(
        code.mnemonic(),
        M::Fstenv
            | M::Fsave
            | M::Finit
            | M::Fclex
            | M::Fstcw
            | M::Fstsw
            | M::Feni
            | M::Fdisi
            | M::Fsetpm
    );
    vector
        && !other
        && !double
        && code.op_code().mode64()
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.flow_control() == FlowControl::Next
}

/// A random instruction of `code`, in its memory form if `memory`.
fn instance(code: Code, random: &mut Random, memory: bool) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    for operand in 0..info.op_count() {
        let kind = info.op_kind(operand);
        let name = format!("{kind:?}");
        let register = match kind {
            OpCodeOperandKind::st0 => Register::ST0,
            OpCodeOperandKind::ax => Register::AX,
            OpCodeOperandKind::sti_opcode => Register::ST0 + random.below(8) as u32,
            OpCodeOperandKind::seg_rDI => {
                instruction.set_op_kind(operand, OpKind::MemorySegRDI);
                continue;
            }
            OpCodeOperandKind::imm8 => {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                instruction.set_immediate8(random.next() as u8);
                continue;
            }
            _ if name.starts_with("mem") || memory && name.ends_with("_or_mem") => {
                has_memory = true;
                set_memory(&mut instruction, operand, &name, random);
                continue;
            }
            _ if name.starts_with("xmm_") => Register::XMM0 + random.below(16) as u32,
            _ if name.starts_with("ymm_") => Register::YMM0 + random.below(16) as u32,
            _ if name.starts_with("mm_") => Register::MM0 + random.below(8) as u32,
            _ if name.starts_with("r16_") => Register::AX + random.below(16) as u32,
            _ if name.starts_with("r32_") => Register::EAX + random.below(16) as u32,
            _ if name.starts_with("r64_") => Register::RAX + random.below(16) as u32,
            _ => panic!("{code:?} has an operand {name}"),
        };
        instruction.set_op_kind(operand, OpKind::Register);
        instruction.set_op_register(operand, register);
    }
    if memory && !has_memory {
        return None;
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    (!decoded.is_invalid()).then_some(decoded)
}

fn set_memory(instruction: &mut Instruction, operand: u32, kind: &str, random: &mut Random) {
    let base = Register::RAX + random.below(16) as u32;
    let (index, scale) = match kind {
        "mem_vsib32x" | "mem_vsib64x" => (Register::XMM0 + random.below(16) as u32, 1),
        "mem_vsib32y" | "mem_vsib64y" => (Register::YMM0 + random.below(16) as u32, 1),
        _ => (Register::None, 1),
    };
    let scale = if index == Register::None {
        scale
    } else {
        1 << random.below(4)
    };
    let displacement = random.one_of(&[0, 8, -0x40, 0x1000]);
    let address = MemoryOperand::with_base_index_scale_displ_size(
        base,
        index,
        scale,
        displacement,
        if displacement == 0 { 0 } else { 1 },
    );
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_base(address.base);
    instruction.set_memory_index(address.index);
    instruction.set_memory_index_scale(address.scale);
    instruction.set_memory_displacement64(address.displacement as u64);
    instruction.set_memory_displ_size(address.displ_size);
}

fn encode(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder
        .encode(instruction, instruction.ip())
        .expect("was decoded");
    encoder.take_buffer()
}

/// Registers and memory for `instruction`, whose memory operand will mostly be in the data pages.
fn random_case(instruction: &Instruction, random: &mut Random) -> Case {
    let mut case = Case::new(&encode(instruction));
    case.gprs = std::array::from_fn(|_| match random.below(2) {
        0 => random.next(),
        _ => random.below(40),
    });
    case.rflags = random.next() & STATUS;
    case.vectors = random.state();
    random.fill(case.data.as_flattened_mut());
    // Aligned, unaligned, across pages, at the end of what is mapped and beyond it.
    let offset = match random.below(8) {
        0 => random.below(64),
        1 => 0xff0 + random.below(16),
        2 => 0x1fd0 + random.below(48),
        _ => random.below(64) * 32,
    };
    let target = DATA + offset;
    if instruction.memory_base() != Register::None {
        let base = instruction.memory_base().number();
        case.gprs[base] = target.wrapping_sub(instruction.memory_displacement64());
    } else {
        // MASKMOVQ and MASKMOVDQU go through RDI.
        case.gprs[7] = target;
    }
    if instruction.is_vsib() {
        small_indices(instruction, &mut case, random);
    }
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr
    ) && let Some(operand) =
        case.data.as_flattened_mut()[offset as usize..].first_chunk_mut::<4>()
    {
        // Bit 17 exists on AMD's processors, but is not offered to guests.
        operand[2] &= !2;
        if random.one_in(2) {
            operand[2..].fill(0);
        }
    }
    case
}

/// Gathers with random indices would nearly always fault.
fn small_indices(instruction: &Instruction, case: &mut Case, random: &mut Random) {
    let register = &mut case.vectors.ymm[instruction.memory_index().number()];
    let size = if instruction.memory_size().size() == 0 {
        4
    } else {
        let name = format!("{:?}", instruction.mnemonic());
        // VGATHERDx has doubleword indices, VGATHERQx quadwords.
        if name.contains("herd") { 4 } else { 8 }
    };
    for index in register.chunks_exact_mut(size) {
        let value = random.below(0x180) as i64 - if random.one_in(4) { 0x80 } else { 0 };
        index.copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Brings `case` to `bench` and runs it there.
fn run(bench: &mut Bench, case: &Case) -> Result<(), Exception> {
    bench.cpu.gpr[..16].copy_from_slice(&case.gprs);
    bench.set_flags(case.rflags);
    bench.cpu.fpu.state = case.vectors.clone();
    bench.set_data(0, case.data.as_flattened());
    bench.run(&case.code)
}

/// Whether `exception` is what the kernel made `signal` of.
fn same_exception(case: &Case, exception: Option<Exception>, signal: Option<Signal>) -> bool {
    let Some(exception) = exception else {
        return signal.is_none();
    };
    if let (Vector::PageFault, Some(Signal::PageFault(address))) = (exception.vector, signal)
        && in_pieces(case)
    {
        // Which piece is accessed first is the processor's business.
        return exception.payload >> 12 == address >> 12;
    }
    match exception.vector {
        Vector::InvalidOpcode => signal == Some(Signal::IllegalInstruction),
        Vector::PageFault => signal == Some(Signal::PageFault(exception.payload)),
        Vector::GeneralProtection => signal == Some(Signal::Protection),
        Vector::StackFault => signal == Some(Signal::Bus),
        Vector::X87 | Vector::Simd => matches!(signal, Some(Signal::Arithmetic(_))),
        _ => false,
    }
}

fn decode(case: &Case) -> Instruction {
    Decoder::new(64, &case.code, DecoderOptions::NONE).decode()
}

fn mnemonic(case: &Case) -> Mnemonic {
    decode(case).mnemonic()
}

/// Whether the instruction accesses memory in several pieces.
fn in_pieces(case: &Case) -> bool {
    use Mnemonic as M;
    let instruction = decode(case);
    let masked_store = matches!(
        instruction.mnemonic(),
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
    ) && instruction.op0_kind() == OpKind::Memory;
    let other = matches!(
        instruction.mnemonic(),
        M::Fldenv
            | M::Fnstenv
            | M::Frstor
            | M::Fnsave
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Maskmovq
    );
    masked_store || other
}

/// AMD's processors do not check the alignment of SHA instructions' operands, against the manuals
/// (SDM vol. 2, exception class 4).
fn is_unaligned_sha(case: &Case, exception: Option<Exception>) -> bool {
    format!("{:?}", mnemonic(case)).starts_with("Sha")
        && exception.is_some_and(|exception| exception.vector == Vector::GeneralProtection)
}

/// Whether the instruction may fault for bytes that its mask leaves out (SDM vol. 2, MASKMOVDQU:
/// implementation-dependent), and did so on the host.
fn probes_unselected(case: &Case, effect: &Effect) -> bool {
    use Mnemonic as M;
    matches!(mnemonic(case), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
        && matches!(effect.signal, Some(Signal::PageFault(_)))
}

/// Whether the instruction converts and stores and raised an unmasked exception, and the host did
/// not look at the place that it then does not store to. The order of these two is the
/// processor's business (SDM vol. 3, 7.9); Intel's look at the numbers first.
fn is_withheld_store(case: &Case, exception: Option<Exception>, effect: &Effect) -> bool {
    let x87 = decode(case)
        .cpuid_features()
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::SSE3));
    let raised = match effect.signal {
        None => x87 && effect.vectors.fpu.pending() && !case.vectors.fpu.pending(),
        Some(Signal::Arithmetic(_)) => mnemonic(case) == Mnemonic::Vcvtps2ph,
        Some(_) => false,
    };
    decode(case).op0_kind() == OpKind::Memory
        && exception.is_some_and(|exception| exception.vector == Vector::PageFault)
        && raised
}

/// The offset in the data pages of what a store of 80 bits may leave there although it faults: it
/// may be made of several accesses, of which some complete (SDM vol. 3, 10.1.1). Intel's
/// processors store the significand first.
fn significand(case: &Case, exception: Option<Exception>) -> Option<usize> {
    exception?;
    let instruction = decode(case);
    let stores = matches!(instruction.mnemonic(), Mnemonic::Fstp | Mnemonic::Fbstp)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_size().size() == 10;
    let base = case.gprs[instruction.memory_base().number()];
    let address = base.wrapping_add(instruction.memory_displacement64());
    stores.then(|| address.wrapping_sub(DATA) as usize)
}

/// Whether the instruction has an MM register for an operand.
fn uses_mmx(case: &Case) -> bool {
    let instruction = decode(case);
    (0..instruction.op_count()).any(|n| instruction.op_register(n).is_mm())
}

/// What differs between `bench` after the case and the host's `effect`.
fn difference(
    bench: &Bench,
    case: &Case,
    exception: Option<Exception>,
    effect: &Effect,
) -> Option<String> {
    if is_unaligned_sha(case, exception)
        || probes_unselected(case, effect) && exception.is_none()
        || is_withheld_store(case, exception, effect)
    {
        return None;
    }
    if !same_exception(case, exception, effect.signal) {
        return Some(format!("{exception:?}, the host {:?}", effect.signal));
    }
    let cpu = &bench.cpu;
    if cpu.rip != effect.rip {
        return Some(format!("RIP {:x}, {:x}", cpu.rip, effect.rip));
    }
    if cpu.gpr[..16] != effect.gprs {
        return Some(format!(
            "registers\n{:x?}\n{:x?}",
            &cpu.gpr[..16],
            effect.gprs
        ));
    }
    let flags = cpu.flags.get().bits() & STATUS;
    if flags != effect.rflags & STATUS {
        return Some(format!("flags {flags:x}, {:x}", effect.rflags & STATUS));
    }
    let ours = &cpu.fpu.state;
    let mut theirs = effect.vectors.clone();
    // AMD's processors save the pointers only while an exception is pending.
    let (fpu, host) = (&ours.fpu, &mut theirs.fpu);
    let fresh = host.pending() && !case.vectors.fpu.pending();
    if !fresh {
        (host.fip, host.fdp, host.fop) = (fpu.fip, fpu.fdp, fpu.fop);
    }
    (host.fcs, host.fds) = (fpu.fcs, fpu.fds);
    if exception.is_some() && mnemonic(case) == Mnemonic::Maskmovq {
        // It may enter MMX mode before it faults.
        *host = fpu.clone();
    } else if exception.is_some() && uses_mmx(case) {
        // So may the others on Intel's processors, as far as TOP.
        host.set_top(fpu.top());
    }
    if ours.fpu != theirs.fpu {
        return Some(format!(
            "x87\nbefore {:x?}\nours   {:x?}\nhost   {:x?}",
            case.vectors.fpu, ours.fpu, theirs.fpu
        ));
    }
    if exception.is_some() && mnemonic(case) == Mnemonic::Vcvtps2ph {
        // Intel's processors note what the conversion raised before the store faults. The flags
        // are sticky, so nothing is different once the instruction was restarted.
        theirs.mxcsr &= !SIMD_FLAGS | ours.mxcsr;
    }
    if ours.mxcsr != theirs.mxcsr {
        return Some(format!("MXCSR {:x}, {:x}", ours.mxcsr, theirs.mxcsr));
    }
    for (n, (ours, theirs)) in ours.ymm.iter().zip(&theirs.ymm).enumerate() {
        if ours != theirs {
            return Some(format!("YMM{n}\n{ours:02x?}\n{theirs:02x?}"));
        }
    }
    let data = bench.data::<8192>(0);
    let host = effect.data.as_flattened();
    let significand = significand(case, exception).map(|at| at..at + 8);
    let at = data.iter().zip(host).enumerate().position(|(at, (a, b))| {
        a != b && !significand.as_ref().is_some_and(|s| s.contains(&at))
    })?;
    let end = (at + 32).min(data.len());
    Some(format!(
        "memory at {at:#x}\n{:02x?}\n{:02x?}",
        &data[at..end],
        &host[at..end]
    ))
}

/// Compares every `step`th of our codes with the host.
fn compare(from: usize, step: usize) {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut bench = Bench::with_vectors(Mode::User64);
    bench.follow_host();
    let mut failures = Vec::new();
    let ours = Code::values().filter(|code| is_ours(*code));
    for code in ours.skip(from).step_by(step) {
        let mut random = Random::new(code as u64);
        for round in 0..2 * cases() {
            let Some(instruction) = instance(code, &mut random, round % 2 == 0) else {
                continue;
            };
            let case = random_case(&instruction, &mut random);
            let effect = oracle.run(&case).expect("the oracle runs");
            let exception = run(&mut bench, &case).err();
            if let Some(difference) = difference(&bench, &case, exception, &effect) {
                failures.push(format!("{code:?} {:02x?}: {difference}", case.code));
                break;
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} codes differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn instructions_do_what_the_host_does_1_of_2() {
    compare(0, 2);
}

#[test]
fn instructions_do_what_the_host_does_2_of_2() {
    compare(1, 2);
}
