//! Every integer instruction of 64-bit code, in random forms on random operands, against the host
//! CPU. `DOPPEL_CASES` sets the number of cases for each instruction and kind of operand.

use crate::testing::{Bench, Mode, Random};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, MemoryOperand,
    Mnemonic, OpCodeOperandKind, OpKind, Register,
};
use native::oracle::{Case, Effect, Oracle, PAGE, Signal};
use x86::{Exception, Vector};

/// Cases for each of register and memory form.
fn cases() -> usize {
    let wanted = std::env::var("DOPPEL_CASES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(100)
}

/// CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;
const DF: u64 = 0x400;
const DATA: u64 = 0x2010_0000;
const DATA_BYTES: u64 = 2 * PAGE as u64;
/// Numbers of RCX, RSP, RBP, RSI and RDI.
const CX: usize = 1;
const SP: usize = 4;
const BP: usize = 5;
const SI: usize = 6;
const DI: usize = 7;

/// Whether `code` is one that this family must execute.
fn is_ours(code: Code) -> bool {
    use CpuidFeature as F;
    let features = [
        F::INTEL8086,
        F::INTEL186,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::CMOV,
        F::CX8,
        F::CMPXCHG16B,
        F::BMI1,
        F::BMI2,
        F::LZCNT,
        F::POPCNT,
        F::MOVBE,
        F::ADX,
        F::MULTIBYTENOP,
        F::PREFETCHW,
        F::PAUSE,
    ];
    let by_mnemonic = matches!(
        code.mnemonic(),
        Mnemonic::Crc32
            | Mnemonic::Movnti
            | Mnemonic::Lfence
            | Mnemonic::Mfence
            | Mnemonic::Sfence
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
    );
    let info = code.op_code();
    let ours = by_mnemonic || code.cpuid_features().iter().all(|f| features.contains(f));
    let encoded = matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    ours && encoded
        && info.mode64()
        // The one vendor's 64-bit code only.
        && info.intel_decoder64()
        && info.amd_decoder64()
        && !is_system(code)
}

/// What the families of other operating modes and privileges execute.
fn is_system(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    let far = |kind| {
        matches!(
            kind,
            OpCodeOperandKind::farbr2_2 | OpCodeOperandKind::farbr4_2
        )
    };
    let other_registers = (0..info.op_count()).any(|operand| {
        let name = format!("{:?}", info.op_kind(operand));
        ["seg", "cr_", "dr_", "tr_"]
            .iter()
            .any(|r| name.starts_with(r))
            && !name.contains("_r")
            || [
                "cr_reg", "dr_reg", "seg_reg", "tr_reg", "es", "cs", "ss", "ds", "fs", "gs",
            ]
            .contains(&name.as_str())
    });
    other_registers
        || info.op_kinds().iter().any(|kind| far(*kind))
        || info.is_privileged()
        || matches!(
            code.mnemonic(),
            M::Int
                | M::Int1
                | M::Int3
                | M::Into
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Retf
                | M::Pushf
                | M::Pushfd
                | M::Pushfq
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::In
                | M::Out
                | M::Cli
                | M::Sti
                | M::Hlt
                | M::Insb
                | M::Insw
                | M::Insd
                | M::Outsb
                | M::Outsw
                | M::Outsd
                | M::Lar
                | M::Lsl
                | M::Verr
                | M::Verw
                | M::Arpl
                | M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Str
                | M::Smsw
                | M::Cpuid
                | M::Lfs
                | M::Lgs
                | M::Lss
                | M::Lds
                | M::Les
                | M::Wait
                | M::Swapgs
                | M::Rdtsc
                | M::Invd
                | M::Wbinvd
                | M::Invlpg
                | M::Syscall
                | M::Sysenter
        )
        || matches!(
            code,
            // Undefined on AMD's processors.
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
                // Of its memory operand's four bytes, AMD's processors read all; Intel's two.
                | Code::Movsxd_r16_rm16
                // Far branches.
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
        )
}

/// An instruction with its operands.
struct Form {
    instruction: Instruction,
    bytes: Vec<u8>,
}

/// A random instruction of `code`; with a memory operand if `memory`.
fn form(code: Code, random: &mut Random, memory: bool) -> Option<Form> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    for operand in 0..info.op_count() {
        let name = format!("{:?}", info.op_kind(operand));
        if memory && name.ends_with("_or_mem") || name == "mem" || name == "mem_offs" {
            has_memory = true;
            set_memory(&mut instruction, operand, name == "mem_offs", random);
        } else {
            set_operand(&mut instruction, operand, &name, random);
        }
    }
    if memory && !has_memory {
        return None;
    }
    if has_memory && info.can_use_lock_prefix() && random.one_in(2) {
        instruction.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && is_string(code) && random.one_in(2) {
        instruction.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && is_string(code) && random.one_in(2) {
        instruction.set_has_repne_prefix(true);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, CODE).ok()?;
    let bytes = encoder.take_buffer();
    let instruction = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
    (instruction.code() == code).then_some(Form { instruction, bytes })
}

/// Where the instruction is.
const CODE: u64 = 0x2000_0800;

fn is_string(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
    )
}

/// Sets any operand but an explicit memory operand.
fn set_operand(instruction: &mut Instruction, operand: u32, name: &str, random: &mut Random) {
    let immediate = random.operand();
    let mut set_kind = |kind| instruction.set_op_kind(operand, kind);
    let register = match name {
        "imm8" => {
            set_kind(OpKind::Immediate8);
            return instruction.set_immediate8(immediate as u8);
        }
        "imm8_const_1" => {
            set_kind(OpKind::Immediate8);
            return instruction.set_immediate8(1);
        }
        "imm8sex16" | "imm8sex32" | "imm8sex64" => {
            set_kind(match name {
                "imm8sex16" => OpKind::Immediate8to16,
                "imm8sex32" => OpKind::Immediate8to32,
                _ => OpKind::Immediate8to64,
            });
            return instruction.set_immediate8to64(i64::from(immediate as i8));
        }
        "imm16" => {
            set_kind(OpKind::Immediate16);
            return instruction.set_immediate16(immediate as u16);
        }
        "imm32" => {
            set_kind(OpKind::Immediate32);
            return instruction.set_immediate32(immediate as u32);
        }
        "imm32sex64" => {
            set_kind(OpKind::Immediate32to64);
            return instruction.set_immediate32to64(i64::from(immediate as i32));
        }
        "imm64" => {
            set_kind(OpKind::Immediate64);
            return instruction.set_immediate64(immediate);
        }
        "br64_1" => {
            set_kind(OpKind::NearBranch64);
            let target = CODE.wrapping_add(immediate as i8 as i64 as u64);
            return instruction.set_near_branch64(target);
        }
        "br64_4" => {
            set_kind(OpKind::NearBranch64);
            let target = CODE.wrapping_add((immediate as i32 >> 1) as i64 as u64);
            return instruction.set_near_branch64(target);
        }
        "seg_rSI" => return set_kind(random.one_of(&[OpKind::MemorySegRSI, OpKind::MemorySegESI])),
        "es_rDI" => return set_kind(random.one_of(&[OpKind::MemoryESRDI, OpKind::MemoryESEDI])),
        "seg_rBX_al" => {
            let narrow = random.one_in(2);
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
            return instruction.set_memory_index(Register::AL);
        }
        _ => register(name, random),
    };
    set_kind(OpKind::Register);
    instruction.set_op_register(operand, register);
}

fn register(name: &str, random: &mut Random) -> Register {
    let number = random.below(16) as u32;
    match name {
        "al" => Register::AL,
        "cl" => Register::CL,
        "ax" => Register::AX,
        "dx" => Register::DX,
        "eax" => Register::EAX,
        "rax" => Register::RAX,
        // AL to BL, AH to BH, SPL to R15L.
        _ if name.starts_with("r8_") => Register::AL + random.below(20) as u32,
        _ if name.starts_with("r16_") => Register::AX + number,
        _ if name.starts_with("r32_") => Register::EAX + number,
        _ if name.starts_with("r64_") => Register::RAX + number,
        _ => panic!("an operand {name}"),
    }
}

fn set_memory(instruction: &mut Instruction, operand: u32, absolute: bool, random: &mut Random) {
    let displacement = random.one_of(&[0, 8, -0x40, 0x1234]);
    let target = DATA + random.below(DATA_BYTES);
    let memory = if absolute {
        MemoryOperand::with_displ(target, 8)
    } else {
        match random.below(8) {
            0 => MemoryOperand::with_base_displ_size(Register::RIP, target as i64, 8),
            1 => MemoryOperand::with_displ(target, 8),
            kind => {
                let first = if kind == 2 {
                    Register::EAX
                } else {
                    Register::RAX
                };
                let base = first + random.below(16) as u32;
                let index = match first + random.below(16) as u32 {
                    index if kind < 5 && index != base && index.number() != SP => index,
                    _ => Register::None,
                };
                let scale = if index == Register::None {
                    1
                } else {
                    1 << random.below(4)
                };
                let size = if displacement == 0 { 0 } else { 1 };
                MemoryOperand::with_base_index_scale_displ_size(
                    base,
                    index,
                    scale,
                    displacement,
                    size,
                )
            }
        }
    };
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_base(memory.base);
    instruction.set_memory_index(memory.index);
    instruction.set_memory_index_scale(memory.scale);
    instruction.set_memory_displacement64(memory.displacement as u64);
    instruction.set_memory_displ_size(memory.displ_size);
}

/// An address for an operand: mostly in the data pages, often across their border, sometimes
/// across their end or nowhere.
fn address(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => random.operand(),
        1 => DATA + DATA_BYTES - random.below(20),
        2 => DATA.wrapping_sub(random.below(20)),
        3..6 => DATA + PAGE as u64 - random.below(20),
        6..8 => DATA + random.below(DATA_BYTES / 16) * 16,
        _ => DATA + random.below(DATA_BYTES),
    }
}

