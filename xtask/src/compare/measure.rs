//! One run of one peer, timed by the lines on the guest's first serial port.

use super::line::Line;
use super::processes::Family;
use super::workloads::{BOOT, BOOT_WHOLE};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The most bytes of one line that are looked at.
const LINE_BYTES_MAX: u64 = 4096;

/// When something happened in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Time since the peer was started.
    pub(crate) wall: Duration,
    /// CPU time that the peer had used, in all its processes.
    pub(crate) cpu: Duration,
}

impl Moment {
    fn since(self, earlier: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(earlier.wall),
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }
}

/// A workload that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Its name.
    pub(crate) workload: String,
    /// How long it took.
    pub(crate) time: Moment,
    /// What it printed.
    pub(crate) result: String,
}

/// What became of a run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The workloads that were done, in their order.
    pub(crate) finished: Vec<Finished>,
    /// The workloads whose programs failed, and the last that was said before.
    pub(crate) failed: Vec<(String, String)>,
    /// Whether the first process ran.
    pub(crate) reached_init: bool,
    /// The monitor's own memory at the end, in KiB: see [`Family::memory_kib`].
    pub(crate) memory_kib: Option<u64>,
    /// Why it did not come to its end, if it did not.
    pub(crate) failure: Option<String>,
}

/// A running peer, which ends with this value.
struct Running(Child);

impl Running {
    /// How it ended, if it did.
    fn ending(&mut self) -> Option<ExitStatus> {
        // Its output may have been closed just before its end.
        std::thread::sleep(Duration::from_millis(100));
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        Family::of(self.0.id()).kill();
        // Its status says nothing new.
        let _ = self.0.wait();
    }
}

/// Runs `command` to its last line, or until no line has come for `patience`. Its messages go
/// into `directory`.
///
/// # Errors
/// If it can't be started.
pub(crate) fn run(command: &mut Command, patience: Duration, directory: &Path) -> Result<Run> {
    let messages = directory.join("messages");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&messages)?);
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("can't run {name}"))?;
    let mut running = Running(child);
    let output = running.0.stdout.take().context("no output")?;
    let family = Family::of(running.0.id());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        read_lines(output, |line| {
            let wall = start.elapsed();
            let cpu = match Line::parse(&line) {
                Some(_) => family.cpu_time(),
                None => Duration::ZERO,
            };
            sender.send((Moment { wall, cpu }, line)).is_ok()
        });
    });
    let mut log = Log::default();
    log.run.failure = follow(&mut log, &lines, patience).err().map(|mut failure| {
        if let Some(status) = running.ending() {
            failure += &format!(", with {status}");
        }
        let messages = std::fs::read_to_string(&messages).unwrap_or_default();
        if let Some(last) = messages.lines().rfind(|line| !line.trim().is_empty()) {
            failure += &format!("; it said: {last}");
        }
        failure
    });
    if log.run.failure.is_none() {
        log.run.memory_kib = Some(family.memory_kib());
    }
    Ok(log.run)
}

/// Notes lines up to the last one.
fn follow(
    log: &mut Log,
    lines: &Receiver<(Moment, String)>,
    patience: Duration,
) -> Result<(), String> {
    let mut said = String::new();
    loop {
        match lines.recv_timeout(patience) {
            Ok((at, text)) => {
                match Line::parse(&text) {
                    Some(Line::Done) => return Ok(()),
                    Some(Line::Failed(name)) => log.run.failed.push((name.to_owned(), said)),
                    Some(line) => log.note(at, line),
                    None => {}
                }
                said = text;
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = patience.as_secs();
                return Err(format!("nothing for {seconds} s after the line '{said}'"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(format!("it ended after the line '{said}'"));
            }
        }
    }
}

/// A run as it goes.
#[derive(Debug, Default)]
struct Log {
    run: Run,
    /// When the kernel was entered.
    kernel: Option<Moment>,
    /// When the time of the workload that runs began to count.
    begin: Moment,
}

impl Log {
    fn note(&mut self, at: Moment, line: Line<'_>) {
        match line {
            Line::Kernel => self.kernel = Some(at),
            Line::Init => {
                self.run.reached_init = true;
                self.finish(BOOT_WHOLE, at, "");
                if let Some(kernel) = self.kernel {
                    self.finish(BOOT, at.since(kernel), "");
                }
            }
            Line::Begin(_) | Line::Go => self.begin = at,
            Line::End(name, result) => self.finish(name, at.since(self.begin), result),
            Line::Failed(_) | Line::Done => {}
        }
    }

    fn finish(&mut self, workload: &str, time: Moment, result: &str) {
        self.run.finished.push(Finished {
            workload: workload.to_owned(),
            time,
            result: result.to_owned(),
        });
    }
}

/// Gives each line of `input` to `take`, until there are no more or it does not want any.
fn read_lines(input: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut limited = input.by_ref().take(LINE_BYTES_MAX);
        match limited.read_until(b'\n', &mut line) {
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

    fn shell(script: &str, patience: Duration) -> Run {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(&mut command, patience, directory.path()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_run_is_what_its_lines_say() {
        let run = shell(
            "echo compare: init; echo; echo compare: begin a; echo compare: end a 1 2; \
             echo compare: begin b; echo oh; echo compare: failed b; echo compare: done; sleep 1000",
            LONG,
        );
        let finished: Vec<_> = run
            .finished
            .iter()
            .map(|f| (&*f.workload, &*f.result))
            .collect();
        assert_eq!(finished, [(BOOT_WHOLE, ""), ("a", "1 2")]);
        assert_eq!(run.failed, [("b".to_owned(), "oh".to_owned())]);
        assert!(run.reached_init && run.memory_kib.is_some_and(|kib| kib > 0));
        assert_eq!(run.failure, None);
    }

    #[test]
    fn a_peer_that_ends_early_is_a_failure_with_its_own_words() {
        let run = shell("echo compare: init; echo no BIOS >&2; exit 3", LONG);
        let line = "it ended after the line 'compare: init', with exit status: 3; it said: no BIOS";
        assert_eq!(run.failure.as_deref(), Some(line));
    }

    #[test]
    fn a_guest_that_hangs_is_a_failure() {
        let run = shell("sleep 1000", Duration::ZERO);
        assert!(run.failure.unwrap().contains("nothing for 0 s"));
        assert!(!run.reached_init);
    }

    #[test]
    fn time_counts_from_the_last_word_before_the_work() {
        let mut log = Log::default();
        let at = |seconds| Moment {
            wall: Duration::from_secs(seconds),
            cpu: Duration::from_secs(seconds / 2),
        };
        log.note(at(2), Line::Kernel);
        log.note(at(6), Line::Init);
        log.note(at(8), Line::Begin("a"));
        log.note(at(10), Line::Go);
        log.note(at(16), Line::End("a", ""));
        let times: Vec<_> = log.run.finished.iter().map(|f| f.time).collect();
        assert_eq!(times, [at(6), at(4), at(6)]);
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
