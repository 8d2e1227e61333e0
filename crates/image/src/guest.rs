//! Making the guest: which packages, and what becomes of them.

use crate::apt::{self, Apt, Candidate, PackageKind};
use crate::deb;
use crate::error::{At, Error};
use crate::initramfs::{self, Contents};
use crate::modules::Modules;
use crate::progress::{Event, Progress, Stage};
use crate::sources::{self, Source};
use crate::store::{BuildLock, Found, Guest, Parts, Store};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the answer which packages are the newest holds.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// After how much of that a failed look is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

const USERLAND: &str = "busybox-static";
const BASE_FILES: &str = "base-files";
const KERNEL_PREFIX: &str = "linux-image-";
const KERNEL_SUFFIX: &str = "-cloud-amd64";
const KERNEL_DEFAULT: &str = "linux-image-cloud-amd64";

/// The offset and value of a bzImage's magic (Linux, Documentation/arch/x86/boot.rst, `header`).
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// Which kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The cloud kernel that the sources offer.
    #[default]
    Default,
    /// The newest cloud kernel of a series, such as `6.12`.
    Series(String),
}

/// Which guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSpec {
    /// Its kernel.
    pub kernel: KernelChoice,
}

/// Whether to look for newer packages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Freshness {
    /// If nobody did within a day.
    #[default]
    Daily,
    /// In any case.
    Now,
    /// Only if there is no guest yet.
    Cached,
}

/// Where things come from and go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The cache; `$XDG_CACHE_HOME/doppel/images` or `~/.cache/doppel/images` without.
    pub cache: Option<PathBuf>,
    /// Entries in the one-line style of sources.list(5), instead of the host's.
    pub sources: Option<String>,
    /// Suites besides those of the sources, such as `bookworm-backports`, of the same archives.
    pub suites: Vec<String>,
    /// Whether to look for newer packages.
    pub freshness: Freshness,
}

impl Options {
    pub(crate) fn store(&self) -> Result<Store, Error> {
        match &self.cache {
            Some(directory) => Store::open(&std::path::absolute(directory).at(directory)?),
            None => Store::open(&default_cache(|name| std::env::var_os(name))?),
        }
    }

    pub(crate) fn sources(&self) -> BTreeSet<Source> {
        let sources = match &self.sources {
            Some(text) => sources::one_line_style(text).into_iter().collect(),
            None => sources::of_host(Path::new("/etc/apt")),
        };
        sources::with_suites(sources, &self.suites)
    }
}

/// Source: XDG Base Directory Specification 0.8; relative paths there are to be ignored.
fn default_cache(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.ok_or(Error::NoCache)?.join("doppel/images"))
}

