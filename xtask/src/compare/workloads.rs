//! All workloads, with as much to do as keeps QEMU busy for some seconds.

use super::workload::Measure::{Delay, Rate, Time};
use super::workload::Scene::{Boot, OneCpu, TwoCpus};
use super::workload::Workload;

/// The boot of the kernel, as far as the kernel goes.
pub(crate) const BOOT: &str = "boot";
/// The same with what comes before the kernel.
pub(crate) const BOOT_WHOLE: &str = "boot-whole";
/// The workload of two threads on one CPU.
pub(crate) const ON_ONE_CPU: &str = "parallel-1";
/// The same on two CPUs.
pub(crate) const ON_TWO_CPUS: &str = "parallel-2";
/// The system call that does nothing.
pub(crate) const NULL_CALL: &str = "syscall";
/// How late interrupts come.
pub(crate) const INTERRUPTS: &str = "delay";
/// Computation in user mode that hardly needs the kernel.
pub(crate) const COMPUTE: [&str; 5] = ["sha256", "openssl-aes", "openssl-sha", "nbody", "gzip"];

/// What most workloads have in common.
const PLAIN: Workload = Workload {
    name: "",
    about: "",
    scene: OneCpu,
    measure: Time,
    count: 1,
    prepare: ":",
    work: "",
    is_in_mean: true,
};

