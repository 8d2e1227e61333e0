//! Kernel, initrd and command line as files from anywhere.

use crate::input::Input;
use boot::firmware::Board;
use boot::{BootPlan, Content, Entry, Layout, layout};
use memory::GuestMemory;

/// The smallest machine.
const MEMORY_BYTES: u64 = layout::MEMORY_MIN;

/// Loads the kernel that follows entry, command line and initrds in the input.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let entry = input.pick(&[Entry::Auto, Entry::Bits64, Entry::Bits32]);
    let vcpus = input.pick(&[1, 2, 4, 255, 0, u32::MAX]);
    let command_line = String::from_utf8_lossy(input.bytes(3000)).into_owned();
    let initrd: Vec<_> = (0..input.below(3)).map(|_| input.bytes(4096)).collect();
    let initrd: Vec<_> = initrd.iter().map(|part| part as &dyn Content).collect();
    let layout = Layout::new(MEMORY_BYTES).expect("the smallest machine");
    let memory = GuestMemory::new(&layout.regions()).expect("the smallest memory");
    let plan = BootPlan {
        board: Board {
            layout,
            vcpus,
            uuid: [7; 16],
        },
        kernel: &input.rest(),
        initrd: &initrd,
        command_line: &command_line,
        entry,
        rng_seed: Some([1; 32]),
    };
    match boot::load(&memory, &plan) {
        Ok(state) => {
            assert!(
                memory.page(state.rip).is_some(),
                "the entry {:#x} is memory",
                state.rip
            );
            assert!(
                state.rip >= layout::HIGH_MEMORY,
                "the entry {:#x} is the kernel's",
                state.rip
            );
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.contains('\n'),
                "one line: {text:?}"
            );
        }
    }
}

/// A bzImage and both kinds of ELF file that start.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let kernels = [bzimage(), elf(true), elf(false)];
    let around = |kernel: Vec<u8>| {
        let command_line = b"console=ttyS0";
        let mut seed = vec![0, 0, command_line.len() as u8, 0];
        seed.extend(command_line);
        // One initrd.
        seed.extend([1, 4, 0, 1, 2, 3, 4]);
        seed.extend(kernel);
        seed
    };
    kernels.map(around).into()
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A setup header of protocol 2.15 (Linux, Documentation/arch/x86/boot.rst) and some code.
fn bzimage() -> Vec<u8> {
    const CODE_PARAGRAPHS: u32 = 0x20;
    let mut file = vec![0; 0x400 + 16 * CODE_PARAGRAPHS as usize];
    let fields: [(usize, &[u8]); 13] = [
        (0x1f1, &[1]),
        (0x1f4, &CODE_PARAGRAPHS.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x020f_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x214, &0x10_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 21, 1, 0]),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x40_0000_u32.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        put(&mut file, at, bytes);
    }
    file
}

/// An ELF file (System V ABI, chapter 4) with one segment to load and a note with the PVH entry
/// (Xen, docs/misc/pvh.pandoc).
fn elf(wide: bool) -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    const NOTE: u64 = 0x100;
    const CODE: u64 = 0x180;
    let size = if wide { 8 } else { 4 };
    let word = |value: u64| value.to_le_bytes()[..size].to_vec();
    let header: u64 = if wide { 64 } else { 52 };
    let entry_size: u8 = if wide { 56 } else { 32 };
    let mut file = vec![0x90; 0x200];
    file[..NOTE as usize].fill(0);
    put(&mut file, 0, b"\x7fELF");
    put(&mut file, 4, &[1 + u8::from(wide), 1, 1]);
    put(&mut file, 16, &[2, 0, if wide { 62 } else { 3 }, 0, 1]);
    put(&mut file, 24 + size, &word(header));
    put(
        &mut file,
        28 + 3 * size,
        &[header as u8, 0, entry_size, 0, 2, 0],
    );
    let segments = [(1u32, CODE, ENTRY, 0x80, 0x1000), (4, NOTE, 0, 0x18, 0x18)];
    for (index, (kind, offset, address, in_file, in_memory)) in segments.into_iter().enumerate() {
        let mut segment = kind.to_le_bytes().to_vec();
        if wide {
            segment.extend(7u32.to_le_bytes());
        }
        for field in [offset, address, address, in_file, in_memory] {
            segment.extend(word(field));
        }
        if !wide {
            segment.extend(7u32.to_le_bytes());
        }
        segment.extend(word(4));
        put(
            &mut file,
            header as usize + index * usize::from(entry_size),
            &segment,
        );
    }
    let mut note = Vec::new();
    for field in [4, size as u32, 18] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(word(ENTRY));
    put(&mut file, NOTE as usize, &note);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds that are refused at their first byte would make a poor target.
    #[test]
    fn the_seeds_start() {
        for kernel in [bzimage(), elf(true), elf(false)] {
            let layout = Layout::new(MEMORY_BYTES).unwrap();
            let memory = GuestMemory::new(&layout.regions()).unwrap();
            let plan = BootPlan {
                board: Board {
                    layout,
                    vcpus: 1,
                    uuid: [7; 16],
                },
                kernel: &kernel,
                initrd: &[b"1234"],
                command_line: "console=ttyS0",
                entry: Entry::Auto,
                rng_seed: None,
            };
            boot::load(&memory, &plan).unwrap();
        }
    }
}
