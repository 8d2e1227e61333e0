//! Debian binary packages: what is in them, and their unpacking.
//!
//! Source: deb(5), format 2.0: an `ar` archive of `debian-binary`, `control.tar*` and
//! `data.tar*`. Though apt verified the packages' signatures, nothing here trusts them: sizes are
//! bounded, and paths can't leave the destination.

use crate::error::{At, Error};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

/// The longest data that a package may hold, unpacked: twice Debian's largest kernel package.
const DATA_BYTES_MAX: u64 = 2 << 30;
/// The largest file that is read into memory.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// What a decompressor may use: xz's highest level needs 65 MiB, zstd's windows are 128 MiB.
const DECOMPRESSOR_BYTES_MAX: u64 = 160 << 20;
/// The longest path.
const PATH_BYTES_MAX: usize = 4096;
/// The most files that one package may hold.
const FILES_MAX: usize = 1 << 20;
/// The most members that the outer archive may hold.
const MEMBERS_MAX: usize = 16;

/// Reads into memory the regular files of package `deb` that `wanted` names (by their paths
/// relative to the root), in the package's order.
pub(crate) fn read_files(
    deb: &Path,
    mut wanted: impl FnMut(&Path) -> bool,
) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for_each(deb, |path, entry| {
        if entry.header().entry_type().is_file() && wanted(path) {
            if entry.size() > FILE_BYTES_MAX {
                return Err(invalid(format!("{} is too large", path.display())));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.push((path.to_owned(), content));
        }
        Ok(())
    })?;
    Ok(files)
}

/// Unpacks package `deb` below `destination`, an existing directory.
///
/// Owners, set-user-ID bits, devices and pipes stay behind. A link to a directory stays where a
/// package has a directory, as dpkg(1) has it: `/lib` is one where `/usr` is merged.
pub(crate) fn unpack(deb: &Path, destination: &Path) -> Result<(), Error> {
    for_each(deb, |path, entry| {
        let kind = entry.header().entry_type();
        let takes = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        let keeps_link = kind.is_dir() && is_link_to_directory(&destination.join(path));
        if takes && !keeps_link && !path.as_os_str().is_empty() {
            entry.set_preserve_permissions(false);
            entry.set_preserve_mtime(true);
            if !entry.unpack_in(destination)? {
                return Err(invalid(format!(
                    "{} leaves the destination",
                    path.display()
                )));
            }
        }
        Ok(())
    })
}

fn is_link_to_directory(path: &Path) -> bool {
    path.is_symlink() && path.is_dir()
}

type Entry<'a> = tar::Entry<'a, Box<dyn Read>>;

fn for_each(
    deb: &Path,
    mut visit: impl FnMut(&Path, &mut Entry<'_>) -> io::Result<()>,
) -> Result<(), Error> {
    let file = BufReader::new(File::open(deb).at(deb)?);
    let walk = || -> io::Result<()> {
        let mut archive = tar::Archive::new(data(file)?);
        for (count, entry) in archive.entries()?.enumerate() {
            if count >= FILES_MAX {
                return Err(invalid("it holds too many files"));
            }
            let mut entry = entry?;
            let path = relative(&entry.path()?)?;
            visit(&path, &mut entry)?;
        }
        // An archive ends before its compressed form does, whose checksum is to be verified.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(())
    };
    walk().map_err(|source| match Error::io(deb, source) {
        // What remains is about the package: its bytes, or where they should go.
        Error::Io { path, source } => Error::Package {
            file: path,
            reason: source.to_string(),
        },
        other => other,
    })
}

/// `path` without its leading `./`, if it stays below the root.
fn relative(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(invalid("a path is too long"));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => {
                return Err(invalid(format!(
                    "{} is no path in a package",
                    path.display()
                )));
            }
        }
    }
    Ok(clean)
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The unpacked data archive of a package.
fn data(mut deb: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut magic = [0; 8];
    deb.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(invalid("it is no Debian package"));
    }
    for _ in 0..MEMBERS_MAX {
        let member = Member::read(&mut deb)?;
        if let Some(compression) = member.name.strip_prefix("data.tar") {
            let data = Exact {
                inner: deb,
                left: member.size,
            };
            return decompress(compression, BufReader::new(data));
        }
        let padded = member.size + member.size % 2;
        let skipped = io::copy(&mut deb.by_ref().take(padded), &mut io::sink())?;
        if skipped != padded {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Err(invalid("it holds no data"))
}

/// The header of a member of an `ar` archive, as deb(5) has them: no long names.
struct Member {
    name: String,
    size: u64,
}

impl Member {
    fn read(deb: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 60];
        deb.read_exact(&mut header)?;
        let text = str::from_utf8(&header).map_err(|_| invalid("a member's header is no text"))?;
        if !text.is_ascii() || !text.ends_with("`\n") {
            return Err(invalid("a member's header is damaged"));
        }
        let name = text[..16].trim_end().trim_end_matches('/').to_owned();
        // Ten digits at most: doubling can't overflow.
        let size = text[48..58].trim_end().parse();
        Ok(Self {
            name,
            size: size.map_err(|_| invalid("a member has no size"))?,
        })
    }
}

