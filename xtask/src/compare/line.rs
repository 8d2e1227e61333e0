//! What the guest's first serial port says: `init.sh` and `bench.c` have the other side.

/// A line that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// The kernel is entered: it is about to decompress itself.
    Kernel,
    /// The first process runs.
    Init,
    /// A workload begins.
    Begin(&'a str),
    /// The workload that has begun is prepared: its time counts from here.
    Go,
    /// A workload is done, with this result.
    End(&'a str, &'a str),
    /// A workload's program failed.
    Failed(&'a str),
    /// There is no more to do.
    Done,
}

/// The kernel's first word: its decompressor, told not to choose a random address, says so before
/// anything else (Linux 6.1, arch/x86/boot/compressed/kaslr.c, `choose_random_location`).
const KERNEL: &str = "KASLR disabled: 'nokaslr' on cmdline.";

/// The begin of all lines of ours. Something else may stand before it: a firmware's escape
/// sequences, or a line that did not end.
const OURS: &str = "compare: ";

impl<'a> Line<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        if text.contains(KERNEL) {
            return Some(Self::Kernel);
        }
        let (_, rest) = text.trim_end().split_once(OURS)?;
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (name, result) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "init" => Some(Self::Init),
            "begin" => Some(Self::Begin(name)),
            "go" => Some(Self::Go),
            "end" => Some(Self::End(name, result)),
            "failed" => Some(Self::Failed(name)),
            "done" => Some(Self::Done),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        for (text, line) in [
            ("KASLR disabled: 'nokaslr' on cmdline.\r\n", Line::Kernel),
            ("\x1b[2Jcompare: init\r\n", Line::Init),
            ("compare: begin sort", Line::Begin("sort")),
            ("compare: go", Line::Go),
            ("compare: end sort 1 2\r\n", Line::End("sort", "1 2")),
            ("compare: end sort", Line::End("sort", "")),
            ("compare: failed sort", Line::Failed("sort")),
            ("compare: done", Line::Done),
        ] {
            assert_eq!(Line::parse(text), Some(line), "{text:?}");
        }
        assert_eq!(Line::parse("compare: other"), None);
        assert_eq!(Line::parse("[ 0.1] comparing"), None);
    }
}
