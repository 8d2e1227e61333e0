//! What a user may give wrongly: one line on standard error, status 2, nothing left behind.
//!
//! Each case runs the program itself, in a directory of its own.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod tiny_kernel;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tiny_kernel::{halting_kernel, tiny_kernel};

/// A directory with files that are no kernels, and one that is.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    write("empty", &[]);
    write("text", b"just some text\n");
    write("random", &random(1, 100_000));
    write("zeros", &[0; 8192]);
    write("elf", b"\x7fELF\x02\x01\x01");
    write("gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    write("kernel", &halting_kernel());
    let mut cut = halting_kernel();
    cut.truncate(0x300);
    write("cut", &cut);
    fs::create_dir(directory.path().join("folder")).unwrap();
    directory
}

/// Pseudo-random bytes (xorshift64).
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

/// A kernel that resets the machine: out 0xcf9, 6.
fn resetting_kernel() -> Vec<u8> {
    tiny_kernel(&[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4])
}

fn doppel(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command
        .arg("run")
        .current_dir(directory)
        .env("XDG_CACHE_HOME", directory.join("cache"))
        .stdin(Stdio::null());
    command
}

/// Runs with words of any bytes, which must be refused.
fn refuse_bytes(directory: &Path, words: &[&[u8]]) -> String {
    let before = listing(directory);
    let has_timeout = words.iter().any(|word| word.starts_with(b"--timeout"));
    let words = words.iter().map(|word| OsStr::from_bytes(word));
    let mut command = doppel(directory);
    command.args(words);
    if !has_timeout {
        // What is accepted by mistake must not wait for ever.
        command.arg("--timeout=20");
    }
    let output = command.output().expect("doppel starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
    assert_eq!(said.lines().count(), 1, "{command:?} said: {said}");
    assert!(said.starts_with("doppel: "), "{command:?} said: {said}");
    assert!(!said.contains("panicked"), "{command:?} said: {said}");
    assert!(output.stdout.is_empty(), "{command:?}: {output:?}");
    assert_eq!(
        listing(directory),
        before,
        "{command:?} left something behind"
    );
    said
}

fn refuse(directory: &Path, words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    refuse_bytes(directory, &words)
}

/// Names and lengths of what is in `directory`.
fn listing(directory: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .map(|entry| {
            let len = entry.metadata().unwrap().len();
            (entry.file_name().to_string_lossy().into_owned(), len)
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let directory = directory();
    for kernel in [
        "missing", "folder", "empty", "text", "random", "zeros", "elf", "gzip", "cut",
    ] {
        let said = refuse(directory.path(), &["--kernel", kernel]);
        // What can't be read, by its name; what is no kernel, by what it should be.
        assert!(said.contains(kernel) || said.contains("kernel"), "{said}");
    }
}

#[test]
fn an_initrd_that_is_not_there_is_named() {
    let directory = directory();
    for initrd in ["missing", "folder"] {
        let said = refuse(
            directory.path(),
            &["--kernel", "kernel", "--initrd", initrd],
        );
        assert!(said.contains(initrd), "{said}");
    }
}

#[test]
fn an_initrd_without_room_is_refused() {
    let directory = directory();
    let big = fs::File::create(directory.path().join("big")).unwrap();
    big.set_len(100 << 20).unwrap();
    let words = ["--kernel", "kernel", "--initrd", "big", "--memory", "64M"];
    let said = refuse(directory.path(), &words);
    assert!(said.contains("initrd"), "{said}");
}

#[test]
fn a_file_without_permission_is_named() {
    let directory = directory();
    let path = directory.path().join("kernel");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&path).is_ok() {
        // A superuser reads everything: there is nothing to refuse.
        return;
    }
    let said = refuse(directory.path(), &["--kernel", "kernel"]);
    assert!(said.contains("kernel"), "{said}");
}

/// A reset reads the files again.
#[test]
fn a_file_that_changes_under_a_running_machine_is_named() {
    let directory = directory();
    let path = directory.path().join("resets");
    fs::write(&path, resetting_kernel()).unwrap();
    let mut command = doppel(directory.path());
    command.args(["--kernel", "resets", "--timeout=60"]);
    command.args(["--initrd", "random"]).stderr(Stdio::piped());
    let mut machine = command.spawn().expect("doppel starts");
    while machine.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[0x90]).unwrap();
    }
    let output = machine.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("the kernel: resets has changed"), "{said}");
}

#[test]
fn impossible_shapes_are_refused() {
    let directory = directory();
    let memory = [
        "0",
        "1M",
        "63M",
        "99999T",
        "18446744073709551615T",
        "-1",
        "",
        "x",
        "1e9",
    ];
    for size in memory {
        refuse(
            directory.path(),
            &["--kernel", "kernel", &format!("--memory={size}")],
        );
    }
    for cpus in ["0", "-1", "1.5", "4294967295", "4294967296", "two", ""] {
        refuse(
            directory.path(),
            &["--kernel", "kernel", &format!("--cpus={cpus}")],
        );
    }
    for (cpus, size) in [
        (1, "0"),
        (1, "1023K"),
        (1, "1025M"),
        (4, "3M"),
        (4, "99999T"),
    ] {
        let cpus = format!("--cpus={cpus}");
        let size = format!("--code-cache={size}");
        let said = refuse(directory.path(), &["--kernel", "kernel", &cpus, &size]);
        assert!(said.contains("code cache"), "{said}");
    }
}

