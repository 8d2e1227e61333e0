//! The host itself: the measure of what a monitor can reach.

use super::boot::Boot;
use super::peer::Peer;
use super::results::PeerDescription;
use super::workload::Scene;
use crate::host::{self, Need};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

const NEEDS: [Need; 3] = [
    Need::new("unshare", "util-linux"),
    Need::new("taskset", "util-linux"),
    Need::new("chroot", "coreutils"),
];

/// Gives the workloads' files, at `$0`, what is not a file of a package, and runs them on the
/// CPUs `$1`.
const SCRIPT: &str = r#"
set -e
mount --rbind /dev "$0/dev"
mount --rbind /proc "$0/proc"
mount -t tmpfs compare "$0/tmp"
exec taskset --cpu-list "$1" chroot "$0" /compare
"#;

/// The workloads as processes of the host, in the files of the guest.
pub(crate) struct Native;

impl Peer for Native {
    fn id(&self) -> &str {
        "native"
    }

    fn install(&self) -> Result<()> {
        host::require(&NEEDS)
    }

    fn describe(&self) -> Result<PeerDescription> {
        Ok(PeerDescription {
            id: self.id().to_owned(),
            version: String::new(),
            settings: "the same programs on the host's kernel, on as many of its CPUs as a guest \
                       has"
            .to_owned(),
        })
    }

    fn prepare(&self, boot: &Boot<'_>, _: &Path) -> Result<Command> {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !host::is_root() {
            command.arg("--map-root-user");
        }
        command.args(["sh", "-c", SCRIPT]).arg(boot.root);
        command.arg(format!("0-{}", boot.cpus - 1));
        command.env_clear().envs(boot.environment());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        Ok(command)
    }

    fn runs(&self, scene: Scene) -> bool {
        scene != Scene::Boot
    }
}
