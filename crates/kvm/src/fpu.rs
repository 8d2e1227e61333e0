//! x87, SSE and AVX registers in an XSAVE area of the standard format (SDM vol. 1, 13.4).
//!
//! The 64-bit form of its x87 part has no room for the selectors of the last instruction and
//! operand: they are 0 after KVM had the state.

use crate::calls::XsaveArea;
use native::{Fpu, MXCSR_RESET, VectorState};
use x86::FpuState;

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

/// Offsets in bytes.
mod at {
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
    pub(super) const XSTATE_BV: usize = 512;
    pub(super) const YMM_UPPER: usize = 576;
    pub(super) const END: usize = YMM_UPPER + 256;
}

/// The part of an area that holds components 0 to 2.
struct Bytes([u8; at::END]);

impl Bytes {
    fn of(area: &XsaveArea) -> Self {
        let mut bytes = [0; at::END];
        for (to, word) in bytes.chunks_exact_mut(4).zip(area) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at + n])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
}

/// `state` as an area. `has_avx` if the host's XSAVE knows AVX.
pub(crate) fn area(state: &FpuState, has_avx: bool) -> XsaveArea {
    let VectorState { ymm, fpu, mxcsr } = VectorState::from(state);
    let mut bytes = Bytes([0; at::END]);
    bytes.put(0, &fpu.fcw.to_le_bytes());
    bytes.put(2, &fpu.fsw.to_le_bytes());
    bytes.put(4, &[fpu.ftw]);
    bytes.put(6, &fpu.fop.to_le_bytes());
    bytes.put(8, &fpu.fip.to_le_bytes());
    bytes.put(16, &fpu.fdp.to_le_bytes());
    bytes.put(at::MXCSR, &mxcsr.to_le_bytes());
    for (n, st) in fpu.st.iter().enumerate() {
        bytes.put(at::ST + 16 * n, st);
    }
    for (n, ymm) in ymm.iter().enumerate() {
        bytes.put(at::XMM + 16 * n, &ymm[..16]);
        bytes.put(at::YMM_UPPER + 16 * n, &ymm[16..]);
    }
    let components = X87 | SSE | if has_avx { AVX } else { 0 };
    bytes.put(at::XSTATE_BV, &components.to_le_bytes());
    let mut area = [0; 1024];
    for (to, from) in area.iter_mut().zip(bytes.0.chunks_exact(4)) {
        *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    area
}

/// The registers in `area`. Components that it says are not there have their initial values (SDM
/// vol. 1, 13.6).
pub(crate) fn from_area(area: &XsaveArea) -> FpuState {
    let bytes = Bytes::of(area);
    let components = bytes.u64(at::XSTATE_BV);
    let has = |component: u64| components & component != 0;
    let fpu = if has(X87) {
        Fpu {
            st: std::array::from_fn(|n| bytes.get(at::ST + 16 * n)),
            fcw: bytes.u16(0),
            fsw: bytes.u16(2),
            ftw: bytes.0[4],
            fop: bytes.u16(6) & 0x7ff,
            fip: bytes.u64(8),
            fdp: bytes.u64(16),
            fcs: 0,
            fds: 0,
        }
    } else {
        Fpu::init()
    };
    let mxcsr = if has(SSE | AVX) {
        u32::from_le_bytes(bytes.get(at::MXCSR))
    } else {
        MXCSR_RESET
    };
    let ymm = std::array::from_fn(|n| {
        let mut ymm = [0; 32];
        if has(SSE) {
            ymm[..16].copy_from_slice(&bytes.get::<16>(at::XMM + 16 * n));
        }
        if has(AVX) {
            ymm[16..].copy_from_slice(&bytes.get::<16>(at::YMM_UPPER + 16 * n));
        }
        ymm
    });
    FpuState::from(&VectorState { ymm, fpu, mxcsr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_come_back_as_they_were() {
        let mut state = FpuState::from(&VectorState::reset());
        state.ymm = std::array::from_fn(|n| std::array::from_fn(|i| (n * 4 + i) as u64 + 1));
        state.st = std::array::from_fn(|n| [n as u8; 10]);
        // TOP is 3.
        state.status = 3 << 11;
        state.control = 0x37f;
        (state.instruction.0, state.operand.0) = (1 << 40, 1 << 41);
        let state = FpuState::from(&VectorState::from(&state));
        assert_eq!(from_area(&area(&state, true)), state);
        let without = from_area(&area(&state, false));
        assert_eq!(without.ymm[5][..2], state.ymm[5][..2]);
        assert_eq!(without.ymm[5][2..], [0, 0]);
    }

    #[test]
    fn sdm_13_6_what_is_not_there_is_initial() {
        let mut state = FpuState::from(&VectorState::reset());
        state.ymm = [[7; 4]; 16];
        let mut area = area(&state, true);
        area[at::XSTATE_BV / 4] = 0;
        assert_eq!(
            from_area(&area),
            FpuState::from(&VectorState {
                ymm: [[0; 32]; 16],
                fpu: Fpu::init(),
                mxcsr: MXCSR_RESET,
            })
        );
    }
}
