//! What all peers boot: Debian's kernel, and its guest's initrd with the workload's process 1.

use super::workload::{COMMAND_LINE, Workload};
use anyhow::{Context, Result};
use image::{Event, GuestSpec, KernelChoice, Options, Stage};
use std::fs;
use std::path::{Path, PathBuf};

/// One boot. The peers have it in common, to the byte.
#[derive(Debug)]
pub(crate) struct Boot {
    /// A bzImage.
    pub(crate) kernel: PathBuf,
    /// The initrd.
    pub(crate) initrd: PathBuf,
    /// The kernel's command line.
    pub(crate) command_line: &'static str,
    /// The guest's memory in MiB.
    pub(crate) memory_mib: u32,
}

impl Boot {
    /// Makes what `workload` needs, in `directory`.
    pub(crate) fn new(
        guest: &image::Guest,
        workload: &Workload,
        memory_mib: u32,
        directory: &Path,
    ) -> Result<Self> {
        let path = &guest.initrd;
        let mut initrd =
            fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        initrd.extend(archive("compare", workload.init().as_bytes()));
        let made = directory.join("initrd");
        fs::write(&made, initrd)?;
        Ok(Self {
            kernel: guest.kernel.clone(),
            initrd: made,
            command_line: COMMAND_LINE,
            memory_mib,
        })
    }
}

/// Debian's guest, with a kernel of `series`.
pub(crate) fn guest(series: Option<String>) -> Result<image::Guest> {
    let kernel = series.map_or(KernelChoice::Default, KernelChoice::Series);
    let mut progress = |event: Event<'_>| match event {
        Event::Stage(Stage::Lists) => println!("looking up Debian's packages"),
        Event::Stage(Stage::Download) => println!("downloading Debian's packages"),
        Event::Note(note) => println!("{note}"),
        _ => {}
    };
    Ok(image::debian(
        &GuestSpec { kernel },
        &Options::default(),
        &mut progress,
    )?)
}

/// An archive for the kernel to unpack, with one program. It may follow other archives, whose
/// lengths are multiples of 4 bytes.
///
/// Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, "newc".
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    const S_IFREG: usize = 0o100_000;
    let mut archive = Vec::new();
    for (name, mode, content) in [(name, S_IFREG | 0o755, content), ("TRAILER!!!", 0, &[][..])] {
        archive.extend_from_slice(b"070701");
        let (inode, uid, gid, links, mtime) = (0, 0, 0, 1, 0);
        let (device, of_device, check) = ([0, 0], [0, 0], 0);
        let fields = [
            inode,
            mode,
            uid,
            gid,
            links,
            mtime,
            content.len(),
            device[0],
            device[1],
            of_device[0],
            of_device[1],
            name.len() + 1,
            check,
        ];
        archive.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08x}").into_bytes()),
        );
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_in_newc_format() {
        let archive = archive("init", b"abcde");
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        let field = |n: usize| std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
        assert_eq!(
            (field(1), field(6), field(11)),
            ("000081ed", "00000005", "00000005")
        );
        // The name ends at 115, the content begins at the next multiple of 4 and fills 8 bytes.
        assert_eq!(&archive[110..116], b"init\0\0");
        assert_eq!(&archive[116..124], b"abcde\0\0\0");
        assert!(archive[124..].starts_with(b"070701"));
    }
}
