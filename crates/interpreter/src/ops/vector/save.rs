//! FXSAVE, FXRSTOR and the XSAVE family (SDM vol. 1, 10.5 and chapter 13).
//!
//! The user state components that exist are x87, SSE and AVX; there is no supervisor component.
//! Which of them are in use ([`in_use`], the manual's XINUSE) is found by comparison with their
//! initial configuration. Modifications since the last XRSTOR are not tracked, so the optimised
//! forms leave out only what is in its initial configuration.

use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use crate::paging::Intent;
use iced_x86::{Code, Instruction};
use native::image::{self, FXSAVE_BYTES, FxFormat};
use native::{Fpu, MXCSR_MASK, MXCSR_RESET, VectorState};
use std::ops::Range;
use x86::cpuid::Feature;
use x86::{Cr0, Cr4, Xcr0};

/// Where the XSAVE header begins, after the legacy region (SDM vol. 1, 13.4).
const HEADER: usize = FXSAVE_BYTES;
/// Offset of XCOMP_BV.
const XCOMP_BV: usize = HEADER + 8;
/// Where the extended region begins. Its only component is AVX, in the standard and in the
/// compacted format alike.
const AVX: usize = HEADER + 64;
/// Size of the whole area with all components (CPUID leaf 0xd).
const AREA_BYTES: usize = AVX + 16 * 16;
/// XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;
/// An area's alignment.
const ALIGNMENT: u64 = 64;
/// MXCSR and MXCSR_MASK in the legacy region.
const MXCSR: Range<usize> = 24..32;
/// XMM0 to XMM15 in the legacy region.
const XMM: usize = 160;

/// How an instruction of the family saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Save {
    /// XSAVE: every component that is asked for.
    Plain,
    /// XSAVEOPT: those in use.
    Optimised,
    /// XSAVEC and XSAVES: those in use, in the compacted format.
    Compacted,
}

/// The handler for `instruction`.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Code as C;
    Some(match instruction.code() {
        C::Fxsave_m512byte => fxsave::<false>,
        C::Fxsave64_m512byte => fxsave::<true>,
        C::Fxrstor_m512byte => fxrstor::<false>,
        C::Fxrstor64_m512byte => fxrstor::<true>,
        C::Xsave_mem => |cpu, op| xsave(cpu, op, Save::Plain, false),
        C::Xsave64_mem => |cpu, op| xsave(cpu, op, Save::Plain, true),
        C::Xsaveopt_mem => |cpu, op| xsave(cpu, op, Save::Optimised, false),
        C::Xsaveopt64_mem => |cpu, op| xsave(cpu, op, Save::Optimised, true),
        C::Xsavec_mem => |cpu, op| xsave(cpu, op, Save::Compacted, false),
        C::Xsavec64_mem => |cpu, op| xsave(cpu, op, Save::Compacted, true),
        C::Xsaves_mem => |cpu, op| xsaves(cpu, op, false),
        C::Xsaves64_mem => |cpu, op| xsaves(cpu, op, true),
        C::Xrstor_mem => |cpu, op| xrstor(cpu, op, false),
        C::Xrstor64_mem => |cpu, op| xrstor(cpu, op, true),
        C::Xrstors_mem => |cpu, op| xrstors(cpu, op, false),
        C::Xrstors64_mem => |cpu, op| xrstors(cpu, op, true),
        _ => return None,
    })
}

impl Cpu {
    fn fx_format(&self, long: bool) -> FxFormat {
        match (self.is_64bit(), long) {
            (false, _) => FxFormat::Legacy,
            (true, false) => FxFormat::Long32,
            (true, true) => FxFormat::Long64,
        }
    }

    /// #GP(0) unless `op`'s operand of `len` bytes is aligned to `alignment`.
    fn aligned(&mut self, op: &Op, len: usize, alignment: u64) -> Result {
        if !self
            .linear_of(op, len, Intent::Read)?
            .is_multiple_of(alignment)
        {
            return self.general_protection(0);
        }
        Ok(())
    }

