//! The host's time-stamp counter.
#![expect(unsafe_code, reason = "executes RDTSC")]
// UNSAFETY: two instructions that touch no memory.

use std::arch::x86_64::{_mm_lfence, _rdtsc};

/// The time-stamp counter, read once all instructions before are complete (SDM vol. 2, RDTSC).
#[inline]
pub fn time_stamp() -> u64 {
    // SAFETY: SSE2 is part of every x86-64 CPU. RDTSC reads no memory and writes only its result;
    // Linux allows it to all programs that have not forbidden it to themselves (PR_SET_TSC).
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_goes_on() {
        let first = super::time_stamp();
        assert!(super::time_stamp() > first);
    }
}
