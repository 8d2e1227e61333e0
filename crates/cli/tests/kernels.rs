//! Real systems, unmodified: Debian's kernels in many shapes of machine, and memtest86+.
//!
//! Part of `cargo xtask long`. All of it runs on the translator, and some on the interpreter,
//! which takes much longer.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod complaints;

use complaints::COMPLAINTS;
use config::EngineKind::{self, Interpreter, Translator};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

fn doppel(engine: EngineKind) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command
        .args(["run", "--engine", engine.name()])
        .stdin(Stdio::null());
    command
}

fn debian(engine: EngineKind, series: &str, options: &[&str], script: &str) -> Output {
    let mut command = doppel(engine);
    command.args(["debian", "--kernel-series", series, "--timeout", "600"]);
    command.args(options).args(["--", "sh", "-c", script]);
    command.output().expect("doppel starts")
}

fn boots(engine: EngineKind, series: &str, cpus: u32, memory: &str, words: &str) {
    let cpus = cpus.to_string();
    let options = ["--cpus", &cpus, "--memory", memory, "--cmdline", words];
    let output = debian(engine, series, &options, "uname -r; nproc; dmesg; exit 42");
    let text = String::from_utf8_lossy(&output.stdout);
    let shape = format!("{engine:?}, {series} with {cpus} CPUs, {memory}, '{words}'");
    assert_eq!(output.status.code(), Some(42), "{shape}: {output:?}");
    let mut lines = text.lines();
    assert!(
        lines
            .next()
            .is_some_and(|release| release.starts_with(series)),
        "{shape}: {text}"
    );
    assert_eq!(lines.next(), Some(cpus.as_str()), "{shape}");
    for complaint in COMPLAINTS {
        assert!(!text.contains(complaint), "{shape}: {complaint} in\n{text}");
    }
}

fn boots_in_every_shape(series: &str) {
    for cpus in [1, 2, 4] {
        for memory in ["128M", "8G"] {
            for words in ["", "nokaslr"] {
                boots(Translator, series, cpus, memory, words);
            }
        }
    }
    boots(Translator, series, 1, "512G", "");
    boots(Interpreter, series, 2, "128M", "");
}

#[test]
#[ignore = "long: boots 14 machines"]
fn debian_6_1_boots_in_every_shape() {
    boots_in_every_shape("6.1");
}

#[test]
#[ignore = "long: boots 14 machines"]
fn debian_6_12_boots_in_every_shape() {
    boots_in_every_shape("6.12");
}

#[test]
#[ignore = "long: every block of a boot is executed twice"]
fn debian_boots_in_lock_step_without_a_difference() {
    let mut command = doppel(Translator);
    command.args(["debian", "--check-translation", "--timeout", "3600"]);
    let script = "sha256sum /bin/busybox && seq 100 | sort -n | gzip -9 | gunzip | tail -n 1";
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.ends_with(b"\n100\n"), "{output:?}");
}

#[test]
#[ignore = "long: five minutes of waiting"]
fn guest_time_follows_host_time() {
    let script = "cut -d' ' -f1 /proc/uptime; sleep 300; cut -d' ' -f1 /proc/uptime";
    let mut command = doppel(Translator);
    command.args(["debian", "--timeout", "600", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // When a line arrived here, and what the guest's clock was when it was sent.
    let mut next = || {
        let line = lines.next().expect("two lines").unwrap();
        (Instant::now(), line.parse::<f64>().unwrap())
    };
    let (first, last) = (next(), next());
    assert!(child.wait().unwrap().success());
    let host = (last.0 - first.0).as_secs_f64();
    let guest = last.1 - first.1;
    assert!(guest >= 300.0, "{guest} s");
    // 1 s per hour, and a second for what a busy host makes of a line's way.
    let drift = (guest - host).abs();
    eprintln!("guest {guest:.3} s, host {host:.3} s");
    assert!(
        drift < 1.0 + 300.0 / 3600.0,
        "guest {guest} s, host {host} s"
    );
}

/// Runs memtest86+ until its screen has shown all of `marks`; returns what it printed.
fn memtest(engine: EngineKind, file: &str, entry: &str, marks: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let packages = image::packages(
        &["memtest86+"],
        directory.path(),
        &image::Options::default(),
        &mut image::Silent,
    );
    packages.unwrap();
    let kernel = find(directory.path(), file).expect("the package has it");
    let mut command = doppel(engine);
    command.args([
        "--memory",
        "64M",
        "--cpus",
        "2",
        "--cmdline",
        "console=ttyS0,115200",
    ]);
    command
        .args(["--timeout", "600", "--entry", entry, "--kernel"])
        .arg(kernel);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !marks.iter().all(|mark| text.contains(mark)) {
        let len = screen.read(&mut buffer).unwrap();
        assert!(len > 0, "it ended before it showed {marks:?}:\n{text}");
        text += &String::from_utf8_lossy(&buffer[..len]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    text
}

fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(directory).ok()? {
        let path = entry.ok()?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|n| n == name) {
            return Some(path);
        }
    }
    None
}

fn memtest_passes_its_first_tests(engine: EngineKind, file: &str, entry: &str) {
    // The number of the test that runs, each time the screen is drawn, which is too seldom for
    // tests 1 and 2. Once test 5 runs, those before it are through.
    let marks = ["#0 ", "#3 ", "#4 ", "#5 "];
    let text = memtest(engine, file, entry, &marks);
    assert!(
        text.contains("63.6MB"),
        "the memory's size is not shown:\n{text}"
    );
    assert!(text.contains("2 Cores 2 Threads"), "{text}");
    assert!(text.contains("Errors: 0 "), "{text}");
    let errors = text
        .split("Errors: ")
        .skip(1)
        .find(|rest| !rest.starts_with("0 "));
    assert_eq!(errors, None);
}

#[test]
#[ignore = "long: minutes of memory tests"]
fn memtest86_64_bit_passes_its_first_tests() {
    memtest_passes_its_first_tests(Translator, "memtest86+x64.bin", "64");
}

#[test]
#[ignore = "long: minutes of memory tests"]
fn memtest86_32_bit_passes_its_first_tests() {
    memtest_passes_its_first_tests(Translator, "memtest86+ia32.bin", "32");
}

#[test]
#[ignore = "long: minutes of memory tests"]
fn memtest86_32_bit_passes_its_first_tests_in_the_interpreter() {
    memtest_passes_its_first_tests(Interpreter, "memtest86+ia32.bin", "32");
}

fn memtest_starts_under_kvm(file: &str, entry: &str) {
    match machine::kvm_speed() {
        Ok(speed) if speed.is_hardware() => {}
        Ok(_) => return eprintln!("skipped: this host's KVM emulates, and has no FWAIT"),
        Err(problem) => return eprintln!("skipped: {problem}"),
    }
    let text = memtest(EngineKind::Kvm, file, entry, &["Memtest86+", "#0 "]);
    assert!(text.contains("2 Cores 2 Threads"), "{text}");
}

#[test]
fn memtest86_64_bit_starts_under_kvm() {
    memtest_starts_under_kvm("memtest86+x64.bin", "64");
}

#[test]
fn memtest86_32_bit_starts_under_kvm() {
    memtest_starts_under_kvm("memtest86+ia32.bin", "32");
}
