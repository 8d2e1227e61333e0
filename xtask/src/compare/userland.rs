//! The files that the workloads need: programs of Debian's packages with their libraries, and
//! ours. One directory holds them, for the host; the same goes into the guests' initrd.

use super::packages;
use super::workloads::WORKLOADS;
use crate::host::{self, Need};
use crate::step;
use anyhow::{Context, Result, bail};
use image::Archive;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// The packages. `cpp` depends on the release's version of gcc's compiler proper.
const PACKAGES: [&str; 5] = ["busybox-static", "cpp", "luajit", "openssl", "perl-base"];

/// Programs of theirs. A `*` stands for one name.
const PROGRAMS: [&str; 5] = [
    "bin/busybox",
    "usr/lib/gcc/x86_64-linux-gnu/*/cc1",
    "usr/bin/luajit",
    "usr/bin/openssl",
    "usr/bin/perl",
];

const NEEDS: [Need; 2] = [
    Need::new("gcc", "gcc"),
    Need::new("/usr/include/x86_64-linux-gnu/sys/mman.h", "libc6-dev"),
];

/// Where a Debian program looks for its libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

const BENCH_SOURCE: &str = include_str!("guest/bench.c");

/// Other files of ours.
const FILES: [(&str, &str); 2] = [
    ("bench.pl", include_str!("guest/bench.pl")),
    ("bench.lua", include_str!("guest/bench.lua")),
];

/// A root directory with all that workloads need.
#[derive(Debug)]
pub(crate) struct Userland(PathBuf);

impl Userland {
    /// Makes it at `root`, which is not there yet.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        host::require(&NEEDS)?;
        let packages = packages::directory().join("userland");
        packages::install(&PACKAGES, None, &packages)?;
        for directory in ["bin", "dev", "lib64", LIBRARIES, "proc", "tmp"] {
            fs::create_dir_all(root.join(directory))?;
        }
        for pattern in PROGRAMS {
            add_program(&packages, &found(&packages, pattern)?, root)?;
        }
        let linker = packages::linker(&packages)?;
        copy(&linker, root, "lib64/ld-linux-x86-64.so.2")?;
        compile(root)?;
        for (name, content) in FILES {
            fs::write(root.join(name), content)?;
        }
        let init = root.join("compare");
        fs::write(&init, script())?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        Ok(Self(root.to_owned()))
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// The program that runs the workloads.
    pub(crate) fn script(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.0.join("compare"))?)
    }

    /// The directory as an archive for an initrd.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.tree(&self.0)?;
        Ok(archive.finish())
    }
}

/// `init.sh` with all workloads.
fn script() -> String {
    let mut script = include_str!("guest/init.sh").to_owned();
    for workload in WORKLOADS.iter().filter(|w| !w.work.is_empty()) {
        let (name, count) = (workload.name, workload.count);
        let (prepare, work) = (workload.prepare, workload.work);
        script += &format!(
            "\nprepare() {{\n{prepare}\n}}\nwork() {{\n{work}\n}}\nmeasure {name} {count}\n"
        );
    }
    // Time for a last look at the monitor.
    script
        + "\necho 'compare: done'\n[ \"$GUEST\" != 1 ] || { busybox sleep 5; busybox poweroff -f; }\n"
}

/// The path below `root` that `pattern` stands for.
fn found(root: &Path, pattern: &str) -> Result<String> {
    let Some((parent, rest)) = pattern.split_once("*/") else {
        return Ok(pattern.to_owned());
    };
    for entry in fs::read_dir(root.join(parent))? {
        let name = entry?.file_name();
        let path = format!("{parent}{}/{rest}", name.to_string_lossy());
        if root.join(&path).is_file() {
            return Ok(path);
        }
    }
    bail!("no package brought {pattern}")
}

/// Adds the program `path` of `packages`, and its libraries, to `root`.
fn add_program(packages: &Path, path: &str, root: &Path) -> Result<()> {
    let program = packages.join(path);
    let name = program.file_name().and_then(|name| name.to_str());
    let name = name.context("a program has a name")?;
    copy(&program, root, &format!("bin/{name}"))?;
    if path == "bin/busybox" {
        return Ok(()); // It is static.
    }
    for (name, library) in packages::libraries(packages, path)? {
        let to = format!("{LIBRARIES}/{name}");
        if !root.join(&to).exists() {
            copy(&library, root, &to)?;
        }
    }
    Ok(())
}

/// Copies a file to `path` below `root`, where nothing is yet.
fn copy(from: &Path, root: &Path, path: &str) -> Result<()> {
    // Joining an absolute path would leave the root: this may be run by root, on a host's files.
    let is_below = |part| matches!(part, Component::Normal(_));
    if !Path::new(path).components().all(is_below) {
        bail!("{path} is no path below a root");
    }
    let add = || -> io::Result<()> {
        let mut file = File::create_new(root.join(path))?;
        file.write_all(&fs::read(from)?)?;
        file.set_permissions(from.metadata()?.permissions())
    };
    add().with_context(|| format!("can't copy {}", from.display()))
}

/// Compiles `bench.c`, and leaves it preprocessed for the workload that compiles.
///
/// Static, so that a guest's libraries do not matter; scalar, as is said of it.
fn compile(root: &Path) -> Result<()> {
    let source = root.join("bench.c");
    fs::write(&source, BENCH_SOURCE)?;
    let mut program = Command::new("gcc");
    program.args([
        "-O2",
        "-fno-tree-vectorize",
        "-fno-math-errno",
        "-static",
        "-pthread",
    ]);
    program
        .arg("-o")
        .arg(root.join("bin/bench"))
        .arg(&source)
        .arg("-lm");
    step::run(&mut program)?;
    let mut preprocessed = Command::new("gcc");
    preprocessed
        .args(["-E", "-P", "-o"])
        .arg(root.join("bench.i"))
        .arg(&source);
    step::run(&mut preprocessed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_without_mistakes() {
        let mut shell = Command::new("sh");
        let output = shell.args(["-n", "-c", &script()]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(script().contains("\nmeasure sort 20\n"));
    }

    #[test]
    fn files_are_added_below_the_root_and_replace_none() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::write(&from, "new").unwrap();
        copy(&from, root.path(), "to").unwrap();
        assert_eq!(fs::read(root.path().join("to")).unwrap(), b"new");
        let outside = root.path().join("outside");
        for path in [
            "to",
            outside.to_str().unwrap(),
            "../outside",
            "a/../outside",
        ] {
            assert!(copy(&from, root.path(), path).is_err(), "{path}");
        }
        assert!(!outside.exists());
    }

    #[test]
    fn a_pattern_is_one_file() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/12");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cc1"), "").unwrap();
        assert_eq!(found(root.path(), "a/*/cc1").unwrap(), "a/12/cc1");
        assert_eq!(found(root.path(), "a/b").unwrap(), "a/b");
        assert!(found(root.path(), "a/*/x").is_err());
    }
}
