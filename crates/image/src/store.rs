//! The cache of guests on disk.
//!
//! ```text
//! images/
//!     lock                    held by whoever builds (flock)
//!     apt/                    the private apt root
//!     apt-source/             another one, for sources
//!     choice-HASH             which guest a choice of sources and kernel is, and when that was found
//!     guest-VERSION-HASH/     a guest: kernel, initrd, release
//!     tmp-*                   a guest being built; a rest, if nobody holds the lock
//! ```
//! A guest appears by one rename, complete and on disk, so an interrupted build leaves none that
//! is half made. Whoever uses a guest holds a shared lock on its directory, so that it is not
//! removed before its files are open.

use crate::error::{At, Error};
use crate::progress::{Event, Progress, Stage};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// To be raised when the same packages make another guest. Guests of other versions are not found,
/// and removed once their choice has been made anew.
const BUILDER_VERSION: u32 = 7;

/// Files of a guest.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const RELEASE: &str = "release";

/// How long a choice is kept that nobody asks for.
const CHOICE_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The most bytes of a small file of the cache.
const SMALL_FILE_BYTES_MAX: u64 = 4096;

/// A guest, ready to boot. Its files stay at least as long as this value does.
#[derive(Debug)]
pub struct Guest {
    /// The kernel: a bzImage.
    pub kernel: PathBuf,
    /// The initrd, whose length is a multiple of 4 bytes.
    pub initrd: PathBuf,
    /// The kernel's release, as `uname -r` shows it.
    pub kernel_release: String,
    /// Holds the shared lock.
    _lease: File,
}

/// A guest's content.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) kernel: &'a [u8],
    pub(crate) initrd: &'a [u8],
    pub(crate) release: &'a str,
}

/// A found choice.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) guest: Guest,
    /// Time since somebody looked whether the guest is still the right one; `None` if it is not
    /// known.
    pub(crate) age: Option<Duration>,
}

/// The cache directory.
#[derive(Debug)]
pub(crate) struct Store(PathBuf);

