//! How a guest starts: the machine's address map, kernel loaders, the tables that firmware would
//! have left behind, and the registers of the first vCPU.
//!
//! [`load()`] does all of it for a kernel that is given as a file ([`Content`]): it works out what
//! the file is ([`detect`]), puts kernel, initrd, command line and tables into guest memory and
//! returns the state in which the boot processor begins. Everything it reads is hostile: whatever the bytes,
//! the answer is a started kernel or an [`Error`] of one line.
//!
//! - [`layout`]: where RAM, tables, windows and chips lie; the single source of truth.
//! - [`bzimage`]: Linux's x86 boot protocol. [`elf`]: ELF kernels with a PVH entry.
//! - [`acpi`], [`smbios`]: the tables. [`firmware`]: all that a PC's firmware leaves behind.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bzimage;
mod content;
mod dsdt;
pub mod elf;
mod entry;
mod error;
pub mod firmware;
mod format;
pub mod layout;
mod le;
mod load;
mod place;
pub mod smbios;
#[cfg(test)]
mod testing;

pub use content::Content;
pub use error::Error;
pub use format::{Format, detect};
pub use layout::{Layout, LayoutError};
pub use load::{BootPlan, Entry, load};