/// All workloads, in the order of tables; those of a scene run in this order.
pub(crate) const WORKLOADS: [Workload; 26] = [
    Workload {
        name: BOOT,
        about: "Debian's kernel boots to its first process, from the kernel's first word, which \
                comes before it decompresses itself",
        scene: Boot,
        ..PLAIN
    },
    Workload {
        name: BOOT_WHOLE,
        about: "the same from the monitor's start, with whatever firmware and boot loader it needs",
        scene: Boot,
        is_in_mean: false,
        ..PLAIN
    },
    Workload {
        name: "shell",
        about: "busybox's shell counts: user code, hardly a system call",
        count: 200_000,
        work: "i=0; while [ $i -lt $n ]; do i=$((i + 1)); done; echo $i",
        ..PLAIN
    },
    Workload {
        name: "sha256",
        about: "busybox's sha256sum of a file, in units of 64 KiB",
        count: 800,
        prepare: "bench text $n >/tmp/text",
        work: "busybox sha256sum </tmp/text",
        ..PLAIN
    },
    Workload {
        name: "gzip",
        about: "busybox's gzip -9 of text, in units of 64 KiB",
        count: 40,
        prepare: "bench text $n >/tmp/text",
        work: "busybox gzip -9 </tmp/text | busybox sha256sum",
        ..PLAIN
    },
    Workload {
        name: "sort",
        about: "busybox's sort of 256 KiB of lines, again and again",
        count: 20,
        prepare: "bench text 4 >/tmp/text",
        work: "i=0
while [ $i -lt $n ]; do
    busybox sort /tmp/text >/tmp/sorted
    i=$((i + 1))
done
busybox sha256sum </tmp/sorted",
        ..PLAIN
    },
    Workload {
        name: "openssl-aes",
        about: "openssl speed -evp aes-256-gcm with blocks of 16 KiB (AES, SSE and AVX \
                instructions), the time of its count at the rate that it had over 2 s",
        measure: Rate,
        count: 100_000,
        work: "speed -evp aes-256-gcm",
        ..PLAIN
    },
    Workload {
        name: "openssl-sha",
        about: "openssl speed -evp sha256, likewise",
        measure: Rate,
        count: 40_000,
        work: "speed -evp sha256",
        ..PLAIN
    },
    Workload {
        name: "nbody",
        about: "five bodies under gravity: scalar double precision",
        count: 2_000_000,
        work: "bench nbody $n",
        ..PLAIN
    },
    Workload {
        name: "chase-1",
        about: "a chain of pointers through 1 MiB",
        count: 40_000_000,
        work: "bench chase-1 $n",
        ..PLAIN
    },
    Workload {
        name: "chase-16",
        about: "a chain of pointers through 16 MiB",
        count: 8_000_000,
        work: "bench chase-16 $n",
        ..PLAIN
    },
    Workload {
        name: "chase-256",
        about: "a chain of pointers through 256 MiB",
        count: 4_000_000,
        work: "bench chase-256 $n",
        ..PLAIN
    },
    Workload {
        name: "memcpy",
        about: "copies of 16 MiB by the C library",
        count: 300,
        work: "bench memcpy $n",
        ..PLAIN
    },
    Workload {
        name: "perl",
        about: "Perl counts words, replaces patterns, sorts",
        count: 600,
        work: "perl /bench.pl $n",
        ..PLAIN
    },
    Workload {
        name: "cc",
        about: "gcc's compiler proper compiles the C source of these workloads, with -O2",
        count: 3,
        work: "i=0
while [ $i -lt $n ]; do
    cc1 -quiet -O2 /bench.i -o /tmp/bench.s
    i=$((i + 1))
done
busybox sha256sum </tmp/bench.s",
        ..PLAIN
    },
    Workload {
        name: "luajit",
        about: "a JIT: LuaJIT on loops over numbers, tables and strings",
        count: 30_000,
        work: "luajit /bench.lua $n",
        ..PLAIN
    },
    Workload {
        name: "spawn",
        about: "the shell forks, the child becomes another program and ends",
        count: 600,
        work: "i=0; while [ $i -lt $n ]; do bench nothing 0; i=$((i + 1)); done; echo $i",
        ..PLAIN
    },
    Workload {
        name: NULL_CALL,
        about: "getppid, a system call that does next to nothing",
        count: 3_000_000,
        work: "bench syscall $n",
        ..PLAIN
    },
    Workload {
        name: "pipe",
        about: "a byte to and fro between two processes",
        count: 40_000,
        work: "bench pipe $n",
        ..PLAIN
    },
    Workload {
        name: "fault",
        about: "mmap of 1 MiB, a touch of each page, munmap",
        count: 500,
        work: "bench fault $n",
        ..PLAIN
    },
    Workload {
        name: "switch",
        about: "a byte round a ring of 32 processes, each of which reads 16 KiB of its own",
        count: 1_200,
        work: "bench switch $n",
        ..PLAIN
    },
    Workload {
        name: "signal",
        about: "a signal to oneself, and its handler",
        count: 150_000,
        work: "bench signal $n",
        ..PLAIN
    },
    Workload {
        name: "files",
        about: "16 files on tmpfs made, written, renamed, looked at and removed",
        count: 800,
        work: "bench files $n",
        ..PLAIN
    },
    Workload {
        name: INTERRUPTS,
        about: "how late a timer's interrupt is in its signal handler, while the program spins in \
                user code",
        measure: Delay,
        count: 2000,
        work: "bench delay $n",
        is_in_mean: false,
        ..PLAIN
    },
    Workload {
        name: ON_ONE_CPU,
        about: "two threads that compute, on one CPU",
        count: 150_000_000,
        work: "bench parallel $n",
        is_in_mean: false,
        ..PLAIN
    },
    Workload {
        name: ON_TWO_CPUS,
        about: "the same on two CPUs",
        scene: TwoCpus,
        count: 150_000_000,
        work: "bench parallel $n",
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_words_of_their_own() {
        let names: BTreeSet<_> = WORKLOADS.iter().map(|w| w.name).collect();
        assert_eq!(names.len(), WORKLOADS.len());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(is_plain)));
    }

    #[test]
    fn what_bars_are_about_is_measured() {
        let about = [
            BOOT,
            BOOT_WHOLE,
            ON_ONE_CPU,
            ON_TWO_CPUS,
            NULL_CALL,
            INTERRUPTS,
        ];
        for name in about.iter().chain(&COMPUTE) {
            assert!(WORKLOADS.iter().any(|w| w.name == *name), "{name}");
        }
    }

    #[test]
    fn two_cpus_do_the_work_of_one() {
        let find = |name| WORKLOADS.iter().find(|w| w.name == name).unwrap();
        let (one, two) = (find(ON_ONE_CPU), find(ON_TWO_CPUS));
        assert_eq!((one.count, one.work), (two.count, two.work));
    }
}