/// The right to build, until dropped.
#[derive(Debug)]
pub(crate) struct BuildLock(#[expect(dead_code, reason = "held, not read")] File);

impl Store {
    /// The cache in `directory`, made if it is not there.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).at(directory)?;
        Ok(Self(directory.to_owned()))
    }

    /// The place of the private apt root.
    pub(crate) fn apt_root(&self) -> PathBuf {
        self.0.join("apt")
    }

    /// The place of the private apt root for sources.
    pub(crate) fn source_root(&self) -> PathBuf {
        self.0.join("apt-source")
    }

    /// Waits for the right to build, and clears away what interrupted builds left.
    pub(crate) fn lock(&self, progress: &mut dyn Progress) -> Result<BuildLock, Error> {
        let path = self.0.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .at(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress.report(Event::Stage(Stage::Waiting));
            flock(&file, FlockOperation::LockExclusive).at(&path)?;
        }
        for rest in self.entries("tmp-")? {
            if rest.is_dir() {
                fs::remove_dir_all(&rest)
            } else {
                fs::remove_file(&rest)
            }
            .at(&rest)?;
        }
        Ok(BuildLock(file))
    }

    /// A directory for a build, on the cache's disk; removed when dropped.
    pub(crate) fn temporary(&self, _: &BuildLock) -> Result<tempfile::TempDir, Error> {
        tempfile::Builder::new()
            .prefix("tmp-")
            .tempdir_in(&self.0)
            .at(&self.0)
    }

    /// The guest that `choice` stands for, if one was made and is whole.
    pub(crate) fn find(&self, choice: &str) -> Option<Found> {
        let text = read_small(&self.choice_path(choice))?;
        let (name, checked) = text.trim_end().split_once('\n')?;
        let guest = self.guest(name)?;
        let checked = UNIX_EPOCH.checked_add(Duration::from_secs(checked.parse().ok()?))?;
        Some(Found {
            guest,
            age: SystemTime::now().duration_since(checked).ok(),
        })
    }

    /// Notes that `choice` stands for the guest made of `key`, if that one is there, as found
    /// `age` ago; and removes guests that no choice stands for.
    pub(crate) fn choose(
        &self,
        choice: &str,
        key: &str,
        age: Duration,
        _: &BuildLock,
    ) -> Result<Option<Guest>, Error> {
        let name = guest_name(key);
        let Some(guest) = self.guest(&name) else {
            return Ok(None);
        };
        self.note(choice, &name, age)?;
        self.remove_unused()?;
        Ok(Some(guest))
    }

    /// Notes that it was in vain to look for anything newer than what `choice` stands for.
    pub(crate) fn postpone(&self, choice: &str, age: Duration, _: &BuildLock) -> Result<(), Error> {
        match read_small(&self.choice_path(choice))
            .as_deref()
            .and_then(|t| t.split_once('\n'))
        {
            Some((name, _)) => self.note(choice, name, age),
            None => Ok(()),
        }
    }

    /// Makes a guest of `parts`, to be found by `key`, in `build`.
    pub(crate) fn publish(
        &self,
        key: &str,
        parts: &Parts<'_>,
        build: tempfile::TempDir,
        _: &BuildLock,
    ) -> Result<(), Error> {
        let whole = build.path().join("guest");
        fs::create_dir(&whole).at(&whole)?;
        for (name, content) in [
            (KERNEL, parts.kernel),
            (INITRD, parts.initrd),
            (RELEASE, parts.release.as_bytes()),
        ] {
            let path = whole.join(name);
            let mut file = File::create_new(&path).at(&path)?;
            file.write_all(content)
                .and_then(|()| file.sync_all())
                .at(&path)?;
        }
        sync_directory(&whole)?;
        let path = self.0.join(guest_name(key));
        // Only a damaged one can be there: a whole one would have been chosen.
        if path.exists() {
            fs::remove_dir_all(&path).at(&path)?;
        }
        fs::rename(&whole, &path).at(&path)?;
        sync_directory(&self.0)
    }

    /// The whole guest in the directory `name`.
    fn guest(&self, name: &str) -> Option<Guest> {
        let ours = format!("guest-{BUILDER_VERSION}-");
        if !name.starts_with(&ours) || name.contains('/') {
            return None;
        }
        let directory = self.0.join(name);
        let lease = File::open(&directory).ok()?;
        flock(&lease, FlockOperation::LockShared).ok()?;
        // It may have been removed, and made anew, before it was locked.
        let same = fs::metadata(&directory).ok()?.ino() == lease.metadata().ok()?.ino();
        let (kernel, initrd) = (directory.join(KERNEL), directory.join(INITRD));
        let whole = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.len() > 0);
        let kernel_release = read_small(&directory.join(RELEASE))?;
        (same && whole(&kernel) && whole(&initrd)).then_some(Guest {
            kernel,
            initrd,
            kernel_release,
            _lease: lease,
        })
    }

    fn choice_path(&self, choice: &str) -> PathBuf {
        self.0.join(format!("choice-{}", hash(choice)))
    }

    fn note(&self, choice: &str, name: &str, age: Duration) -> Result<(), Error> {
        let path = self.choice_path(choice);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut file = tempfile::Builder::new()
            .prefix("tmp-")
            .tempfile_in(&self.0)
            .at(&self.0)?;
        write!(file, "{name}\n{}\n", now.saturating_sub(age).as_secs()).at(&path)?;
        file.as_file().sync_all().at(&path)?;
        file.persist(&path).at(&path)?;
        Ok(())
    }

    /// Removes old choices, and guests that no choice stands for and that nobody uses.
    fn remove_unused(&self) -> Result<(), Error> {
        for path in self.entries("choice-")? {
            let noted = path.metadata().and_then(|m| m.modified()).at(&path)?;
            if noted.elapsed().is_ok_and(|age| age > CHOICE_AGE_MAX) {
                fs::remove_file(&path).at(&path)?;
            }
        }
        let used: BTreeSet<String> = self
            .entries("choice-")?
            .iter()
            .filter_map(|path| Some(read_small(path)?.lines().next()?.to_owned()))
            .collect();
        for path in self.entries("guest-")? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| used.contains(name)) {
                continue;
            }
            let Ok(directory) = File::open(&path) else {
                continue;
            };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_dir_all(&path).at(&path)?;
            }
        }
        Ok(())
    }

    /// The entries whose names begin with `prefix`.
    fn entries(&self, prefix: &str) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(&self.0).at(&self.0)?.flatten();
        Ok(entries
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|n| n.starts_with(prefix))
            })
            .map(|entry| entry.path())
            .collect())
    }
}

