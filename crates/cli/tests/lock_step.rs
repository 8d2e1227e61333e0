//! The translator and the interpreter side by side.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

#[expect(dead_code, reason = "it has kernels for other tests too")]
mod tiny_kernel;

use std::fs;
use std::process::{Command, Stdio};
use tiny_kernel::tiny_kernel;

/// Stores the numbers below 1000, adds them up again, and resets the machine.
const CODE: &[u8] = &[
    0xbf, 0x00, 0x00, 0x80, 0x00, // mov edi, 0x800000
    0x31, 0xc9, // xor ecx, ecx
    0x89, 0x0c, 0x8f, // mov [rdi + rcx * 4], ecx
    0xff, 0xc1, // inc ecx
    0x81, 0xf9, 0xe8, 0x03, 0x00, 0x00, // cmp ecx, 1000
    0x75, 0xf3, // jne to the store
    0x31, 0xc0, // xor eax, eax
    0xff, 0xc9, // dec ecx
    0x03, 0x04, 0x8f, // add eax, [rdi + rcx * 4]
    0x85, 0xc9, // test ecx, ecx
    0x75, 0xf7, // jne to the decrement
    0x3d, 0x2c, 0x9f, 0x07, 0x00, // cmp eax, 499500
    0x75, 0x06, // jne to the end
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, // mov al, 6
    0xee, // out dx, al
    0xf4, 0xeb, 0xfd, // hlt, again and again
];

/// How many blocks were checked and how many not, with these options.
fn counts(options: &[&str]) -> [u64; 2] {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("kernel"), tiny_kernel(CODE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
    command
        .args(["run", "--kernel", "kernel", "--engine", "translator"])
        .args([
            "--console",
            "none",
            "--no-reboot",
            "--timeout",
            "60",
            "--stats",
        ])
        .args(options)
        .current_dir(directory.path())
        .stdin(Stdio::null());
    let output = command.output().expect("doppel starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    ["blocks checked", "blocks not checked"].map(|name| {
        let line = said.lines().find_map(|l| l.trim_start().strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.map_or(0, |number| {
            number.replace(',', "").parse().expect("a number")
        })
    })
}

#[test]
fn a_kernel_runs_in_lock_step() {
    let [checked, unchecked] = counts(&["--check-translation"]);
    assert!(checked > 1900, "{checked}");
    assert_eq!(unchecked, 0);
}

#[test]
fn a_part_of_the_blocks_can_be_checked() {
    let [checked, unchecked] = counts(&["--check-translation=100"]);
    assert!((20..400).contains(&checked), "{checked}");
    assert!(unchecked > 1600, "{unchecked}");
}

#[test]
fn without_the_option_nothing_is_checked() {
    assert_eq!(counts(&[]), [0, 0]);
}
