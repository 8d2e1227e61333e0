//! Every instruction on the allow-list, in random forms on random state, against the oracle.

use iced_x86::{
    Code, CodeSize, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind, OpKind,
    Register,
};

use crate::code::{ALIGNMENT, CAPACITY};
use crate::image::{EnvFormat, FxFormat, fldenv, fnsave, fnstenv, frstor, fxrstor, fxsave};
use crate::oracle::{Case, Effect, Oracle, Signal};
use crate::policy::{STATUS_FLAGS, Shape, analyse};
use crate::stub::assemble;
use crate::{
    Fpu, Frame, Native, Operation, Outcome, Refusal, Routine, SCRATCH_BYTES, Unit, VectorState,
};

/// xorshift64*: enough randomness for operands.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 32) as usize % n
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Random bytes, or numbers that are interesting in one of the formats.
    fn fill(&mut self, bytes: &mut [u8]) {
        const F32: [u32; 10] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
        ];
        const F64: [u64; 9] = [
            0,
            1 << 63,
            0x3ff0 << 48,
            0x7ff0 << 48,
            0x7ff8 << 48,
            (0x7ff0 << 48) + 1,
            1,
            1 << 51,
            (0x7ff0 << 48) - 1,
        ];
        for chunk in bytes.chunks_mut(8) {
            let value = match self.below(6) {
                0 => self.one_of(&F64),
                1 => u64::from(self.one_of(&F32)) | u64::from(self.one_of(&F32)) << 32,
                2 => {
                    u64::from((self.below(100) as f32).to_bits()) << 32
                        | u64::from((self.below(100) as f32 - 50.0).to_bits())
                }
                3 => (self.below(1000) as f64 - 500.0).to_bits(),
                _ => self.next(),
            };
            let length = chunk.len();
            chunk.copy_from_slice(&value.to_le_bytes()[..length]);
        }
    }

    fn x87_register(&mut self) -> [u8; 10] {
        const EXPONENTS: [u16; 8] = [0, 0x8000, 0x3fff, 0xbfff, 0x7fff, 0xffff, 0x4000, 0x4009];
        let mut st = [0; 10];
        let significand = match self.below(4) {
            0 => 0,
            1 => 1 << 63,
            2 => self.next() | 1 << 63,
            _ => self.next(),
        };
        st[..8].copy_from_slice(&significand.to_le_bytes());
        st[8..].copy_from_slice(&self.one_of(&EXPONENTS).to_le_bytes());
        st
    }

    fn state(&mut self) -> VectorState {
        let mut state = VectorState::reset();
        for ymm in &mut state.ymm {
            self.fill(ymm);
        }
        state.mxcsr = match self.below(3) {
            0 => 0x1f80,
            1 => 0x1f80 | self.next() as u32 & 0xe07f,
            _ => self.next() as u32 & 0xffff,
        };
        let fpu = &mut state.fpu;
        for st in &mut fpu.st {
            *st = self.x87_register();
        }
        fpu.fcw = 0x37f;
        fpu.ftw = self.one_of(&[0xff, 0xff, 0, self.0 as u8]);
        fpu.fsw = (self.next() as u16) & 0x7f40 & !0x40;
        if self.below(3) == 0 {
            fpu.fcw = self.next() as u16 & 0x1f3f | 0x40;
            fpu.fsw |= self.one_of(&[0, self.0 as u16 & 0x7f]);
        }
        fpu.update_summary();
        state
    }
}

/// Where memory operands are: the default layout's first data page.
const OPERAND: u64 = 0x2010_0000;

