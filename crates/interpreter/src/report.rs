//! What people are told: trace events, and the story of a triple fault.

use crate::cpu::{CodeSize, Cpu};
use crate::decode::INSTRUCTION_MAX;
use crate::events::Event;
use engine::Kinds;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;
use x86::{Exception, Segment, SegmentRegister, Vector};

impl Cpu {
    /// Reports an event of `kind`, if somebody wants to see it.
    #[inline]
    pub(crate) fn emit(&self, kind: Kinds, event: impl FnOnce() -> engine::Event) {
        if self.trace.intersects(kind)
            && let Some(tracer) = &self.shared.tracer
        {
            tracer.event(self.index, &event());
        }
    }

    /// Reports the instruction at `linear`, which is about to execute.
    pub(crate) fn trace_instruction(&self, linear: u64) {
        self.emit(Kinds::INSTRUCTIONS, || engine::Event::Instruction {
            linear,
            text: self.disassemble(linear),
        });
    }

    /// The instruction at `linear` as text.
    fn disassemble(&self, linear: u64) -> String {
        let code = self.peek_code(linear);
        let bitness = match self.code_size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let mut decoder = Decoder::with_ip(bitness, &code, self.rip, DecoderOptions::NONE);
        let mut text = String::new();
        IntelFormatter::new().format(&decoder.decode(), &mut text);
        text
    }

    /// Up to an instruction's length of code at `linear`; fewer bytes where no memory is mapped.
    fn peek_code(&self, linear: u64) -> Vec<u8> {
        let byte_at = |at| {
            let linear = if self.is_64bit() {
                linear.wrapping_add(at)
            } else {
                linear.wrapping_add(at) & 0xffff_ffff
            };
            self.memory.load::<u8>(self.peek(linear)?).ok()
        };
        (0..INSTRUCTION_MAX as u64).map_while(byte_at).collect()
    }

    /// How it came to a triple fault: the last `events`, then `last`, which was the third fault.
    pub(crate) fn tell_triple_fault(&self, events: &[Option<Event>], last: &Event) -> String {
        let mut text = format!("triple fault on vCPU {}:", self.index);
        for event in events.iter().flatten() {
            let _ = write!(text, " {} raised", describe(event));
        }
        let _ = writeln!(text, " {}", describe(last));
        text + &self.tell_registers()
    }

    /// Registers and code at RIP.
    fn tell_registers(&self) -> String {
        const NAMES: [&str; 16] = [
            "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11",
            "R12", "R13", "R14", "R15",
        ];
        let mut text = String::new();
        let cs = self.segment(SegmentRegister::Cs);
        let _ = writeln!(
            text,
            "RIP {:04x}:{:016x} RFLAGS {:08x} CPL {} {:?}",
            cs.selector.0,
            self.rip,
            self.flags.get().bits(),
            self.cpl,
            self.code_size,
        );
        for row in 0..4 {
            let of_row =
                (4 * row..4 * row + 4).map(|i| format!("{} {:016x}", NAMES[i], self.gpr[i]));
            let _ = writeln!(text, "{}", of_row.collect::<Vec<_>>().join(" "));
        }
        let _ = writeln!(
            text,
            "CR0 {:08x} CR2 {:016x} CR3 {:016x} CR4 {:08x} EFER {:04x}",
            self.cr0.bits(),
            self.cr2,
            self.cr3,
            self.cr4.bits(),
            self.efer.bits(),
        );
        let named = ["ES", "CS", "SS", "DS", "FS", "GS"]
            .into_iter()
            .zip(&self.segments);
        for (name, segment) in named.chain([("TR", &self.tr), ("LDTR", &self.ldtr)]) {
            let _ = writeln!(text, "{name:4} {}", describe_segment(segment));
        }
        let _ = writeln!(
            text,
            "GDTR {:016x} limit {:04x} IDTR {:016x} limit {:04x}",
            self.gdtr.base, self.gdtr.limit, self.idtr.base, self.idtr.limit,
        );
        text + &self.tell_code()
    }

    fn tell_code(&self) -> String {
        let linear = if self.is_64bit() {
            self.rip
        } else {
            cs_base(self).wrapping_add(self.rip) & 0xffff_ffff
        };
        let code = self.peek_code(linear);
        if code.is_empty() {
            return "code: none is mapped there".into();
        }
        let bytes: Vec<_> = code.iter().map(|b| format!("{b:02x}")).collect();
        format!("code: {} ({})", bytes.join(" "), self.disassemble(linear))
    }
}

fn cs_base(cpu: &Cpu) -> u64 {
    cpu.segment(SegmentRegister::Cs).base
}

fn describe_segment(segment: &Segment) -> String {
    let usable = if segment.unusable { " unusable" } else { "" };
    format!(
        "{:04x} base {:016x} limit {:08x} access {:04x}{usable}",
        segment.selector.0, segment.base, segment.limit, segment.access
    )
}

fn describe(event: &Event) -> String {
    match event {
        Event::Exception(exception) => describe_exception(exception),
        Event::Interrupt(vector) => format!("interrupt {vector:#04x}"),
        Event::Software(vector) => format!("INT {vector:#04x}"),
        Event::InterruptOne => "INT1".into(),
        Event::Nmi => "NMI".into(),
    }
}

fn describe_exception(exception: &Exception) -> String {
    let name = mnemonic(exception.vector);
    match exception.vector {
        Vector::PageFault => {
            format!(
                "{name}({:#x}) at {:#x}",
                exception.error_code, exception.payload
            )
        }
        vector if vector.has_error_code() => format!("{name}({:#x})", exception.error_code),
        _ => name.into(),
    }
}

/// The short name of an exception (SDM vol. 3, table 7-1).
fn mnemonic(vector: Vector) -> &'static str {
    match vector {
        Vector::DivideError => "#DE",
        Vector::Debug => "#DB",
        Vector::Nmi => "NMI",
        Vector::Breakpoint => "#BP",
        Vector::Overflow => "#OF",
        Vector::BoundRange => "#BR",
        Vector::InvalidOpcode => "#UD",
        Vector::DeviceNotAvailable => "#NM",
        Vector::DoubleFault => "#DF",
        Vector::InvalidTss => "#TS",
        Vector::SegmentNotPresent => "#NP",
        Vector::StackFault => "#SS",
        Vector::GeneralProtection => "#GP",
        Vector::PageFault => "#PF",
        Vector::X87 => "#MF",
        Vector::AlignmentCheck => "#AC",
        Vector::MachineCheck => "#MC",
        Vector::Simd => "#XM",
    }
}
