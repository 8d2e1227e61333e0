//! Debian's packages beside those of the host: unpacked into directories, run from there.
//!
//! A directory is made once and stays below the build's target directory, until that is removed.

use super::boot::report;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The dynamic linker's path in every x86-64 program.
const LINKER: &str = "lib64/ld-linux-x86-64.so.2";

/// Where packages put shared libraries, and the linker, before and after Debian merged `/usr`.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Where the directories are.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("compare")
}

/// Unpacks packages `names`, with all that they depend on, below `root`, if that is not there.
/// They come from `suite`, where that has them.
pub(crate) fn install(names: &[&str], suite: Option<&str>, root: &Path) -> Result<()> {
    if root.exists() {
        return Ok(());
    }
    let parent = root.parent().context("a root has a parent")?;
    fs::create_dir_all(parent)?;
    let building = tempfile::Builder::new().prefix("tmp-").tempdir_in(parent)?;
    let options = image::Options {
        suites: suite.map(str::to_owned).into_iter().collect(),
        ..image::Options::default()
    };
    let unpacked = building.path().join("root");
    image::packages_with_dependencies(names, suite, &unpacked, &options, &mut report)?;
    fs::rename(unpacked, root)?;
    Ok(())
}

/// The suite of newer packages for the host's release of Debian, if it is one.
pub(crate) fn backports() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    Some(format!("{}-backports", debian_code_name(&text)?))
}

/// The code name in os-release(5), of a Debian.
fn debian_code_name(text: &str) -> Option<&str> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    (value("ID=") == Some("debian"))
        .then(|| value("VERSION_CODENAME="))
        .flatten()
}

/// A command that runs `path` below `root` with the libraries there.
pub(crate) fn program(root: &Path, path: &str) -> Result<Command> {
    let mut command = Command::new(linker(root)?);
    let directories = LIBRARIES.map(|directory| root.join(directory).into_os_string());
    command
        .arg("--library-path")
        .arg(directories.join(&OsString::from(":")));
    command.arg(root.join(path));
    Ok(command)
}

/// The dynamic linker below `root`.
pub(crate) fn linker(root: &Path) -> Result<PathBuf> {
    let name = Path::new(LINKER).file_name().context("it has a name")?;
    let places = LIBRARIES
        .iter()
        .map(|directory| root.join(directory).join(name));
    let mut found = places.filter(|path| path.is_file());
    found
        .next()
        .context("the C library's package has no dynamic linker")
}

/// The shared libraries that the program `path` below `root` needs: their names, and where they
/// are.
pub(crate) fn libraries(root: &Path, path: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut command = Command::new(linker(root)?);
    let output = {
        let program = program(root, path)?;
        command.arg("--list").args(program.get_args());
        command.output()?
    };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{path} lacks libraries: {}", reason.trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(library).collect())
}

/// A line `NAME => PATH (ADDRESS)` of the dynamic linker's list. The linker itself, which has a
/// path for a name, is no library.
fn library(line: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let (path, _) = rest.rsplit_once(" (")?;
    (!name.contains('/')).then(|| (name.to_owned(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_linkers_list() {
        let line = "\tlibm.so.6 => /r/lib/libm.so.6 (0x00007f1234560000)";
        let expected = ("libm.so.6".to_owned(), PathBuf::from("/r/lib/libm.so.6"));
        assert_eq!(library(line), Some(expected));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd1b3f2000)"), None);
        for linker in ["", " => /r/ld.so"] {
            let line = format!("\t/lib64/ld-linux-x86-64.so.2{linker} (0x00007f12)");
            assert_eq!(
                library(&line),
                None,
                "it must not be taken for a file's name"
            );
        }
    }

    #[test]
    fn only_debian_has_backports() {
        let text = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_code_name(text), Some("bookworm"));
        assert_eq!(debian_code_name("ID=other\nVERSION_CODENAME=x\n"), None);
    }
}