    /// #UD or #NM if the instructions of the XSAVE family that `feature` stands for can't be
    /// used; the components that EDX:EAX asks for.
    fn requested(&mut self, feature: Feature) -> Result<Xcr0> {
        if !self.cr4.contains(Cr4::OSXSAVE) || !self.model.has(feature) {
            return self.undefined();
        }
        if self.cr0.contains(Cr0::TS) {
            return self.no_fpu();
        }
        let (eax, edx): (u32, u32) = (self.reg(0), self.reg(2));
        let mask = u64::from(edx) << 32 | u64::from(eax);
        Ok(self.xcr0 & Xcr0::from_bits_retain(mask))
    }

    /// #GP(0) outside CPL 0.
    fn supervisor_only(&mut self) -> Result {
        if self.cpl != 0 {
            return self.general_protection(0);
        }
        Ok(())
    }
}

fn fxsave<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.aligned(op, FXSAVE_BYTES, 16)?;
    let format = cpu.fx_format(LONG);
    let offset = cpu.address(op);
    let written = format.written();
    cpu.probe_image(op.segment, offset, written)?;
    let mut area = [0; FXSAVE_BYTES];
    image::fxsave(&cpu.fpu.state, format, &mut area);
    cpu.store_image(op.segment, offset, &area[..written])
}

fn fxrstor<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.aligned(op, FXSAVE_BYTES, 16)?;
    let format = cpu.fx_format(LONG);
    let mut area = [0; FXSAVE_BYTES];
    cpu.load_image(op.segment, cpu.address(op), &mut area)?;
    if image::fxrstor(&mut cpu.fpu.state, format, &area).is_err() {
        return cpu.general_protection(0);
    }
    Ok(())
}

/// The components that are not in their initial configuration (SDM vol. 1, 13.6). SSE counts as
/// in use if MXCSR is not as after reset: all instructions of the family save it then.
fn in_use(state: &VectorState) -> Xcr0 {
    let nonzero = |bytes: Range<usize>| {
        let mut halves = state.ymm.iter().map(|ymm| &ymm[bytes.clone()]);
        halves.any(|half| half != [0; 16])
    };
    let mut used = Xcr0::empty();
    used.set(Xcr0::X87, state.fpu != Fpu::init());
    used.set(Xcr0::SSE, nonzero(0..16) || state.mxcsr != MXCSR_RESET);
    used.set(Xcr0::AVX, nonzero(16..32));
    used
}

fn xsaves(cpu: &mut Cpu, op: &Op, long: bool) -> Result {
    cpu.requested(Feature::Xsaves)?;
    cpu.supervisor_only()?;
    xsave(cpu, op, Save::Compacted, long)
}

