//! Why a guest can't be started.

use crate::content::CopyError;
use crate::{bzimage, elf};
use std::io;

/// Why a guest can't be started: one line that names the thing and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel file can't be read.
    #[error("can't read the kernel")]
    Kernel(#[source] io::Error),
    /// A part of the initrd can't be read.
    #[error("can't read the initrd")]
    Initrd(#[source] io::Error),
    /// The kernel file has no bytes.
    #[error("the kernel file is empty: give a bzImage, or an ELF kernel with a PVH entry")]
    Empty,
    /// The kernel file is something else that is known.
    #[error("not a kernel: it is {what}; {mend}")]
    Foreign {
        /// What it is.
        what: &'static str,
        /// What to do instead.
        mend: &'static str,
    },
    /// The kernel file is nothing that is known.
    #[error("not a kernel: give a bzImage (vmlinuz), or an ELF kernel with a PVH entry")]
    Unknown,
    /// A bzImage that can't be loaded.
    #[error(transparent)]
    BzImage(#[from] bzimage::BzImageError),
    /// An ELF file that can't be loaded.
    #[error(transparent)]
    Elf(#[from] elf::ElfError),
    /// The kernel takes no command line of this length.
    #[error("the command line has {len} bytes, the kernel takes {max}: shorten it")]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// The command line would end early.
    #[error("the command line has a NUL at byte {0}: remove it")]
    CommandLineNul(usize),
    /// The kernel does not fit in the guest's memory.
    #[error(
        "the kernel needs memory up to {end:#x}, but low RAM ends at {ram_end:#x}: \
         give the guest at least {mib} MiB",
        mib = end.div_ceil(1 << 20)
    )]
    KernelDoesNotFit {
        /// Where the kernel's memory would end.
        end: u64,
        /// Where the RAM ends that a kernel can be loaded to.
        ram_end: u64,
    },
    /// The initrd does not fit in the memory that the kernel leaves.
    #[error(
        "the initrd has {len} bytes, but the kernel leaves {room} for it: \
         give the guest more memory or a smaller initrd"
    )]
    InitrdDoesNotFit {
        /// Its length, padding included.
        len: u64,
        /// The room there is.
        room: u64,
    },
    /// The number of vCPUs is one that the tables can't describe.
    #[error("{0} vCPUs can't be described to a guest: give it 1 to {max}", max = crate::acpi::VCPUS_MAX)]
    Vcpus(u32),
    /// The memory was not made from the plan's layout.
    #[error("guest memory does not have the plan's layout")]
    Memory(#[from] memory::OutOfRange),
}

impl Error {
    /// What an `error` with the kernel file is.
    pub(crate) fn in_kernel(error: CopyError) -> Self {
        match error {
            CopyError::Read(error) => Self::Kernel(error),
            CopyError::Memory(error) => Self::Memory(error),
        }
    }

    /// What an `error` with a part of the initrd is.
    pub(crate) fn in_initrd(error: CopyError) -> Self {
        match error {
            CopyError::Read(error) => Self::Initrd(error),
            CopyError::Memory(error) => Self::Memory(error),
        }
    }
}
