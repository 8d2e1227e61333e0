//! Where and how a comparison is made.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::process::Command;

/// Where and how a comparison was made.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    /// The day, in UTC: YYYY-MM-DD.
    pub(crate) date: String,
    /// The command that repeats it.
    pub(crate) command: String,
    /// The host's processor.
    pub(crate) host_cpu: String,
    /// The host's number of CPUs.
    pub(crate) host_cpus: usize,
    /// The host's memory in MiB.
    pub(crate) host_memory_mib: u64,
    /// The version of the host's kernel.
    pub(crate) host_kernel: String,
    /// The host's load average over the minute before.
    pub(crate) host_load: f64,
    /// The release of the guest's kernel.
    pub(crate) guest_kernel: String,
    /// The guest's memory in MiB.
    pub(crate) guest_memory_mib: u32,
    /// One part of the work in so many was done.
    pub(crate) divisor: u32,
}

impl Setting {
    /// The setting of a comparison that begins now.
    pub(crate) fn now(
        guest_kernel: String,
        guest_memory_mib: u32,
        divisor: u32,
        command: String,
    ) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("can't read {path}"));
        let date = Command::new("date")
            .args(["-u", "+%F"])
            .output()
            .context("can't run date")?;
        let memory_kib = field(&read("/proc/meminfo")?, "MemTotal").and_then(|v| v.parse().ok());
        let load = read("/proc/loadavg")?;
        Ok(Self {
            date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
            command,
            host_cpu: model(&read("/proc/cpuinfo")?),
            host_cpus: std::thread::available_parallelism()?.get(),
            host_memory_mib: memory_kib.unwrap_or(0) / 1024,
            host_kernel: version(&read("/proc/sys/kernel/osrelease")?).to_owned(),
            host_load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            guest_kernel,
            guest_memory_mib,
            divisor,
        })
    }
}

/// The first word of the value of `name` in the style of proc(5): `NAME : VALUE UNIT`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    value(text, name)?.split(' ').next()
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The version in a kernel's release, without what its builder added.
fn version(release: &str) -> &str {
    release.trim().split(['-', '+']).next().unwrap_or_default()
}

/// The processor's name, with the numbers that tell it where hosts hide the name.
fn model(cpuinfo: &str) -> String {
    let get = |name| value(cpuinfo, name).unwrap_or("unknown");
    let (name, family, model) = (get("model name"), get("cpu family"), get("model"));
    format!("{name} (family {family}, model {model})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described_by_proc() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\ncpu family\t: 25\nmodel name\t: X Y\n";
        assert_eq!(model(cpuinfo), "X Y (family 25, model 17)");
        assert_eq!(version("6.18.1-custom\n"), "6.18.1");
        assert_eq!(field("MemTotal:       24 kB\n", "MemTotal"), Some("24"));
    }
}
