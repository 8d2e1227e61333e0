//! The command line.

use crate::cpu::{CpuArgument, parse_argument};
use crate::status;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// Runs operating systems in virtual machines, with or without hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "doppel", version, max_term_width = 100)]
pub(crate) struct Doppel {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a virtual machine
    #[command(after_help = status::HELP)]
    Run(Box<RunArgs>),
    /// Show which CPU engines this host can run, and which one `auto` takes
    Engines,
}

/// CPU engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// KVM where guests run on the CPU itself, else the translator, else the interpreter
    Auto,
    /// The host's CPU itself, by hardware virtualization (/dev/kvm)
    Kvm,
    /// x86 translated to x86: the guest's code on the host's CPU, checked and rewritten
    Translator,
    /// x86 in software, instruction by instruction: slow, and what the translator is held against
    Interpreter,
}

/// When there are windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Windows {
    /// For programs that compute for long
    Auto,
    /// For all programs, however slow: to test it
    Always,
    /// For none
    Never,
}

/// Entries of a kernel by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Entry {
    /// The one that fits the file
    Auto,
    /// The 64-bit entry of a bzImage
    #[value(name = "64")]
    Bits64,
    /// The 32-bit entry of a bzImage
    #[value(name = "32")]
    Bits32,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A guest by name: `debian`
    #[arg(value_name = "GUEST")]
    pub(crate) guest: Option<String>,

    /// A command to run in the guest instead of a login shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,

    /// Kernel to start: a bzImage, or an ELF file with a PVH entry
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "words"])]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial RAM disk; several are put one after the other
    #[arg(
        long,
        value_name = "FILE",
        requires = "kernel",
        conflicts_with = "guest"
    )]
    pub(crate) initrd: Vec<PathBuf>,

    /// The kernel's command line; for `debian`, words to add to it. Unless it says otherwise,
    /// `panic=-1` is added, so that a panic ends the machine
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,

    /// How the kernel is entered
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        requires = "kernel",
        conflicts_with = "guest"
    )]
    pub(crate) entry: Entry,

    /// Series of Debian's kernel, such as 6.12 [default: the newest of the host's release]
    #[arg(long, value_name = "SERIES", conflicts_with = "kernel")]
    pub(crate) kernel_series: Option<String>,

    /// Look for newer Debian packages now, not once a day
    #[arg(long, conflicts_with = "kernel")]
    pub(crate) refresh: bool,

    /// CPU engine
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) engine: Engine,

    /// What CPU the guest sees: host (all that the engine can give), common (what every engine of
    /// this host can give), x86-64, x86-64-v2, x86-64-v3 or x86-64-v4; followed by +FEATURE or
    /// -FEATURE, each after a comma. `help` lists models and features, and which engine has them
    #[arg(long, value_name = "MODEL", default_value = "common", value_parser = parse_argument)]
    pub(crate) cpu: CpuArgument,

    /// Room for translated code, such as 32M, split between the vCPUs: 1M to 1024M for each
    /// [default: for each an eighth of the memory, but 64M to 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) code_cache: Option<u64>,

    /// When the translator lets guest user code run without checks, in a process of its own that
    /// holds nothing else
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) windows: Windows,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// Memory, such as 512M or 2G; with `,hugepages` it is made of huge pages: those that the host
    /// has reserved, or transparent ones
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    pub(crate) memory: Memory,

    /// Where the guest's serial console is: stdio, pty, socket=PATH or none
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_console)]
    pub(crate) console: ConsoleAt,

    /// Name of the machine, as ps and top show it
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// End the machine when the guest asks for a reset
    #[arg(long)]
    pub(crate) no_reboot: bool,

    /// End the machine after this time
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,

    /// Wait for gdb before the first instruction, at :PORT (on the loopback interface), HOST:PORT
    /// or the path of a Unix socket. Whoever reaches it owns the guest
    #[arg(long, value_name = "ADDR")]
    pub(crate) gdb: Option<String>,

    /// Report events: exec, exception, interrupt, msr, control, cpuid, port, mmio, or all of them
    /// but exec; separated by commas
    #[arg(long, value_name = "KINDS", value_parser = machine::parse_kinds)]
    pub(crate) trace: Option<machine::Kinds>,

    /// Where the trace goes [default: standard error]
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub(crate) trace_file: Option<PathBuf>,

    /// Show the kernel's messages while a command runs
    #[arg(long, short)]
    pub(crate) verbose: bool,

    /// Print what the engine counted, by vCPU, on standard error at the end
    #[arg(long)]
    pub(crate) stats: bool,

    /// Name translated guest code to the host's perf, in /tmp/perf-PID.map
    #[arg(long)]
    pub(crate) perf_map: bool,

    /// Let the interpreter repeat every block of translated code, and end the machine with a report
    /// at the first that does something else. With N, only a block's first executions and one in N
    /// of the others. For one vCPU, without windows; a hundred times slower, and guest time passes
    /// 16 times more slowly
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1"
    )]
    pub(crate) check_translation: Option<NonZeroU32>,
}

/// Memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) bytes: u64,
    pub(crate) hugepages: bool,
}

fn parse_memory(text: &str) -> Result<Memory, String> {
    let (size, hugepages) = match text.split_once(',') {
        None => (text, false),
        Some((size, "hugepages")) => (size, true),
        Some((_, other)) => {
            return Err(format!(
                "'{other}' is no property of memory: give hugepages or nothing"
            ));
        }
    };
    let bytes = parse_size(size)?;
    Ok(Memory { bytes, hugepages })
}

/// Where the serial console is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsoleAt {
    Stdio,
    Pty,
    Socket(PathBuf),
    None,
}

fn parse_console(text: &str) -> Result<ConsoleAt, String> {
    match text {
        "stdio" => Ok(ConsoleAt::Stdio),
        "pty" => Ok(ConsoleAt::Pty),
        "none" => Ok(ConsoleAt::None),
        _ => match text.strip_prefix("socket=") {
            Some(path) if !path.is_empty() => Ok(ConsoleAt::Socket(path.into())),
            _ => Err("give stdio, pty, socket=PATH or none".to_owned()),
        },
    }
}

/// Bytes from text such as `512M`, `1.5G` or `64MiB`; without a unit, mebibytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: give a number and K, M, G or T, such as 512M");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_end_matches("iB").trim_end_matches(['B', 'b']);
    let shift = match unit {
        "k" | "K" => 10,
        "" | "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(wrong)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    let scale = 10u64
        .checked_pow(fraction.len() as u32)
        .filter(|s| *s <= 1_000_000);
    let fraction: u64 = fraction.parse().map_err(|_| wrong())?;
    let part = (fraction << shift) / scale.ok_or_else(wrong)?;
    bytes.checked_add(part & !0xfff).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Doppel::command().debug_assert();
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512", 512 << 20),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("2g", 2 << 30),
            ("1.5G", 3 << 29),
            ("8192K", 8 << 20),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1G",
            "1X",
            "99999999999999T",
            "1.2.3G",
            "1e3",
            "1.9999999999G",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_may_be_of_huge_pages() {
        let memory = |bytes, hugepages| Ok(Memory { bytes, hugepages });
        assert_eq!(parse_memory("64M"), memory(64 << 20, false));
        assert_eq!(parse_memory("4G,hugepages"), memory(4 << 30, true));
        for text in [
            "",
            ",",
            "4G,",
            ",hugepages",
            "4G,hugepages,",
            "4G,huge",
            "4G hugepages",
        ] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_and_a_kernel_exclude_each_other() {
        let parse = |words: &[&str]| {
            Doppel::try_parse_from(["doppel", "run"].iter().chain(words)).map(|_| ())
        };
        assert!(parse(&["debian"]).is_ok());
        assert!(parse(&["--kernel", "k"]).is_ok());
        assert!(parse(&["debian", "--", "ls", "-l"]).is_ok());
        assert!(parse(&["--cpu", "help"]).is_ok());
        assert!(parse(&["debian", "--kernel", "k"]).is_err());
        assert!(parse(&["--initrd", "i", "debian"]).is_err());
    }
}