/// A random instruction of `code`, if the code has one that can be built here.
fn instance(code: Code, random: &mut Random, memory: bool) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for operand in 0..info.op_count() {
        let kind = info.op_kind(operand);
        let name = format!("{kind:?}");
        let choose =
            |first: Register, count: usize, random: &mut Random| first + random.below(count) as u32;
        let register = match kind {
            OpCodeOperandKind::st0 => Some(Register::ST0),
            OpCodeOperandKind::ax => Some(Register::AX),
            OpCodeOperandKind::sti_opcode => Some(choose(Register::ST0, 8, random)),
            OpCodeOperandKind::imm8 => {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                instruction.set_immediate8(random.next() as u8);
                continue;
            }
            _ if name == "mem" || memory && name.ends_with("_or_mem") => None,
            _ if name.starts_with("xmm_") => Some(choose(Register::XMM0, 16, random)),
            _ if name.starts_with("ymm_") => Some(choose(Register::YMM0, 16, random)),
            _ if name.starts_with("mm_") => Some(choose(Register::MM0, 8, random)),
            _ if name.starts_with("r8_") => Some(choose(Register::AL, 4, random)),
            _ if name.starts_with("r16_") => Some(choose(Register::AX, 16, random)),
            _ if name.starts_with("r32_") => Some(choose(Register::EAX, 16, random)),
            _ if name.starts_with("r64_") => Some(choose(Register::RAX, 16, random)),
            _ => return None,
        };
        if let Some(register) = register {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, register);
        } else {
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_displacement64(OPERAND);
            instruction.set_memory_displ_size(4);
        }
    }
    instruction.set_code_size(CodeSize::Code64);
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    (!decoded.is_invalid()).then_some(decoded)
}

fn encode(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder
        .encode(instruction, instruction.ip())
        .expect("was decoded");
    encoder.take_buffer()
}

/// Runs `routine` as the interpreter would.
fn run(routine: Routine, case: &Case) -> (Outcome, Frame, [u64; 16], Vec<u8>) {
    let mut frame = Frame::new();
    frame.state = case.vectors.clone();
    frame.flags = case.rflags;
    frame.scratch.fill(0xee);
    let mut gprs = case.gprs;
    let mut memory = case.data[0][..SCRATCH_BYTES].to_vec();
    let operand = routine.memory();
    let bytes = operand.map_or(0, |memory| usize::from(memory.bytes));
    if operand.is_some_and(|memory| memory.read) {
        frame.scratch[..bytes].copy_from_slice(&memory[..bytes]);
    }
    let outcome = routine.run(&mut frame, &mut gprs);
    assert!(
        frame.scratch[bytes..].iter().all(|&byte| byte == 0xee),
        "beyond the operand"
    );
    if operand.is_some_and(|memory| memory.write) && outcome == Outcome::Done {
        memory[..bytes].copy_from_slice(&frame.scratch[..bytes]);
    }
    (outcome, frame, gprs, memory)
}

fn random_case(code: &[u8], random: &mut Random) -> Case {
    let mut case = Case::new(code);
    case.gprs = std::array::from_fn(|_| {
        if random.below(2) == 0 {
            random.next()
        } else {
            random.below(40) as u64
        }
    });
    case.rflags = random.next() & u64::from(STATUS_FLAGS);
    case.vectors = random.state();
    random.fill(&mut case.data[0][..SCRATCH_BYTES]);
    case
}

