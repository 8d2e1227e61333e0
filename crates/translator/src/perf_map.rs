//! The map of translated code for `perf`: `/tmp/perf-PID.map`, one line per function with its
//! address and length in hexadecimal and its name (Linux, tools/perf/Documentation/
//! jit-interface.txt).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A map that is being written, in the order of translation. `perf report` reads it when the
/// process has ended; what is still buffered is written at drop.
#[derive(Debug)]
pub(crate) struct PerfMap {
    file: BufWriter<File>,
}

impl PerfMap {
    /// Appends to the map of process `pid`, as each vCPU does to this one's. A line is written at
    /// once or not at all while it fits the buffer, so those of several vCPUs don't mix.
    ///
    /// # Errors
    /// If the file can't be made or opened, or is a link: anybody may write to `/tmp`.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/tmp/perf-{pid}.map")))
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER, file),
        })
    }

    /// Names `length` bytes of code at `address`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn add(
        &mut self,
        address: usize,
        length: usize,
        name: fmt::Arguments<'_>,
    ) -> io::Result<()> {
        // One `write_all` per line: BufWriter splits between those, not inside of them.
        let line = format!("{address:x} {length:x} {name}\n");
        self.file.write_all(line.as_bytes())
    }
}

/// Bytes that are written at a time.
const BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this test's own, removed when it is over.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("perf-map-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }

    #[test]
    fn lines_are_as_perf_reads_them() {
        let scratch = Scratch::new("lines");
        let mut map = PerfMap::open(&scratch.0).expect("a file");
        map.add(
            0x7f00_1234,
            0x40,
            format_args!("guest_{:x}", 0xffff_8000u32),
        )
        .expect("room");
        drop(map);
        let text = std::fs::read_to_string(&scratch.0).expect("text");
        assert_eq!(text, "7f001234 40 guest_ffff8000\n");
    }

    #[test]
    fn two_writers_do_not_mix_their_lines() {
        let scratch = Scratch::new("writers");
        let mut maps = [0, 1].map(|_| PerfMap::open(&scratch.0).expect("a file"));
        for number in 0..10_000_usize {
            for map in &mut maps {
                map.add(number, number, format_args!("block"))
                    .expect("room");
            }
        }
        drop(maps);
        let text = std::fs::read_to_string(&scratch.0).expect("text");
        assert!(text.len() > 2 * BUFFER);
        let mut seen = vec![0; 10_000];
        for line in text.lines() {
            let parts: Vec<_> = line.split(' ').collect();
            let [address, length, "block"] = parts[..] else {
                panic!("{line}");
            };
            assert_eq!(address, length);
            seen[usize::from_str_radix(address, 16).expect("hexadecimal")] += 1;
        }
        assert!(seen.iter().all(|&times| times == 2));
    }

    #[test]
    fn a_link_is_not_followed() {
        let (target, link) = (Scratch::new("target"), Scratch::new("link"));
        std::fs::write(&target.0, "").expect("a file");
        std::os::unix::fs::symlink(&target.0, &link.0).expect("a link");
        assert!(PerfMap::open(&link.0).is_err());
    }
}