#[test]
fn unknown_words_and_options_are_refused() {
    let directory = directory();
    let cases: [&[&str]; 20] = [
        &[],
        &["nosuchguest"],
        &[""],
        &["../debian"],
        &["debian", "--kernel", "kernel"],
        &["--nosuchoption"],
        &["--kernel"],
        &["--initrd", "empty"],
        &["--kernel", "kernel", "--engine", "abacus"],
        &["--kernel=kernel", "--engine=kvm", "--perf-map"],
        &["--kernel=kernel", "--engine=interpreter", "--code-cache=8M"],
        &["--kernel=kernel", "--engine=interpreter", "--perf-map"],
        &[
            "--kernel=kernel",
            "--engine=interpreter",
            "--check-translation",
        ],
        &["--kernel=kernel", "--cpus=2", "--check-translation"],
        &["--kernel=kernel", "--windows=always", "--check-translation"],
        &["--kernel=kernel", "--check-translation=0"],
        &["--kernel=kernel", "--check-translation=often"],
        &["--kernel", "kernel", "--console", "socket="],
        &["--kernel", "kernel", "--entry", "16"],
        &["--kernel", "kernel", "--timeout", "soon"],
    ];
    for words in cases {
        refuse(directory.path(), words);
    }
}

#[test]
fn huge_pages_are_there_or_missed() {
    let directory = directory();
    for memory in ["64M,huge", "64M,", ",hugepages", "64M,hugepages=on"] {
        let memory = format!("--memory={memory}");
        refuse(directory.path(), &["--kernel", "kernel", &memory]);
    }
    let mut command = doppel(directory.path());
    command.args([
        "--kernel",
        "kernel",
        "--memory=64M,hugepages",
        "--timeout=1",
    ]);
    let output = command.output().expect("doppel starts");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(124) {
        eprintln!("the host has huge pages; that it refuses is not tested");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(said.matches("vm.nr_hugepages=32").count(), 1, "{said}");
}

#[test]
fn cpus_that_can_not_be_are_refused() {
    let directory = directory();
    for (cpu, part) in [
        ("", "no CPU model"),
        ("486", "no CPU model '486'"),
        ("x86-64-v5", "x86-64-v4"),
        ("host,", "+FEATURE"),
        ("host,+nosuchfeature", "--cpu help"),
        ("host,+help", "no feature 'help'"),
        ("host,-sse2", "sse2"),
        ("x86-64-v3,-avx,+avx2", "avx2 can't be there without avx"),
        // What is missing, and what would do.
        ("x86-64-v4", "avx512f"),
        ("x86-64-v4", "give --cpu x86-64"),
        ("x86-64-v2,+avx512vl", "give --cpu x86-64-v2"),
    ] {
        for engine in ["auto", "translator", "interpreter"] {
            let engine = format!("--engine={engine}");
            let cpu = format!("--cpu={cpu}");
            let said = refuse(directory.path(), &["--kernel", "kernel", &engine, &cpu]);
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn a_place_that_can_not_be_written_or_opened_is_named() {
    let directory = directory();
    let cases: [&[&str]; 4] = [
        &["--trace", "all", "--trace-file", "folder"],
        &["--trace", "all", "--trace-file", "missing/trace"],
        &["--console", "socket=missing/socket"],
        &["--gdb", "missing/socket"],
    ];
    for words in cases {
        let words = [&["--kernel", "kernel"], words].concat();
        refuse(directory.path(), &words);
    }
}

#[test]
fn a_command_line_that_no_kernel_takes_is_refused() {
    let directory = directory();
    let long = "x".repeat(100_000);
    let said = refuse(
        directory.path(),
        &["--kernel", "kernel", "--cmdline", &long],
    );
    assert!(said.len() < 1000 && said.contains("command line"), "{said}");
}

/// Values of random bytes for every option. NUL and newline are left out: the one can't be
/// passed, the other only makes the message longer than a line.
#[test]
fn random_bytes_as_values_are_refused() {
    let directory = directory();
    let options = [
        "--kernel",
        "--memory",
        "--cpus",
        "--engine",
        "--cpu",
        "--code-cache",
        "--entry",
        "--console",
        "--timeout",
        "--trace",
        "--gdb",
    ];
    for (seed, option) in options.iter().enumerate() {
        for round in 0..4 {
            let mut value = random((seed * 100 + round) as u64 + 1, 1 + 7 * round);
            value.retain(|byte| !matches!(byte, 0 | b'\n' | b'\r' | 0x0b | 0x0c | 0x85));
            // No path, and no number.
            value.insert(0, 0xff);
            let word = [option.as_bytes(), b"=", &value].concat();
            if *option == "--kernel" {
                refuse_bytes(directory.path(), &[&word]);
            } else {
                refuse_bytes(directory.path(), &[b"--kernel", b"kernel", &word]);
            }
        }
    }
}

/// Any bytes are a command line and an initrd: the kernel is started with them.
#[test]
fn random_bytes_as_initrd_and_command_line_do_no_harm() {
    let directory = directory();
    for seed in 1..4 {
        let text: String = random(seed, 200)
            .iter()
            .map(|byte| char::from(byte % 0x5f + 0x20))
            .collect();
        let mut command = doppel(directory.path());
        command.args(["--kernel", "kernel", "--initrd", "random", "--timeout", "1"]);
        command.arg(format!("--cmdline={text}"));
        let output = command.output().expect("doppel starts");
        let said = String::from_utf8_lossy(&output.stderr);
        // 124: the time has passed; the kernel halts.
        assert_eq!(output.status.code(), Some(124), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
