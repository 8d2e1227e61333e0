//! The guest's vector registers between their two forms: the interpreter's, and the XSAVE area
//! from which the host loads them (SDM vol. 1, 13.4).
//!
//! The x87 instruction and operand pointers that the host leaves in the area are addresses of
//! translated code and of guest memory on the host. They are the monitor's secret and of no use
//! to the guest, who sees 0.

use crate::context::{XSAVE_BYTES, Xsave};
use native::VectorState;

/// XSTATE_BV: x87, SSE and AVX are present.
const PRESENT: u64 = 7;
/// The bit of AVX's component: the upper halves of YMM registers.
const UPPER: u64 = 4;
const STATUS_WORD: usize = 2;
const TAGS: usize = 4;
const MXCSR: usize = 24;
const STACK: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;

const _: () = assert!(YMM_HIGH + 256 == XSAVE_BYTES);

/// Writes `state` to `area`.
pub(crate) fn store(state: &VectorState, area: &mut Xsave) {
    let bytes = &mut area.bytes;
    bytes[..HEADER].fill(0);
    bytes[HEADER..YMM_HIGH].fill(0);
    let fpu = &state.fpu;
    bytes[..STATUS_WORD].copy_from_slice(&fpu.fcw.to_le_bytes());
    bytes[STATUS_WORD..TAGS].copy_from_slice(&fpu.fsw.to_le_bytes());
    bytes[TAGS] = fpu.ftw;
    bytes[MXCSR..MXCSR + 4].copy_from_slice(&(state.mxcsr & native::MXCSR_MASK).to_le_bytes());
    for (slot, register) in bytes[STACK..XMM].chunks_exact_mut(16).zip(&fpu.st) {
        slot[..10].copy_from_slice(register);
    }
    for (number, register) in state.ymm.iter().enumerate() {
        bytes[XMM + 16 * number..][..16].copy_from_slice(&register[..16]);
        bytes[YMM_HIGH + 16 * number..][..16].copy_from_slice(&register[16..]);
    }
    // Upper halves that are not in use, for the sake of SSE code: see [`crate::gate::assist`].
    let uses_upper = state.ymm.iter().any(|ymm| ymm[16..] != [0; 16]);
    let present = if uses_upper {
        PRESENT
    } else {
        PRESENT & !UPPER
    };
    bytes[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
}

/// Reads `area`, as XSAVE left it, into `state`.
pub(crate) fn load(area: &Xsave, state: &mut VectorState) {
    let bytes = &area.bytes;
    let present = bytes[HEADER];
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let fpu = &mut state.fpu;
    // A component in its initial state may not have been written.
    if present & 1 != 0 {
        fpu.fcw = word(0);
        fpu.fsw = word(STATUS_WORD);
        fpu.ftw = bytes[TAGS];
        for (slot, register) in bytes[STACK..XMM].chunks_exact(16).zip(&mut fpu.st) {
            register.copy_from_slice(&slot[..10]);
        }
    } else {
        fpu.fcw = 0x37f;
        fpu.fsw = 0;
        fpu.ftw = 0;
        fpu.st = [[0; 10]; 8];
    }
    (fpu.fop, fpu.fip, fpu.fdp, fpu.fcs, fpu.fds) = (0, 0, 0, 0, 0);
    let mxcsr = &bytes[MXCSR..MXCSR + 4];
    state.mxcsr = u32::from_le_bytes([mxcsr[0], mxcsr[1], mxcsr[2], mxcsr[3]]) & native::MXCSR_MASK;
    for (number, register) in state.ymm.iter_mut().enumerate() {
        let (low, high) = register.split_at_mut(16);
        if present & 2 != 0 {
            low.copy_from_slice(&bytes[XMM + 16 * number..][..16]);
        } else {
            low.fill(0);
        }
        if present & 4 != 0 {
            high.copy_from_slice(&bytes[YMM_HIGH + 16 * number..][..16]);
        } else {
            high.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_both_ways() {
        let mut state = VectorState::reset();
        for (n, register) in state.ymm.iter_mut().enumerate() {
            register.fill(n as u8 + 1);
        }
        state.fpu.st[3] = [7; 10];
        state.fpu.ftw = 0x81;
        state.mxcsr = 0x9fc0;
        let mut area = Xsave {
            bytes: [0xee; XSAVE_BYTES],
        };
        store(&state, &mut area);
        let mut back = VectorState::reset();
        load(&area, &mut back);
        assert_eq!(back, state);
    }

    #[test]
    fn host_addresses_do_not_reach_the_guest() {
        let mut area = Xsave {
            bytes: [0; XSAVE_BYTES],
        };
        area.bytes[8..24].fill(0xaa);
        area.bytes[HEADER] = 7;
        let mut state = VectorState::reset();
        load(&area, &mut state);
        assert_eq!((state.fpu.fip, state.fpu.fdp), (0, 0));
    }
}
