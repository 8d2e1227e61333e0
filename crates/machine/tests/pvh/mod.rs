//! Kernels of a few bytes with a PVH entry.

/// Where the code is, and is entered.
pub(crate) const ENTRY: u32 = 0x10_0000;

/// A 32-bit ELF kernel with a PVH note: `code`, and zeros up to 64 KiB.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const NOTE: u32 = 52 + 2 * 32;
    const DATA: u32 = NOTE + 20;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(52, 0);
    file[16..20].copy_from_slice(&[2, 0, 3, 0]);
    for (offset, value) in [(20, 1), (28, 52), (40, 52), (42, 32), (44, 2)] {
        file[offset] = value;
    }
    let len = code.len() as u32;
    let load = [1, DATA, ENTRY, ENTRY, len, 0x1_0000, 7, 4];
    let note = [4, NOTE, 0, 0, 20, 20, 4, 4];
    // Name "Xen", type 18: XEN_ELFNOTE_PHYS32_ENTRY.
    let entry_note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY];
    for word in load.into_iter().chain(note).chain(entry_note) {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
