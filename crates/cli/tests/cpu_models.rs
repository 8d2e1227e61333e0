//! `--cpu`: what a guest sees, and what it can use, under every engine.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

mod tiny_kernel;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tiny_kernel::{halting_kernel, tiny_kernel};

const ENGINES: [&str; 2] = ["translator", "interpreter"];
/// Status of a kernel that did what it was to do.
const DONE: u8 = 7;
/// Status after a triple fault, which any exception of a tiny kernel becomes.
const TRIPLE_FAULT: i32 = 121;

fn doppel(engine: &str, cpu: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command
        .args(["run", "--engine", engine, "--cpu", cpu])
        .args(["--timeout", "120"])
        .stdin(Stdio::null());
    command
}

/// Flags of Linux's `/proc/cpuinfo` for `--cpu cpu`.
fn flags(engine: &str, cpu: &str) -> BTreeSet<String> {
    let mut command = doppel(engine, cpu);
    let output = command
        .args(["debian", "--", "grep", "-m1", "^flags", "/proc/cpuinfo"])
        .output()
        .expect("doppel starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, flags) = text.split_once(':').unwrap_or_else(|| panic!("{output:?}"));
    flags.split_whitespace().map(str::to_owned).collect()
}

fn has(flags: &BTreeSet<String>, names: &str) -> bool {
    names.split_whitespace().all(|name| flags.contains(name))
}

#[test]
fn linux_sees_the_same_level_under_every_engine() {
    let [translator, interpreter] = ENGINES.map(|engine| flags(engine, "x86-64-v2,+aes"));
    assert_eq!(translator, interpreter);
    let second = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 rdtscp x2apic aes";
    assert!(has(&translator, second), "{translator:?}");
    for absent in [
        "avx",
        "avx2",
        "bmi1",
        "xsave",
        "movbe",
        "abm",
        "rdrand",
        "smep",
        "pclmulqdq",
    ] {
        assert!(!translator.contains(absent), "{absent} in {translator:?}");
    }
}

#[test]
fn linux_sees_the_same_default_under_every_engine() {
    let [translator, interpreter] = ENGINES.map(|engine| flags(engine, "common"));
    assert_eq!(translator, interpreter);
    assert!(has(
        &translator,
        "cx16 xsave movbe bmi1 bmi2 abm smep smap pcid"
    ));
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    let host: BTreeSet<&str> = host.split_whitespace().collect();
    for vectors in ["avx", "avx2", "fma", "aes", "sha_ni"] {
        let here = host.contains(vectors);
        assert_eq!(translator.contains(vectors), here, "{vectors}");
    }
}

/// The status of a kernel that executes `code` and then says that it did.
fn status(directory: &Path, engine: &str, cpu: &str, code: &[u8]) -> Option<i32> {
    let file = directory.join("kernel");
    // mov al, DONE; out 0xf4, al
    let code = [code, &[0xb0, DONE, 0xe6, 0xf4]].concat();
    fs::write(&file, tiny_kernel(&code)).unwrap();
    let mut command = doppel(engine, cpu);
    command.args(["--memory", "64M", "--kernel"]).arg(&file);
    command.output().expect("doppel starts").status.code()
}

/// Uses YMM registers.
const AVX: [u8; 27] = [
    0x0f, 0x20, 0xe0, // mov rax, cr4
    0x0d, 0x00, 0x02, 0x04, 0x00, // or eax, OSXSAVE | OSFXSR
    0x0f, 0x22, 0xe0, // mov cr4, rax
    0x31, 0xc9, 0x31, 0xd2, // xor ecx, ecx; xor edx, edx
    0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax, 7
    0x0f, 0x01, 0xd1, // xsetbv
    0xc5, 0xfd, 0xfe, 0xc0, // vpaddd ymm0, ymm0, ymm0
];

#[test]
fn what_is_not_there_can_not_be_used() {
    let directory = TempDir::new().unwrap();
    let rdrand = [0x0f, 0xc7, 0xf0];
    let done = Some(i32::from(DONE));
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    for engine in ENGINES {
        let try_it = |cpu: &str, code: &[u8]| status(directory.path(), engine, cpu, code);
        assert_eq!(try_it("x86-64", &[]), done);
        assert_eq!(try_it("common", &rdrand), done, "{engine}");
        assert_eq!(
            try_it("common,-rdrand", &rdrand),
            Some(TRIPLE_FAULT),
            "{engine}"
        );
        assert_eq!(try_it("x86-64-v2", &AVX), Some(TRIPLE_FAULT), "{engine}");
        assert_eq!(try_it("common,-avx", &AVX), Some(TRIPLE_FAULT), "{engine}");
        if host.contains(" avx2 ") {
            assert_eq!(try_it("x86-64-v3", &AVX), done, "{engine}");
        }
    }
}

/// A static program: `code`, then exit(0).
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // xor edi, edi; push 60; pop rax; syscall
    let code = [code, &[0x31, 0xff, 0x6a, 60, 0x58, 0x0f, 0x05]].concat();
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64, version 1.
    for (half, word) in [(2_u16, 62_u16), (1, 0)] {
        file.extend([half, word].map(u16::to_le_bytes).concat());
    }
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment to load, readable and executable.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The shell's status of a user program that executes `code`.
fn user_status(windows: &str, cpu: &str, code: &[u8]) -> String {
    let bytes = program(code).into_iter();
    let bytes: String = bytes.map(|byte| format!("\\\\{byte:03o}")).collect();
    let script = format!("printf {bytes} > /tmp/p; chmod +x /tmp/p; /tmp/p; echo status $?");
    let mut command = doppel("translator", cpu);
    let words = ["--windows", windows, "debian", "--", "sh", "-c", &script];
    let output = command.args(words).output().expect("doppel starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let status = text.lines().find_map(|line| line.strip_prefix("status "));
    status.unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

#[test]
fn user_programs_can_not_use_vectors_that_are_not_there() {
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !host.contains(" avx2 ") {
        eprintln!("skipped: the host has no AVX2");
        return;
    }
    // vpaddd ymm0, ymm0, ymm0
    let vpaddd = [0xc5, 0xfd, 0xfe, 0xc0];
    for windows in ["never", "always"] {
        assert_eq!(user_status(windows, "common", &vpaddd), "0", "{windows}");
        // SIGILL.
        let status = user_status(windows, "common,-avx", &vpaddd);
        assert_eq!(status, "132", "windows {windows}");
    }
}

/// So that a script can tell what a host can do.
#[test]
fn what_no_engine_has_does_not_start() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("kernel");
    fs::write(&file, halting_kernel()).unwrap();
    for engine in ENGINES {
        let mut command = doppel(engine, "x86-64-v4,+avx512-vnni");
        let output = command.arg("--kernel").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains(engine) && said.contains("avx512-vnni"),
            "{said}"
        );
    }
}

#[test]
fn the_list_of_cpus_needs_no_guest() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    let output = command.args(["run", "--cpu", "help"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for name in ["common", "host", "x86-64-v4", "sse4.2", "TRANSLATOR"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(output.stderr.is_empty());
}