/// Random registers and memory for `form`.
fn case(form: &Form, random: &mut Random) -> Case {
    let mut case = Case::new(&form.bytes);
    for gpr in &mut case.gprs {
        *gpr = random.operand();
    }
    for bytes in case.data.as_flattened_mut().chunks_exact_mut(8) {
        bytes.copy_from_slice(&random.operand().to_le_bytes());
    }
    case.rflags = 2 | random.next() & (STATUS | DF);
    let code = form.instruction.code();
    if is_string(code) {
        set_string(&mut case, random);
    }
    if form.instruction.stack_pointer_increment() != 0
        || matches!(
            form.instruction.mnemonic(),
            Mnemonic::Enter | Mnemonic::Leave
        )
    {
        case.gprs[SP] = address(random);
        case.gprs[BP] = address(random);
    }
    aim(form, &mut case, random);
    help(form, &mut case, random);
    case
}

/// Pointers into the data, close to each other at times, and a count that reaches an end of it
/// at times.
fn set_string(case: &mut Case, random: &mut Random) {
    case.gprs[SI] = address(random);
    case.gprs[DI] = if random.one_in(3) {
        case.gprs[SI]
            .wrapping_add(random.below(33))
            .wrapping_sub(16)
    } else {
        address(random)
    };
    case.gprs[CX] = random.below(40);
    if random.one_in(3) {
        case.gprs[CX] = random.below(1200);
    }
    if random.one_in(2) {
        // So that comparisons go on for a while.
        let byte = random.one_of(&[0, case.gprs[0] as u8]);
        let from = random.below(DATA_BYTES) as usize;
        case.data.as_flattened_mut()[from..].fill(byte);
        if random.one_in(2) {
            case.gprs[0] = u64::from_ne_bytes([byte; 8]);
        }
    }
}