/// SDM vol. 1, 13.7 (XSAVE), 13.9 (XSAVEOPT), 13.10 (XSAVEC), 13.11 (XSAVES).
fn xsave(cpu: &mut Cpu, op: &Op, how: Save, long: bool) -> Result {
    let requested = cpu.requested(match how {
        Save::Plain => Feature::Xsave,
        Save::Optimised => Feature::Xsaveopt,
        Save::Compacted => Feature::Xsavec,
    })?;
    cpu.aligned(op, AVX, ALIGNMENT)?;
    let in_use = in_use(&cpu.fpu.state) & requested;
    let saved = if how == Save::Plain {
        requested
    } else {
        in_use
    };
    let offset = cpu.address(op);

    let mut area = [0; AREA_BYTES];
    let registers = cpu.vector_registers();
    fill_area(&cpu.fpu.state, cpu.fx_format(long), &mut area);
    let mut parts = Parts::default();
    if saved.contains(Xcr0::X87) {
        parts.push(0..MXCSR.start);
        parts.push(MXCSR.end..XMM);
    }
    let mxcsr = if how == Save::Compacted {
        saved.contains(Xcr0::SSE)
    } else {
        requested.intersects(Xcr0::SSE | Xcr0::AVX)
    };
    if mxcsr {
        parts.push(MXCSR);
    }
    if saved.contains(Xcr0::SSE) {
        parts.push(XMM..XMM + 16 * registers);
    }
    if saved.contains(Xcr0::AVX) {
        parts.push(AVX..AVX + 16 * registers);
    }
    if how == Save::Compacted {
        area[HEADER..XCOMP_BV].copy_from_slice(&in_use.bits().to_le_bytes());
        let format = requested.bits() | COMPACTED;
        area[XCOMP_BV..XCOMP_BV + 8].copy_from_slice(&format.to_le_bytes());
        parts.push(HEADER..XCOMP_BV + 8);
    } else {
        let header = offset.wrapping_add(HEADER as u64);
        let old = cpu.load_at::<u64>(op.segment, header)?;
        let new = old & !requested.bits() | in_use.bits();
        area[HEADER..XCOMP_BV].copy_from_slice(&new.to_le_bytes());
        parts.push(HEADER..XCOMP_BV);
    }
    let first = parts.iter().map(|part| part.start).min().unwrap_or(HEADER);
    let end = parts.iter().map(|part| part.end).max().unwrap_or(AVX);
    cpu.probe_image(op.segment, offset.wrapping_add(first as u64), end - first)?;
    for part in parts.iter() {
        let at = offset.wrapping_add(part.start as u64);
        cpu.store_image(op.segment, at, &area[part])?;
    }
    Ok(())
}

/// The parts of an area that are written: at most both x87 parts, MXCSR, XMM, AVX and the header.
#[derive(Default)]
struct Parts {
    parts: [Range<usize>; 6],
    count: usize,
}

impl Parts {
    fn push(&mut self, part: Range<usize>) {
        self.parts[self.count] = part;
        self.count += 1;
    }

    fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.parts[..self.count].iter().cloned()
    }
}

/// Fills in the components, all but the header.
fn fill_area(state: &VectorState, format: FxFormat, area: &mut [u8; AREA_BYTES]) {
    let legacy = area
        .first_chunk_mut::<FXSAVE_BYTES>()
        .expect("the legacy region");
    image::store_x87(&state.fpu, format, legacy);
    area[MXCSR.start..MXCSR.start + 4].copy_from_slice(&state.mxcsr.to_le_bytes());
    area[MXCSR.start + 4..MXCSR.end].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for (n, ymm) in state.ymm.iter().enumerate() {
        area[XMM + 16 * n..XMM + 16 * (n + 1)].copy_from_slice(&ymm[..16]);
        area[AVX + 16 * n..AVX + 16 * (n + 1)].copy_from_slice(&ymm[16..]);
    }
}

/// An XSAVE header.
struct Header {
    state: Xcr0,
    compaction: u64,
    /// Bytes 23:16 and 63:24 are zeros.
    reserved_23_16: bool,
    reserved_63_24: bool,
}

