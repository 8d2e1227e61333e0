//! Instructions that touch memory element by element: masked moves and gathers.
//!
//! These never run on the host, as only the interpreter can tell which of the elements exist.
//! They move data and compute nothing, so there is little to get wrong.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::cpuid::Vendor;

use crate::features::host_vendor;
use crate::policy::{Refusal, Unit, check_class};
use crate::state::VectorState;

/// A masked load or store.
///
/// An element is moved if the most significant bit of its mask element is set. Other elements
/// must not be touched, nor fault (Intel SDM vol. 2B, MASKMOVDQU; vol. 2C, VMASKMOV,
/// VPMASKMOV). There is no alignment to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskedMove {
    unit: Unit,
    store: bool,
    implicit_address: bool,
    /// Bytes of an element: 1, 4 or 8.
    element: u8,
    /// Bytes of the whole vector: 8, 16 or 32.
    width: u8,
    /// MM or YMM register that is loaded or stored.
    data: u8,
    mask: u8,
}

impl MaskedMove {
    /// Takes `instruction` apart, if it is a masked move.
    pub(crate) fn decode(instruction: &Instruction) -> Result<Option<Self>, Refusal> {
        use Mnemonic as M;
        let (element, implicit) = match instruction.mnemonic() {
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => (1, true),
            M::Vmaskmovps | M::Vpmaskmovd => (4, false),
            M::Vmaskmovpd | M::Vpmaskmovq => (8, false),
            _ => return Ok(None),
        };
        check_class(instruction)?;
        let store = implicit || instruction.op0_kind() == OpKind::Memory;
        // Operands: (memory), data, mask | memory, mask, data | data, mask, memory.
        let (data, mask) = match (implicit, store) {
            (true, _) => (instruction.op1_register(), instruction.op2_register()),
            (false, true) => (instruction.op2_register(), instruction.op1_register()),
            (false, false) => (instruction.op0_register(), instruction.op1_register()),
        };
        let unit = match instruction.mnemonic() {
            M::Maskmovq => Unit::Mmx,
            M::Maskmovdqu => Unit::Sse,
            _ => Unit::Avx,
        };
        Ok(Some(Self {
            unit,
            store,
            implicit_address: implicit,
            element,
            width: data.size() as u8,
            data: data.number() as u8 & 15,
            mask: mask.number() as u8 & 15,
        }))
    }

    /// What executes the instruction. MASKMOVQ ([`Unit::Mmx`]) is a waiting instruction.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether memory is written, not read.
    pub fn is_store(&self) -> bool {
        self.store
    }

    /// Whether the address is DS:rDI (MASKMOVQ, MASKMOVDQU) with the segment overridable,
    /// instead of a memory operand.
    pub fn has_implicit_address(&self) -> bool {
        self.implicit_address
    }

    /// Bytes of an element: 1, 4 or 8.
    pub fn element_bytes(&self) -> usize {
        self.element.into()
    }

    /// Bytes from the first to the last element: 8, 16 or 32.
    pub fn bytes(&self) -> usize {
        self.width.into()
    }

    /// Which elements are moved: bit n for the one at n times [`MaskedMove::element_bytes`].
    pub fn mask(&self, state: &VectorState) -> u32 {
        let element = self.element_bytes();
        let mask = self.register(state, self.mask);
        let tops = mask[..self.bytes()]
            .iter()
            .skip(element - 1)
            .step_by(element);
        tops.enumerate()
            .fold(0, |set, (n, top)| set | u32::from(top >> 7) << n)
    }

    /// Loads the selected elements with `read(offset, element)`, lowest first, and clears the
    /// others and what lies above the vector. Nothing changes if `read` fails.
    ///
    /// # Errors
    /// The first error of `read`.
    pub fn load<E>(
        &self,
        state: &mut VectorState,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut loaded = [0; 32];
        for offset in self.selected(state) {
            read(offset, &mut loaded[offset..offset + self.element_bytes()])?;
        }
        state.ymm[usize::from(self.data)] = loaded;
        Ok(())
    }

    /// Stores the selected elements with `write(offset, element)`, lowest first. Where a fault
    /// must leave memory unchanged, probe all of them first. MASKMOVQ also switches the FPU to
    /// MMX mode; a failed `write` does not.
    ///
    /// # Errors
    /// The first error of `write`.
    pub fn store<E>(
        &self,
        state: &mut VectorState,
        mut write: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let data = self.register(state, self.data);
        for offset in self.selected(state) {
            write(offset, &data[offset..offset + self.element_bytes()])?;
        }
        if self.unit == Unit::Mmx {
            state.fpu.set_top(0);
            state.fpu.ftw = 0xff;
        }
        Ok(())
    }

    /// The offsets of the selected elements.
    fn selected(&self, state: &VectorState) -> impl Iterator<Item = usize> + use<> {
        let (mask, element) = (self.mask(state), self.element_bytes());
        (0..self.bytes() / element)
            .filter(move |n| mask >> n & 1 != 0)
            .map(move |n| n * element)
    }

