//! The guest's root file system, as an initramfs.
//!
//! It stays uncompressed: at about 2 MiB, unpacking would cost a CPU in software more than
//! copying saves.

use crate::cpio::Archive;
use crate::modules::Modules;
use std::collections::BTreeSet;

/// Process 1.
const INIT: &str = include_str!("init.sh");

/// `mount -a` mounts all of these with one process.
const FSTAB: &str = "\
proc /proc proc nosuid,nodev,noexec 0 0
sysfs /sys sysfs nosuid,nodev,noexec 0 0
devpts /dev/pts devpts gid=5,mode=620,ptmxmode=666 0 0
";

/// Busybox's `poweroff`, `reboot` and `halt` would ask an init that has handlers for it.
const PROFILE: &str = r"export PS1='\u@\h:\w\$ '
alias poweroff='poweroff -f' reboot='reboot -f' halt='halt -f'
";

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Directories, parents first. The links' own are among them.
const DIRECTORIES: [(&str, u32); 30] = [
    (".doppel", 0o755),
    (".doppel/dev", 0o755),
    (".doppel/dev/pts", 0o755),
    (".doppel/dev/shm", 0o1777),
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("lib/modules", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/share", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// Links that devtmpfs has not; `/init` copies them.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// What goes into an initramfs.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The name that the guest's kernel gives itself, for its modules' directory.
    pub(crate) release: &'a str,
    /// The kernel's modules, and its list of those built in.
    pub(crate) modules: &'a Modules,
    pub(crate) builtin: &'a [u8],
    /// The busybox program, linked statically.
    pub(crate) busybox: &'a [u8],
    /// Paths of its applets, relative to the root. With none, the guest makes them itself.
    pub(crate) applets: &'a BTreeSet<String>,
    /// Debian's `os-release`.
    pub(crate) os_release: &'a [u8],
}

impl Contents<'_> {
    /// The archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for (path, permissions) in DIRECTORIES {
            archive.directory(path, permissions);
        }
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("bin/busybox", 0o755, self.busybox);
        for applet in self.applets {
            archive.symlink(applet, "/bin/busybox");
        }
        // What the kernel opens for process 1 before there is a devtmpfs.
        archive.character_device("dev/console", 0o600, (5, 1));
        archive.character_device("dev/null", 0o666, (1, 3));
        for (name, target) in DEVICE_LINKS {
            archive.symlink(&format!(".doppel/dev/{name}"), target);
        }
        for pipe in ["stdin", "stdout", "stderr"] {
            archive.fifo(&format!(".doppel/{pipe}"), 0o600);
        }
        self.add_settings(&mut archive);
        self.add_modules(&mut archive);
        archive.finish()
    }

    fn add_settings(&self, archive: &mut Archive) {
        archive.file("usr/lib/os-release", 0o644, self.os_release);
        archive.symlink("etc/os-release", "../usr/lib/os-release");
        archive.symlink("etc/mtab", "/proc/self/mounts");
        for (name, text) in [
            ("fstab", FSTAB),
            ("group", GROUP),
            ("hostname", "debian\n"),
            ("hosts", HOSTS),
            ("passwd", PASSWD),
            ("profile", PROFILE),
            ("shells", "/bin/sh\n"),
        ] {
            archive.file(&format!("etc/{name}"), 0o644, text.as_bytes());
        }
    }

    fn add_modules(&self, archive: &mut Archive) {
        let root = format!("lib/modules/{}", self.release);
        archive.directory(&root, 0o755);
        let mut directories = BTreeSet::new();
        for module in self.modules.iter() {
            for (at, _) in module.path.match_indices('/') {
                directories.insert(&module.path[..at]);
            }
        }
        for directory in directories {
            archive.directory(&format!("{root}/{directory}"), 0o755);
        }
        for module in self.modules.iter() {
            archive.file(&format!("{root}/{}", module.path), 0o644, &module.content);
        }
        archive.file(
            &format!("{root}/modules.dep"),
            0o644,
            self.modules.index().as_bytes(),
        );
        archive.file(&format!("{root}/modules.builtin"), 0o644, self.builtin);
    }
}

/// Reads the list of applets that `busybox --list-full` prints: those with a place for them.
pub(crate) fn applets(list: &str) -> BTreeSet<String> {
    let fits = |path: &&str| {
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        DIRECTORIES
            .iter()
            .any(|(directory, _)| parent == Some(*directory))
            && path.ends_with(|c: char| c.is_ascii_graphic() && c != '/')
            && path.chars().all(|c| c.is_ascii_graphic())
            && *path != "bin/busybox"
    };
    list.lines().filter(fits).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::parse;

    #[test]
    fn every_entry_has_a_parent_and_a_name_of_its_own() {
        let applets = applets("bin/sh\nusr/bin/awk\nsbin/init\nlinuxrc\n");
        let contents = Contents {
            release: "6.1.0",
            modules: &Modules::default(),
            builtin: b"",
            busybox: b"x",
            applets: &applets,
            os_release: b"",
        };
        let mut seen = BTreeSet::new();
        for entry in parse(&contents.archive()) {
            if let Some((parent, _)) = entry.path.rsplit_once('/') {
                assert!(
                    seen.contains(parent),
                    "{} comes before its directory",
                    entry.path
                );
            }
            assert!(
                seen.insert(entry.path.clone()),
                "{} is there twice",
                entry.path
            );
        }
        assert!(seen.contains("bin/sh") && seen.contains("usr/bin/awk"));
    }

    #[test]
    fn applets_without_a_place_are_left_out() {
        let list = "../x\nbin/../x\n/bin/x\nbin/\nbin/busybox\nsbin/a b\nx\nlib64/x\nbin/[\n";
        assert_eq!(applets(list), BTreeSet::from(["bin/[".to_owned()]));
    }

    #[test]
    fn init_is_a_shell_script_without_mistakes() {
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-n", "-c", INIT]).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