/// The Debian guest for `spec`: from the cache if it is there and fresh, else made now.
///
/// If newer packages can't be fetched, a guest that is there will do; a note tells so.
///
/// # Errors
/// [`Error`] if there is no guest and none can be made. Nothing half made stays behind.
pub fn debian(
    spec: &GuestSpec,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Guest, Error> {
    let store = options.store()?;
    let sources = options.sources();
    let choice = format!("{:?} {sources:?}", spec.kernel);
    let usable = |found: &Found| match options.freshness {
        Freshness::Daily => found.age.is_some_and(|age| age < LISTS_AGE_MAX),
        Freshness::Now => false,
        Freshness::Cached => true,
    };
    if let Some(found) = store.find(&choice).filter(usable) {
        return Ok(found.guest);
    }
    let lock = store.lock(progress)?;
    // Whoever held the lock may have made it.
    let found = store.find(&choice);
    if found.as_ref().is_some_and(usable) {
        return found.map(|found| found.guest).ok_or(Error::NoCache);
    }
    match (
        look(&store, &lock, &choice, spec, &sources, progress),
        found,
    ) {
        (Err(error), Some(found)) => {
            progress.report(Event::Note(&format!(
                "using the guest made before, with Linux {}: {error}",
                found.guest.kernel_release
            )));
            store.postpone(&choice, LISTS_AGE_MAX.saturating_sub(RETRY_AFTER), &lock)?;
            Ok(found.guest)
        }
        (result, _) => result,
    }
}

/// Finds out which packages are the newest, and makes a guest of them unless there is one.
fn look(
    store: &Store,
    lock: &BuildLock,
    choice: &str,
    spec: &GuestSpec,
    sources: &BTreeSet<Source>,
    progress: &mut dyn Progress,
) -> Result<Guest, Error> {
    let apt = Apt::new(&store.apt_root(), sources, PackageKind::Binary)?;
    let age = updated(&apt, progress)?;
    let packages = packages_of(&apt, spec)?;
    let key: String = packages
        .iter()
        .map(|p| format!("{}={} ", p.name, p.version))
        .collect();
    if let Some(guest) = store.choose(choice, &key, age, lock)? {
        return Ok(guest);
    }
    let build = store.temporary(lock)?;
    let files = apt.download(&packages, build.path(), progress)?;
    let (kernel, release, initrd) = make(&files, build.path(), progress)?;
    let parts = Parts {
        kernel: &kernel,
        initrd: &initrd,
        release: &release,
    };
    store.publish(&key, &parts, build, lock)?;
    store
        .choose(choice, &key, age, lock)?
        .ok_or_else(|| Error::io(&store.apt_root(), std::io::ErrorKind::NotFound.into()))
}

/// Fetches apt's lists. If that fails, those that are there will do. Gives how old apt's answers
/// are to be taken for.
pub(crate) fn updated(apt: &Apt, progress: &mut dyn Progress) -> Result<Duration, Error> {
    match apt.update(progress) {
        Ok(()) => Ok(Duration::ZERO),
        Err(error @ Error::Apt { .. }) if apt.has_lists() => {
            progress.report(Event::Note(&format!(
                "the lists of packages may be old: {error}"
            )));
            Ok(LISTS_AGE_MAX.saturating_sub(RETRY_AFTER))
        }
        Err(error) => Err(error),
    }
}

/// The packages that a guest is made of, the kernel first.
fn packages_of(apt: &Apt, spec: &GuestSpec) -> Result<[Candidate; 3], Error> {
    let kernel = match &spec.kernel {
        KernelChoice::Default => {
            let metapackage = apt.candidate(KERNEL_DEFAULT)?;
            let real = metapackage
                .depends
                .iter()
                .find(|name| release_of(name).is_some());
            apt.candidate(real.ok_or_else(|| Error::NoPackage(KERNEL_DEFAULT.to_owned()))?)?
        }
        KernelChoice::Series(series) => newest_of_series(apt, series)?,
    };
    Ok([kernel, apt.candidate(USERLAND)?, apt.candidate(BASE_FILES)?])
}

fn newest_of_series(apt: &Apt, series: &str) -> Result<Candidate, Error> {
    let names = apt.names(KERNEL_PREFIX)?;
    let of_series: Vec<String> = names
        .iter()
        .filter(|name| release_of(name).and_then(series_of).as_deref() == Some(series))
        .cloned()
        .collect();
    let newest = apt.candidates(&of_series)?.into_iter().max_by(apt::later);
    newest.ok_or_else(|| Error::NoKernel {
        wanted: series.to_owned(),
        available: names
            .iter()
            .filter_map(|name| series_of(release_of(name)?))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
    })
}

/// The kernel release in the name of a real cloud kernel's package, without the flavour:
/// `6.1.0-56` of `linux-image-6.1.0-56-cloud-amd64`. Metapackages have none.
fn release_of(package: &str) -> Option<&str> {
    let release = package
        .strip_prefix(KERNEL_PREFIX)?
        .strip_suffix(KERNEL_SUFFIX)?;
    let full =
        release.starts_with(|c: char| c.is_ascii_digit()) && release.matches('.').count() > 1;
    full.then_some(release)
}

/// The series of a release: `6.1` of `6.1.0-56`.
fn series_of(release: &str) -> Option<String> {
    let mut numbers = release.split('.');
    Some(format!("{}.{}", numbers.next()?, numbers.next()?))
}

/// A kernel, its release, and the initrd, of the packages in `files`.
fn make(
    files: &[PathBuf],
    scratch: &Path,
    progress: &mut dyn Progress,
) -> Result<(Vec<u8>, String, Vec<u8>), Error> {
    progress.report(Event::Stage(Stage::Unpack));
    let file = |prefix: &str| {
        let starts = |path: &&PathBuf| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|n| n.starts_with(prefix))
        };
        files
            .iter()
            .find(starts)
            .ok_or_else(|| Error::NoPackage(prefix.to_owned()))
    };
    let kernel_file = file(KERNEL_PREFIX)?;
    let (kernel, release, builtin) = read_kernel(kernel_file)?;
    let modules = Modules::read(kernel_file)?;
    let busybox = read_one(file(USERLAND)?, |path| path.ends_with("bin/busybox"))?;
    let os_release = read_one(file(BASE_FILES)?, |path| path.ends_with("lib/os-release"))?;
    progress.report(Event::Stage(Stage::Write));
    let applets = applets(&busybox, scratch).unwrap_or_default();
    let contents = Contents {
        release: &release,
        modules: &modules,
        builtin: &builtin,
        busybox: &busybox,
        applets: &applets,
        os_release: &os_release,
    };
    let initrd = contents.archive();
    Ok((kernel, release, initrd))
}

