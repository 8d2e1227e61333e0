//! QEMU's software CPU, TCG: the newest that Debian has for the host's release.
//!
//! Its packages, and those that it depends on, are unpacked into a directory of their own, so
//! that the host's packages are left alone and nobody needs to be root.

use super::boot::Boot;
use super::packages;
use super::peer::Peer;
use super::results::PeerDescription;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// The guest's CPU: all that TCG has, but for page tables of five levels, which no other peer
/// has: a walk through them takes longer.
const CPU: &str = "max,la57=off";

/// QEMU, with multi-threaded TCG.
pub(crate) struct Qemu {
    /// The root of its files.
    root: PathBuf,
}

impl Qemu {
    pub(crate) fn new() -> Self {
        Self {
            root: packages::directory().join("qemu"),
        }
    }

    /// The program, run by its own release's C library.
    fn command(&self) -> Result<Command> {
        let mut command = packages::program(&self.root, PROGRAM)?;
        // Where it looks for accelerators that are modules (QEMU, util/module.c).
        let modules = self.root.join("usr/lib/x86_64-linux-gnu/qemu");
        command.env("QEMU_MODULE_DIR", modules);
        Ok(command)
    }
}

impl Peer for Qemu {
    fn id(&self) -> &str {
        "qemu"
    }

    fn install(&self) -> Result<()> {
        packages::install(
            &["qemu-system-x86"],
            packages::backports().as_deref(),
            &self.root,
        )
    }

    fn describe(&self) -> Result<PeerDescription> {
        let output = self.command()?.arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // QEMU emulator version 10.0.2 (Debian ...)
        let version = text.lines().next().and_then(|l| l.split("version ").nth(1));
        if !output.status.success() {
            bail!(
                "QEMU does not run: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(PeerDescription {
            id: self.id().to_owned(),
            version: version
                .context("QEMU does not tell its version")?
                .to_owned(),
            settings: format!("-accel tcg,thread=multi -M q35 -cpu {CPU} -nodefaults"),
        })
    }

    fn prepare(&self, boot: &Boot<'_>, _: &Path) -> Result<Command> {
        let mut command = self.command()?;
        let share = self.root.join("usr/share");
        for data in ["qemu", "seabios"] {
            command.arg("-L").arg(share.join(data));
        }
        command.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", CPU]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.args(["-smp", &boot.cpus.to_string()]);
        command.args(["-m", &format!("{}M", boot.memory_mib)]);
        command.arg("-kernel").arg(boot.kernel);
        command.arg("-initrd").arg(boot.initrd);
        command.args(["-append", &boot.command_line()]);
        Ok(command)
    }
}
