//! Accesses to devices, as the kernel tells them.

use crate::run_page::{MemoryExit, PortExit, RunPage};
use engine::{Access, Platform, Space};

/// Makes the port accesses of an exit, one after the other, and answers in `page`.
pub(crate) fn access_ports(page: &RunPage, exit: &PortExit, platform: &dyn Platform) {
    for n in 0..u64::from(exit.count) {
        let at = exit.offset + n * u64::from(exit.bytes);
        let access = |write| Access {
            space: Space::Port,
            address: exit.port.into(),
            bytes: exit.bytes,
            write,
        };
        if exit.write {
            platform.access(access(Some(page.value(at, exit.bytes))));
        } else {
            page.set_value(at, exit.bytes, platform.access(access(None)));
        }
    }
}

/// Makes the access of an exit to memory that is none, and answers in `page`. An access of another
/// width than devices have (it crosses a page, say) is made in parts.
pub(crate) fn access_memory(page: &RunPage, exit: &MemoryExit, platform: &dyn Platform) {
    let mut done = 0;
    while done < exit.bytes {
        // The largest power of two that is left.
        let bytes = 1u8 << (exit.bytes - done).min(8).ilog2();
        let access = |write| Access {
            space: Space::Memory,
            address: exit.gpa.wrapping_add(done.into()),
            bytes,
            write,
        };
        let at = RunPage::memory_data() + u64::from(done);
        if exit.write.is_some() {
            platform.access(access(Some(page.value(at, bytes))));
        } else {
            page.set_value(at, bytes, platform.access(access(None)));
        }
        done += u32::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_page::RunExit;
    use crate::testing::Board;
    use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO};

    const DATA: u64 = 4096;

    fn page() -> RunPage {
        RunPage::new(None, 8192).unwrap()
    }

    fn ports(page: &RunPage, direction: u32, bytes: u8, count: u32, board: &Board) {
        page.put_exit(KVM_EXIT_IO, |run| {
            let io = &mut run.__bindgen_anon_1;
            io.io.direction = direction as u8;
            io.io.size = bytes;
            io.io.port = 0x1f0;
            io.io.count = count;
            io.io.data_offset = DATA;
        });
        match page.exit() {
            RunExit::Port(exit) => access_ports(page, &exit, board),
            exit => panic!("{exit:?}"),
        }
    }

    fn memory(page: &RunPage, gpa: u64, len: u32, write: Option<u64>, board: &Board) {
        page.put_exit(KVM_EXIT_MMIO, |run| {
            let mmio = &mut run.__bindgen_anon_1;
            mmio.mmio.phys_addr = gpa;
            mmio.mmio.len = len;
            mmio.mmio.is_write = write.is_some().into();
            mmio.mmio.data = write.unwrap_or(0).to_le_bytes();
        });
        match page.exit() {
            RunExit::Memory(exit) => access_memory(page, &exit, board),
            exit => panic!("{exit:?}"),
        }
    }

    #[test]
    fn a_string_instruction_is_as_many_accesses() {
        let (page, board) = (page(), Board::new());
        page.set_value(DATA, 8, 0x4444_3333_2222_1111);
        // `put_exit` writes the structure only, which ends before the data.
        ports(&page, KVM_EXIT_IO_OUT, 2, 4, &board);
        assert_eq!(
            board.take_log(),
            [
                "port 0x1f0.2 = 0x1111",
                "port 0x1f0.2 = 0x2222",
                "port 0x1f0.2 = 0x3333",
                "port 0x1f0.2 = 0x4444"
            ]
        );
        ports(&page, KVM_EXIT_IO_IN, 1, 3, &board);
        assert_eq!(board.take_log(), ["port 0x1f0.1"; 3]);
        assert_eq!(page.value(DATA, 4), 0x2203_0201);
    }

    #[test]
    fn memory_is_accessed_in_widths_that_devices_have() {
        let (page, board) = (page(), Board::new());
        memory(&page, 0xfec0_0ffd, 7, Some(0x77_6655_4433_2211), &board);
        assert_eq!(
            board.take_log(),
            [
                "memory 0xfec00ffd.4 = 0x44332211",
                "memory 0xfec01001.2 = 0x6655",
                "memory 0xfec01003.1 = 0x77"
            ]
        );
        memory(&page, 0xfed0_00f0, 8, None, &board);
        assert_eq!(board.take_log(), ["memory 0xfed000f0.8"]);
        assert_eq!(page.value(RunPage::memory_data(), 8), 1);
        memory(&page, 0xfed0_00f0, 3, None, &board);
        assert_eq!(page.value(RunPage::memory_data(), 3), 0x03_0002);
    }

    #[test]
    #[should_panic(expected = "the kernel's data is in its page")]
    fn data_beyond_the_page_are_refused() {
        page().value(8189, 4);
    }
}
