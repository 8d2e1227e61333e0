//! Doppel itself.

use super::boot::Boot;
use super::peer::{Pace, Peer};
use super::results::PeerDescription;
use crate::step;
use crate::workspace::{self, cargo, root};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Doppel with one of its engines.
pub(crate) struct Doppel {
    engine: &'static str,
    id: String,
    pace: Pace,
}

impl Doppel {
    /// Doppel with `engine`.
    pub(crate) fn new(engine: &'static str, pace: Pace) -> Self {
        Self {
            engine,
            id: format!("doppel-{engine}"),
            pace,
        }
    }
}

impl Peer for Doppel {
    fn id(&self) -> &str {
        &self.id
    }

    fn install(&self) -> Result<()> {
        step::run(cargo().args(["build", "--profile", "dist", "--package", "cli"]))
    }

    fn describe(&self) -> Result<PeerDescription> {
        let output = Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(root())
            .output();
        let revision = output.ok().filter(|output| output.status.success());
        let revision = revision.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = env!("CARGO_PKG_VERSION");
        Ok(PeerDescription {
            id: self.id.clone(),
            version: match revision {
                Some(revision) => format!("{version}, revision {}", revision.trim()),
                None => version.to_owned(),
            },
            settings: format!("engine {}, built with profile `dist`", self.engine),
        })
    }

    fn prepare(&self, boot: &Boot<'_>, _: &Path) -> Result<Command> {
        let mut command = Command::new(program());
        command.args(["run", "--engine", self.engine]);
        command.args(["--cpus", &boot.cpus.to_string()]);
        command.args(["--memory", &format!("{}M", boot.memory_mib)]);
        command.arg("--kernel").arg(boot.kernel);
        command.arg("--initrd").arg(boot.initrd);
        command.args(["--cmdline", &boot.command_line()]);
        command.args(["--console", "stdio", "--no-reboot"]);
        Ok(command)
    }

    fn tells_memory(&self) -> bool {
        true
    }

    fn pace(&self) -> Pace {
        self.pace
    }
}

/// The program that `install` builds.
pub(crate) fn program() -> PathBuf {
    workspace::target().join("dist/doppel")
}