/// A package's kernel, its release, and its list of modules that are built in.
fn read_kernel(deb: &Path) -> Result<(Vec<u8>, String, Vec<u8>), Error> {
    let unusable = |reason: &str| Error::Package {
        file: deb.to_owned(),
        reason: reason.to_owned(),
    };
    let (mut kernel, mut builtin) = (None, Vec::new());
    let files = deb::read_files(deb, |path| {
        kernel_release(path).is_some() || path.ends_with("modules.builtin")
    })?;
    for (path, content) in files {
        match kernel_release(&path) {
            Some(release) => kernel = Some((content, release)),
            None => builtin = content,
        }
    }
    let (kernel, release) = kernel.ok_or_else(|| unusable("it holds no kernel"))?;
    let (offset, magic) = BZIMAGE_MAGIC;
    if kernel.get(offset..offset + magic.len()) != Some(magic) {
        return Err(unusable("its kernel is no bzImage"));
    }
    Ok((kernel, release, builtin))
}

/// The release in a kernel's path, `boot/vmlinuz-RELEASE`.
fn kernel_release(path: &Path) -> Option<String> {
    let release = path
        .strip_prefix("boot")
        .ok()?
        .to_str()?
        .strip_prefix("vmlinuz-")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_' | '~');
    (!release.is_empty() && release.chars().all(plain)).then(|| release.to_owned())
}

fn read_one(deb: &Path, wanted: impl FnMut(&Path) -> bool) -> Result<Vec<u8>, Error> {
    let first = deb::read_files(deb, wanted)?.into_iter().next();
    first
        .map(|(_, content)| content)
        .ok_or_else(|| Error::Package {
            file: deb.to_owned(),
            reason: "it lacks the file that a guest needs".to_owned(),
        })
}

/// The paths of busybox's applets: the program, verified by apt, tells them itself. `None` where
/// the host can't run it; the guest then makes its links on every boot.
fn applets(busybox: &[u8], scratch: &Path) -> Option<BTreeSet<String>> {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.join("busybox");
    fs::write(&path, busybox).ok()?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).ok()?;
    let output = Command::new(&path).arg("--list-full").output().ok()?;
    let applets = initramfs::applets(str::from_utf8(&output.stdout).ok()?);
    (output.status.success() && applets.contains("bin/sh")).then_some(applets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_xdg_specification_says() {
        let cache = |xdg: Option<&str>, home: Option<&str>| {
            default_cache(|name| match name {
                "XDG_CACHE_HOME" => xdg.map(OsString::from),
                _ => home.map(OsString::from),
            })
        };
        assert_eq!(
            cache(Some("/c"), Some("/h")).unwrap(),
            Path::new("/c/doppel/images")
        );
        assert_eq!(
            cache(Some("c"), Some("/h")).unwrap(),
            Path::new("/h/.cache/doppel/images")
        );
        assert_eq!(
            cache(None, Some("/h")).unwrap(),
            Path::new("/h/.cache/doppel/images")
        );
        assert!(matches!(cache(None, Some("")), Err(Error::NoCache)));
    }

    #[test]
    fn releases_and_series_of_package_names() {
        let series = |name| release_of(name).and_then(series_of);
        assert_eq!(
            series("linux-image-6.1.0-56-cloud-amd64").as_deref(),
            Some("6.1")
        );
        assert_eq!(
            series("linux-image-6.12.117+deb12-cloud-amd64").as_deref(),
            Some("6.12")
        );
        for other in [
            "linux-image-6.12-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-amd64",
        ] {
            assert_eq!(series(other), None, "{other}");
        }
    }

    #[test]
    fn a_release_is_a_plain_file_name() {
        let release = |path: &str| kernel_release(Path::new(path));
        assert_eq!(
            release("boot/vmlinuz-6.12+deb12-cloud").as_deref(),
            Some("6.12+deb12-cloud")
        );
        for path in [
            "boot/vmlinuz-",
            "boot/vmlinuz-a/b",
            "vmlinuz-1",
            "boot/vmlinuz-a b",
            "boot",
        ] {
            assert_eq!(release(path), None, "{path}");
        }
    }

    #[test]
    fn without_a_debian_archive_nothing_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            cache: Some(directory.path().to_owned()),
            sources: Some("deb http://a.example/ubuntu jammy main".to_owned()),
            ..Options::default()
        };
        let result = debian(&GuestSpec::default(), &options, &mut crate::Silent);
        assert!(matches!(result, Err(Error::NoSources)), "{result:?}");
    }
}
