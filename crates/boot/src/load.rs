//! Starting a kernel that is given as a file.

use crate::bzimage::BzImage;
use crate::firmware::{self, Board};
use crate::{Error, Format, detect, elf};
use memory::GuestMemory;
use x86::VcpuState;

/// Which of a kernel's entries is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Entry {
    /// The widest there is.
    #[default]
    Auto,
    /// The 64-bit entry of Linux's boot protocol.
    Bits64,
    /// The 32-bit entry of Linux's boot protocol, or PVH.
    Bits32,
}

/// All that decides how a guest starts.
#[derive(Debug, Clone, Copy)]
pub struct BootPlan<'a> {
    /// The machine.
    pub board: Board,
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initrd: its parts are put one after the other, each padded to 4 bytes.
    pub initrd: &'a [&'a [u8]],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The entry to take.
    pub entry: Entry,
    /// Entropy for the kernel's random number generator, if it has a way to take it. Must be
    /// fresh for every start.
    pub rng_seed: Option<[u8; 32]>,
}

/// Puts a kernel, what it is given, and the machine's tables into `memory`, which has the plan's
/// layout. Returns the state in which the boot processor begins; the others begin in
/// [`firmware::processor`]'s.
///
/// Memory need not be fresh: a restart loads again over what the guest left.
///
/// # Errors
/// [`Error`]: memory is then written in part.
pub fn load(memory: &GuestMemory, plan: &BootPlan) -> Result<VcpuState, Error> {
    let format = detect(plan.kernel)?;
    firmware::write_tables(memory, &plan.board)?;
    match format {
        Format::BzImage => BzImage::parse(plan.kernel)?.load(memory, plan),
        Format::Elf => elf::load(memory, plan),
    }
}
