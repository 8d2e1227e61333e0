//! Debian's packages for uses other than [`debian`](crate::debian)'s: unpacked, as they are, and
//! in source.

use crate::apt::{Apt, Candidate, PackageKind};
use crate::deb;
use crate::error::{At, Error};
use crate::guest::{Freshness, Options, updated};
use crate::progress::{Event, Progress, Stage};
use std::fs;
use std::path::{Path, PathBuf};

/// Downloads the packages `names` (not what they depend on) and unpacks them all below the
/// directory `to`, made if it is not there. Gives their names with the versions.
///
/// # Errors
/// [`Error`] if a package is not there, or can't be fetched or unpacked.
pub fn packages(
    names: &[&str],
    to: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Vec<(String, String)>, Error> {
    unpacked(to, options, progress, |apt| {
        names.iter().map(|name| apt.candidate(name)).collect()
    })
}

/// As [`packages`], with all that the packages depend on (what they recommend left out). All
/// come from `suite`, one of [`Options::suites`] or of the sources, if it is given and has them.
///
/// # Errors
/// [`Error`] if a package is not there, or can't be fetched or unpacked.
pub fn packages_with_dependencies(
    names: &[&str],
    suite: Option<&str>,
    to: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Vec<(String, String)>, Error> {
    unpacked(to, options, progress, |apt| apt.closure(names, suite))
}

/// Downloads the packages `names`, which may be patterns of apt-patterns(7), with all that they
/// depend on (what they recommend left out), into the directory `to`, made if it is not there.
/// Gives the files of all packages there, in the order of their names.
///
/// # Errors
/// [`Error`] if a package is not there, or can't be fetched.
pub fn download_packages(
    names: &[&str],
    to: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Vec<PathBuf>, Error> {
    let store = options.store()?;
    let _lock = store.lock(progress)?;
    let apt = listed(options, &store.apt_root(), PackageKind::Binary, progress)?;
    fs::create_dir_all(to).at(to)?;
    let mut files = apt.download(&apt.closure(names, None)?, to, progress)?;
    files.sort();
    Ok(files)
}

/// Downloads the source packages `names` into the directory `to`, made if it is not there:
/// a description (`.dsc`) of each and the archives that it names.
///
/// # Errors
/// [`Error`] if a package is not there, or can't be fetched.
pub fn download_sources(
    names: &[&str],
    to: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let store = options.store()?;
    let _lock = store.lock(progress)?;
    let apt = listed(options, &store.source_root(), PackageKind::Source, progress)?;
    fs::create_dir_all(to).at(to)?;
    apt.download_sources(names, to, progress)
}

/// Unpacks the package in file `deb` below `to`, an existing directory. Owners, set-user-ID
/// bits, devices and pipes stay behind.
///
/// # Errors
/// [`Error::Package`] if it is none, or can't be unpacked there.
pub fn unpack_package(deb: &Path, to: &Path) -> Result<(), Error> {
    deb::unpack(deb, to)
}

/// Downloads the packages that `choose` chooses and unpacks them below `to`.
fn unpacked(
    to: &Path,
    options: &Options,
    progress: &mut dyn Progress,
    choose: impl FnOnce(&Apt) -> Result<Vec<Candidate>, Error>,
) -> Result<Vec<(String, String)>, Error> {
    let store = options.store()?;
    let lock = store.lock(progress)?;
    let apt = listed(options, &store.apt_root(), PackageKind::Binary, progress)?;
    let wanted = choose(&apt)?;
    let build = store.temporary(&lock)?;
    let files = apt.download(&wanted, build.path(), progress)?;
    progress.report(Event::Stage(Stage::Unpack));
    fs::create_dir_all(to).at(to)?;
    for file in files {
        deb::unpack(&file, to)?;
    }
    Ok(wanted
        .into_iter()
        .map(|package| (package.name, package.version))
        .collect())
}

/// apt at `root`, with lists as fresh as `options` ask for.
fn listed(
    options: &Options,
    root: &Path,
    kind: PackageKind,
    progress: &mut dyn Progress,
) -> Result<Apt, Error> {
    let apt = Apt::new(root, &options.sources(), kind)?;
    if options.freshness != Freshness::Cached || !apt.has_lists() {
        updated(&apt, progress)?;
    }
    Ok(apt)
}
