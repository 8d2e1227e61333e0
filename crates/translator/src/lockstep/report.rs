//! What differs, and how it is told.

use super::{End, Page, Stop, Trial};
use crate::block::{Block, Key};
use crate::mode::Mode;
use crate::plan::INSTRUCTION_BYTES;
use crate::store::PAGE;
use crate::vcpu::TranslatorVcpu;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use interpreter::Snapshot;
use memory::Ram;
use native::VectorState;
use std::fmt::{self, Write};
use x86::Rflags;

/// Most runs of bytes in memory that are told.
const TOLD_MAX: usize = 8;
/// Accessed and dirty bits of a page-table entry, in its first byte.
const MARKS: u8 = 0x60;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// What differs after a block, a line for each.
#[derive(Default)]
pub(super) struct Differences(Vec<String>);

impl Differences {
    /// Compares `ours`, and guest memory, with what `trial` says. Of the arithmetic flags, those in
    /// `flags` are compared; memory at the offsets `ignored` is not.
    pub(super) fn find(
        ram: &Ram,
        pages: &[Page],
        ours: &Snapshot,
        trial: &Trial,
        is_same_end: bool,
        flags: u64,
        ignored: &[usize],
    ) -> Self {
        let mut found = Self::default();
        if is_same_end {
            found.registers(ours, &trial.registers, flags);
            found.memory(ram, pages, trial, ignored);
        } else {
            // One of them did more: there is nothing else to compare.
            found.pair("rip", ours.rip, trial.registers.rip);
        }
        found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn pair(&mut self, name: impl fmt::Display, ours: u64, theirs: u64) {
        self.0.push(format!(
            "{name}: translated {ours:#x}, interpreted {theirs:#x}"
        ));
    }

    fn bytes(&mut self, name: impl fmt::Display, ours: &[u8], theirs: &[u8]) {
        let (ours, theirs) = (hex(ours), hex(theirs));
        self.0
            .push(format!("{name}: translated {ours}, interpreted {theirs}"));
    }

    fn registers(&mut self, ours: &Snapshot, theirs: &Snapshot, flags: u64) {
        let Snapshot {
            gpr,
            rip: _,
            rflags,
            fs_base,
            gs_base,
            kernel_gs_base,
            cpl,
            segments,
            vectors,
        } = ours;
        let compared = !Rflags::STATUS.bits() | flags;
        let words = [
            ("fs base", *fs_base, theirs.fs_base),
            ("gs base", *gs_base, theirs.gs_base),
            ("kernel gs base", *kernel_gs_base, theirs.kernel_gs_base),
            ("cpl", (*cpl).into(), theirs.cpl.into()),
        ];
        let gpr = gpr.iter().zip(&theirs.gpr).zip(NAMES);
        let gpr = gpr.map(|((ours, theirs), name)| (name, *ours, *theirs));
        for (name, ours, theirs) in gpr.chain(words) {
            if ours != theirs {
                self.pair(name, ours, theirs);
            }
        }
        if (rflags ^ theirs.rflags) & compared != 0 {
            self.pair("rflags", *rflags & compared, theirs.rflags & compared);
        }
        for (name, (ours, theirs)) in SEGMENTS.iter().zip(segments.iter().zip(&theirs.segments)) {
            if ours != theirs {
                self.0.push(format!(
                    "{name}: translated {ours:x?}, interpreted {theirs:x?}"
                ));
            }
        }
        self.vectors(vectors, &theirs.vectors);
    }

    /// The pointers to the last x87 instruction and its operand are not compared: translated code
    /// has none.
    fn vectors(&mut self, ours: &VectorState, theirs: &VectorState) {
        for (n, (ours, theirs)) in ours.ymm.iter().zip(&theirs.ymm).enumerate() {
            if ours != theirs {
                self.bytes(format_args!("ymm{n}"), ours, theirs);
            }
        }
        for (n, (ours, theirs)) in ours.fpu.st.iter().zip(&theirs.fpu.st).enumerate() {
            if ours != theirs {
                self.bytes(format_args!("st{n}"), ours, theirs);
            }
        }
        let words = |state: &VectorState| {
            let fpu = &state.fpu;
            [
                fpu.fcw.into(),
                fpu.fsw.into(),
                fpu.ftw.into(),
                state.mxcsr.into(),
            ]
        };
        let names = ["x87 control", "x87 status", "x87 tags", "mxcsr"];
        for ((ours, theirs), name) in words(ours).into_iter().zip(words(theirs)).zip(names) {
            if ours != theirs {
                self.pair(name, ours, theirs);
            }
        }
    }

    /// Compares the pages that translated code might write to, byte by byte, and looks for bytes
    /// elsewhere that it should have written.
    fn memory(&mut self, ram: &Ram, pages: &[Page], trial: &Trial, ignored: &[usize]) {
        let effects = &trial.effects;
        for Page { offset, before } in pages {
            let mut expected = **before;
            let range = *offset..*offset + PAGE;
            for (at, bytes) in effects.written().filter(|(at, _)| range.contains(at)) {
                expected[at - offset..][..bytes.len()].copy_from_slice(bytes);
            }
            let mut now = [0; PAGE];
            ram.read(*offset, &mut now);
            for at in effects.marked().iter().filter(|at| range.contains(at)) {
                let at = at - offset;
                now[at] = now[at] & !MARKS | expected[at] & MARKS;
            }
            for at in ignored.iter().filter(|at| range.contains(at)) {
                now[at - offset] = expected[at - offset];
            }
            if now != expected {
                self.page(*offset, &now, &expected);
            }
        }
        for (at, bytes) in effects.written() {
            if pages.iter().any(|page| page.offset == at & !(PAGE - 1)) {
                continue;
            }
            let mut now = vec![0; bytes.len()];
            ram.read(at, &mut now);
            if now != bytes && self.0.len() < TOLD_MAX {
                self.bytes(format_args!("memory at {at:#x}"), &now, bytes);
            }
        }
    }

    fn page(&mut self, offset: usize, now: &[u8; PAGE], expected: &[u8; PAGE]) {
        let mut at = 0;
        while at < PAGE && self.0.len() < TOLD_MAX {
            let same = |(a, b): (&u8, &u8)| a == b;
            let equal = now[at..].iter().zip(&expected[at..]);
            at += equal.take_while(|pair| same(*pair)).count();
            let others = now[at..].iter().zip(&expected[at..]);
            let len = others.take_while(|pair| !same(*pair)).take(32).count();
            if len != 0 {
                let place = format_args!("memory at {:#x}", offset + at).to_string();
                self.bytes(place, &now[at..at + len], &expected[at..at + len]);
            }
            at += len;
        }
    }
}

/// A block whose translation is wrong.
pub(super) struct Report<'a> {
    pub(super) vcpu: &'a TranslatorVcpu,
    pub(super) key: &'a Key,
    /// Where its translation is.
    pub(super) entry: u32,
    pub(super) start: &'a Snapshot,
    pub(super) stop: Stop,
    pub(super) trial: &'a Trial,
    pub(super) differences: &'a Differences,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lockstep = self.vcpu.lockstep.as_ref().expect("this is lock-step");
        writeln!(
            f,
            "the translation of the block at {:#x} does not do what the interpreter does \
             (check {})",
            self.start.rip, lockstep.checked
        )?;
        for line in &self.differences.0 {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "translated code went {}", self.place(self.stop.end))?;
        write!(f, "the interpreter went {}", self.place(self.trial.end))?;
        if let Some(exception) = &self.trial.raises {
            let (vector, code) = (exception.vector, exception.error_code);
            write!(f, ", which raises {vector:?} (error code {code:#x})")?;
        }
        writeln!(f)?;
        self.registers(f)?;
        self.code(f)
    }
}

