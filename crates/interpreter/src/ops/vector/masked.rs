//! Moves that touch memory element by element: masked moves and gathers.

use super::unit::{Avx, Mmx, Sse, Unit};
use crate::access::Place;
use crate::cpu::{Cpu, Result};
use crate::int::ZERO;
use crate::op::{Handler, Op};
use native::{Gather, MaskedMove, Operation};

/// Slot of RDI, which addresses MASKMOVQ's and MASKMOVDQU's operand.
const RDI: u8 = 7;
/// Most elements of a masked move: the bytes of MASKMOVDQU.
const ELEMENTS_MAX: usize = 16;

/// The handler for a masked move.
pub(super) fn select(operation: MaskedMove, op: &mut Op) -> Handler {
    if operation.has_implicit_address() {
        (op.base, op.index, op.disp) = (RDI, ZERO, 0);
    }
    match (operation.unit(), operation.is_store()) {
        (native::Unit::Mmx, _) => store::<Mmx>,
        (native::Unit::Sse, _) => store::<Sse>,
        (_, true) => store::<Avx>,
        (_, false) => load,
    }
}

/// The handler for a gather.
pub(super) fn select_gather(_: Gather, op: &mut Op) -> Handler {
    // The index is a vector register; base and displacement are for all elements.
    op.index = ZERO;
    gather
}

impl Cpu {
    fn masked_move(&self, op: &Op) -> MaskedMove {
        let Operation::Masked(operation) = self.vector.get(op.aux) else {
            unreachable!("the decoder chose the handler for a masked move");
        };
        operation
    }

    /// The offset in its segment of what lies `offset` bytes from `op`'s operand.
    fn element_address(&self, op: &Op, offset: u64) -> u64 {
        self.address(op).wrapping_add(offset) & u64::MAX >> (op.address_cut & 63)
    }
}

fn load(cpu: &mut Cpu, op: &Op) -> Result {
    Avx::ready(cpu)?;
    let operation = cpu.masked_move(op);
    let size = operation.element_bytes();
    let mask = operation.mask(&cpu.fpu.state);
    let mut loaded = [0; 32];
    for n in selected(mask) {
        let address = cpu.element_address(op, (n * size) as u64);
        let element = &mut loaded[n * size..(n + 1) * size];
        cpu.load_bytes(op.segment, address, element)?;
    }
    let copy = operation.load(&mut cpu.fpu.state, |offset, element| {
        element.copy_from_slice(&loaded[offset..offset + element.len()]);
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = copy;
    Ok(())
}

/// All elements' places are found before the first is written, so that a fault leaves memory as
/// it was.
fn store<U: Unit>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let operation = cpu.masked_move(op);
    let size = operation.element_bytes();
    let mask = operation.mask(&cpu.fpu.state);
    let mut places: [Option<Place>; ELEMENTS_MAX] = [None; ELEMENTS_MAX];
    for n in selected(mask) {
        let address = cpu.element_address(op, (n * size) as u64);
        places[n] = Some(cpu.place_at(op.segment, address, size)?);
    }
    let mut bytes = [0; 32];
    let copy = operation.store(&mut cpu.fpu.state, |offset, element| {
        bytes[offset..offset + element.len()].copy_from_slice(element);
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = copy;
    for (place, element) in places.into_iter().zip(bytes.chunks_exact(size)) {
        if let Some(place) = place {
            cpu.put_bytes(place, element);
        }
    }
    Ok(())
}

/// The numbers of the bits that are set.
fn selected(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |n| mask >> n & 1 != 0)
}

/// After a fault, the elements below are complete and their masks cleared: the instruction goes
/// on where it was.
fn gather(cpu: &mut Cpu, op: &Op) -> Result {
    Avx::ready(cpu)?;
    let Operation::Gather(operation) = cpu.vector.get(op.aux) else {
        unreachable!("the decoder chose the handler for a gather");
    };
    let mut state = cpu.fpu.state.clone();
    let result = operation.run(&mut state, |offset, element| {
        let address = cpu.element_address(op, offset as u64);
        cpu.load_bytes(op.segment, address, element)
    });
    cpu.fpu.state = state;
    result
}
