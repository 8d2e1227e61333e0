//! Kernels of a few bytes.

/// A kernel whose 64-bit entry halts for good.
pub(crate) fn halting_kernel() -> Vec<u8> {
    // cli; hlt; jmp back to the hlt
    tiny_kernel(&[0xfa, 0xf4, 0xeb, 0xfd])
}

/// A bzImage (Linux, Documentation/arch/x86/boot.rst) with `code` at its 64-bit entry.
pub(crate) fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400 + 0x400];
    let fields: [(usize, &[u8]); 13] = [
        (0x1f1, &[1]),
        (0x1f4, &0x40_u32.to_le_bytes()),
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
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file[0x600..][..code.len()].copy_from_slice(code);
    file
}
