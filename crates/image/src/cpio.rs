//! Archives for the kernel's initramfs: cpio in the "newc" format.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. The kernel unpacks
//! any number of archives one after the other, each of which begins at a multiple of 4 bytes.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Alignment of every archive's length, so that another one may follow.
const ALIGNMENT: usize = 512;

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Modification time of every entry, in seconds since 1970: the same input is the same archive.
const MTIME: u32 = 0;

/// An archive being written. All entries belong to root.
///
/// Paths are relative to the root, without a leading slash; a directory comes before what is in
/// it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, path: &str, permissions: u32) {
        self.entry(path, S_IFDIR | permissions, (0, 0), &[]);
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, S_IFREG | permissions, (0, 0), content);
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds all directories, regular files and symbolic links below the host's `directory`, in the
    /// order of their names, with their permissions.
    ///
    /// # Errors
    /// What reading them gives, with the path in the message; other kinds of files and names that
    /// are no UTF-8 are refused.
    pub fn tree(&mut self, directory: &Path) -> io::Result<()> {
        self.below(directory, "")
    }

    /// Adds what is in `directory` under names that begin with `prefix`.
    fn below(&mut self, directory: &Path, prefix: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.host_file(&entry, prefix).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", entry.path().display()))
            })?;
        }
        Ok(())
    }

    fn host_file(&mut self, entry: &fs::DirEntry, prefix: &str) -> io::Result<()> {
        let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "its name is no UTF-8");
        let name = entry.file_name().into_string().map_err(no_text)?;
        let path = format!("{prefix}{name}");
        let metadata = entry.metadata()?;
        let permissions = metadata.permissions().mode() & 0o7777;
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.directory(&path, permissions);
            return self.below(&entry.path(), &format!("{path}/"));
        }
        if kind.is_symlink() {
            let target = fs::read_link(entry.path())?.into_os_string();
            self.symlink(&path, &target.into_string().map_err(no_text)?);
        } else if kind.is_file() {
            self.file(&path, permissions, &fs::read(entry.path())?);
        } else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is a special file",
            ));
        }
        Ok(())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) {
        self.entry(path, S_IFCHR | permissions, device, &[]);
    }

    /// Adds a named pipe.
    pub fn fifo(&mut self, path: &str, permissions: u32) {
        self.entry(path, S_IFIFO | permissions, (0, 0), &[]);
    }

    /// The finished archive. Its length is a multiple of 512.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.align(ALIGNMENT);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        assert!(
            !path.starts_with('/') && !path.contains('\0'),
            "not a relative path: {path:?}"
        );
        let size = u32::try_from(content.len()).expect("sizes are bounded where they are read");
        let name_size = u32::try_from(path.len() + 1).expect("names are bounded");
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        let (uid, gid, check) = (0, 0, 0);
        self.bytes.extend_from_slice(b"070701");
        for field in [
            self.inode, mode, uid, gid, links, MTIME, size, 0, 0, device.0, device.1, name_size,
            check,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align(4);
        self.bytes.extend_from_slice(content);
        self.align(4);
        self.inode += 1;
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One entry as the kernel would read it.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) path: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) content: Vec<u8>,
    }

    /// Reads archives, one after the other, as `init/initramfs.c` does.
    pub(crate) fn parse(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == 0 {
                at += 1;
                continue;
            }
            assert_eq!(at % 4, 0, "a header is aligned");
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let digits = &bytes[at + 6 + 8 * n..at + 14 + 8 * n];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            assert_eq!(bytes[at + 110 + name_size - 1], 0);
            let start = (at + 110 + name_size).next_multiple_of(4);
            let entry = Entry {
                path: String::from_utf8(name.to_vec()).unwrap(),
                mode: field(1),
                device: (field(9), field(10)),
                content: bytes[start..start + size].to_vec(),
            };
            at = (start + size).next_multiple_of(4);
            if entry.path != "TRAILER!!!" {
                entries.push(entry);
            }
        }
        entries
    }

    #[test]
    fn entries_read_back_as_written() {
        let mut archive = Archive::default();
        archive.directory("d", 0o755);
        archive.file("d/odd", 0o600, b"abc");
        archive.symlink("l", "/d/odd");
        archive.character_device("c", 0o600, (5, 1));
        archive.fifo("p", 0o644);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let entry = |path: &str, mode, device, content: &[u8]| Entry {
            path: path.to_owned(),
            mode,
            device,
            content: content.to_vec(),
        };
        assert_eq!(
            parse(&bytes),
            [
                entry("d", 0o040_755, (0, 0), b""),
                entry("d/odd", 0o100_600, (0, 0), b"abc"),
                entry("l", 0o120_777, (0, 0), b"/d/odd"),
                entry("c", 0o020_600, (5, 1), b""),
                entry("p", 0o010_644, (0, 0), b""),
            ]
        );
    }

    #[test]
    fn a_directory_of_the_host_is_added_as_it_is() {
        let host = tempfile::tempdir().unwrap();
        let at = |path: &str| host.path().join(path);
        fs::create_dir(at("b")).unwrap();
        fs::set_permissions(at("b"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("b/file"), b"text").unwrap();
        fs::set_permissions(at("b/file"), fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("nowhere", at("a")).unwrap();
        let mut archive = Archive::default();
        archive.tree(host.path()).unwrap();
        let read: Vec<_> = parse(&archive.finish())
            .into_iter()
            .map(|entry| (entry.path, entry.mode, entry.content))
            .collect();
        assert_eq!(
            read,
            [
                ("a".to_owned(), 0o120_777, b"nowhere".to_vec()),
                ("b".to_owned(), 0o041_777, b"".to_vec()),
                ("b/file".to_owned(), 0o100_750, b"text".to_vec()),
            ]
        );
        let _socket = std::os::unix::net::UnixListener::bind(at("b/socket")).unwrap();
        let error = Archive::default().tree(host.path()).unwrap_err();
        assert!(error.to_string().contains("b/socket: "), "{error}");
    }

    #[test]
    fn archives_can_follow_each_other() {
        let mut first = Archive::default();
        first.file("a", 0o644, b"1");
        let mut second = Archive::default();
        second.file("b", 0o644, b"2");
        let mut both = first.finish();
        both.extend(second.finish());
        let paths: Vec<_> = parse(&both).into_iter().map(|e| e.path).collect();
        assert_eq!(paths, ["a", "b"]);
    }
}