/// What differs between the stub's result and the oracle's.
fn difference(routine: Routine, case: &Case, effect: &Effect) -> Option<String> {
    let (outcome, frame, gprs, memory) = run(routine, case);
    let signal = match outcome {
        Outcome::Done | Outcome::DoneWithoutStore => None,
        Outcome::SimdException | Outcome::X87Pending => Some(()),
    };
    let raised = match effect.signal {
        None => None,
        Some(Signal::Arithmetic(_)) => Some(()),
        Some(other) => return Some(format!("the host raised {other:?}")),
    };
    if signal != raised {
        return Some(format!("{outcome:?}, the host raised {:?}", effect.signal));
    }
    if gprs != effect.gprs {
        return Some(format!("registers\n{gprs:x?}\n{:x?}", effect.gprs));
    }
    let flags = if routine.flags_written() != 0 {
        frame.flags
    } else {
        case.rflags
    };
    if signal.is_none() && flags as u32 & STATUS_FLAGS != effect.rflags as u32 & STATUS_FLAGS {
        return Some(format!("flags {flags:x}, {:x}", effect.rflags));
    }
    let mut expected = effect.vectors.clone();
    let fpu = &frame.state.fpu;
    expected.fpu.fop = fpu.fop;
    (expected.fpu.fip, expected.fpu.fdp) = (fpu.fip, fpu.fdp);
    (expected.fpu.fcs, expected.fpu.fds) = (fpu.fcs, fpu.fds);
    if frame.state.fpu != expected.fpu {
        return Some(format!(
            "x87, {outcome:?}\nbefore {:x?}\nours   {:x?}\nhost   {:x?}",
            case.vectors.fpu, frame.state.fpu, expected.fpu
        ));
    }
    if frame.state.mxcsr != expected.mxcsr {
        return Some(format!(
            "MXCSR {:x}, {:x}",
            frame.state.mxcsr, expected.mxcsr
        ));
    }
    for (n, (ours, theirs)) in frame.state.ymm.iter().zip(&expected.ymm).enumerate() {
        if ours != theirs {
            return Some(format!("YMM{n}\n{ours:02x?}\n{theirs:02x?}"));
        }
    }
    (memory != effect.data[0][..SCRATCH_BYTES]).then(|| format!("memory, {outcome:?}"))
}

/// All codes that can be run here.
fn allowed() -> impl Iterator<Item = Code> {
    let mut random = Random(1);
    Code::values().filter(move |&code| {
        [false, true]
            .into_iter()
            .any(|memory| instance(code, &mut random, memory).is_some_and(|i| analyse(&i).is_ok()))
    })
}

