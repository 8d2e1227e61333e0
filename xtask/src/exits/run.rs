//! Runs of the guest, timed by its marks.

use super::guest::{self, Kind, mark};
use crate::compare::processes::Family;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds after which a run has failed: it ends itself.
const PATIENCE_SECONDS: &str = "120";

/// A guest under one engine.
pub(super) struct Guest<'a> {
    pub(super) program: &'a Path,
    pub(super) engine: &'a str,
    pub(super) memory_mib: u32,
    /// Where its kernel goes.
    pub(super) directory: &'a Path,
}

/// What a run showed.
pub(super) struct Run {
    /// How long each round took, by kind.
    pub(super) rounds: [Vec<Duration>; Kind::ALL.len()],
    /// The monitor's own memory at the end: see [`Family::memory_kib`].
    pub(super) own_kib: u64,
    /// What of it is pages of files: see [`Family::file_kib`].
    pub(super) file_kib: u64,
    /// Its translated code.
    pub(super) code_kib: u64,
}

/// A running monitor, which ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        Family::of(self.0.id()).kill();
        // Its status says nothing new.
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for the guest's next mark.
    fn mark(&mut self) -> Result<u8> {
        let marks = self.0.stderr.as_mut().context("no standard error")?;
        let mut mark = [0];
        match marks.read(&mut mark).context("can't read the marks")? {
            0 => bail!("it ended early"),
            _ => Ok(mark[0]),
        }
    }

    /// Waits for the guest's first mark.
    fn first_mark(&mut self) -> Result<()> {
        let first = self.mark()?;
        if first == mark::START {
            return Ok(());
        }
        // No guest ran: this is what the monitor says about it.
        let mut text = vec![first];
        if let Some(said) = &mut self.0.stderr {
            said.take(4096).read_to_end(&mut text)?;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        bail!("{}", text.trim().trim_start_matches("doppel: "))
    }
}

impl Guest<'_> {
    /// The time from the monitor's start, by whoever starts it, to the guest's first words.
    pub(super) fn start(&self) -> Result<Duration> {
        let mut command = self.command(&guest::starting_kernel())?;
        let begin = Instant::now();
        let mut running = spawn(&mut command)?;
        running.first_mark()?;
        Ok(begin.elapsed())
    }

    /// `rounds` rounds of each kind, of so many loops: see [`guest::kernel`].
    pub(super) fn accesses(&self, loops: [u32; Kind::ALL.len()], rounds: u32) -> Result<Run> {
        let mut command = self.command(&guest::kernel(loops, rounds))?;
        let mut running = spawn(&mut command)?;
        running.first_mark()?;
        let mut all: [Vec<Duration>; Kind::ALL.len()] = Default::default();
        for (kind, all) in Kind::ALL.into_iter().zip(&mut all) {
            expect(&mut running, mark::begin(kind))?;
            let mut begin = Instant::now();
            for _ in 0..rounds {
                expect(&mut running, mark::round(kind))?;
                let end = Instant::now();
                all.push(end - begin);
                begin = end;
            }
        }
        expect(&mut running, mark::END)?;
        let family = Family::of(running.0.id());
        Ok(Run {
            rounds: all,
            own_kib: family.memory_kib(),
            file_kib: family.file_kib(),
            code_kib: family.code_kib(),
        })
    }

    fn command(&self, kernel: &[u8]) -> Result<Command> {
        let path = self.directory.join("kernel");
        fs::write(&path, kernel).context("can't write the guest")?;
        let mut command = Command::new(self.program);
        command
            .args(["run", "--engine", self.engine, "--cpus", "1"])
            .args(["--memory", &format!("{}M", self.memory_mib)])
            .args(["--console", "none", "--timeout", PATIENCE_SECONDS])
            .arg("--kernel")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // The debug console is there.
            .stderr(Stdio::piped());
        Ok(command)
    }
}

fn spawn(command: &mut Command) -> Result<Running> {
    Ok(Running(command.spawn().context("can't run doppel")?))
}

fn expect(running: &mut Running, wanted: u8) -> Result<()> {
    match running.mark()? {
        mark if mark == wanted => Ok(()),
        mark::NO_DEVICE => bail!("the guest found no virtio device"),
        mark => bail!(
            "the guest's mark is {:?}, not {:?}",
            char::from(mark),
            char::from(wanted)
        ),
    }
}
