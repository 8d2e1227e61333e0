//! One run of one peer, timed by the lines on the guest's first serial port.

use super::workload::Mark;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The most bytes of one line that are looked at.
const LINE_BYTES_MAX: u64 = 4096;

/// The unit of times in /proc/PID/stat: `USER_HZ`, which is 100 on every x86 Linux (proc(5)).
const TICK: Duration = Duration::from_millis(10);

/// When something happened in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Time since the emulator was started.
    pub(crate) wall: Duration,
    /// CPU time that the emulator had used, on all its threads.
    pub(crate) cpu: Duration,
}

/// When each mark came.
pub(crate) type Times = BTreeMap<Mark, Moment>;

/// A running emulator, which ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`, and stops it when `last` has come. Its messages go into `directory`.
///
/// # Errors
/// If `last` has not come after `timeout`, or the command ends before.
pub(crate) fn run(
    command: &mut Command,
    last: Mark,
    timeout: Duration,
    directory: &Path,
) -> Result<Times> {
    let messages = directory.join("messages");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&messages)?);
    let start = Instant::now();
    let name = command.get_program().to_string_lossy().into_owned();
    let mut running = Running(
        command
            .spawn()
            .with_context(|| format!("can't run {name}"))?,
    );
    let output = running.0.stdout.take().context("no output")?;
    let id = running.0.id();
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        read_lines(output, |line| {
            let moment = Moment {
                wall: start.elapsed(),
                cpu: cpu_time(id),
            };
            sender.send((moment, line)).is_ok()
        });
    });
    let mut times = Times::from([(Mark::Start, Moment::default())]);
    let mut said = String::new();
    while !times.contains_key(&last) {
        let left = timeout.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok((at, line)) => {
                note(&mut times, at, &line);
                said = line;
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "no '{}' after {} s; last line: {said}",
                    last.text(),
                    timeout.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                let messages = std::fs::read_to_string(&messages).unwrap_or_default();
                let message = messages.lines().next_back().unwrap_or("it said nothing");
                bail!(
                    "ended without '{}': {message}; last line: {said}",
                    last.text()
                )
            }
        }
    }
    Ok(times)
}

/// Notes which marks `line` is, the first time.
fn note(times: &mut Times, at: Moment, line: &str) {
    for mark in Mark::LINES {
        if line.contains(mark.text()) {
            times.entry(mark).or_insert(at);
        }
    }
}

/// CPU time that process `id` has used; zero if it is gone.
fn cpu_time(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    TICK * cpu_ticks(&stat).unwrap_or(0)
}

/// The sum of `utime` and `stime` in /proc/PID/stat: fields 14 and 15, of which the second is in
/// brackets and may hold anything (proc(5)).
fn cpu_ticks(stat: &str) -> Option<u32> {
    let (_, from_third) = stat.rsplit_once(") ")?;
    let mut fields = from_third.split(' ').skip(14 - 3);
    let (user, system) = (fields.next()?, fields.next()?);
    user.parse::<u32>().ok()?.checked_add(system.parse().ok()?)
}

/// Gives each line of `input` to `take`, until there are no more or it does not want any.
fn read_lines(input: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        match input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if !take(text) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, last: Mark) -> Result<Times> {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(
            &mut command,
            last,
            Duration::from_secs(60),
            directory.path(),
        )
    }

    #[test]
    fn marks_are_noted_in_order() {
        let script = "echo x compare: init; echo; echo compare: done; sleep 1000";
        let times = shell(script, Mark::Done).unwrap();
        assert_eq!(
            times.keys().copied().collect::<Vec<_>>(),
            [Mark::Start, Mark::Init, Mark::Done]
        );
        assert!(times[&Mark::Init].wall <= times[&Mark::Done].wall);
    }

    #[test]
    fn an_emulator_that_ends_early_is_an_error_with_its_own_words() {
        let error = shell("echo compare: init; echo no BIOS >&2", Mark::Done).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no BIOS") && text.contains("compare: init"),
            "{text}"
        );
    }

    #[test]
    fn a_guest_that_hangs_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        let error = run(
            command.arg("1000"),
            Mark::Init,
            Duration::ZERO,
            directory.path(),
        );
        assert!(error.unwrap_err().to_string().contains("after 0 s"));
    }

    #[test]
    fn only_the_first_of_a_mark_counts() {
        let mut times = Times::new();
        let moment = |seconds| Moment {
            wall: Duration::from_secs(seconds),
            ..Moment::default()
        };
        note(&mut times, moment(1), "compare: init");
        note(&mut times, moment(2), "compare: init");
        assert_eq!(times, Times::from([(Mark::Init, moment(1))]));
    }

    #[test]
    fn cpu_time_is_that_of_all_modes() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 34 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), Some(46));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut lengths = Vec::new();
        read_lines(&[b'x'; 5000][..], |line| {
            lengths.push(line.len());
            true
        });
        assert_eq!(lengths, [4096, 904]);
    }
}
