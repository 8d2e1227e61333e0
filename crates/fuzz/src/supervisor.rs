//! Children, and what they leave when they fail.

use fuzz::{INPUT_SECONDS_MAX, Target};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much longer than its time and one hanging input a child may live.
const GRACE: Duration = Duration::from_secs(30);
/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Lines of a failure that are shown; all of them are kept.
const LINES_SHOWN: usize = 12;

/// What is to be run.
pub(crate) struct Plan {
    pub(crate) targets: Vec<&'static Target>,
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
    pub(crate) jobs: usize,
    pub(crate) out: PathBuf,
}

/// A target and a sequence of inputs.
#[derive(Debug, Clone, Copy)]
struct Task {
    target: &'static Target,
    seed: u64,
}

impl Plan {
    /// Runs all of it. Returns whether nothing failed.
    pub(crate) fn run(&self) -> io::Result<bool> {
        fs::create_dir_all(&self.out)?;
        let tasks = Mutex::new(self.tasks());
        let next = || {
            tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let worker = || {
            let mut good = true;
            while let Some(task) = next() {
                good &= self.execute(task)?;
            }
            Ok(good)
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(worker)).collect();
            let results = workers
                .into_iter()
                .map(|w| w.join().expect("workers do not panic"));
            results
                .collect::<io::Result<Vec<_>>>()
                .map(|all| all.into_iter().all(|good| good))
        })
    }

    /// Every target once; a few targets often enough that no job is idle.
    fn tasks(&self) -> VecDeque<Task> {
        let rounds = self.jobs.div_ceil(self.targets.len()) as u64;
        let seeds = (0..rounds).map(|round| self.seed.wrapping_add(round));
        let of_seed = |seed| self.targets.iter().map(move |target| Task { target, seed });
        seeds.flat_map(of_seed).collect()
    }

    /// Runs one task. Returns whether it went well.
    fn execute(&self, task: Task) -> io::Result<bool> {
        let Task { target, seed } = task;
        let stem = format!("{}-{seed}", target.name);
        let current = self.out.join(format!("{stem}.current"));
        let log = self.out.join(format!("{stem}.log"));
        let said = File::create(&log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([target.name, "--seconds", &self.seconds.to_string()])
            .args(["--seed", &seed.to_string()])
            .arg("--child")
            .arg(&current)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()?;
        let limit = Duration::from_secs(self.seconds + INPUT_SECONDS_MAX) + GRACE;
        let end = wait(&mut child, limit)?;
        if end.is_some_and(|status| status.success()) {
            let count = io::read_to_string(child.stdout.take().expect("it is piped"))?;
            println!("{:16} seed {seed}: {} inputs", target.name, count.trim());
            fs::remove_file(&log)?;
            let _ = fs::remove_file(&current);
            return Ok(true);
        }
        let kept = self.out.join(format!("{stem}.input"));
        fs::write(&kept, fuzz::last_input(&current)?)?;
        fs::remove_file(&current)?;
        report(task, end, &kept, &log)?;
        Ok(false)
    }
}

/// Waits for the end; `None` if it had to be killed.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn report(task: Task, end: Option<ExitStatus>, input: &Path, log: &Path) -> io::Result<()> {
    let name = task.target.name;
    let how = end.map_or("it hung".to_owned(), |status| status.to_string());
    let text = fs::read_to_string(log)?;
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.is_empty())
        .take(LINES_SHOWN)
        .collect();
    println!(
        "{name:16} seed {}: FAILED ({how})\n  {}\n  all of it: {}\n  again: cargo xtask fuzz {name} \
         --input {}",
        task.seed,
        lines.join("\n  "),
        log.display(),
        input.display(),
    );
    Ok(())
}
