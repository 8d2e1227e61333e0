//! The workspace, as cargo describes it.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root directory.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask is a directory of the workspace")
}

/// The directory that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target)
}

/// `cargo` as it was called, so that a toolchain chosen on the command line holds.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// A crate of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crate {
    /// The package's name.
    pub(crate) name: String,
    /// The directory of its manifest.
    pub(crate) directory: PathBuf,
    /// The in-tree packages that it depends on, for whatever purpose (tests included).
    pub(crate) depends_on: Vec<String>,
}

/// All crates of the workspace, in the order of their names.
pub(crate) fn crates() -> Result<Vec<Crate>> {
    let output = cargo()
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .output()
        .context("can't run cargo")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not as expected")?;
    let mut crates: Vec<_> = metadata.packages.into_iter().map(Crate::from).collect();
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

/// What is read of `cargo metadata`'s answer (The Cargo Book, "cargo metadata", version 1).
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Only dependencies by path have one.
    path: Option<PathBuf>,
}

impl From<Package> for Crate {
    fn from(package: Package) -> Self {
        let in_tree = package
            .dependencies
            .into_iter()
            .filter(|d| d.path.is_some());
        let mut depends_on: Vec<_> = in_tree.map(|d| d.name).collect();
        depends_on.sort();
        depends_on.dedup();
        let directory = package
            .manifest_path
            .parent()
            .unwrap_or(Path::new(""))
            .to_owned();
        Self {
            name: package.name,
            directory,
            depends_on,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_found_with_their_directories_and_dependencies() {
        let crates = crates().unwrap();
        let xtask = crates.iter().find(|c| c.name == "xtask").unwrap();
        assert_eq!(xtask.directory, Path::new(env!("CARGO_MANIFEST_DIR")));
        assert_eq!(
            xtask.depends_on,
            ["image"],
            "those of the registry are left out"
        );
    }
}