impl Header {
    fn load(cpu: &mut Cpu, op: &Op) -> Result<Self> {
        let mut bytes = [0; 64];
        let offset = cpu.address(op).wrapping_add(HEADER as u64);
        cpu.load_bytes(op.segment, offset, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let [state, compaction] = [words[0], words[1]].map(u64::from_le_bytes);
        Ok(Self {
            state: Xcr0::from_bits_retain(state),
            compaction,
            reserved_23_16: words[2] == [0; 8],
            reserved_63_24: words[3..].iter().all(|word| *word == [0; 8]),
        })
    }

    fn is_compacted(&self) -> bool {
        self.compaction & COMPACTED != 0
    }

    /// Whether the header is one that XRSTOR takes with these components enabled
    /// (SDM vol. 1, 13.8).
    fn is_valid(&self, enabled: Xcr0) -> bool {
        if !self.is_compacted() {
            return enabled.contains(self.state) && self.compaction == 0 && self.reserved_23_16;
        }
        let components = Xcr0::from_bits_retain(self.compaction & !COMPACTED);
        enabled.contains(components)
            && components.contains(self.state)
            && self.reserved_23_16
            && self.reserved_63_24
    }
}

/// SDM vol. 1, 13.12.
fn xrstors(cpu: &mut Cpu, op: &Op, long: bool) -> Result {
    let requested = cpu.requested(Feature::Xsaves)?;
    cpu.supervisor_only()?;
    cpu.aligned(op, AVX, ALIGNMENT)?;
    let header = Header::load(cpu, op)?;
    if !header.is_compacted() {
        return cpu.general_protection(0);
    }
    restore(cpu, op, &header, requested, long)
}

/// SDM vol. 1, 13.8.
fn xrstor(cpu: &mut Cpu, op: &Op, long: bool) -> Result {
    let requested = cpu.requested(Feature::Xsave)?;
    cpu.aligned(op, AVX, ALIGNMENT)?;
    let header = Header::load(cpu, op)?;
    if header.is_compacted() && !cpu.model.has(Feature::Xsavec) {
        return cpu.general_protection(0);
    }
    restore(cpu, op, &header, requested, long)
}

/// Loads the requested components that the area holds, and initialises the others.
fn restore(cpu: &mut Cpu, op: &Op, header: &Header, requested: Xcr0, long: bool) -> Result {
    if !header.is_valid(cpu.xcr0) {
        return cpu.general_protection(0);
    }
    let loaded = requested & header.state;
    let mut area = [0; AREA_BYTES];
    let offset = cpu.address(op);
    // The compacted form treats MXCSR as part of SSE; the standard form loads it whenever SSE or
    // AVX is requested (13.8.1, 13.8.2).
    let mxcsr_loaded = if header.is_compacted() {
        loaded.contains(Xcr0::SSE)
    } else {
        requested.intersects(Xcr0::SSE | Xcr0::AVX)
    };
    if mxcsr_loaded || loaded.intersects(Xcr0::X87 | Xcr0::SSE) {
        cpu.load_image(op.segment, offset, &mut area[..FXSAVE_BYTES])?;
    }
    if loaded.contains(Xcr0::AVX) {
        let at = offset.wrapping_add(AVX as u64);
        let end = AVX + 16 * cpu.vector_registers();
        cpu.load_image(op.segment, at, &mut area[AVX..end])?;
    }
    let (mxcsr, _) = area[MXCSR.start..].split_first_chunk::<4>().expect("MXCSR");
    let mxcsr = u32::from_le_bytes(*mxcsr);
    if mxcsr_loaded && mxcsr & !MXCSR_MASK != 0 {
        return cpu.general_protection(0);
    }
    if mxcsr_loaded {
        cpu.fpu.state.mxcsr = mxcsr;
    } else if requested.contains(Xcr0::SSE) {
        cpu.fpu.state.mxcsr = MXCSR_RESET;
    }
    let format = cpu.fx_format(long);
    let count = cpu.vector_registers();
    take_area(&mut cpu.fpu.state, format, count, &area, requested, loaded);
    Ok(())
}

/// Takes `requested` components over, all but MXCSR: those in `loaded` from `area`, the others in
/// their initial configuration.
fn take_area(
    state: &mut VectorState,
    format: FxFormat,
    count: usize,
    area: &[u8; AREA_BYTES],
    requested: Xcr0,
    loaded: Xcr0,
) {
    if requested.contains(Xcr0::X87) {
        if loaded.contains(Xcr0::X87) {
            let legacy = area.first_chunk().expect("the legacy region");
            image::load_x87(&mut state.fpu, format, legacy);
        } else {
            state.fpu = Fpu::init();
        }
    }
    let zeros = [0; AREA_BYTES];
    for (component, at, half) in [(Xcr0::SSE, XMM, 0..16), (Xcr0::AVX, AVX, 16..32)] {
        if requested.contains(component) {
            let from = if loaded.contains(component) {
                area
            } else {
                &zeros
            };
            for (n, ymm) in state.ymm.iter_mut().take(count).enumerate() {
                ymm[half.clone()].copy_from_slice(&from[at + 16 * n..at + 16 * (n + 1)]);
            }
        }
    }
}