/// Makes the explicit memory operand's address one of [`address`].
fn aim(form: &Form, case: &mut Case, random: &mut Random) {
    let instruction = &form.instruction;
    let base = instruction.memory_base();
    let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    if !has_memory || !base.is_gpr() {
        return;
    }
    let target = address(random);
    let index = instruction.memory_index();
    let index_value = match index {
        Register::None => 0,
        Register::AL => case.gprs[0] & 0xff,
        _ => case.gprs[index.number()].wrapping_mul(instruction.memory_index_scale().into()),
    };
    let displacement = instruction.memory_displacement64();
    case.gprs[base.number()] = target.wrapping_sub(index_value).wrapping_sub(displacement);
}

/// Makes operands likely with which the instruction does something.
fn help(form: &Form, case: &mut Case, random: &mut Random) {
    use Mnemonic as M;
    let instruction = &form.instruction;
    match instruction.mnemonic() {
        M::Div if random.one_in(2) => case.gprs[2] = random.below(4),
        M::Idiv if random.one_in(2) => {
            case.gprs[2] = ((case.gprs[0] as i64) >> 63) as u64;
        }
        M::Bt | M::Bts | M::Btr | M::Btc
            if instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register
                && !random.one_in(4) =>
        {
            let number = instruction.op1_register().full_register().number();
            let offset = random.below(0x4000).wrapping_sub(0x2000);
            let free = [instruction.memory_base(), instruction.memory_index()]
                .iter()
                .all(|r| !r.is_gpr() || r.full_register().number() != number);
            if free {
                case.gprs[number] = offset;
            }
        }
        M::Jmp | M::Call if instruction.op0_kind() == OpKind::Register => {
            let number = instruction.op0_register().number();
            case.gprs[number] = random.operand() >> random.one_of(&[0, 17]);
        }
        M::Ret => {
            let at = (case.gprs[SP].wrapping_sub(DATA)) as usize;
            let target = random.operand() >> random.one_of(&[0, 17]);
            if let Some(slot) = case.data.as_flattened_mut().get_mut(at..at.wrapping_add(8)) {
                slot.copy_from_slice(&target.to_le_bytes());
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if random.one_in(2) => {
            let value = case.gprs[0] as u32;
            case.data
                .as_flattened_mut()
                .as_chunks_mut::<4>()
                .0
                .fill(value.to_le_bytes());
            case.gprs[0] = u64::from(value) << 32 | u64::from(value);
            case.gprs[2] = case.gprs[0];
            aim(form, case, random);
        }
        _ => {}
    }
}

/// Whether the result of `case` itself is undefined: SHLD and SHRD by more than the width.
fn is_undefined(form: &Form, case: &Case) -> bool {
    let instruction = &form.instruction;
    let count = match instruction.op2_kind() {
        OpKind::Register => case.gprs[CX] & 31,
        _ => u64::from(instruction.immediate8()) & 31,
    };
    matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && instruction.op1_register().is_gpr16()
        && count > 16
}

/// Whether it rotates through CF by more than one bit, after which OF is undefined, even where the
/// rotation goes full circle (SDM vol. 2, RCL: by the count before it is reduced). Intel's
/// processors leave it then, AMD's compute it.
fn is_long_rotation(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
        && instruction.op1_kind() == OpKind::Immediate8
        && instruction.immediate8() & 31 > 1
}

/// Status flags that mean nothing after `instruction`.
fn undefined_flags(instruction: &Instruction) -> u64 {
    use iced_x86::RflagsBits as B;
    let mut undefined = instruction.rflags_undefined();
    if is_long_rotation(instruction) {
        undefined |= B::OF;
    }
    let flags = [
        (B::CF, 1 << 0),
        (B::PF, 1 << 2),
        (B::AF, 1 << 4),
        (B::ZF, 1 << 6),
        (B::SF, 1 << 7),
        (B::OF, 1 << 11),
    ];
    let bits = flags.iter().filter(|(bit, _)| undefined & bit != 0);
    bits.map(|(_, flag)| flag).sum()
}

/// What the interpreter makes of `case`, in the oracle's terms.
fn interpret(bench: &mut Bench, case: &Case) -> Effect {
    bench.cpu.gpr[..16].copy_from_slice(&case.gprs);
    bench.set_flags(case.rflags);
    bench.set_data(0, case.data.as_flattened());
    // A fresh TLB: the first access to a page takes the other way.
    if case.gprs[9] & 1 == 0 {
        bench.cpu.tlb.flush();
    }
    let raised = bench.run(&case.code);
    let mut gprs = [0; 16];
    gprs.copy_from_slice(&bench.cpu.gpr[..16]);
    Effect {
        signal: raised.err().as_ref().map(signal),
        rip: bench.cpu.rip,
        gprs,
        rflags: bench.cpu.flags.get().bits(),
        vectors: case.vectors.clone(),
        data: Box::new([bench.data(0), bench.data(PAGE as u64)]),
    }
}

/// The signal that Linux makes of `exception`.
fn signal(exception: &Exception) -> Signal {
    match exception.vector {
        Vector::PageFault => Signal::PageFault(exception.payload),
        Vector::GeneralProtection => Signal::Protection,
        Vector::StackFault | Vector::AlignmentCheck => Signal::Bus,
        Vector::DivideError => Signal::Arithmetic(1),
        Vector::InvalidOpcode => Signal::IllegalInstruction,
        other => panic!("{other:?} in user code"),
    }
}

/// Whether the instruction faults either way, and which operand's fault comes first is the CPU's
/// choice.
fn may_choose(form: &Form, ours: &Effect, host: &Effect) -> bool {
    use Mnemonic as M;
    let mnemonic = form.instruction.mnemonic();
    matches!(mnemonic, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
        && ours.signal.is_some()
        && host.signal.is_some()
}

/// Whether register `number` is a pointer of 32 bits in a repeated MOVS or STOS. Intel's processors
/// clear its upper half before the first element, so also where this faults or there is none;
/// the manuals have pointers written only after an element (SDM vol. 2, REP).
fn is_narrow_pointer(instruction: &Instruction, number: usize) -> bool {
    use Mnemonic as M;
    let narrow = |kind| (0..instruction.op_count()).any(|n| instruction.op_kind(n) == kind);
    let repeated = matches!(
        instruction.mnemonic(),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq
    ) && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
    repeated
        && match number {
            SI => narrow(OpKind::MemorySegESI),
            DI => narrow(OpKind::MemoryESEDI),
            _ => false,
        }
}

/// Takes the return address back that Intel's processors push before they find that a CALL's
/// target is not canonical (SDM vol. 2, CALL, looks at the target first). RSP stays in any case.
fn forget_push(form: &Form, ours: &Effect, host: &mut Effect) {
    let faulted = ours.signal == Some(Signal::Protection) && ours.signal == host.signal;
    if form.instruction.mnemonic() != Mnemonic::Call || !faulted {
        return;
    }
    let start = host.gprs[SP].wrapping_sub(8).wrapping_sub(DATA) as usize;
    let slot = start..start.wrapping_add(8);
    let (ours, host) = (ours.data.as_flattened(), host.data.as_flattened_mut());
    if let (Some(ours), Some(host)) = (ours.get(slot.clone()), host.get_mut(slot))
        && *host == (CODE + form.bytes.len() as u64).to_le_bytes()
    {
        host.copy_from_slice(ours);
    }
}

/// How the interpreter's effect differs from the host's.
fn differences(form: &Form, ours: &Effect, host: &Effect) -> Vec<String> {
    let mut found = Vec::new();
    if ours.signal != host.signal && !may_choose(form, ours, host) {
        found.push(format!(
            "signal {:x?}, host {:x?}",
            ours.signal, host.signal
        ));
    }
    if ours.rip != host.rip {
        found.push(format!("rip {:x}, host {:x}", ours.rip, host.rip));
    }
    for (number, (a, b)) in ours.gprs.iter().zip(&host.gprs).enumerate() {
        let same = a == b || is_narrow_pointer(&form.instruction, number) && a & 0xffff_ffff == *b;
        if !same {
            found.push(format!("register {number} {a:x}, host {b:x}"));
        }
    }
    let defined = (STATUS | DF) & !undefined_flags(&form.instruction);
    if (ours.rflags ^ host.rflags) & defined != 0 {
        found.push(format!("flags {:x}, host {:x}", ours.rflags, host.rflags));
    }
    let bytes = ours
        .data
        .as_flattened()
        .iter()
        .zip(host.data.as_flattened());
    if let Some((at, (a, b))) = bytes.enumerate().find(|(_, (a, b))| a != b) {
        found.push(format!("data at {at:x} {a:x}, host {b:x}"));
    }
    found
}

/// Whether there are 64-bit hosts without `code`.
fn is_extension(code: Code) -> bool {
    use CpuidFeature as F;
    let extensions = [F::BMI1, F::BMI2, F::LZCNT, F::POPCNT, F::MOVBE, F::ADX];
    let features = code.cpuid_features();
    features.iter().any(|feature| extensions.contains(feature))
}

/// Runs random cases of `code` and reports those that differ.
fn compare(code: Code, oracle: &mut Oracle, bench: &mut Bench, report: &mut Vec<String>) {
    let mut random = Random::new(code as u64 + 1);
    for memory in [false, true] {
        let mut failures = 0;
        for _ in 0..cases() {
            let Some(form) = form(code, &mut random, memory) else {
                continue;
            };
            let case = case(&form, &mut random);
            if is_undefined(&form, &case) {
                continue;
            }
            let mut host = match oracle.run(&case) {
                Ok(host) => host,
                Err(error) => panic!("{code:?}: {error}"),
            };
            if host.signal == Some(Signal::IllegalInstruction) && is_extension(code) {
                continue;
            }
            let ours = interpret(bench, &case);
            forget_push(&form, &ours, &mut host);
            let found = differences(&form, &ours, &host);
            if !found.is_empty() && failures < 3 {
                failures += 1;
                report.push(format!(
                    "{code:?} `{}` {:02x?}: {}\n    from {:x?} flags {:x}",
                    form.instruction,
                    case.code,
                    found.join("; "),
                    case.gprs,
                    case.rflags,
                ));
            }
        }
    }
}

#[test]
fn instructions_do_what_the_host_does() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut bench = Bench::new(Mode::User64);
    bench.follow_host();
    let mut report = Vec::new();
    let codes: Vec<_> = Code::values().filter(|code| is_ours(*code)).collect();
    assert!(codes.len() > 400, "only {} instructions", codes.len());
    for code in codes {
        compare(code, &mut oracle, &mut bench, &mut report);
    }
    assert!(
        report.is_empty(),
        "{} differences:\n{}",
        report.len(),
        report.join("\n")
    );
}
