//! What the guest does, and which spans of time count.

/// A moment of a run. All but the first are lines on the guest's first serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The emulator is started.
    Start,
    /// The kernel is entered: it is about to decompress itself.
    Kernel,
    /// The first process runs.
    Init,
    /// The workload is done.
    Done,
}

impl Mark {
    /// All marks that are lines, in the order in which they come.
    pub(crate) const LINES: [Self; 3] = [Self::Kernel, Self::Init, Self::Done];

    /// The text by which its line is known.
    ///
    /// The kernel's is the first word of its decompressor, which, being told not to choose a
    /// random address, says so before anything else (Linux 6.1, arch/x86/boot/compressed/kaslr.c,
    /// `choose_random_location`).
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Start => "",
            Self::Kernel => "KASLR disabled: 'nokaslr' on cmdline.",
            Self::Init => "compare: init",
            Self::Done => "compare: done",
        }
    }
}

/// The kernel's command line.
///
/// `earlyprintk` gives the decompressor a voice. `quiet` keeps the kernel's messages off the
/// serial port: emulators differ in whether a character takes the time it takes at 115,200 baud,
/// which is not what is to be compared.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 \
                                       nokaslr quiet panic=-1 rdinit=/compare";

/// A span of time that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its name in tables.
    pub(crate) name: &'static str,
    /// Where it begins.
    pub(crate) from: Mark,
    /// Where it ends.
    pub(crate) to: Mark,
}

/// Something that a guest does.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Its name, on the command line and in tables.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) about: &'static str,
    /// Lines of shell that the first process runs between [`Mark::Init`] and [`Mark::Done`].
    pub(crate) script: &'static str,
    /// What is measured.
    pub(crate) spans: &'static [Span],
}

impl Workload {
    /// The mark after which nothing more is measured.
    pub(crate) fn last_mark(&self) -> Mark {
        self.spans
            .iter()
            .map(|span| span.to)
            .max()
            .unwrap_or(Mark::Start)
    }

    /// The guest's first process.
    pub(crate) fn init(&self) -> String {
        let (init, done) = (Mark::Init.text(), Mark::Done.text());
        let script = self.script;
        format!("#!/bin/busybox sh\necho '{init}'\n{script}\necho '{done}'\npoweroff -f\n")
    }
}

/// The span from the first process's start to the workload's end.
const WORK: [Span; 1] = [Span {
    name: "work",
    from: Mark::Init,
    to: Mark::Done,
}];

/// All workloads.
pub(crate) const WORKLOADS: [Workload; 3] = [
    Workload {
        name: "boot",
        about: "The kernel boots to its first process. \"kernel\" is from the kernel's first word, \
                before it decompresses itself; \"whole\" is from the emulator's start, with \
                whatever firmware and boot loader it needs.",
        script: ":",
        spans: &[
            Span {
                name: "kernel",
                from: Mark::Kernel,
                to: Mark::Init,
            },
            Span {
                name: "whole",
                from: Mark::Start,
                to: Mark::Init,
            },
        ],
    },
    Workload {
        name: "shell",
        about: "Busybox's shell counts to 20,000: user code, hardly a system call.",
        script: "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done",
        spans: &WORK,
    },
    Workload {
        name: "fork",
        about: "The shell forks 100 times and waits for each: processes, page tables, faults.",
        script: "i=0; while [ $i -lt 100 ]; do (:); i=$((i + 1)); done",
        spans: &WORK,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_end_after_they_begin() {
        for workload in &WORKLOADS {
            assert!(!workload.spans.is_empty(), "{}", workload.name);
            for span in workload.spans {
                assert!(span.from < span.to, "{}: {}", workload.name, span.name);
            }
        }
    }

    #[test]
    fn a_line_is_one_mark() {
        for mark in Mark::LINES {
            for other in Mark::LINES {
                assert_eq!(mark.text().contains(other.text()), mark == other);
            }
        }
    }
}
