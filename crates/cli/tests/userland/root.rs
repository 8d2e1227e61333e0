//! The guest's root, as an initrd: what Debian's essential packages and apt unpack to, not set
//! up yet, with an archive of packages in `/repository` and sources in `/source`.

use image::{Archive, Options, Silent};
use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What a Debian can't be without, and what process 1 needs.
const BASE: [&str; 4] = ["?essential", "apt", "mount", "usr-is-merged"];

/// What the guest installs with apt.
const INSTALLED: [&str; 10] = [
    "bc",
    "dpkg-dev",
    "gcc",
    "hello",
    "libc6-dev",
    "libpython3.11-testsuite",
    "make",
    "perl",
    "python3",
    "sqlite3",
];

/// What it compiles: one with the GNU build system, which runs some thousand processes, and one
/// that computes.
const SOURCES: [&str; 2] = ["hello", "zlib"];

/// Process 1.
const INIT: &str = include_str!("init.sh");

/// Directories at the root that are links to those of the same names in `/usr`
/// (Debian Policy Manual 4.7, section 10.1).
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The initrd. `scratch` is an empty directory.
pub(crate) fn initrd(scratch: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let root = scratch.join("root");
    let repository = root.join("repository");
    for name in MERGED {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    let options = Options::default();
    let base = image::download_packages(&BASE, &repository, &options, &mut Silent)?;
    let mut names = String::new();
    for file in &base {
        image::unpack_package(file, &root)?;
        let name = file.file_name().and_then(|name| name.to_str());
        names += &format!("./{}\n", name.ok_or("a package's file has a name")?);
    }
    let all = [&BASE[..], &INSTALLED].concat();
    image::download_packages(&all, &repository, &options, &mut Silent)?;
    image::download_sources(&SOURCES, &root.join("source"), &options, &mut Silent)?;
    // What dpkg, which is unpacked but not installed, expects to find.
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    symlink("mawk", root.join("usr/bin/awk"))?;
    fs::write(root.join("base-packages"), names)?;
    fs::write(root.join("installed-packages"), INSTALLED.join("\n"))?;
    let init = root.join("userland");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let mut archive = Archive::default();
    archive.tree(&root)?;
    // What the kernel opens for process 1.
    archive.character_device("dev/console", 0o600, (5, 1));
    Ok(archive.finish())
}

#[test]
fn init_is_a_shell_script_without_mistakes() {
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(["-n", "-c", INIT]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
