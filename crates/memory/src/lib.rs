//! Guest-physical memory on one memfd.
//!
//! All memory of a machine (RAM and ROM) is one file and one contiguous host mapping; a
//! [`Region`] says where a part of it lies in guest-physical space. There are therefore two kinds
//! of address:
//! - a *guest-physical address* (`gpa: u64`), which may be RAM, ROM, a device or nothing;
//! - an *offset* (`usize`) into the mapping, which is what a software TLB keeps, because one
//!   compare with the mapping's length bounds it ([`Ram`]).
//!
//! Guest memory is shared with vCPUs that run at the same time, in other threads or in other
//! processes, so it is never a Rust slice. Every access goes through [`raw`], where one host
//! instruction makes one guest access: what tears and what does not is then the host's own rule.
//!
//! Why not `vm-memory`: the software engines need this offset space, write watches on code pages
//! and accesses of defined tearing; its view types can be made over this mapping where a library
//! wants them.

mod guest;
mod mapping;
mod raw;
mod watch;

pub use guest::{GuestMemory, Kind, OutOfRange, Ram, Region, RegionSpec, SetupError};
pub use mapping::{Backing, Pages};
pub use raw::Word;
pub use watch::{PageWatch, WriteObserver};

/// Size of a page, in bytes.
pub const PAGE_SIZE: usize = 4096;
/// `log2` of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