fn compare_all(from: usize, step: usize, rounds: usize) {
    let native = Native::shared().expect("stubs");
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + from as u64);
    let mut failures = Vec::new();
    for code in allowed().skip(from).step_by(step) {
        for round in 0..rounds {
            let Some(instruction) = instance(code, &mut random, round % 2 == 0) else {
                continue;
            };
            let bytes = encode(&instruction);
            let routine = match native.translate(&instruction) {
                Ok(Operation::Run(routine)) => routine,
                other => panic!("{instruction}: {other:?}"),
            };
            let case = random_case(&bytes, &mut random);
            let effect = oracle.run(&case).expect("the oracle runs");
            if let Some(difference) = difference(routine, &case, &effect) {
                failures.push(format!("{code:?}: {bytes:02x?}: {difference}"));
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
fn stubs_do_what_the_host_does_1_of_2() {
    compare_all(0, 2, 100);
}

#[test]
fn stubs_do_what_the_host_does_2_of_2() {
    compare_all(1, 2, 100);
}

/// How many canonical forms `shape` stands for, by what is left of the guest's choice.
fn variants(code: Code, shape: &Shape) -> usize {
    let info = code.op_code();
    let kinds: Vec<_> = (0..info.op_count())
        .map(|n| format!("{:?}", info.op_kind(n)))
        .collect();
    let count = |prefix: &str| kinds.iter().filter(|kind| kind.starts_with(prefix)).count();
    let gprs = kinds.iter().filter(|kind| kind.starts_with('r')).count();
    let immediates = if count("imm8") == 1 { 256 } else { 1 };
    // Ways in which registers can be equal, and for CRC32 the high and low byte.
    let equalities = [1, 1, 2, 5][gprs] * if count("r8_") == 1 { 2 } else { 1 };
    let stack = if shape.fx {
        8usize.pow((count("sti") + count("mm_")) as u32)
    } else {
        1
    };
    immediates * equalities * stack
}

#[test]
fn the_stubs_of_all_canonical_forms_fit_the_pool() {
    let mut random = Random(1);
    let mut bytes = 0;
    for code in Code::values() {
        for memory in [false, true] {
            let Some(instruction) = instance(code, &mut random, memory) else {
                continue;
            };
            let Ok((shape, _)) = analyse(&instruction) else {
                continue;
            };
            let stub = assemble(&shape)
                .expect("assembles")
                .len()
                .next_multiple_of(ALIGNMENT);
            bytes += stub * variants(code, &shape);
        }
    }
    assert!(bytes + 256 <= CAPACITY, "{bytes} bytes");
    assert!(
        bytes > CAPACITY / 8,
        "{bytes} bytes: the sum is not plausible"
    );
}

#[test]
fn register_numbers_do_not_multiply_stubs() {
    let mut random = Random(7);
    let canonical = |instruction: &Instruction| {
        let (shape, _) = analyse(instruction).expect("allowed");
        encode(&shape.canonical)
    };
    for code in [
        Code::VEX_Vpaddb_ymm_ymm_ymmm256,
        Code::Pshufb_mm_mmm64,
        Code::Pinsrd_xmm_rm32_imm8,
    ] {
        let forms: std::collections::HashSet<_> = (0..500)
            .filter_map(|_| instance(code, &mut random, false))
            .map(|mut instruction| {
                if instruction.op_count() == 3 && code == Code::Pinsrd_xmm_rm32_imm8 {
                    instruction.set_immediate8(1);
                }
                canonical(&instruction)
            })
            .collect();
        assert_eq!(forms.len(), 1, "{code:?}");
    }
}

#[test]
fn hostile_instructions_are_refused() {
    let native = Native::shared().expect("stubs");
    let hostile: [&[u8]; 42] = [
        &[0x0f, 0x05],                         // syscall
        &[0xcc],                               // int3
        &[0xcd, 0x80],                         // int 0x80
        &[0xc3],                               // ret
        &[0xff, 0xe0],                         // jmp rax
        &[0xe8, 0, 0, 0, 0],                   // call
        &[0x50],                               // push rax
        &[0x9d],                               // popfq
        &[0xf4],                               // hlt
        &[0x8e, 0xd8],                         // mov ds, eax
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0x0f, 0x01, 0xf8],                   // swapgs
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],       // wrfsbase rax
        &[0x0f, 0xae, 0x00],                   // fxsave
        &[0x0f, 0xae, 0x08],                   // fxrstor
        &[0x0f, 0xae, 0x10],                   // ldmxcsr
        &[0x0f, 0xae, 0x18],                   // stmxcsr
        &[0x0f, 0xae, 0x20],                   // xsave
        &[0x0f, 0xae, 0x28],                   // xrstor
        &[0x0f, 0xae, 0x38],                   // clflush
        &[0x0f, 0xae, 0xe8],                   // lfence
        &[0x0f, 0x18, 0x08],                   // prefetcht0
        &[0x0f, 0xc3, 0x00],                   // movnti
        &[0xc5, 0xf8, 0xae, 0x10],             // vldmxcsr
        &[0xc5, 0xf8, 0x77],                   // vzeroupper
        &[0xc5, 0xfc, 0x77],                   // vzeroall
        &[0xd9, 0x20],                         // fldenv
        &[0xd9, 0x30],                         // fnstenv
        &[0xdd, 0x20],                         // frstor
        &[0xdd, 0x30],                         // fnsave
        &[0x0f, 0xc7, 0xf0],                   // rdrand
        &[0x0f, 0xa2],                         // cpuid
        &[0x0f, 0x31],                         // rdtsc
        &[0xf3, 0xa4],                         // rep movsb
        &[0x0f, 0x38, 0xf8, 0x00],             // enqcmd family space
        &[0x66, 0x0f, 0x38, 0xf8, 0x00],       // movdir64b
        &[0x0f, 0x38, 0xf9, 0x00],             // movdiri
        &[0x0f, 0x01, 0xc8],                   // monitor
        &[0xf2, 0x0f, 0x2b, 0x00],             // movntsd
        &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1], // vaddps zmm
        &[0x48, 0x01, 0xd8],                   // add rax, rbx
        &[0xf0, 0x0f, 0xb1, 0x08],             // lock cmpxchg
    ];
    for bytes in hostile {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let refused = native.translate(&instruction);
        assert!(
            matches!(refused, Err(Refusal::NotAllowed)),
            "{instruction}: {refused:?}"
        );
    }
    assert!(native.translate(&Instruction::default()).is_err());
}

