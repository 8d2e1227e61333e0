//! The monitor's own memory.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod tiny_kernel;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tiny_kernel::halting_kernel;

/// The most that the monitor may take for a guest that does nothing, in KiB: what the build of
/// tests needs and some more. Guest memory and translated code are not part of it.
const OWN_KIB_MAX: u64 = 8 << 10;
const INITRD_KIB: u64 = 100 << 10;

/// A field of /proc/PID/status in KiB (proc(5)); 0 if the process has ended.
fn status_kib(id: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.unwrap_or(0)
}

#[test]
fn kernel_and_initrd_take_no_memory_beside_the_guests() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("kernel"), halting_kernel()).unwrap();
    let initrd = fs::File::create(directory.path().join("initrd")).unwrap();
    initrd.set_len(INITRD_KIB << 10).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command
        .args(["run", "--kernel", "kernel", "--initrd", "initrd"])
        .args(["--memory", "256M", "--console", "none", "--timeout", "120"])
        .current_dir(directory.path())
        .stdin(Stdio::null());
    let mut machine = command.spawn().expect("doppel starts");
    let start = Instant::now();
    // Guest memory is a memfd, which counts as shared.
    while status_kib(machine.id(), "RssShmem:") < INITRD_KIB {
        assert!(machine.try_wait().unwrap().is_none(), "it has ended");
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it is not loaded"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let own = status_kib(machine.id(), "RssAnon:");
    machine.kill().unwrap();
    machine.wait().unwrap();
    assert!((1..OWN_KIB_MAX).contains(&own), "{own} KiB");
}
