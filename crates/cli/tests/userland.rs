//! A whole Debian in a guest: dpkg sets the essential packages up, apt installs a compiler, Perl
//! and Python from an archive of files, two C projects are compiled and tested, and Python's own
//! regression tests run.
//!
//! Part of `cargo xtask long`.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod complaints;
#[path = "userland/root.rs"]
mod root;

use complaints::COMPLAINTS;
use config::EngineKind::{self, Translator};
use image::{GuestSpec, Options, Silent};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What the guest does, in this order (`init.sh`).
const PHASES: [&str; 7] = [
    "base",
    "repository",
    "install",
    "sources",
    "build_hello",
    "build_zlib",
    "python",
];

/// Seconds after which a guest counts as stuck.
const TIMEOUT: &str = "7200";

/// The phase that a line says to have succeeded.
fn success(line: &str) -> Option<&str> {
    let (phase, rest) = line.strip_prefix("userland: ")?.split_once(' ')?;
    rest.starts_with("status 0 ").then_some(phase)
}

fn a_userland_works(engine: EngineKind, cpus: &str) {
    let directory = tempfile::tempdir().unwrap();
    let guest = image::debian(&GuestSpec::default(), &Options::default(), &mut Silent).unwrap();
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, root::initrd(directory.path()).unwrap()).unwrap();
    let words = "console=ttyS0 quiet panic=-1 rdinit=/userland";
    let mut child = Command::new(env!("CARGO_BIN_EXE_doppel"))
        .args(["run", "--engine", engine.name(), "--cpus", cpus])
        .args(["--memory", "4G", "--timeout", TIMEOUT, "--cmdline", words])
        .arg("--kernel")
        .arg(&guest.kernel)
        .arg("--initrd")
        .arg(&initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("doppel starts");
    let mut text = String::new();
    let mut succeeded = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap())
            .trim_end()
            .to_owned();
        // A run takes long: whoever waits wants to see how far it is.
        if line.starts_with("userland: ") {
            eprintln!("{line}");
        }
        succeeded.extend(success(&line).map(str::to_owned));
        text += &line;
        text.push('\n');
    }
    let status = child.wait().unwrap();
    assert_eq!(succeeded, PHASES, "{cpus} CPUs:\n{text}");
    assert!(text.contains("userland: done\n"), "{cpus} CPUs:\n{text}");
    assert!(status.success(), "{status:?}:\n{text}");
    for complaint in COMPLAINTS {
        assert!(!text.contains(complaint), "{complaint} in\n{text}");
    }
}

#[test]
#[ignore = "long: a Debian is installed, compiles and tests"]
fn a_userland_works_on_one_cpu() {
    a_userland_works(Translator, "1");
}

#[test]
#[ignore = "long: a Debian is installed, compiles and tests"]
fn a_userland_works_on_two_cpus() {
    a_userland_works(Translator, "2");
}

#[test]
fn only_a_phase_with_status_0_succeeded() {
    let line = |status| format!("userland: base status {status} after 1.50 s");
    assert_eq!(success(&line(0)), Some("base"));
    assert_eq!(success(&line(1)), None);
    assert_eq!(success("userland: done"), None);
}