/// A random masked move or gather whose accesses all lie in the data pages.
fn element_case(code: Code, random: &mut Random) -> Option<(Instruction, Case)> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut registers: Vec<u32> = (0..16).collect();
    for operand in 0..info.op_count() {
        let name = format!("{:?}", info.op_kind(operand));
        let number = registers.swap_remove(random.below(registers.len()));
        let (kind, register) = match name.get(..4).unwrap_or("mem_") {
            "xmm_" => (OpKind::Register, Register::XMM0 + number),
            "ymm_" => (OpKind::Register, Register::YMM0 + number),
            "mm_r" => (OpKind::Register, Register::MM0 + number % 8),
            "seg_" => (OpKind::MemorySegRDI, Register::None),
            _ => (OpKind::Memory, Register::None),
        };
        instruction.set_op_kind(operand, kind);
        if kind == OpKind::Register {
            instruction.set_op_register(operand, register);
        } else if kind == OpKind::Memory {
            instruction.set_memory_base(Register::RBX);
            let index = registers.swap_remove(random.below(registers.len()));
            match name.as_str() {
                "mem_vsib32x" | "mem_vsib64x" => {
                    instruction.set_memory_index(Register::XMM0 + index)
                }
                "mem_vsib32y" | "mem_vsib64y" => {
                    instruction.set_memory_index(Register::YMM0 + index)
                }
                _ => {}
            }
            instruction.set_memory_index_scale(random.one_of(&[1, 2, 4, 8]));
            instruction.set_memory_displ_size(1);
            instruction.set_memory_displacement64(16);
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).ok()?;
    let bytes = encoder.take_buffer();
    let mut case = random_case(&bytes, random);
    random.fill(case.data.as_flattened_mut());
    case.gprs[3] = OPERAND + 4000;
    case.gprs[7] = OPERAND + 4016;
    if instruction.is_vsib() {
        let index = usize::from(instruction.memory_index().number() as u8);
        let size = if format!("{:?}", info.op_kind(1)).contains("64") {
            8
        } else {
            4
        };
        for slot in case.vectors.ymm[index].chunks_exact_mut(size) {
            // Some of them far away.
            let offset = if random.below(12) == 0 {
                1 << 30
            } else {
                random.below(800) as i64 - 400
            };
            slot.copy_from_slice(&offset.to_le_bytes()[..size]);
        }
    }
    Some((
        Decoder::new(64, &bytes, DecoderOptions::NONE).decode(),
        case,
    ))
}

/// Executes it on copies of the case's state and memory, as the interpreter would. False after
/// a fault.
fn run_elements(
    operation: Operation,
    case: &Case,
    state: &mut VectorState,
    memory: &mut [u8],
) -> bool {
    let place = |base: u64, offset: i64, bytes: usize| {
        let start = base.wrapping_add_signed(offset).wrapping_sub(OPERAND) as usize;
        let end = start.checked_add(bytes).ok_or(())?;
        if end <= 8192 { Ok(start..end) } else { Err(()) }
    };
    match operation {
        Operation::Masked(masked) => {
            let implicit = masked.has_implicit_address();
            let base = if implicit {
                case.gprs[7]
            } else {
                case.gprs[3] + 16
            };
            if masked.is_store() {
                masked.store(state, |offset, bytes| {
                    memory[place(base, offset as i64, bytes.len())?].copy_from_slice(bytes);
                    Ok::<_, ()>(())
                })
            } else {
                masked.load(state, |offset, bytes| {
                    let range = place(base, offset as i64, bytes.len())?;
                    bytes.copy_from_slice(&memory[range]);
                    Ok::<_, ()>(())
                })
            }
        }
        Operation::Gather(gather) => gather.run(state, |offset, bytes| {
            let range = place(case.gprs[3] + 16, offset, bytes.len())?;
            bytes.copy_from_slice(&memory[range]);
            Ok::<_, ()>(())
        }),
        Operation::Run(_) => panic!("not a stub"),
    }
    .is_ok()
}

