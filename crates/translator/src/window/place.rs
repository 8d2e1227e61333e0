//! Where the things are that a jail has besides the guest's memory.
//!
//! Windows are at the guest's own addresses, so whatever else is in the jail should be where
//! programs have nothing: between the executable and heap of position-dependent programs, low,
//! and what systems put high. There, the places are random.

use std::ffi::c_void;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ptr::NonNull;

/// First address, and number of places, 2 MiB each: 0x2000_0000_0000 to 0x4fff_ffff_ffff. Go's
/// heap is below; the shadow memory of sanitizers, too; executables and libraries are above.
const FIRST: u64 = 0x2000_0000_0000;
const PLACES: u64 = 0x3000_0000_0000 >> 21;
const TRIES: usize = 16;

/// Lets `map` map `len` bytes at an address where nothing is.
///
/// # Errors
/// What `map` returns.
pub(crate) fn map(
    len: usize,
    map: impl Fn(usize) -> rustix::io::Result<*mut c_void>,
) -> io::Result<NonNull<u8>> {
    let mut error = io::Error::from(io::ErrorKind::OutOfMemory);
    for _ in 0..TRIES {
        // The keys of the standard library's hasher are random.
        let random = RandomState::new().hash_one(len);
        let at = (FIRST + ((random % PLACES) << 21)) as usize;
        match map(at) {
            // Kernels before 4.17 take it for a wish.
            Ok(address) if address as usize == at => {
                return Ok(NonNull::new(address.cast()).expect("not null"));
            }
            Ok(_) => return Err(io::ErrorKind::Unsupported.into()),
            Err(wrong) => error = wrong.into(),
        }
    }
    Err(error)
}