impl Report<'_> {
    fn place(&self, end: End) -> String {
        match end {
            End::Exit => "to an end of the block".to_owned(),
            End::Before(number) => {
                let step = self.vcpu.store.recipe(self.entry).steps[number];
                let page = self.start.rip & !(PAGE as u64 - 1);
                format!("up to the instruction at {:#x}", page + u64::from(step.at))
            }
        }
    }

    /// The registers with which the block was entered.
    fn registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the registers before the block:")?;
        let Snapshot {
            gpr,
            rflags,
            fs_base,
            gs_base,
            ..
        } = self.start;
        for (names, values) in NAMES.chunks(4).zip(gpr.chunks(4)) {
            for (name, value) in names.iter().zip(values) {
                write!(f, "  {name:>3} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  rflags {rflags:x}  fs base {fs_base:x}  gs base {gs_base:x}"
        )
    }

    /// The guest's instructions, each with what it was translated to.
    fn code(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(block) = self.vcpu.store.block_at(self.entry as usize) else {
            return Ok(());
        };
        let Key { offset, mode, .. } = *self.key;
        let bits = if mode.is_32bit() { 32 } else { 64 };
        let level = if mode.contains(Mode::USER) { 3 } else { 0 };
        writeln!(
            f,
            "the block, {bits}-bit code at CPL {level}, at {offset:#x} of memory, and its \
             translation:"
        )?;
        let memory = &self.vcpu.store.memory;
        let mut of = None;
        for (position, line) in self.host_code(&block) {
            let at = block.guest_offset(memory, position);
            if of.replace(at) != Some(at) {
                match at {
                    u16::MAX => writeln!(f, "  when something is missing:")?,
                    _ => writeln!(f, "  {}", self.guest_instruction(&block, at, bits))?,
                }
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }

    fn guest_instruction(&self, block: &Block, at: u16, bits: u32) -> String {
        let page = self.start.rip & !(PAGE as u64 - 1);
        let mut code = [0; INSTRUCTION_BYTES];
        let ram = self.vcpu.core.ram();
        let first = (PAGE - usize::from(at) % PAGE).min(INSTRUCTION_BYTES);
        ram.read(
            (self.key.offset & !(PAGE - 1)) + usize::from(at),
            &mut code[..first],
        );
        let mut known = first;
        if let Some(second) = block.second {
            ram.read(second.offset, &mut code[first..]);
            known = INSTRUCTION_BYTES;
        }
        let ip = page + u64::from(at);
        let mut decoder = Decoder::with_ip(bits, &code[..known], ip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let mut text = String::new();
        IntelFormatter::new().format(&instruction, &mut text);
        let bytes = hex(&code[..instruction.len()]);
        format!("{ip:x}  {bytes:<30} {text}")
    }

    /// The translation, with the offset in the cache of each instruction.
    fn host_code(&self, block: &Block) -> Vec<(u32, String)> {
        let mut code = vec![0; block.len as usize];
        let memory = &self.vcpu.store.memory;
        memory.read(block.entry as usize, &mut code);
        let ip = memory.address(block.entry as usize) as u64;
        let mut decoder = Decoder::with_ip(64, &code, ip, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let at = block.entry + decoder.position() as u32;
            let mut text = String::new();
            formatter.format(&decoder.decode(), &mut text);
            lines.push((at, format!("      {text}")));
        }
        lines
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}
