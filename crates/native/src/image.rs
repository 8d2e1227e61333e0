//! The memory images of FXSAVE, FXRSTOR, FNSTENV, FLDENV, FNSAVE and FRSTOR.
//!
//! Conversions only: the interpreter moves the bytes to and from the guest's memory, with the
//! checks that go with it.

use crate::state::{Fpu, MXCSR_MASK, VectorState, control_word};

/// The size of an FXSAVE image. Its alignment in memory is 16.
pub const FXSAVE_BYTES: usize = 512;

/// How an FXSAVE image holds the instruction and operand pointers, and how many XMM registers
/// (Intel SDM vol. 1, rev. 082, 10.5.1; vol. 2A, FXSAVE, tables 3-43 to 3-46).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FxFormat {
    /// Outside 64-bit mode: selectors and 32-bit offsets; XMM0 to XMM7.
    Legacy,
    /// FXSAVE in 64-bit mode: selectors and 32-bit offsets; XMM0 to XMM15.
    Long32,
    /// FXSAVE64: 64-bit offsets, no selectors; XMM0 to XMM15.
    Long64,
}

impl FxFormat {
    /// XMM registers in the image.
    fn xmm_count(self) -> usize {
        if self == Self::Legacy { 8 } else { 16 }
    }

    /// Bytes that FXSAVE writes, from the start. It leaves the rest of the 512 alone.
    pub fn written(self) -> usize {
        160 + 16 * self.xmm_count()
    }
}

/// MXCSR has bits set that do not exist: `#GP(0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reserved bits of MXCSR are set")]
pub struct ReservedMxcsr;

/// FXSAVE: fills in `image`'s first [`FxFormat::written`] bytes.
pub fn fxsave(state: &VectorState, format: FxFormat, image: &mut [u8; FXSAVE_BYTES]) {
    store_x87(&state.fpu, format, image);
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    let slots = image[160..].chunks_exact_mut(16);
    for (slot, ymm) in slots.zip(&state.ymm).take(format.xmm_count()) {
        slot.copy_from_slice(&ymm[..16]);
    }
}

/// FXRSTOR: loads what [`fxsave`] stores. The upper halves of YMM registers stay.
///
/// # Errors
/// [`ReservedMxcsr`], with nothing changed.
pub fn fxrstor(
    state: &mut VectorState,
    format: FxFormat,
    image: &[u8; FXSAVE_BYTES],
) -> Result<(), ReservedMxcsr> {
    let mxcsr = u32::from_le_bytes(array(image, 24));
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(ReservedMxcsr);
    }
    state.mxcsr = mxcsr;
    load_x87(&mut state.fpu, format, image);
    let slots = image[160..].chunks_exact(16);
    for (slot, ymm) in slots.zip(&mut state.ymm).take(format.xmm_count()) {
        ymm[..16].copy_from_slice(slot);
    }
    Ok(())
}

