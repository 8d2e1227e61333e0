//! `doppel run debian`, as a user runs it: Debian's own kernel, from the first package to the
//! exit status. The first test to come makes the guest; the others find it in the cache.
//!
//! These boot whole machines, one after the other on most hosts: see `.config/nextest.toml`.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

#[macro_use]
#[path = "../../machine/tests/engines/mod.rs"]
mod engines;

use config::EngineKind;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Seconds after which a guest counts as stuck.
const TIMEOUT: &str = "300";

fn doppel(engine: EngineKind, options: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command.args(["run", "debian", "--engine", engine.name()]);
    if !options.contains(&"--timeout") {
        command.args(["--timeout", TIMEOUT]);
    }
    command
        .args(options)
        .arg("--")
        .args(words)
        .stdin(Stdio::null());
    command
}

fn run(engine: EngineKind, options: &[&str], words: &[&str]) -> Output {
    doppel(engine, options, words)
        .output()
        .expect("doppel starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether the host has a KVM that runs a whole Linux in reasonable time.
fn fast_kvm() -> Result<(), String> {
    match machine::kvm_speed() {
        Ok(speed) if speed.is_hardware() => Ok(()),
        Ok(speed) => Err(format!("this host's KVM emulates instructions: {speed:?}")),
        Err(problem) => Err(problem.to_string()),
    }
}

on_every_engine! {
    fast_kvm;
    a_commands_output_and_status_come_through,
    two_cpus_and_the_memory_that_was_asked_for,
    power_off_reset_and_panic_each_have_their_status,
    a_timeout_ends_the_machine,
    the_statistics_are_shown_at_the_end,
}

fn a_commands_output_and_status_come_through(engine: EngineKind) {
    let output = run(engine, &[], &["uname", "-a"]);
    assert!(stdout(&output).starts_with("Linux "), "{output:?}");
    assert!(stdout(&output).contains("Debian"), "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run(engine, &[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(stdout(&output), "out\n");
    assert_eq!(stderr(&output), "err\n");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn standard_input_reaches_the_command_byte_for_byte() {
    let mut command = doppel(EngineKind::Auto, &[], &["cat"]);
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        output.stdout == bytes,
        "{} bytes came back: {output:?}",
        output.stdout.len()
    );
}

fn two_cpus_and_the_memory_that_was_asked_for(engine: EngineKind) {
    let script = "nproc; grep MemTotal /proc/meminfo; cat /sys/devices/system/clocksource/\
                  clocksource0/current_clocksource; ls /sys/bus/pci/devices /dev/hpet; dmesg";
    let output = run(
        engine,
        &["--cpus", "2", "--memory", "256M"],
        &["sh", "-c", script],
    );
    let text = stdout(&output);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("2"), "{output:?}");
    let total: u64 = lines
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((180_000..262_144).contains(&total), "{total} KiB");
    // Linux prefers the TSC from 6.12 on, since the machine says that it is invariant.
    assert!(
        ["kvm-clock", "tsc"].contains(&lines.next().unwrap()),
        "{text}"
    );
    for complaint in [
        "BUG:",
        "WARNING:",
        "Firmware Bug",
        "unchecked MSR",
        "soft lockup",
    ] {
        assert!(!text.contains(complaint), "{complaint} in:\n{text}");
    }
}

fn power_off_reset_and_panic_each_have_their_status(engine: EngineKind) {
    let output = run(engine, &[], &["poweroff", "-f"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run(engine, &[], &["reboot", "-f"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run(
        engine,
        &[],
        &["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100"],
    );
    assert_eq!(output.status.code(), Some(120), "{output:?}");
    assert!(
        stderr(&output).contains("Kernel panic - not syncing"),
        "{output:?}"
    );
    let output = run(engine, &["--cmdline", "reboot=triple"], &["reboot", "-f"]);
    assert_eq!(output.status.code(), Some(121), "{output:?}");
    assert!(stderr(&output).contains("RIP"), "{output:?}");
}

fn a_timeout_ends_the_machine(engine: EngineKind) {
    let output = run(engine, &["--timeout", "3"], &["sleep", "1000"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
}

#[test]
fn a_signal_ends_a_machine_whose_output_nobody_takes() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut child = doppel(EngineKind::Auto, &[], &["yes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("doppel starts");
    let output = child.stdout.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(&output, 4096).unwrap();
    // It is full when nothing is added any more.
    let (mut waiting, mut unchanged) = (0, 0);
    while unchanged < 20 {
        std::thread::sleep(Duration::from_millis(50));
        let now = rustix::io::ioctl_fionread(&output).unwrap();
        unchanged = if now == 0 || now != waiting {
            0
        } else {
            unchanged + 1
        };
        waiting = now;
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_machine_ends_with_the_reader_of_its_output() {
    let mut child = doppel(EngineKind::Auto, &[], &["yes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("doppel starts");
    let mut seen = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"y\ny\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}

/// The rows of the table `text`: what stands behind each name.
fn statistics(text: &str) -> Vec<(&str, Vec<&str>)> {
    text.lines()
        .filter_map(|line| {
            let line = line.strip_prefix("  ")?;
            let (name, numbers) = line.split_at(line.find("  ")?);
            Some((name, numbers.split_whitespace().collect()))
        })
        .collect()
}

fn the_statistics_are_shown_at_the_end(engine: EngineKind) {
    let output = run(engine, &["--cpus", "2", "--stats"], &["echo", "out"]);
    assert_eq!(stdout(&output), "out\n");
    let text = stderr(&output);
    let head = text.lines().next().unwrap_or_default();
    let words: Vec<_> = head.split_whitespace().collect();
    let vcpus = ["vCPU", "0", "per", "s", "vCPU", "1", "per", "s"];
    assert_eq!(words[0], engine.name(), "{text}");
    assert_eq!(words[1..], vcpus, "{text}");
    let rows = statistics(&text);
    let row = |name| {
        let found = rows.iter().find(|(other, _)| *other == name);
        found.map_or(&[][..], |(_, words)| words)
    };
    let [_, "s", "100.0%", _, "s", "100.0%"] = row("running") else {
        panic!("{text}");
    };
    // Both numbers with their rates.
    assert_eq!(row("interrupts").len(), 4, "{text}");
}
