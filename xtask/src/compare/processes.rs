//! A monitor's processes: their CPU time and memory (proc(5)).

use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

/// The unit of times in /proc/PID/stat: `USER_HZ`, which is 100 on every x86 Linux.
const TICK: Duration = Duration::from_millis(10);

/// What backs guest memory in Doppel (`memory::guest`).
const GUEST_MEMORY: &str = "/memfd:guest-memory";

/// A process, and all that descend from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family(u32);

impl Family {
    /// That of process `id`.
    pub(crate) fn of(id: u32) -> Self {
        Self(id)
    }

    /// CPU time that it has used, that of members that have ended included.
    pub(crate) fn cpu_time(self) -> Duration {
        self.members().values().map(|stat| TICK * stat.ticks).sum()
    }

    /// Resident memory in KiB; for Doppel, all beyond the guest's memory and translated code. What
    /// processes share counts once.
    pub(crate) fn memory_kib(self) -> u64 {
        self.smaps().map(|smaps| own_kib(&smaps)).sum()
    }

    /// Resident translated code in KiB.
    pub(crate) fn code_kib(self) -> u64 {
        self.smaps().map(|smaps| code_kib(&smaps)).sum()
    }

    /// What of [`Family::memory_kib`] is pages of files, such as the program: the host can drop
    /// them, and processes that run the same program share them.
    pub(crate) fn file_kib(self) -> u64 {
        self.smaps().map(|smaps| file_kib(&smaps)).sum()
    }

    fn smaps(self) -> impl Iterator<Item = String> {
        let read = |id| fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
        self.members().into_keys().map(read)
    }

    /// Ends it.
    pub(crate) fn kill(self) {
        for id in self.members().into_keys() {
            if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(id, Signal::KILL);
            }
        }
    }

    fn members(self) -> BTreeMap<u32, Stat> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let stat = |id: u32| Stat::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?);
        members(self.0, ids.filter_map(|id| Some((id, stat(id)?))).collect())
    }
}

/// Those of `all` that are `first`, or descend from it.
fn members(first: u32, all: BTreeMap<u32, Stat>) -> BTreeMap<u32, Stat> {
    let mut known = BTreeSet::from([first]);
    loop {
        let before = known.len();
        let children = all.iter().filter(|(_, stat)| known.contains(&stat.parent));
        let children: Vec<_> = children.map(|(id, _)| *id).collect();
        known.extend(children);
        if known.len() == before {
            break;
        }
    }
    let is_known = |(id, _): &(u32, Stat)| known.contains(id);
    all.into_iter().filter(is_known).collect()
}

/// What is read of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// CPU time of the process and of its children that have ended and were waited for.
    ticks: u32,
}

impl Stat {
    /// Fields 4 (`ppid`) and 14 to 17 (`utime`, `stime`, `cutime`, `cstime`). The second is in
    /// brackets and may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, from_third) = stat.rsplit_once(") ")?;
        let mut fields = from_third.split(' ').skip(1);
        let parent = fields.next()?.parse().ok()?;
        let times: Option<Vec<u32>> = fields.skip(9).take(4).map(|f| f.parse().ok()).collect();
        let ticks = times.filter(|times| times.len() == 4)?.iter().sum();
        Some(Self { parent, ticks })
    }
}

/// A mapping in /proc/PID/smaps.
struct Mapping<'a> {
    executable: bool,
    inode: &'a str,
    path: &'a str,
    /// Whether no directory has the file.
    is_deleted: bool,
    pss_kib: u64,
}

/// The mappings of a process: each has a line `ADDRESS-ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH`,
/// then lines of numbers, among them `Pss`, its proportional share.
fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut found: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match (words.as_slice(), found.last_mut()) {
            (["Pss:", kib, ..], Some(last)) => last.pss_kib = kib.parse().unwrap_or(0),
            ([first, permissions, _, _, inode, path @ ..], _) if !first.ends_with(':') => {
                found.push(Mapping {
                    executable: permissions.contains('x'),
                    inode,
                    path: path.first().unwrap_or(&""),
                    is_deleted: path.last() == Some(&"(deleted)"),
                    pss_kib: 0,
                });
            }
            _ => {}
        }
    }
    found
}

/// What a process has in its mappings, in KiB, but for the guest's memory and translated code.
fn own_kib(smaps: &str) -> u64 {
    let all = mappings(smaps).into_iter();
    let all: u64 = all
        .filter(|m| m.path != GUEST_MEMORY)
        .map(|m| m.pss_kib)
        .sum();
    all - code_kib(smaps)
}

/// Translated code in the mappings of a process, in KiB: that is shared memory without a name which
/// is mapped to be executed, and mapped again to be written.
fn code_kib(smaps: &str) -> u64 {
    let nameless = mappings(smaps).into_iter();
    let nameless: Vec<_> = nameless.filter(|m| m.path == "/dev/zero").collect();
    let code = nameless.iter().filter(|m| m.executable);
    let code: BTreeSet<_> = code.map(|m| m.inode).collect();
    let code = nameless.iter().filter(|m| code.contains(m.inode));
    code.map(|m| m.pss_kib).sum()
}

/// Pages of files in the mappings of a process, in KiB. Shared memory has no place in a directory,
/// and the kernel says so.
fn file_kib(smaps: &str) -> u64 {
    let all = mappings(smaps).into_iter();
    let files = all.filter(|m| m.path.starts_with('/') && !m.is_deleted);
    files.map(|m| m.pss_kib).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_has_a_parent_and_times() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194304 100 0 0 0 12 34 5 6 20 0 1 0";
        let expected = Stat {
            parent: 3,
            ticks: 57,
        };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn children_of_children_belong_to_a_family() {
        let stat = |parent| Stat { parent, ticks: 1 };
        let all = BTreeMap::from([(1, stat(0)), (2, stat(5)), (5, stat(1)), (7, stat(2))]);
        let ids: Vec<_> = members(5, all).into_keys().collect();
        assert_eq!(ids, [2, 5, 7]);
    }

    #[test]
    fn guest_memory_and_translated_code_are_not_the_monitors_own() {
        let smaps = "\
55d0-55d1 r-xp 00000000 fe:00 12 /usr/bin/doppel
Size:                  4 kB
Pss:                   3 kB
Pss_Dirty:             2 kB
7f00-7f01 rw-s 00000000 00:01 99 /memfd:guest-memory (deleted)
Pss:                 900 kB
7f02-7f03 rw-p 00000000 00:00 0
7f04-7f05 r-xs 00000000 00:01 98 /dev/zero (deleted)
Pss:                  70 kB
7f06-7f07 rw-s 00000000 00:01 97 /memfd:other (deleted)
Pss:                  10 kB
7f08-7f09 rw-s 00000000 00:01 96 /dev/zero (deleted)
Pss:                 100 kB
7f0a-7f0b rw-s 00000000 00:01 98 /dev/zero (deleted)
Pss:                  70 kB
";
        assert_eq!(own_kib(smaps), 113);
        assert_eq!(code_kib(smaps), 140);
        assert_eq!(file_kib(smaps), 3);
    }
}