fn guest_name(key: &str) -> String {
    format!("guest-{BUILDER_VERSION}-{}", hash(key))
}

/// The first 16 hexadecimal digits of the text's SHA-256.
fn hash(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn read_small(path: &Path) -> Option<String> {
    use io::Read;
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(SMALL_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .at(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    const PARTS: Parts<'_> = Parts {
        kernel: b"k",
        initrd: b"i",
        release: "6.1",
    };
    const NOW: Duration = Duration::ZERO;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        (directory, store)
    }

    fn make(store: &Store, choice: &str, key: &str) -> Guest {
        let lock = store.lock(&mut Silent).unwrap();
        let build = store.temporary(&lock).unwrap();
        store.publish(key, &PARTS, build, &lock).unwrap();
        store.choose(choice, key, NOW, &lock).unwrap().unwrap()
    }

    #[test]
    fn a_guest_is_found_again() {
        let (_directory, store) = store();
        assert!(store.find("default").is_none());
        drop(make(&store, "default", "a 1"));
        let found = store.find("default").unwrap();
        assert_eq!(fs::read(&found.guest.kernel).unwrap(), b"k");
        assert_eq!(found.guest.kernel_release, "6.1");
        assert!(found.age.unwrap() < Duration::from_secs(600));
        assert!(store.find("other").is_none());
    }

    #[test]
    fn a_damaged_guest_is_not_found_and_can_be_made_again() {
        let (_directory, store) = store();
        let guest = make(&store, "default", "a 1");
        fs::write(&guest.initrd, b"").unwrap();
        drop(guest);
        assert!(store.find("default").is_none());
        drop(make(&store, "default", "a 1"));
        assert!(store.find("default").is_some());
    }

    #[test]
    fn old_guests_go_once_nobody_uses_them() {
        let (_directory, store) = store();
        let old = make(&store, "default", "a 1");
        drop(make(&store, "default", "a 2"));
        assert!(old.kernel.exists(), "it is in use");
        let old_kernel = old.kernel.clone();
        drop(old);
        drop(make(&store, "other", "a 3"));
        assert!(!old_kernel.exists());
        assert!(store.find("default").is_some() && store.find("other").is_some());
    }

    #[test]
    fn a_choice_that_nobody_asks_for_is_forgotten() {
        let (_directory, store) = store();
        drop(make(&store, "old", "a 1"));
        let path = store.choice_path("old");
        let noted = SystemTime::now() - 2 * CHOICE_AGE_MAX;
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(noted)
            .unwrap();
        drop(make(&store, "new", "a 2"));
        assert!(store.find("old").is_none());
        assert_eq!(store.entries("guest-").unwrap().len(), 1);
    }

    #[test]
    fn rests_of_interrupted_builds_go() {
        let (_directory, store) = store();
        let rest = store.0.join("tmp-rest");
        fs::create_dir_all(rest.join("guest")).unwrap();
        fs::write(store.0.join("tmp-file"), "").unwrap();
        drop(store.lock(&mut Silent).unwrap());
        assert_eq!(store.entries("tmp-").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_second_builder_waits_and_says_so() {
        let (_directory, store) = store();
        let lock = store.lock(&mut Silent).unwrap();
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let mut tell = |event: Event<'_>| {
                    if event == Event::Stage(Stage::Waiting) {
                        said.send(()).unwrap();
                    }
                };
                store.lock(&mut tell).map(drop)
            });
            heard.recv().unwrap();
            drop(lock);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_time_in_the_future_is_no_age() {
        let (_directory, store) = store();
        drop(make(&store, "default", "a 1"));
        let path = store.choice_path("default");
        let text = fs::read_to_string(&path).unwrap();
        let name = text.lines().next().unwrap();
        fs::write(&path, format!("{name}\n99999999999\n")).unwrap();
        assert!(store.find("default").unwrap().age.is_none());
        for text in [
            "",
            "x",
            "../..\n1\n",
            &format!("{name}\nx\n"),
            &format!("{name}\n{}\n", u64::MAX),
        ] {
            fs::write(&path, text).unwrap();
            assert!(store.find("default").is_none(), "{text:?}");
        }
    }
}
