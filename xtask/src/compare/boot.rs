//! What all peers run: Debian's kernel, its guest's initrd, and the workloads' files.

use super::userland::Userland;
use super::workload::{Scene, Workload};
use anyhow::{Context, Result};
use image::{Archive, Event, GuestSpec, KernelChoice, Options, Stage};
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel's command line, without what the workloads' process 1 finds in its environment.
///
/// `earlyprintk` gives the decompressor a voice. `quiet` keeps the kernel's messages off the
/// serial port: emulators differ in whether a character takes the time it takes at 115,200 baud,
/// which is not what is to be compared.
const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 nokaslr quiet \
                            panic=-1 rdinit=/compare";

/// The initrds, made once for all runs.
#[derive(Debug)]
pub(crate) struct Initrds {
    kernel: PathBuf,
    /// Of [`Scene::Boot`].
    small: PathBuf,
    /// Of the other scenes.
    whole: PathBuf,
    /// The files that the workloads' initrd adds, for the host.
    root: PathBuf,
}

impl Initrds {
    /// Makes them in `directory`.
    pub(crate) fn new(guest: &image::Guest, userland: &Userland, directory: &Path) -> Result<Self> {
        let path = &guest.initrd;
        let debian = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let write = |name: &str, added: Vec<u8>| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, [debian.as_slice(), &added].concat())?;
            Ok(path)
        };
        let mut init = Archive::default();
        init.file("compare", 0o755, &userland.script()?);
        Ok(Self {
            kernel: guest.kernel.clone(),
            small: write("initrd-small", init.finish())?,
            whole: write("initrd-whole", userland.archive()?)?,
            root: userland.root().to_owned(),
        })
    }
}

/// One run of one scene. Those of one comparison have all but the environment in common, to the
/// byte.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// A bzImage.
    pub(crate) kernel: &'a Path,
    /// The initrd.
    pub(crate) initrd: &'a Path,
    /// The root directory of the workloads' files on the host.
    pub(crate) root: &'a Path,
    /// The memory in MiB.
    pub(crate) memory_mib: u32,
    /// The number of CPUs.
    pub(crate) cpus: u32,
    /// What `init.sh` finds in its environment.
    environment: [(&'static str, String); 2],
}

impl<'a> Boot<'a> {
    /// A run of `workloads`, all of `scene`, of whose work one part in `divisor` is done.
    pub(crate) fn new(
        initrds: &'a Initrds,
        scene: Scene,
        workloads: &[&Workload],
        divisor: u32,
        memory_mib: u32,
    ) -> Self {
        let initrd = match scene {
            Scene::Boot => &initrds.small,
            Scene::OneCpu | Scene::TwoCpus => &initrds.whole,
        };
        let mut names = ",".to_owned();
        for workload in workloads {
            names += workload.name;
            names.push(',');
        }
        Self {
            kernel: &initrds.kernel,
            initrd,
            root: &initrds.root,
            memory_mib,
            cpus: scene.cpus(),
            environment: [("WORKLOADS", names), ("DIVISOR", divisor.to_string())],
        }
    }

    /// The environment that chooses the workloads, for a process on the host.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.environment.iter();
        pairs.map(|(name, value)| (*name, value.as_str()))
    }

    /// The kernel's command line. What the kernel does not know it gives to process 1 as its
    /// environment (Linux, Documentation/admin-guide/kernel-parameters.rst).
    pub(crate) fn command_line(&self) -> String {
        let mut line = format!("{COMMAND_LINE} GUEST=1");
        for (name, value) in self.environment() {
            line += &format!(" {name}={value}");
        }
        line
    }
}

/// Debian's guest, with a kernel of `series`.
pub(crate) fn guest(series: Option<String>) -> Result<image::Guest> {
    let kernel = series.map_or(KernelChoice::Default, KernelChoice::Series);
    Ok(image::debian(
        &GuestSpec { kernel },
        &Options::default(),
        &mut report,
    )?)
}

/// Tells what takes time.
pub(crate) fn report(event: Event<'_>) {
    match event {
        Event::Stage(Stage::Lists) => println!("looking up Debian's packages"),
        Event::Stage(Stage::Download) => println!("downloading Debian's packages"),
        Event::Note(note) => println!("{note}"),
        _ => {}
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::workloads::WORKLOADS;
    use super::*;

    /// Names of files that there are not.
    pub(crate) fn initrds() -> Initrds {
        Initrds {
            kernel: "k".into(),
            small: "s".into(),
            whole: "w".into(),
            root: "r".into(),
        }
    }

    #[test]
    fn the_command_line_is_short_enough_and_chooses() {
        let initrds = initrds();
        let all: Vec<_> = WORKLOADS.iter().collect();
        let boot = Boot::new(&initrds, Scene::TwoCpus, &all, 20, 512);
        let line = boot.command_line();
        // COMMAND_LINE_SIZE of Linux on x86.
        assert!(line.len() < 2048, "{line}");
        assert!(line.contains(" GUEST=1 WORKLOADS=,boot,") && line.ends_with(", DIVISOR=20"));
        assert_eq!((boot.cpus, boot.initrd), (2, Path::new("w")));
    }
}
