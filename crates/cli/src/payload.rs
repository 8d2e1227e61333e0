//! The files that a guest starts with.

use anyhow::{Context, Result};
use machine::Content;
use std::fs::{File, Metadata};
use std::io::{Error, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The content of the file at `path`, which is the `what` of the guest. A regular file stays open
/// and is read at every start of the guest; what comes through a pipe or the like is kept.
///
/// # Errors
/// If it can't be read.
pub(crate) fn open(path: &Path, what: &str) -> Result<Arc<dyn Content>> {
    let open = || -> std::io::Result<Arc<dyn Content>> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        // Files of pseudo file systems often say that they are empty.
        if metadata.is_file() && metadata.len() != 0 {
            let (path, version) = (path.to_owned(), Version::of(&metadata));
            return Ok(Arc::new(Opened {
                file,
                path,
                version,
            }));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Arc::new(bytes))
    };
    open().with_context(|| format!("can't read the {what} {}", path.display()))
}

/// An open file. It is the same one at every start, also when another has taken its name.
#[derive(Debug)]
struct Opened {
    file: File,
    path: PathBuf,
    version: Version,
}

/// What changes when a file is written.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    len: u64,
    /// Seconds and nanoseconds of the last change.
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Content for Opened {
    fn size(&self) -> u64 {
        self.version.len
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let path = self.path.display();
        let read = self.file.read_exact_at(bytes, at);
        // Looked at after reading: what was read is then of this version.
        if Version::of(&self.file.metadata()?) != self.version {
            return Err(Error::other(format!(
                "{path} has changed since the machine was started: start a new one"
            )));
        }
        read.map_err(|error| Error::new(error.kind(), format!("{path}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn first(content: &dyn Content) -> std::io::Result<[u8; 4]> {
        let mut bytes = [0; 4];
        content.read(0, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn a_file_is_read_each_time_and_must_stay_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "first").unwrap();
        let content = open(&path, "kernel").unwrap();
        assert_eq!(content.size(), 5);
        assert_eq!(first(&*content).unwrap(), *b"firs");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "other").unwrap();
        assert_eq!(
            first(&*content).unwrap(),
            *b"firs",
            "the file, not its name"
        );

        let content = open(&path, "kernel").unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b" and more").unwrap();
        let error = first(&*content).unwrap_err().to_string();
        assert!(error.contains("file has changed"), "{error}");
        fs::write(&path, "").unwrap();
        let error = first(&*content).unwrap_err().to_string();
        assert!(error.contains("file has changed"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let content = std::thread::scope(|scope| {
            let opener = scope.spawn(|| open(&path, "initrd").unwrap());
            fs::write(&path, "bytes").unwrap();
            opener.join().unwrap()
        });
        assert_eq!((content.size(), first(&*content).unwrap()), (5, *b"byte"));
        let error = open(directory.path(), "initrd").unwrap_err();
        assert!(error.to_string().starts_with("can't read the initrd /"));
    }
}
