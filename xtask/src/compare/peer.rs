//! Who is compared.

use super::boot::Boot;
use super::results::PeerDescription;
use super::workload::Scene;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// How much of the work is worth measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// All of it, as often as is asked for.
    Full,
    /// For those who take minutes: a part of it, once.
    Slow,
}

/// Something that runs the workloads.
pub(crate) trait Peer {
    /// Its name, on the command line and in the results.
    fn id(&self) -> &str;

    /// Makes sure that it can run: builds or installs it, or says what to install.
    fn install(&self) -> Result<()>;

    /// What it is, for the reader. Called once it is installed.
    fn describe(&self) -> Result<PeerDescription>;

    /// Makes what it needs to run `boot`, in `directory`, which is empty. Gives the command that
    /// does so; its standard output carries the guest's first serial port.
    fn prepare(&self, boot: &Boot<'_>, directory: &Path) -> Result<Command>;

    /// How much it is given to do.
    fn pace(&self) -> Pace {
        Pace::Full
    }

    /// Whether the guest's memory and translated code are mappings by which they are known, so that
    /// the rest is its own.
    fn tells_memory(&self) -> bool {
        false
    }

    /// Whether it can run a scene.
    fn runs(&self, _: Scene) -> bool {
        true
    }
}
