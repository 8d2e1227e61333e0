//! Where a vCPU stands, for people: registers, code bytes, the stack.

use engine::Vcpu;
use memory::GuestMemory;
use std::fmt::{self, Display, Formatter};
use x86::{Cr0, Efer, VcpuState};

/// Code bytes that are shown, from RIP on.
const CODE_BYTES: usize = 16;
/// Words of the stack that are shown.
const STACK_WORDS: u64 = 8;

/// A picture of one vCPU.
#[derive(Debug, Clone)]
pub struct VcpuReport {
    index: usize,
    state: VcpuState,
    code: Vec<Option<u8>>,
    stack: Vec<Option<u64>>,
}

impl VcpuReport {
    /// Takes the picture of `vcpu`, which stands.
    pub(crate) fn new(index: usize, vcpu: &dyn Vcpu, memory: &GuestMemory) -> Self {
        let state = vcpu.state();
        let byte = |linear| {
            vcpu.translate(linear)
                .and_then(|gpa| memory.load::<u8>(gpa).ok())
        };
        let code_base = if is_64bit(&state) {
            0
        } else {
            state.segments[1].base
        };
        let code = (0..CODE_BYTES as u64)
            .map(|i| byte(code_base.wrapping_add(state.rip).wrapping_add(i)))
            .collect();
        let stack_base = if is_64bit(&state) {
            0
        } else {
            state.segments[2].base
        };
        let width = if is_64bit(&state) { 8 } else { 4 };
        let word = |at: u64| {
            let mut bytes = (0..width).rev().map(|i| byte(at.wrapping_add(i)));
            bytes.try_fold(0, |word, byte| Some(word << 8 | u64::from(byte?)))
        };
        let stack = (0..STACK_WORDS)
            .map(|i| {
                word(
                    stack_base
                        .wrapping_add(state.gpr[4])
                        .wrapping_add(i * width),
                )
            })
            .collect();
        Self {
            index,
            state,
            code,
            stack,
        }
    }
}

/// Whether it executes 64-bit code.
pub(crate) fn is_64bit(state: &VcpuState) -> bool {
    state.efer.contains(Efer::LMA) && state.segments[1].is_long()
}

fn mode(state: &VcpuState) -> &'static str {
    let protected = state.cr0.contains(Cr0::PE);
    match (
        is_64bit(state),
        protected,
        state.rflags.contains(x86::Rflags::VM),
    ) {
        (true, ..) => "64-bit",
        (_, false, _) => "real mode",
        (.., true) => "virtual-8086 mode",
        _ if state.efer.contains(Efer::LMA) => "compatibility mode",
        _ if state.segments[1].is_big() => "32-bit protected mode",
        _ => "16-bit protected mode",
    }
}

impl Display for VcpuReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        let cs = &state.segments[1];
        writeln!(
            f,
            "vCPU {}: {}, CPL {}, {:?}",
            self.index,
            mode(state),
            state.segments[2].dpl(),
            state.activity
        )?;
        writeln!(
            f,
            "RIP {:04x}:{:016x}  RFLAGS {:08x}",
            cs.selector.0, state.rip, state.rflags
        )?;
        const NAMES: [&str; 16] = [
            "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11",
            "R12", "R13", "R14", "R15",
        ];
        for row in [[0, 3, 1, 2], [6, 7, 5, 4], [8, 9, 10, 11], [12, 13, 14, 15]] {
            let cells = row.map(|i| format!("{} {:016x}", NAMES[i], state.gpr[i]));
            writeln!(f, "{}", cells.join("  "))?;
        }
        writeln!(
            f,
            "CR0 {:08x}  CR2 {:016x}  CR3 {:016x}  CR4 {:08x}  EFER {:04x}",
            state.cr0, state.cr2, state.cr3, state.cr4, state.efer
        )?;
        const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];
        for (name, segment) in SEGMENTS.iter().zip(&state.segments) {
            writeln!(
                f,
                "{name} {:04x}  base {:016x}  limit {:08x}  access {:04x}{}",
                segment.selector.0,
                segment.base,
                segment.limit,
                segment.access,
                if segment.unusable { "  unusable" } else { "" }
            )?;
        }
        let (gdtr, idtr) = (state.gdtr, state.idtr);
        writeln!(
            f,
            "GDT {:016x}/{:04x}  IDT {:016x}/{:04x}  TR {:04x}  LDT {:04x}",
            gdtr.base,
            gdtr.limit,
            idtr.base,
            idtr.limit,
            state.tr.selector.0,
            state.ldtr.selector.0
        )?;
        write!(f, "code")?;
        for byte in &self.code {
            match byte {
                Some(byte) => write!(f, " {byte:02x}")?,
                None => write!(f, " ??")?,
            }
        }
        write!(f, "\nstack")?;
        for word in &self.stack {
            match word {
                Some(word) => write!(f, " {word:x}")?,
                None => write!(f, " ?")?,
            }
        }
        writeln!(f)
    }
}
