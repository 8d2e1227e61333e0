//! Every instruction on the allow-list, in random forms on random state, against the oracle.

use iced_x86::{
    Code, CodeSize, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind, OpKind,
    Register,
};

use crate::oracle::{Case, Effect, Oracle, Signal};
use crate::policy::{STATUS_FLAGS, analyse};
use crate::{Frame, Native, Operation, Outcome, Routine, SCRATCH_BYTES, VectorState};

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
    compare_all(0, 2, 40);
}

#[test]
fn stubs_do_what_the_host_does_2_of_2() {
    compare_all(1, 2, 40);
}