/// The x87 part of an FXSAVE or XSAVE image: bytes 0 to 23 and 32 to 159.
pub fn store_x87(fpu: &Fpu, format: FxFormat, image: &mut [u8; FXSAVE_BYTES]) {
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    image[4] = fpu.ftw;
    image[5] = 0;
    image[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
    if format == FxFormat::Long64 {
        image[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
        image[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
    } else {
        let pointer = |offset: u64, selector: u16| offset as u32 as u64 | u64::from(selector) << 32;
        image[8..16].copy_from_slice(&pointer(fpu.fip, fpu.fcs).to_le_bytes());
        image[16..24].copy_from_slice(&pointer(fpu.fdp, fpu.fds).to_le_bytes());
    }
    for (slot, st) in image[32..160].chunks_exact_mut(16).zip(&fpu.st) {
        slot[..10].copy_from_slice(st);
        slot[10..].fill(0);
    }
}

/// Loads what [`store_x87`] stores. ES and B follow from flags and masks.
pub fn load_x87(fpu: &mut Fpu, format: FxFormat, image: &[u8; FXSAVE_BYTES]) {
    fpu.fcw = control_word(u16::from_le_bytes(array(image, 0)));
    fpu.fsw = u16::from_le_bytes(array(image, 2));
    fpu.ftw = image[4];
    fpu.fop = u16::from_le_bytes(array(image, 6)) & 0x7ff;
    let pointers = [
        u64::from_le_bytes(array(image, 8)),
        u64::from_le_bytes(array(image, 16)),
    ];
    if format == FxFormat::Long64 {
        [fpu.fip, fpu.fdp] = pointers;
        (fpu.fcs, fpu.fds) = (0, 0);
    } else {
        [fpu.fip, fpu.fdp] = pointers.map(|pointer| pointer & 0xffff_ffff);
        [fpu.fcs, fpu.fds] = pointers.map(|pointer| (pointer >> 32) as u16);
    }
    for (slot, st) in image[32..160].chunks_exact(16).zip(&mut fpu.st) {
        st.copy_from_slice(&slot[..10]);
    }
    fpu.update_summary();
}

/// The layout of an x87 environment: by operand size, and whether pointers are selector and
/// offset or linear (Intel SDM vol. 1, rev. 082, figures 8-9 to 8-12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvFormat {
    /// 32-bit operand size, protected and 64-bit mode: 28 bytes.
    Protected32,
    /// 32-bit operand size, real and virtual-8086 mode: 28 bytes.
    Real32,
    /// 16-bit operand size, protected and 64-bit mode: 14 bytes.
    Protected16,
    /// 16-bit operand size, real and virtual-8086 mode: 14 bytes.
    Real16,
}

/// The largest environment.
pub const ENV_BYTES_MAX: usize = 28;
/// The largest image of FNSAVE.
pub const FNSAVE_BYTES_MAX: usize = ENV_BYTES_MAX + 80;

impl EnvFormat {
    /// Bytes of an environment: 14 or 28.
    pub fn env_bytes(self) -> usize {
        7 * self.field_bytes()
    }

    /// Bytes of an FNSAVE image: 94 or 108.
    pub fn fnsave_bytes(self) -> usize {
        self.env_bytes() + 80
    }

    /// Each of the seven fields takes this much.
    fn field_bytes(self) -> usize {
        match self {
            Self::Protected32 | Self::Real32 => 4,
            Self::Protected16 | Self::Real16 => 2,
        }
    }
}

/// FNSTENV: returns the environment, of which [`EnvFormat::env_bytes`] count, and masks all
/// exceptions.
pub fn fnstenv(fpu: &mut Fpu, format: EnvFormat) -> [u8; ENV_BYTES_MAX] {
    let image = environment(fpu, format);
    fpu.fcw |= 0x3f;
    fpu.update_summary();
    image
}

/// FLDENV: loads the first [`EnvFormat::env_bytes`] bytes of `image`.
///
/// # Panics
/// If `image` is shorter.
pub fn fldenv(fpu: &mut Fpu, format: EnvFormat, image: &[u8]) {
    let size = format.field_bytes();
    let fields: [u32; 7] = std::array::from_fn(|n| {
        let mut field = [0; 4];
        field[..size].copy_from_slice(&image[n * size..(n + 1) * size]);
        u32::from_le_bytes(field)
    });
    let top = (fields[1] >> 11 & 7) as u8;
    fpu.set_top(top);
    fpu.fcw = control_word(fields[0] as u16);
    fpu.fsw = fields[1] as u16;
    fpu.ftw = Fpu::abridge(fields[2] as u16);
    load_pointers(fpu, format, fields);
    fpu.update_summary();
}

/// FNSAVE: returns the image, of which [`EnvFormat::fnsave_bytes`] count, and initialises the
/// FPU as FNINIT does.
pub fn fnsave(fpu: &mut Fpu, format: EnvFormat) -> [u8; FNSAVE_BYTES_MAX] {
    let mut image = [0; FNSAVE_BYTES_MAX];
    let env = format.env_bytes();
    image[..env].copy_from_slice(&environment(fpu, format)[..env]);
    for (slot, st) in image[env..].chunks_exact_mut(10).zip(&fpu.st) {
        slot.copy_from_slice(st);
    }
    fninit(fpu);
    image
}

/// FRSTOR: loads the first [`EnvFormat::fnsave_bytes`] bytes of `image`.
///
/// # Panics
/// If `image` is shorter.
pub fn frstor(fpu: &mut Fpu, format: EnvFormat, image: &[u8]) {
    fldenv(fpu, format, image);
    let data = &image[format.env_bytes()..format.fnsave_bytes()];
    for (st, slot) in fpu.st.iter_mut().zip(data.chunks_exact(10)) {
        st.copy_from_slice(slot);
    }
}

/// FNINIT: control, status and tags are reset, pointers cleared. Data registers keep their
/// values in their physical places.
pub fn fninit(fpu: &mut Fpu) {
    fpu.set_top(0);
    let st = fpu.st;
    *fpu = Fpu { st, ..Fpu::init() };
}

/// The environment as it is.
fn environment(fpu: &Fpu, format: EnvFormat) -> [u8; ENV_BYTES_MAX] {
    let words = [fpu.fcw, fpu.fsw, fpu.full_tags()];
    let pointers = store_pointers(fpu, format);
    let mut image = [0; ENV_BYTES_MAX];
    let size = format.field_bytes();
    // The unused halves of 32-bit fields read as ones (the manual calls them reserved).
    let fields = words
        .map(|word| 0xffff_0000 | u32::from(word))
        .into_iter()
        .chain(pointers);
    for (slot, field) in image.chunks_exact_mut(size).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes()[..size]);
    }
    image
}

