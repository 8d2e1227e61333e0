//! What is known of the host's KVM, kept from one run to the next: it changes with a boot at most.

use machine::{Speed, assume_kvm_speed, kvm_speed};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The kernel's name for the time since it was booted.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Takes over what a run before has measured, if one has.
pub(crate) fn recall() {
    let known = place().and_then(|place| read(&place, &boot()));
    // A device that has gone since, or may not be used any more, is not assumed.
    if let Some(speed) = known
        && machine::has_kvm()
    {
        assume_kvm_speed(speed);
    }
}

/// Keeps what was measured for later runs.
pub(crate) fn keep() {
    if let Some(place) = place()
        && let Ok(speed) = kvm_speed()
        && read(&place, &boot()).is_none()
    {
        write(&place, &boot(), speed);
    }
}

/// The name of this boot; empty if the kernel does not say.
fn boot() -> String {
    let name = fs::read_to_string(BOOT_ID).unwrap_or_default();
    name.trim().to_owned()
}

/// `$XDG_CACHE_HOME/doppel/kvm`, or `~/.cache/doppel/kvm`.
fn place() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Some(cache?.join("doppel").join("kvm"))
}

/// What `place` has of this `boot`: a line with its name, and one with the slowness.
fn read(place: &Path, boot: &str) -> Option<Speed> {
    let text = fs::read_to_string(place).ok()?;
    let (of, slowness) = text.split_once('\n')?;
    let slowness: f64 = slowness.trim().parse().ok()?;
    let is_valid = !boot.is_empty() && of == boot && slowness.is_finite() && slowness > 0.0;
    is_valid.then_some(Speed { slowness })
}

/// Keeps it, if that can be: whole or not at all, as others may do the same.
fn write(place: &Path, boot: &str, speed: Speed) {
    let (Some(directory), false) = (place.parent(), boot.is_empty()) else {
        return;
    };
    let temporary = directory.join(format!("kvm.{}", std::process::id()));
    let text = format!("{boot}\n{}\n", speed.slowness);
    let written = fs::create_dir_all(directory)
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, place));
    if written.is_err() {
        // It is measured again next time.
        let _ = fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_holds_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("doppel").join("kvm");
        assert_eq!(read(&place, "a"), None);
        let speed = Speed { slowness: 1.25 };
        write(&place, "a", speed);
        assert_eq!(read(&place, "a"), Some(speed));
        assert_eq!(read(&place, "b"), None, "booted since");
        assert_eq!(read(&place, ""), None);
        let names = fs::read_dir(place.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "nothing half made is left");
    }

    #[test]
    fn what_is_damaged_is_measured_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("kvm");
        for text in ["", "a", "a\n", "a\nfast\n", "a\nNaN\n", "a\n-1\n", "a\n0\n"] {
            fs::write(&place, text).unwrap();
            assert_eq!(read(&place, "a"), None, "{text:?}");
        }
    }
}