#[test]
fn masked_moves_and_gathers_do_what_the_host_does() {
    let native = Native::shared().expect("stubs");
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(99);
    let codes = Code::values().filter(|code| {
        let name = format!("{code:?}").to_lowercase();
        name.contains("maskmov") || name.contains("gather") && name.starts_with("vex")
    });
    let mut tried = 0;
    for code in codes {
        for _ in 0..300 {
            let Some((instruction, case)) = element_case(code, &mut random) else {
                continue;
            };
            tried += 1;
            let operation = native.translate(&instruction).expect("allowed");
            let mut state = case.vectors.clone();
            let mut memory = case.data.as_flattened().to_vec();
            if matches!(operation, Operation::Masked(m) if m.unit() == Unit::Mmx)
                && state.fpu.pending()
            {
                continue;
            }
            let done = run_elements(operation, &case, &mut state, &mut memory);
            let effect = oracle.run(&case).expect("runs");
            assert_eq!(
                done,
                effect.signal.is_none(),
                "{instruction} {:?}",
                effect.signal
            );
            let ours = (state.ymm, state.fpu.st, state.fpu.fsw, state.fpu.ftw);
            let theirs = &effect.vectors;
            let theirs = (theirs.ymm, theirs.fpu.st, theirs.fpu.fsw, theirs.fpu.ftw);
            assert_eq!(ours, theirs, "{instruction}");
            assert!(memory == effect.data.as_flattened(), "{instruction}");
        }
    }
    assert!(tried > 34 * 300, "{tried}");
}

#[test]
fn a_gather_with_overlapping_registers_is_invalid() {
    // vpgatherdd xmm1, [rax + xmm1], xmm2
    let bytes = [0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x08];
    let instruction = Decoder::new(64, &bytes, DecoderOptions::NO_INVALID_CHECK).decode();
    let result = Native::shared().expect("stubs").translate(&instruction);
    assert!(
        matches!(result, Err(Refusal::InvalidOperands)),
        "{instruction}: {result:?}"
    );
}

#[test]
fn code_of_32_bit_mode_runs_too() {
    // movd eax, xmm1 with xmm1's number from the same ModRM in 16- and 32-bit code
    for bitness in [16, 32] {
        let bytes = [0x66, 0x0f, 0x7e, 0xc8];
        let instruction = Decoder::new(bitness, &bytes, DecoderOptions::NONE).decode();
        let Ok(Operation::Run(routine)) = Native::shared().expect("stubs").translate(&instruction)
        else {
            panic!("{instruction}")
        };
        let mut frame = Frame::new();
        frame.state.ymm[1][..4].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        let mut gprs = [u64::MAX; 16];
        assert_eq!(routine.run(&mut frame, &mut gprs), Outcome::Done);
        assert_eq!(gprs[0], 0x1234_5678);
        assert_eq!((routine.gprs_written(), gprs[1]), (1, u64::MAX));
    }
}

/// The routine for 64-bit code.
fn routine(bytes: &[u8]) -> Routine {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    match Native::shared().expect("stubs").translate(&instruction) {
        Ok(Operation::Run(routine)) => routine,
        other => panic!("{instruction}: {other:?}"),
    }
}