    fn register(&self, state: &VectorState, number: u8) -> [u8; 32] {
        if self.unit != Unit::Mmx {
            return state.ymm[usize::from(number)];
        }
        let mut value = [0; 32];
        let st = number.wrapping_sub(state.fpu.top()) & 7;
        value[..8].copy_from_slice(&state.fpu.st[usize::from(st)][..8]);
        value
    }
}

/// A gather of AVX2 (Intel SDM vol. 2C, VGATHERDPS and the following).
///
/// Element n is loaded from `base + displacement + index[n] * scale` if the most significant
/// bit of its mask element is set. The interpreter adds base, displacement and segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    destination: u8,
    mask: u8,
    index: u8,
    scale: u8,
    /// Bytes of an element: 4 or 8.
    element: u8,
    /// Bytes of an index: 4 or 8.
    index_size: u8,
    count: u8,
    /// Bytes of the vectors: 16 or 32. Destination and mask of an element half as large as its
    /// index are shorter.
    width: u8,
}

impl Gather {
    /// Takes `instruction` apart, if it is a gather.
    pub(crate) fn decode(instruction: &Instruction) -> Result<Option<Self>, Refusal> {
        use Mnemonic as M;
        let (index_size, element) = match instruction.mnemonic() {
            M::Vgatherdps | M::Vpgatherdd => (4, 4),
            M::Vgatherdpd | M::Vpgatherdq => (4, 8),
            M::Vgatherqps | M::Vpgatherqd => (8, 4),
            M::Vgatherqpd | M::Vpgatherqq => (8, 8),
            _ => return Ok(None),
        };
        // The AVX-512 forms have another mask and are EVEX-encoded, which is refused.
        check_class(instruction)?;
        let number = |register: Register| register.number() as u8 & 15;
        let destination = number(instruction.op0_register());
        let index = number(instruction.memory_index());
        let mask = number(instruction.op2_register());
        if destination == index || destination == mask || index == mask {
            return Err(Refusal::InvalidOperands);
        }
        let fitting = |register: Register, bytes: u8| register.size() as u8 / bytes;
        let count = fitting(instruction.op0_register(), element)
            .min(fitting(instruction.memory_index(), index_size));
        Ok(Some(Self {
            destination,
            mask,
            index,
            scale: instruction.memory_index_scale() as u8,
            element,
            index_size,
            count,
            width: (instruction.op0_register().size()).max(instruction.memory_index().size()) as u8,
        }))
    }

    /// Bytes of an element: 4 or 8.
    pub fn element_bytes(&self) -> usize {
        self.element.into()
    }

    /// Loads the selected elements with `read(offset, element)`, lowest first. `offset` is the
    /// sign-extended index times the scale, modulo 2^64 (with 32-bit addresses, the sum with
    /// the base wraps at 2^32).
    ///
    /// Each element's mask is cleared once it is loaded, so that after a failure the
    /// instruction can be restarted. What else is different then depends on the vendor: Intel's
    /// processors first make each element of the mask all ones or all zeros and clear it above
    /// the vector (as the manual's operation section does), and with the first element that is
    /// loaded clear the destination above the vector; AMD's do this only at the end. On success
    /// mask and destination are cleared above the last element.
    ///
    /// # Errors
    /// The first error of `read`; elements below it are complete.
    pub fn run<E>(
        &self,
        state: &mut VectorState,
        mut read: impl FnMut(i64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.element_bytes();
        let (destination, mask) = (usize::from(self.destination), usize::from(self.mask));
        let intel = host_vendor() == Vendor::Intel;
        if intel {
            self.widen_mask(&mut state.ymm[mask]);
        }
        for n in 0..usize::from(self.count) {
            let place = n * size..(n + 1) * size;
            if state.ymm[mask][place.end - 1] >> 7 != 0 {
                let mut element = [0; 8];
                read(self.offset(state, n), &mut element[..size])?;
                state.ymm[destination][place.clone()].copy_from_slice(&element[..size]);
                if intel {
                    state.ymm[destination][usize::from(self.width)..].fill(0);
                }
            }
            state.ymm[mask][place].fill(0);
        }
        state.ymm[mask].fill(0);
        state.ymm[destination][usize::from(self.count) * size..].fill(0);
        Ok(())
    }

    /// Gives all of an element of `mask` the value of its most significant bit, and clears what
    /// lies above the vectors.
    fn widen_mask(&self, mask: &mut [u8; 32]) {
        let (elements, above) = mask.split_at_mut(self.width.into());
        for element in elements.chunks_exact_mut(self.element_bytes()) {
            let selected = element.last().is_some_and(|top| top >> 7 != 0);
            element.fill(if selected { 0xff } else { 0 });
        }
        above.fill(0);
    }

    fn offset(&self, state: &VectorState, n: usize) -> i64 {
        let size = usize::from(self.index_size);
        let bytes = &state.ymm[usize::from(self.index)][n * size..(n + 1) * size];
        let negative = bytes[size - 1] >> 7 != 0;
        let mut index = [if negative { 0xff } else { 0 }; 8];
        index[..size].copy_from_slice(bytes);
        i64::from_le_bytes(index).wrapping_mul(self.scale.into())
    }
}
