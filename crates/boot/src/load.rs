//! Starting a kernel that is given as a file.

use crate::bzimage::BzImage;
use crate::firmware::{self, Board};
use crate::format::HEAD_LEN;
use crate::{Content, Error, Format, content, detect, elf};
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
    pub kernel: &'a dyn Content,
    /// The initrd: its parts are put one after the other, each padded to 4 bytes.
    pub initrd: &'a [&'a dyn Content],
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
    let head = content::head(plan.kernel, HEAD_LEN).map_err(Error::Kernel)?;
    let format = detect(&head)?;
    firmware::write_tables(memory, &plan.board)?;
    match format {
        Format::BzImage => BzImage::parse(&head, plan.kernel.size())?.load(memory, plan),
        Format::Elf => elf::load(memory, plan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{
        self,
        boot_data::{GDT, PAGE_TABLES, ZERO_PAGE},
    };
    use crate::testing::{Segment, bzimage, elf32, elf64, machine, plan};
    use proptest::prelude::*;
    use x86::Cr0;

    #[test]
    fn a_restart_loads_over_what_the_guest_left() {
        let (memory, board) = machine(64).unwrap();
        let kernel = bzimage();
        let plan = BootPlan {
            command_line: "quiet",
            initrd: &[b"123"],
            ..plan(board, &kernel)
        };
        let first = load(&memory, &plan).unwrap();
        let read = |start: u64| {
            let mut bytes = vec![0; 0x9_e000];
            memory.read(start, &mut bytes).unwrap();
            bytes
        };
        let before = (read(0x1000), read(0x100_0000));
        for used in [GDT, ZERO_PAGE, PAGE_TABLES] {
            memory.write(used, &[0xff; memory::PAGE_SIZE]).unwrap();
        }
        memory.store(0x100_0000, u64::MAX).unwrap();
        assert_eq!(load(&memory, &plan).unwrap(), first);
        assert!(before == (read(0x1000), read(0x100_0000)));
    }

    #[test]
    fn the_tables_are_where_guests_look() {
        let (memory, board) = machine(64).unwrap();
        load(&memory, &plan(board, &bzimage())).unwrap();
        let at = |gpa, len| {
            let mut bytes = vec![0; len];
            memory.read(gpa, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(at(layout::RSDP, 8), b"RSD PTR ");
        assert_eq!(at(layout::FACS, 4), b"FACS");
        assert_eq!(at(layout::SMBIOS.start, 5), b"_SM3_");
    }

    #[test]
    fn memory_of_another_layout_is_an_error() {
        let (memory, _) = machine(64).unwrap();
        let (_, board) = machine(128).unwrap();
        let kernel = bzimage();
        let plan = BootPlan {
            initrd: &[b"1"],
            ..plan(board, &kernel)
        };
        assert!(matches!(load(&memory, &plan), Err(Error::Memory(_))));
    }

    #[test]
    fn the_others_wait_with_the_same_memory_types() {
        let (memory, board) = machine(64).unwrap();
        let boot = load(&memory, &plan(board, &bzimage())).unwrap();
        let other = firmware::processor(1);
        assert_eq!(other.activity, x86::Activity::WaitForSipi);
        assert_eq!(other.mtrr, boot.mtrr);
        assert!(!boot.cr0.contains(Cr0::CD));
    }

    /// For real kernels, which are not part of the tree.
    #[test]
    #[ignore = "set KERNEL to a kernel file"]
    fn a_real_kernel_loads() {
        let kernel = std::fs::read(std::env::var_os("KERNEL").expect("KERNEL")).unwrap();
        let (memory, board) = machine(256).unwrap();
        let plan = BootPlan {
            initrd: &[&[1u8; 1 << 20]],
            rng_seed: Some([1; 32]),
            ..plan(board, &kernel)
        };
        let state = load(&memory, &plan).unwrap();
        assert_ne!(
            memory.load::<u64>(state.rip),
            Ok(0),
            "entry {:#x}",
            state.rip
        );
    }

    /// Kernels whose headers are nearly right.
    fn mutated() -> impl Strategy<Value = Vec<u8>> {
        let parts = || {
            [
                Segment {
                    address: 0x10_0000,
                    bytes: b"code",
                    memory: 0x1000,
                },
                Segment {
                    address: 0x20_0000,
                    bytes: b"data",
                    memory: 0x1000,
                },
            ]
        };
        let kernels = prop_oneof![
            Just((bzimage(), 0x1f0..0x270usize)),
            Just((elf64(0x10_0000, &parts()), 4..264)),
            Just((elf32(0x10_0000, &parts()), 4..176)),
        ];
        kernels.prop_flat_map(|(file, header)| {
            let edge = prop_oneof![Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff)];
            let byte = prop_oneof![edge, any::<u8>()];
            let changes = proptest::collection::vec((header, byte), 0..12);
            let cut = prop_oneof![4 => Just(file.len()), 1 => 0..file.len()];
            (changes, cut).prop_map(move |(changes, cut)| {
                let mut file = file.clone();
                for (at, byte) in changes {
                    file[at] = byte;
                }
                file.truncate(cut);
                file
            })
        })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        prop_oneof![Just(Entry::Auto), Just(Entry::Bits64), Just(Entry::Bits32)]
    }

    proptest! {
        #[test]
        fn any_kernel_starts_or_is_refused_in_one_line(
            kernel in prop_oneof![
                3 => mutated(),
                1 => proptest::collection::vec(any::<u8>(), 0..2048),
            ],
            entry in entries(),
            command_line in any::<String>(),
            parts in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..5000), 0..4),
        ) {
            let (memory, board) = machine(64).unwrap();
            let parts: Vec<&dyn Content> = parts.iter().map(|p| p as &dyn Content).collect();
            let plan = BootPlan {
                board,
                kernel: &kernel,
                initrd: &parts,
                command_line: &command_line,
                entry,
                rng_seed: Some([1; 32]),
            };
            match load(&memory, &plan) {
                // Where it starts there is RAM.
                Ok(state) => {
                    prop_assert!(memory.page(state.rip).is_some());
                    prop_assert!(state.rip >= layout::HIGH_MEMORY);
                }
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
