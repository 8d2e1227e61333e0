//! Bochs, of Debian's packages.
//!
//! Bochs boots as a PC does, from a disc: SYSLINUX's loader for CDs, with the kernel and the
//! initrd as its files. Debian builds Bochs with its debugger, which rules out "handlers
//! chaining", its fastest mode of execution; the comparison is with what Debian's users get.

use super::boot::Boot;
use super::peer::{Pace, Peer};
use super::results::PeerDescription;
use super::workload::Scene;
use crate::host::{self, Need};
use crate::step;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VIDEO_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";
const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LOADER_MODULE: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

const NEEDS: [Need; 6] = [
    Need::new("bochs", "bochs"),
    Need::new(BIOS, "bochsbios"),
    Need::new(VIDEO_BIOS, "bochsbios"),
    Need::new(LOADER, "isolinux"),
    Need::new(LOADER_MODULE, "syslinux-common"),
    Need::new("genisoimage", "genisoimage"),
];

/// Its model with AVX2 that a Linux kernel boots on. The guest's time passes with instructions:
/// of the rates tried, from 10 to 400 million a second, this one boots Linux the fastest.
const CPU: &str = "model=corei7_haswell_4770, ips=100000000";

/// Bochs with the fastest settings that Debian's build has.
pub(crate) struct Bochs;

impl Peer for Bochs {
    fn id(&self) -> &str {
        "bochs"
    }

    fn install(&self) -> Result<()> {
        host::require(&NEEDS)
    }

    fn describe(&self) -> Result<PeerDescription> {
        let output = Command::new("dpkg-query")
            .args(["--show", "--showformat", "${Version}", "bochs"])
            .output()
            .context("can't run dpkg-query")?;
        Ok(PeerDescription {
            id: self.id().to_owned(),
            version: format!(
                "{} (Debian)",
                String::from_utf8_lossy(&output.stdout).trim()
            ),
            settings: format!(
                "cpu: {CPU}; clock: sync=none, so that guest time passes with instructions and \
                 waiting costs nothing; built with the debugger, so without handlers chaining"
            ),
        })
    }

    fn prepare(&self, boot: &Boot<'_>, directory: &Path) -> Result<Command> {
        let disc = directory.join("boot.iso");
        make_disc(boot, &directory.join("disc"), &disc)?;
        let settings = directory.join("bochsrc");
        fs::write(
            &settings,
            configuration(boot, &disc, &directory.join("bochs.log")),
        )?;
        // The debugger waits for a command before the first instruction.
        let start = directory.join("start");
        fs::write(&start, "continue\n")?;
        let mut command = Command::new("bochs");
        command
            .arg("-q")
            .arg("-f")
            .arg(settings)
            .arg("-rc")
            .arg(start);
        Ok(command)
    }

    fn pace(&self) -> Pace {
        Pace::Slow
    }

    /// Its CPUs take turns on one thread.
    fn runs(&self, scene: Scene) -> bool {
        scene.cpus() == 1
    }
}

/// Makes a disc to boot from, of the files in `files`.
fn make_disc(boot: &Boot<'_>, files: &Path, disc: &Path) -> Result<()> {
    fs::create_dir(files)?;
    let sources = [
        (boot.kernel, "linux"),
        (boot.initrd, "initrd"),
        (Path::new(LOADER), "isolinux.bin"),
        (Path::new(LOADER_MODULE), "ldlinux.c32"),
    ];
    for (from, name) in sources {
        let copied = fs::copy(from, files.join(name));
        copied.with_context(|| format!("can't copy {}", from.display()))?;
    }
    let menu = format!(
        "default linux\nprompt 0\nlabel linux\n kernel /linux\n initrd /initrd\n append {}\n",
        boot.command_line()
    );
    fs::write(files.join("isolinux.cfg"), menu)?;
    let mut command = Command::new("genisoimage");
    command.args(["-quiet", "-J", "-R", "-b", "isolinux.bin", "-c", "boot.cat"]);
    command.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
    step::run(command.arg("-o").arg(disc).arg(files))
}

/// Bochs' configuration file.
///
/// The display is a VNC server that waits for nobody: Debian has none that is less. Sound is off,
/// since a host without any is one that Bochs does not get on with. Powering off is a "panic" to
/// Bochs, which is to end it.
fn configuration(boot: &Boot<'_>, disc: &Path, log: &Path) -> String {
    let memory = boot.memory_mib;
    let (disc, log) = (disc.display(), log.display());
    format!(
        "config_interface: textconfig
display_library: rfb, options=\"timeout=0\"
cpu: {CPU}, count=1, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file={BIOS}
vgaromimage: file={VIDEO_BIOS}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=\"{disc}\", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/dev/stdout
clock: sync=none, time0=utc
speaker: enabled=1, mode=none
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
log: \"{log}\"
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"
    )
}
