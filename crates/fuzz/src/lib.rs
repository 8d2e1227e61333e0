//! Fuzz targets: everything that takes bytes from a guest, a file or another machine, driven by
//! arbitrary bytes.
//!
//! A [`Target`] interprets its input as a script: which register to write, how much time passes,
//! when to take a snapshot. Any byte string is a valid script. A target fails by a panic, by an
//! abort, or by not coming back; most also compare what they see with what must be (a restored
//! device behaves as the original, a refused state changes nothing).
//!
//! Three ways to run them:
//! - in the tests of this crate, a moment each, always the same inputs;
//! - `cargo xtask fuzz`: any time, in child processes, failing inputs are kept;
//! - the package `fuzz/` in the root of the tree: guided by coverage, with libFuzzer.
#![forbid(unsafe_code)]

mod bench;
mod campaign;
mod chipset;
mod generate;
mod guest_code;
mod input;
mod kernel;
mod lapic;
mod pci;
mod snapshot;
mod virtio;

pub use campaign::{Campaign, INPUT_SECONDS_MAX, last_input};
pub use generate::{Generator, LEN_MAX};

/// Something that takes bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, such as `"kernel"`.
    pub name: &'static str,
    /// Runs it on one input. Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Inputs from which good ones are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "kernel",
        run: kernel::run,
        seeds: kernel::seeds,
    },
    Target {
        name: "state",
        run: snapshot::run,
        seeds: snapshot::seeds,
    },
    script("chipset_acpi_pm", chipset::acpi_pm),
    script("chipset_hpet", chipset::hpet),
    script("chipset_i8042", chipset::i8042),
    script("chipset_ioapic", chipset::ioapic),
    script("chipset_pic", chipset::pic),
    script("chipset_pit", chipset::pit),
    script("chipset_ports", chipset::ports),
    script("chipset_rtc", chipset::rtc),
    script("chipset_uart", chipset::uart),
    script("guest_code", guest_code::run),
    script("lapic", lapic::run),
    script("pci", pci::run),
    script("virtio_console", virtio::console),
    script("virtio_rng", virtio::rng),
];

/// A target whose inputs need no beginning.
const fn script(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        run,
        seeds: Vec::new,
    }
}

/// The target with this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