/// The four fields after the tag word.
fn store_pointers(fpu: &Fpu, format: EnvFormat) -> [u32; 4] {
    let (fip, fdp) = (fpu.fip as u32, fpu.fdp as u32);
    let (fcs, fds) = (u32::from(fpu.fcs), u32::from(fpu.fds));
    let fop = u32::from(fpu.fop) & 0x7ff;
    let linear = |offset: u32, selector: u32| (selector << 4).wrapping_add(offset);
    let (ip, dp) = (linear(fip, fcs), linear(fdp, fds));
    match format {
        EnvFormat::Protected32 => [fip, fcs | fop << 16, fdp, 0xffff_0000 | fds],
        EnvFormat::Protected16 => [fip, fcs, fdp, fds],
        EnvFormat::Real32 => [
            0xffff_0000 | ip & 0xffff,
            ip >> 16 << 12 | fop,
            0xffff_0000 | dp & 0xffff,
            dp >> 16 << 12,
        ],
        EnvFormat::Real16 => [
            ip,
            ip >> 16 << 12 & 0xf000 | fop,
            dp,
            dp >> 16 << 12 & 0xf000,
        ],
    }
}

/// Loads the four fields after the tag word.
fn load_pointers(fpu: &mut Fpu, format: EnvFormat, fields: [u32; 7]) {
    let [_, _, _, ip, ip_high, dp, dp_high] = fields;
    let linear = |low: u32, high: u32| u64::from(low & 0xffff | high >> 12 << 16);
    match format {
        EnvFormat::Protected32 | EnvFormat::Protected16 => {
            fpu.fip = ip.into();
            fpu.fcs = ip_high as u16;
            fpu.fdp = dp.into();
            fpu.fds = dp_high as u16;
            if format == EnvFormat::Protected32 {
                fpu.fop = (ip_high >> 16) as u16 & 0x7ff;
            }
        }
        EnvFormat::Real32 | EnvFormat::Real16 => {
            fpu.fip = linear(ip, ip_high);
            fpu.fcs = 0;
            fpu.fdp = linear(dp, dp_high);
            fpu.fds = 0;
            fpu.fop = ip_high as u16 & 0x7ff;
        }
    }
}

fn array<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[at..at + N]);
    bytes
}
