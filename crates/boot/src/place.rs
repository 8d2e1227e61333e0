//! Placing things in guest memory, for every loader.

use crate::layout::boot_data::COMMAND_LINE;
use crate::{Content, Error, content};
use memory::{GuestMemory, OutOfRange, PAGE_SIZE};
use std::ops::Range;

/// Alignment of each part of an initrd: Linux looks for the next archive at a multiple of it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
const PART_ALIGN: u64 = 4;

/// Writes the parts of an initrd one after the other, each padded to 4 bytes, as high as they go
/// inside `room`, on a page boundary. Returns the range they fill; `None` if there are no bytes.
pub(crate) fn initrd(
    memory: &GuestMemory,
    parts: &[&dyn Content],
    room: Range<u64>,
) -> Result<Option<Range<u64>>, Error> {
    let len = parts
        .iter()
        .map(|part| part.size().checked_next_multiple_of(PART_ALIGN))
        .try_fold(0u64, |sum, len| sum.checked_add(len?))
        .unwrap_or(u64::MAX);
    if len == 0 {
        return Ok(None);
    }
    let page = PAGE_SIZE as u64;
    let first = room.start.next_multiple_of(page);
    let does_not_fit = || Error::InitrdDoesNotFit {
        len,
        room: room.end.saturating_sub(first),
    };
    let start = room.end.checked_sub(len).ok_or_else(does_not_fit)? / page * page;
    if start < first {
        return Err(does_not_fit());
    }
    let mut at = start;
    for part in parts {
        content::copy(*part, 0, memory, at, part.size()).map_err(Error::in_initrd)?;
        let end = at + part.size();
        at = end.next_multiple_of(PART_ALIGN);
        zero(memory, end..at)?;
    }
    Ok(Some(start..at))
}

/// Writes the command line with its final NUL to [`COMMAND_LINE`]; `max` bytes without the NUL are
/// what the kernel takes.
pub(crate) fn command_line(memory: &GuestMemory, line: &str, max: usize) -> Result<(), Error> {
    let max = max.min((COMMAND_LINE.end - COMMAND_LINE.start - 1) as usize);
    if line.len() > max {
        let len = line.len();
        return Err(Error::CommandLineTooLong { len, max });
    }
    if let Some(at) = line.bytes().position(|b| b == 0) {
        return Err(Error::CommandLineNul(at));
    }
    memory.write(COMMAND_LINE.start, line.as_bytes())?;
    Ok(memory.write(COMMAND_LINE.start + line.len() as u64, &[0])?)
}

/// Writes zeros: memory may hold what the guest left there before a restart.
pub(crate) fn zero(memory: &GuestMemory, range: Range<u64>) -> Result<(), OutOfRange> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        memory.write(at, &ZEROS[..len as usize])?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use std::sync::Arc;

    fn memory() -> Arc<GuestMemory> {
        GuestMemory::new(&Layout::new(64 << 20).unwrap().regions()).unwrap()
    }

    #[test]
    fn initrd_parts_follow_each_other_padded_and_aligned() {
        let memory = memory();
        memory.write(0x2_0000, &[0xff; 0x2_0000]).unwrap();
        let parts: [&dyn Content; 3] = [&[1u8; 5], b"", &[2u8; 4096]];
        let range = initrd(&memory, &parts, 0x2_0000..0x4_0001)
            .unwrap()
            .unwrap();
        assert_eq!(range, 0x3_e000..0x3_e000 + 8 + 4096);
        let mut head = [0; 9];
        memory.read(range.start, &mut head).unwrap();
        assert_eq!(head, [1, 1, 1, 1, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn an_initrd_stays_in_its_room() {
        let memory = memory();
        let page = vec![7; 4096];
        let one = initrd(&memory, &[&page], 0x2_0001..0x2_2000);
        assert_eq!(one.unwrap(), Some(0x2_1000..0x2_2000));
        for (start, end) in [(0x2_0001, 0x2_1fff), (0, 0xfff), (0x3_0000, 0x2_0000)] {
            assert!(matches!(
                initrd(&memory, &[&page], start..end),
                Err(Error::InitrdDoesNotFit { len: 4096, .. })
            ));
        }
        assert_eq!(initrd(&memory, &[], 0..0).unwrap(), None);
        assert_eq!(initrd(&memory, &[b""], 0..0).unwrap(), None);
    }

    #[test]
    fn command_lines_have_a_limit_and_an_end() {
        let memory = memory();
        memory.write(COMMAND_LINE.start, &[0xff; 16]).unwrap();
        command_line(&memory, "quiet", 5).unwrap();
        let mut written = [0; 7];
        memory.read(COMMAND_LINE.start, &mut written).unwrap();
        assert_eq!(&written, b"quiet\0\xff");
        assert!(matches!(
            command_line(&memory, "quiet!", 5),
            Err(Error::CommandLineTooLong { len: 6, max: 5 })
        ));
        assert!(matches!(
            command_line(&memory, "a\0b", 5),
            Err(Error::CommandLineNul(1))
        ));
        let huge = "x".repeat(1 << 20);
        assert!(matches!(
            command_line(&memory, &huge, usize::MAX),
            Err(Error::CommandLineTooLong { max: 65535, .. })
        ));
    }
}
