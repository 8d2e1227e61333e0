//! One guest access is one host instruction.
//!
//! Rust's atomics must be aligned and its plain loads may not race. A guest's accesses are
//! unaligned and racing, and defined to be so by the architecture that the host shares with it:
//! single instructions in inline assembly give exactly the host's tearing and ordering (TSO), and
//! the compiler can't assume anything about the memory behind them.
#![expect(unsafe_code, reason = "guest memory is not Rust memory")]
// UNSAFETY: raw loads and stores. Every function is unsafe and asks only that the bytes be mapped.

use std::arch::asm;

/// An integer that one instruction can load, store and compare-exchange.
pub trait Word: Copy + Eq + Send + Sync + 'static {
    /// Size in bytes.
    const SIZE: usize;

    /// Loads from `ptr`, which needs no alignment.
    ///
    /// # Safety
    /// `ptr` must point to `SIZE` mapped, readable bytes.
    #[doc(hidden)]
    unsafe fn load(ptr: *const u8) -> Self;

    /// Stores to `ptr`, which needs no alignment.
    ///
    /// # Safety
    /// `ptr` must point to `SIZE` mapped, writable bytes outside Rust's own objects.
    #[doc(hidden)]
    unsafe fn store(ptr: *mut u8, value: Self);

    /// Exchanges the value at `ptr`, atomically, for `new` if it is `current`. Returns what it was.
    ///
    /// # Safety
    /// As [`Word::store`].
    #[doc(hidden)]
    unsafe fn compare_exchange(ptr: *mut u8, current: Self, new: Self) -> Self;

    /// Exchanges the value at `ptr`, atomically, for `new`. Returns what it was.
    ///
    /// # Safety
    /// As [`Word::store`].
    #[doc(hidden)]
    unsafe fn exchange(ptr: *mut u8, new: Self) -> Self;
}

macro_rules! word {
    ($type:ty, $class:ident, $acc:tt, $load:literal, $store:literal, $cmpxchg:literal, $xchg:literal) => {
        impl Word for $type {
            const SIZE: usize = size_of::<$type>();

            #[inline(always)]
            unsafe fn load(ptr: *const u8) -> Self {
                let value;
                // SAFETY: the caller vouches for the bytes; a load has no other effect.
                unsafe {
                    asm!($load, out($class) value, ptr = in(reg) ptr,
                         options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(ptr: *mut u8, value: Self) {
                // SAFETY: the caller vouches for the bytes, and no Rust object lies there.
                unsafe {
                    asm!($store, ptr = in(reg) ptr, value = in($class) value,
                         options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn compare_exchange(ptr: *mut u8, current: Self, new: Self) -> Self {
                let old;
                // SAFETY: as for `store`.
                unsafe {
                    asm!($cmpxchg, ptr = in(reg) ptr, new = in($class) new,
                         inout($acc) current => old, options(nostack));
                }
                old
            }

            #[inline(always)]
            unsafe fn exchange(ptr: *mut u8, new: Self) -> Self {
                let old;
                // SAFETY: as for `store`.
                unsafe {
                    asm!($xchg, ptr = in(reg) ptr, value = inout($class) new => old,
                         options(nostack, preserves_flags));
                }
                old
            }
        }
    };
}

word!(
    u8,
    reg_byte,
    "al",
    "mov {}, byte ptr [{ptr}]",
    "mov byte ptr [{ptr}], {value}",
    "lock cmpxchg byte ptr [{ptr}], {new}",
    "xchg byte ptr [{ptr}], {value}"
);
word!(
    u16,
    reg,
    "ax",
    "mov {:x}, word ptr [{ptr}]",
    "mov word ptr [{ptr}], {value:x}",
    "lock cmpxchg word ptr [{ptr}], {new:x}",
    "xchg word ptr [{ptr}], {value:x}"
);
word!(
    u32,
    reg,
    "eax",
    "mov {:e}, dword ptr [{ptr}]",
    "mov dword ptr [{ptr}], {value:e}",
    "lock cmpxchg dword ptr [{ptr}], {new:e}",
    "xchg dword ptr [{ptr}], {value:e}"
);
word!(
    u64,
    reg,
    "rax",
    "mov {}, qword ptr [{ptr}]",
    "mov qword ptr [{ptr}], {value}",
    "lock cmpxchg qword ptr [{ptr}], {new}",
    "xchg qword ptr [{ptr}], {value}"
);

impl Word for u128 {
    const SIZE: usize = 16;

    #[inline(always)]
    unsafe fn load(ptr: *const u8) -> Self {
        let value;
        // SAFETY: as for the smaller words.
        unsafe {
            asm!("movdqu {}, xmmword ptr [{ptr}]", out(xmm_reg) value, ptr = in(reg) ptr,
                 options(nostack, preserves_flags, readonly));
        }
        from_vector(value)
    }

    #[inline(always)]
    unsafe fn store(ptr: *mut u8, value: Self) {
        // SAFETY: as for the smaller words.
        unsafe {
            asm!("movdqu xmmword ptr [{ptr}], {value}", ptr = in(reg) ptr,
                 value = in(xmm_reg) to_vector(value), options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn compare_exchange(ptr: *mut u8, current: Self, new: Self) -> Self {
        assert!(
            ptr.addr().is_multiple_of(16),
            "cmpxchg16b needs an aligned operand"
        );
        let (low, high): (u64, u64);
        // SAFETY: as for the smaller words; the operand is aligned. RBX is reserved by LLVM, so
        // it is swapped in and out by hand.
        unsafe {
            asm!("xchg {new_low}, rbx", "lock cmpxchg16b xmmword ptr [{ptr}]", "mov rbx, {new_low}",
                 ptr = in(reg) ptr, new_low = inout(reg) new as u64 => _,
                 in("rcx") (new >> 64) as u64,
                 inout("rax") current as u64 => low, inout("rdx") (current >> 64) as u64 => high,
                 options(nostack));
        }
        u128::from(high) << 64 | u128::from(low)
    }

    #[inline(always)]
    unsafe fn exchange(ptr: *mut u8, new: Self) -> Self {
        // SAFETY: as for the smaller words.
        let mut old = unsafe { Self::load(ptr) };
        loop {
            // SAFETY: as above.
            let seen = unsafe { Self::compare_exchange(ptr, old, new) };
            if seen == old {
                return old;
            }
            old = seen;
        }
    }
}

use std::arch::x86_64::__m128i;

fn from_vector(vector: __m128i) -> u128 {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { std::mem::transmute(vector) }
}

fn to_vector(value: u128) -> __m128i {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { std::mem::transmute(value) }
}

/// Copies `to.len()` bytes out of guest memory.
///
/// # Safety
/// `from` must point to that many mapped, readable bytes.
pub(crate) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
    // SAFETY: the caller vouches for the source, which is no Rust object; assembly, because a
    // vCPU may write there meanwhile.
    unsafe {
        asm!("rep movsb", inout("rcx") to.len() => _, inout("rsi") from => _,
             inout("rdi") to.as_mut_ptr() => _, options(nostack, preserves_flags));
    }
}

/// Copies `from` into guest memory.
///
/// # Safety
/// `to` must point to that many mapped, writable bytes.
pub(crate) unsafe fn copy_to(to: *mut u8, from: &[u8]) {
    // SAFETY: as for `copy_from`.
    unsafe {
        asm!("rep movsb", inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _,
             inout("rdi") to => _, options(nostack, preserves_flags));
    }
}
