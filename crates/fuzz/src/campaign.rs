//! Many inputs in a row, in one process.

use crate::{Generator, Target};
use std::path::PathBuf;
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
    /// Where each input is written before it is run, so that it is found when the process ends.
    pub current: Option<PathBuf>,
}

impl Campaign {
    /// Runs inputs until the time is over, and returns how many there were.
    ///
    /// # Panics
    /// If the target does. A hang aborts the process.
    pub fn run(&self) -> u64 {
        let mut generator = Generator::new(self.seed, (self.target.seeds)());
        let (alive, watched) = mpsc::channel();
        let watchdog = std::thread::spawn(move || watch(&watched));
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < self.time {
            let input = generator.next_input();
            if let Some(path) = &self.current {
                std::fs::write(path, &input).expect("the input can be written down");
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