#[test]
fn an_unmasked_simd_exception_leaves_the_destination() {
    let routine = routine(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1
    assert!(routine.uses_mxcsr() && routine.unit() == Unit::Sse);
    let mut frame = Frame::new();
    frame.state.ymm[0] = [0x3f; 32];
    frame.state.mxcsr = 0x1f80 & !(1 << 9); // division by zero is unmasked
    let before = frame.state.clone();
    assert_eq!(
        routine.run(&mut frame, &mut [0; 16]),
        Outcome::SimdException
    );
    assert_eq!(frame.state.mxcsr, before.mxcsr | 1 << 2);
    assert_eq!(frame.state.ymm, before.ymm);
    frame.state.mxcsr |= 1 << 9;
    assert_eq!(routine.run(&mut frame, &mut [0; 16]), Outcome::Done);
}

#[test]
fn threads_share_stubs_and_take_exceptions_apart() {
    let routine = routine(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1
    std::thread::scope(|scope| {
        for unmasked in [false, true] {
            scope.spawn(move || {
                for _ in 0..2000 {
                    let mut frame = Frame::new();
                    frame.state.ymm[0] = [0x3f; 32];
                    frame.state.mxcsr = if unmasked { 0x1d80 } else { 0x1f80 };
                    let outcome = routine.run(&mut frame, &mut [0; 16]);
                    assert_eq!(outcome == Outcome::SimdException, unmasked);
                }
            });
        }
    });
}

#[test]
fn alignment_is_demanded_where_the_manual_says() {
    let alignment = |bytes: &[u8]| routine(bytes).memory().expect("memory").alignment;
    assert_eq!(alignment(&[0x0f, 0x58, 0x00]), 16); // addps
    assert_eq!(alignment(&[0x0f, 0x10, 0x00]), 1); // movups
    assert_eq!(alignment(&[0x0f, 0x2b, 0x00]), 16); // movntps
    assert_eq!(alignment(&[0xf3, 0x0f, 0x58, 0x00]), 1); // addss
    assert_eq!(alignment(&[0x66, 0x0f, 0x3a, 0x63, 0x00, 0x00]), 1); // pcmpistri
    assert_eq!(alignment(&[0xc5, 0xf4, 0x58, 0x00]), 1); // vaddps ymm
    assert_eq!(alignment(&[0xc5, 0xfc, 0x28, 0x00]), 32); // vmovaps ymm
    assert_eq!(alignment(&[0xc5, 0xfd, 0xe7, 0x00]), 32); // vmovntdq ymm
    assert_eq!(alignment(&[0xd9, 0x00]), 1); // fld
}

/// The host's image after storing `state` with `code`, and the state after it.
fn host_image(oracle: &mut Oracle, code: &[u8], state: &VectorState) -> (Vec<u8>, VectorState) {
    let mut case = Case::new(code);
    case.vectors = state.clone();
    case.gprs[3] = OPERAND;
    let effect = oracle.run(&case).expect("runs");
    assert_eq!(effect.signal, None);
    (effect.data[0][..512].to_vec(), effect.vectors)
}

/// Without the pointers, which some processors keep only while an exception is pending.
fn without_pointers(fpu: &Fpu) -> Fpu {
    Fpu {
        fop: 0,
        fip: 0,
        fdp: 0,
        fcs: 0,
        fds: 0,
        ..fpu.clone()
    }
}

#[test]
fn environments_are_stored_as_the_host_does() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(5);
    for _ in 0..500 {
        let mut state = random.state();
        if state.fpu.pending() {
            state.fpu.fip = random.next() & 0xffff_ffff;
            state.fpu.fdp = random.next() & 0xffff_ffff;
            state.fpu.fop = random.next() as u16 & 0x7ff;
        }
        for (code, format, save) in [
            (&[0xd9, 0x33][..], EnvFormat::Protected32, false),
            (&[0x66, 0xd9, 0x33], EnvFormat::Protected16, false),
            (&[0xdd, 0x33], EnvFormat::Protected32, true),
            (&[0x66, 0xdd, 0x33], EnvFormat::Protected16, true),
        ] {
            let (image, after) = host_image(&mut oracle, code, &state);
            let mut fpu = state.fpu.clone();
            let ours = if save {
                fnsave(&mut fpu, format)[..format.fnsave_bytes()].to_vec()
            } else {
                fnstenv(&mut fpu, format)[..format.env_bytes()].to_vec()
            };
            // 387 and later clear or keep the selectors; the oracle can't set them.
            let mut theirs = image[..ours.len()].to_vec();
            let width = format.env_bytes() / 7;
            for field in [4, 6] {
                theirs[field * width..][..2].copy_from_slice(&ours[field * width..][..2]);
            }
            assert_eq!(ours, theirs, "{code:x?} {:x?}", state.fpu);
            assert_eq!(
                without_pointers(&fpu),
                without_pointers(&after.fpu),
                "{code:x?}"
            );
        }
    }
}

#[test]
fn environments_are_loaded_as_the_host_does() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(6);
    for _ in 0..500 {
        let state = random.state();
        for (code, format, restore) in [
            (&[0xd9, 0x23][..], EnvFormat::Protected32, false),
            (&[0x66, 0xd9, 0x23], EnvFormat::Protected16, false),
            (&[0xdd, 0x23], EnvFormat::Protected32, true),
            (&[0x66, 0xdd, 0x23], EnvFormat::Protected16, true),
        ] {
            let mut case = Case::new(code);
            case.vectors = state.clone();
            // FLDENV and FRSTOR are waiting instructions.
            case.vectors.fpu.fcw |= 0x3f;
            case.vectors.fpu.update_summary();
            case.gprs[3] = OPERAND;
            for byte in &mut case.data[0][..108] {
                *byte = random.next() as u8;
            }
            let effect = oracle.run(&case).expect("runs");
            assert_eq!(effect.signal, None);
            let mut fpu = case.vectors.fpu.clone();
            let load = if restore { frstor } else { fldenv };
            load(&mut fpu, format, &case.data[0][..108]);
            assert_eq!(
                without_pointers(&fpu),
                without_pointers(&effect.vectors.fpu),
                "{code:x?} {:x?}",
                &case.data[0][..28]
            );
        }
    }
}

