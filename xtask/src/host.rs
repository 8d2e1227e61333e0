//! What a command needs of the host beyond Rust: files of Debian packages.

use crate::step;
use anyhow::{Result, bail};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// A file that must be there, and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// The file: a path, or the name of a program to be found in `PATH`.
    pub(crate) file: &'static str,
    /// The package.
    pub(crate) package: &'static str,
}

impl Need {
    /// That `file` of `package` is there.
    pub(crate) const fn new(file: &'static str, package: &'static str) -> Self {
        Self { file, package }
    }

    fn is_met(&self) -> bool {
        if self.file.starts_with('/') {
            return Path::new(self.file).exists();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(self.file).is_file())
    }
}

/// Makes sure that all `needs` are met: root has the packages installed, others are told which.
pub(crate) fn require(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() {
        bail!("Debian packages are missing; install them: apt-get install {list}");
    }
    println!("installing Debian packages: {list}");
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
            .args(["install", "-qq", "--no-install-recommends"])
            .args(&packages);
        step::run(&mut command)
    };
    // The lists of packages may not have been fetched yet, or be too old.
    if install().is_err() {
        step::run(Command::new("apt-get").args(["update", "-qq"]))?;
        install()?;
    }
    match missing(needs).as_slice() {
        [] => Ok(()),
        left => bail!(
            "these packages lack files that are needed: {}",
            left.join(" ")
        ),
    }
}

/// The packages of `needs` that are not met.
fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|n| !n.is_met())
        .map(|n| n.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    // The directory of a process belongs to its effective user (proc(5)).
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_packages_are_named_once() {
        let needs = [
            Need::new("/no/such/file", "b"),
            Need::new("no-such-program", "a"),
            Need::new("/no/such/other", "b"),
            Need::new("sh", "dash"),
            Need::new("/proc/self", "linux"),
        ];
        assert_eq!(missing(&needs), ["a", "b"]);
    }
}
