//! A monitor's processes: their CPU time and memory (proc(5)).

use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

/// The unit of times in /proc/PID/stat: `USER_HZ`, which is 100 on every x86 Linux.
const TICK: Duration = Duration::from_millis(10);

/// What backs guest memory and translated code in Doppel (`memory::guest`,
/// `translator::code_memory`).
const NOT_OWN: [&str; 2] = ["/memfd:guest-memory", "/memfd:translated-code"];

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
        let smaps = |id| fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
        self.members().keys().map(|id| own_kib(&smaps(id))).sum()
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

/// The proportional share of a process in its mappings but [`NOT_OWN`], in KiB:
/// `Pss` in /proc/PID/smaps.
fn own_kib(smaps: &str) -> u64 {
    let (mut sum, mut counts) = (0, true);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Pss:"), Some(kib)) if counts => sum += kib.parse().unwrap_or(0),
            // ADDRESS-ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH
            (Some(first), Some(_)) if !first.ends_with(':') => {
                counts = !words.nth(3).is_some_and(|path| NOT_OWN.contains(&path));
            }
            _ => {}
        }
    }
    sum
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
7f04-7f05 r-xs 00000000 00:01 98 /memfd:translated-code (deleted)
Pss:                  70 kB
7f06-7f07 rw-s 00000000 00:01 97 /memfd:other (deleted)
Pss:                  10 kB
";
        assert_eq!(own_kib(smaps), 13);
    }
}