fn decompress(suffix: &str, data: impl io::BufRead + 'static) -> io::Result<Box<dyn Read>> {
    let plain: Box<dyn Read> = match suffix {
        "" => Box::new(data),
        ".xz" => Box::new(xz(data)?),
        ".zst" => {
            let mut decoder = zstd::Decoder::with_buffer(data)?;
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        _ => {
            return Err(invalid(format!(
                "its data is compressed in an unknown way ({suffix})"
            )));
        }
    };
    Ok(Box::new(Bounded {
        inner: plain,
        left: DATA_BYTES_MAX,
    }))
}

/// Decompresses xz within bounded memory.
pub(crate) fn xz<R: io::BufRead>(data: R) -> io::Result<impl Read + use<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(DECOMPRESSOR_BYTES_MAX, 0)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(data, stream))
}

/// Ends after so many bytes, and fails where they are not all there.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.by_ref().take(self.left).read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Fails, instead of ending, where more than the limit is there.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| invalid("it unpacks to more than is reasonable"))?;
        Ok(read)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A package whose data is `data`, compressed as `suffix` says.
    pub(crate) fn package(suffix: &str, data: &[u8]) -> Vec<u8> {
        let data = match suffix {
            ".xz" => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            ".zst" => zstd::encode_all(data, 1).unwrap(),
            _ => data.to_vec(),
        };
        let mut deb = b"!<arch>\n".to_vec();
        for (name, content) in [
            ("debian-binary", &b"2.0\n"[..]),
            ("control.tar.xz", b"odd"),
            (&format!("data.tar{suffix}"), &data),
        ] {
            let size = content.len();
            deb.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644).bytes(),
            );
            deb.extend(content);
            deb.resize(deb.len().next_multiple_of(2), b'\n');
        }
        deb
    }

    /// A tar archive of regular files. Names are written as they are, checks bypassed.
    pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn stored(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn files_are_read_whatever_the_compression() {
        let data = tar(&[("./boot/vmlinuz-1", b"kernel"), ("./usr/share/doc", b"no")]);
        for suffix in ["", ".xz", ".zst"] {
            let deb = stored(&package(suffix, &data));
            let files = read_files(deb.path(), |path| path.starts_with("boot")).unwrap();
            assert_eq!(
                files,
                [(PathBuf::from("boot/vmlinuz-1"), b"kernel".to_vec())]
            );
        }
    }

    #[test]
    fn unpacking_drops_set_user_id() {
        use std::os::unix::fs::PermissionsExt;
        let deb = stored(&package(".xz", &tar(&[("./bin/su", b"x")])));
        let directory = tempfile::tempdir().unwrap();
        unpack(deb.path(), directory.path()).unwrap();
        let metadata = directory.path().join("bin/su").metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7000, 0);
        assert_eq!(metadata.len(), 1);
    }

    #[test]
    fn paths_outside_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        for path in ["../outside", "./../outside", "a/../../outside", "/outside"] {
            let deb = stored(&package("", &tar(&[(path, b"x")])));
            assert!(
                matches!(unpack(deb.path(), &inside), Err(Error::Package { .. })),
                "{path}"
            );
            assert!(matches!(
                read_files(deb.path(), |_| true),
                Err(Error::Package { .. })
            ));
        }
        assert!(!directory.path().join("outside").exists());
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "out", "..").unwrap();
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        builder
            .append_data(&mut file, "out/outside", &b"x"[..])
            .unwrap();
        let deb = stored(&package("", &builder.into_inner().unwrap()));
        assert!(unpack(deb.path(), &inside).is_err());
        assert!(!directory.path().join("outside").exists());
    }

    #[test]
    fn a_link_to_a_directory_stays() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", at("lib")).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut lib = tar::Header::new_gnu();
        lib.set_entry_type(tar::EntryType::Directory);
        lib.set_size(0);
        lib.set_mode(0o755);
        builder.append_data(&mut lib, "lib/", io::empty()).unwrap();
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        builder
            .append_data(&mut file, "lib/file", &b"x"[..])
            .unwrap();
        let deb = stored(&package("", &builder.into_inner().unwrap()));
        unpack(deb.path(), directory.path()).unwrap();
        assert!(at("lib").is_symlink());
        assert_eq!(std::fs::read(at("usr/lib/file")).unwrap(), b"x");
    }

    #[test]
    fn damaged_packages_are_errors() {
        let whole = package(".xz", &tar(&[("./a", &[7; 5000])]));
        for length in (0..whole.len()).step_by(13) {
            let deb = stored(&whole[..length]);
            assert!(read_files(deb.path(), |_| true).is_err(), "cut at {length}");
        }
        let mut huge = package("", b"");
        let size = huge.len() - 12;
        huge[size..size + 10].copy_from_slice(b"9999999999");
        assert!(read_files(stored(&huge).path(), |_| true).is_err());
    }

    #[test]
    fn more_than_the_limit_is_an_error() {
        let mut bounded = Bounded {
            inner: io::repeat(0).take(11),
            left: 10,
        };
        assert!(bounded.read_to_end(&mut Vec::new()).is_err());
        let mut bounded = Bounded {
            inner: io::repeat(0).take(10),
            left: 10,
        };
        assert_eq!(bounded.read_to_end(&mut Vec::new()).unwrap(), 10);
    }
}
