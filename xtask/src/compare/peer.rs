//! What can be compared: anything that boots a Linux kernel.

use super::boot::Boot;
use super::results::PeerDescription;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// An emulator.
pub(crate) trait Peer {
    /// Its name, on the command line and in the results.
    fn id(&self) -> &str;

    /// Makes sure that it can run: builds or installs it, or says what to install.
    fn install(&self) -> Result<()>;

    /// What it is, for the reader. Called once it is installed.
    fn describe(&self) -> Result<PeerDescription>;

    /// Makes what it needs to boot `boot`, in `directory`. Gives the command that does so, each
    /// time it is started; its standard output carries the guest's first serial port.
    fn prepare(&self, boot: &Boot, directory: &Path) -> Result<Command>;
}
