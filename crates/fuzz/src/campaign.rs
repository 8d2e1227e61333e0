//! Many inputs in a row, in one process.

use crate::{Generator, Target};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// An input that takes longer than this hangs.
pub const INPUT_SECONDS_MAX: u64 = 20;

/// A run of one target. It ends with the process (panic or abort) at the first failure.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// What is run.
    pub target: &'static Target,
    /// Which sequence of inputs.
    pub seed: u64,
    /// For how long.
    pub time: Duration,
    /// Where each input is written before it is run, so that [`last_input`] finds it when the
    /// process has ended.
    pub current: Option<PathBuf>,
}

impl Campaign {
    /// Runs inputs until the time is over, and returns how many there were.
    ///
    /// # Panics
    /// If the target does. A hang aborts the process.
    pub fn run(&self) -> u64 {
        let current = self
            .current
            .as_ref()
            .map(|path| File::create(path).expect("a file for the current input"));
        let mut generator = Generator::new(self.seed, (self.target.seeds)());
        let (alive, watched) = mpsc::channel();
        let watchdog = std::thread::spawn(move || watch(&watched));
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < self.time {
            let input = generator.next_input();
            if let Some(file) = &current {
                note(file, &input).expect("the input can be written down");
            }
            let report = OnPanic {
                campaign: self,
                input: &input,
            };
            (self.target.run)(&input);
            std::mem::forget(report);
            count += 1;
            alive.send(()).expect("the watchdog lives");
        }
        drop(alive);
        watchdog.join().expect("the watchdog does not panic");
        count
    }
}

/// Writes `input` down by one system call: its length in 4 bytes, then the bytes.
fn note(file: &File, input: &[u8]) -> io::Result<()> {
    let mut bytes = (input.len() as u32).to_le_bytes().to_vec();
    bytes.extend(input);
    file.write_all_at(&bytes, 0)
}

/// The input that was last written down in `file`.
///
/// # Errors
/// If there is none.
pub fn last_input(file: &Path) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(file)?;
    let (len, rest) = bytes
        .split_first_chunk()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let input = rest.get(..u32::from_le_bytes(*len) as usize);
    Ok(input.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
}

/// Aborts when nothing comes for too long.
fn watch(alive: &mpsc::Receiver<()>) {
    loop {
        match alive.recv_timeout(Duration::from_secs(INPUT_SECONDS_MAX)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("the input hangs: {INPUT_SECONDS_MAX} seconds have passed");
                std::process::abort();
            }
        }
    }
}

/// Shows the input while a panic unwinds, where it is not kept in a file.
struct OnPanic<'a> {
    campaign: &'a Campaign,
    input: &'a [u8],
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if self.campaign.current.is_none() {
            let hex: String = self
                .input
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            eprintln!(
                "the failing input of target {}: {hex}",
                self.campaign.target.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_that_failed_is_found() {
        fn fail_on_a_long_one(input: &[u8]) {
            assert!(input.len() < 100, "too long");
        }
        let path = std::env::temp_dir().join(format!("fuzz-current-{}", std::process::id()));
        static TARGET: Target = Target {
            name: "test",
            run: fail_on_a_long_one,
            seeds: Vec::new,
        };
        let campaign = Campaign {
            target: &TARGET,
            seed: 1,
            time: Duration::from_secs(600),
            current: Some(path.clone()),
        };
        assert!(std::panic::catch_unwind(|| campaign.run()).is_err());
        assert!(last_input(&path).unwrap().len() >= 100);
        std::fs::remove_file(&path).unwrap();
        assert!(last_input(&path).is_err());
    }
}
