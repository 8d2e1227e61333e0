//! Kernels made for tests.

use crate::firmware::Board;
use crate::{BootPlan, Content, Entry, Layout, LayoutError};
use memory::GuestMemory;
use std::sync::Arc;

/// Length of the protected-mode part of [`bzimage`].
pub(crate) const CODE_LEN: usize = 0x1000;

/// A bzImage of protocol 2.15 with both entries that wants to run at 16 MiB and unpack to 4 MiB.
/// Its protected-mode part is all 0x90.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &(CODE_LEN as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x40_0000u32.to_le_bytes());
    file.extend([0x90; CODE_LEN]);
    file
}

/// A segment of [`elf64`] and [`elf32`].
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) bytes: &'static [u8],
    pub(crate) memory: u64,
}

/// A 64-bit ELF kernel with a PVH note of 8 bytes.
pub(crate) fn elf64(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let note = pvh_note(&entry.to_le_bytes());
    let count = segments.len() + 1;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[20] = 1;
    file[32] = 64;
    file[52] = 64;
    file[54] = 56;
    file[56] = count as u8;
    let mut data = (64 + count * 56) as u64;
    let mut payload: Vec<u8> = Vec::new();
    let mut header = |kind: u32, address: u64, bytes: &[u8], memory: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for field in [data, address, address, bytes.len() as u64, memory, 4] {
            file.extend(field.to_le_bytes());
        }
        data += bytes.len() as u64;
        payload.extend(bytes);
    };
    for segment in segments {
        header(1, segment.address, segment.bytes, segment.memory);
    }
    header(4, 0, &note, note.len() as u64);
    file.extend(payload);
    file
}

/// A 32-bit ELF kernel with a PVH note of 4 bytes.
pub(crate) fn elf32(entry: u32, segments: &[Segment]) -> Vec<u8> {
    let note = pvh_note(&entry.to_le_bytes());
    let count = segments.len() + 1;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(52, 0);
    file[16..20].copy_from_slice(&[2, 0, 3, 0]);
    file[20] = 1;
    file[28] = 52;
    file[40] = 52;
    file[42] = 32;
    file[44] = count as u8;
    let mut data = (52 + count * 32) as u32;
    let mut payload: Vec<u8> = Vec::new();
    let mut header = |kind: u32, address: u32, bytes: &[u8], memory: u32| {
        let len = bytes.len() as u32;
        for field in [kind, data, address, address, len, memory, 7, 4] {
            file.extend(field.to_le_bytes());
        }
        data += len;
        payload.extend(bytes);
    };
    for segment in segments {
        let (address, memory) = (segment.address as u32, segment.memory as u32);
        header(1, address, segment.bytes, memory);
    }
    header(4, 0, &note, note.len() as u32);
    file.extend(payload);
    file
}

fn pvh_note(description: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4, description.len() as u32, 18] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(description);
    note
}

/// A machine with `mib` MiB of memory, and two vCPUs.
pub(crate) fn machine(mib: u64) -> Result<(Arc<GuestMemory>, Board), LayoutError> {
    let layout = Layout::new(mib << 20)?;
    let memory = GuestMemory::new(&layout.regions()).expect("memory of a valid layout");
    let board = Board {
        layout,
        vcpus: 2,
        uuid: [7; 16],
    };
    Ok((memory, board))
}

/// A plan with nothing but a kernel.
pub(crate) fn plan(board: Board, kernel: &dyn Content) -> BootPlan<'_> {
    BootPlan {
        board,
        kernel,
        initrd: &[],
        command_line: "",
        entry: Entry::Auto,
        rng_seed: None,
    }
}