#[test]
fn fxsave_images_are_the_host_s() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(8);
    for _ in 0..300 {
        let state = random.state();
        for (code, format) in [
            (&[0x0f, 0xae, 0x03][..], FxFormat::Long32),
            (&[0x48, 0x0f, 0xae, 0x03], FxFormat::Long64),
        ] {
            let (image, _) = host_image(&mut oracle, code, &state);
            let mut ours = [0; 512];
            fxsave(&state, format, &mut ours);
            // The pointers, and MXCSR_MASK, which says what this host has.
            ours[6..24].copy_from_slice(&image[6..24]);
            ours[28..32].copy_from_slice(&image[28..32]);
            assert_eq!(ours[..], image[..], "{code:x?}");
            let mut back = VectorState::reset();
            fxrstor(&mut back, format, &ours).expect("valid");
            assert_eq!(without_pointers(&back.fpu), without_pointers(&state.fpu));
        }
    }
}

#[test]
fn fxrstor_loads_what_the_host_loads() {
    let mut oracle = Oracle::new().expect("ptrace");
    let mut random = Random(9);
    for round in 0..500 {
        let mut case = Case::new(&[0x48, 0x0f, 0xae, 0x0b]);
        case.vectors = random.state();
        case.gprs[3] = OPERAND;
        for byte in &mut case.data[0][..512] {
            *byte = random.next() as u8;
        }
        if round % 8 != 0 {
            case.data[0][26..28].fill(0);
        } else {
            case.data[0][27] |= 0x80;
        }
        let image = case.data[0].first_chunk().expect("a page");
        let mut ours = case.vectors.clone();
        let loaded = fxrstor(&mut ours, FxFormat::Long64, image);
        let effect = oracle.run(&case).expect("runs");
        assert_eq!(loaded.is_err(), effect.signal == Some(Signal::Protection));
        assert_eq!(
            without_pointers(&ours.fpu),
            without_pointers(&effect.vectors.fpu)
        );
        assert_eq!(
            (ours.mxcsr, ours.ymm),
            (effect.vectors.mxcsr, effect.vectors.ymm)
        );
    }
}
