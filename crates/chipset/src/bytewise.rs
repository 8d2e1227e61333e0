//! 8-bit chips on a bus of wider accesses: the bus converter splits an access into bytes at
//! successive ports, lowest first.

use device::Width;

/// Reads `width` from `port` on, a byte at a time.
pub(crate) fn read(port: u16, width: Width, mut byte: impl FnMut(u16) -> u8) -> u32 {
    (0..width.bytes().min(4)).fold(0, |value, i| {
        value | u32::from(byte(port.wrapping_add(i as u16))) << (8 * i)
    })
}

/// Writes `width` from `port` on, a byte at a time.
pub(crate) fn write(port: u16, width: Width, value: u32, mut byte: impl FnMut(u16, u8)) {
    for (i, value) in value
        .to_le_bytes()
        .into_iter()
        .enumerate()
        .take(width.bytes())
    {
        byte(port.wrapping_add(i as u16), value);
    }
}
