//! A program on two machines.

use crate::compare;
use crate::generator::{Family, Generated, generate, generate_long};
use crate::layout::{CODE_PAGES, Mode, PAGE};
use crate::machine::{Create, End, IMPATIENCE, Machine, Outcome};
use crate::program::{Image, Program, Unencodable};
use crate::random::Random;
use crate::scene::Scene;
use std::time::{Duration, Instant};

/// Time that is spent on making a program shorter.
const SHRINKING: Duration = Duration::from_secs(20);

/// Passes of the loop that is a long trial's program.
const LONG_PASSES: u64 = 400;

/// Two machines that should do the same.
pub(crate) struct Pair {
    create: [Create; 2],
    machines: [Machine; 2],
}

/// A scene and a program in it.
pub(crate) struct Trial {
    pub(crate) seed: u64,
    pub(crate) scene: Scene,
    pub(crate) generated: Generated,
}

impl Trial {
    /// The random trial of `seed`.
    pub(crate) fn random(mode: Mode, seed: u64, families: &[Family]) -> Self {
        let mut random = Random::new(seed << 3 | mode as u64);
        let scene = Scene::random(mode, &mut random);
        let units = 4 + random.below(30);
        let generated = generate(&scene, families, units, &mut random);
        Self {
            seed,
            scene,
            generated,
        }
    }

    /// A random trial whose program runs for long, and with interrupts enabled; few of its
    /// instructions fault.
    pub(crate) fn long(mode: Mode, seed: u64, families: &[Family]) -> Self {
        let mut random = Random::new(seed << 3 | mode as u64);
        let mut scene = Scene::random(mode, &mut random);
        scene.interruptible = true;
        // So that an interrupt has a stack of its own.
        scene.own_fault_stack = true;
        let generated = generate_long(&scene, families, LONG_PASSES, &mut random);
        Self {
            seed,
            scene,
            generated,
        }
    }

    /// Where the program begins.
    pub(crate) fn base(&self) -> u64 {
        self.scene.mode.code() + self.generated.offset
    }

    /// Machine code of `program` in this trial's place.
    pub(crate) fn assemble(&self, program: &Program) -> Result<Image, Unencodable> {
        let image = program.assemble(self.base())?;
        let end = self.generated.offset + image.bytes.len() as u64;
        if end > CODE_PAGES * PAGE {
            return Err(Unencodable("longer than its window".into()));
        }
        Ok(image)
    }

    /// What `machine` makes of the program `image`.
    pub(crate) fn run(&self, machine: &mut Machine, image: &Image) -> Outcome {
        let successors = image.successors();
        let memory = self
            .scene
            .memory(&image.bytes, self.generated.offset, &successors);
        machine.fill(&memory);
        let mut state = machine.reset[0].clone();
        self.scene.enter(&mut state, &memory[0]);
        state.rip = self.base();
        machine.run(&state)
    }
}

impl Pair {
    /// `tested` is compared with `reference`.
    pub(crate) fn new(tested: Create, reference: Create) -> Self {
        let create = [tested, reference];
        Self {
            create,
            machines: create.map(|create| Machine::new(create, 1)),
        }
    }

    /// What differs when both run `program`; `None` if it has no machine code.
    pub(crate) fn differences(&mut self, trial: &Trial, program: &Program) -> Option<Vec<String>> {
        let [tested, reference] = self.outcomes(trial, program)?;
        if [&tested, &reference].map(|outcome| &outcome.end) == [&End::TimedOut; 2] {
            return Some(Vec::new());
        }
        Some(compare::differences(&trial.scene, &tested, &reference))
    }

    /// What both make of `program`; `None` if it has no machine code.
    pub(crate) fn outcomes(&mut self, trial: &Trial, program: &Program) -> Option<[Outcome; 2]> {
        let image = trial.assemble(program).ok()?;
        let [tested, reference] = &mut self.machines;
        Some([trial.run(tested, &image), trial.run(reference, &image)])
    }

    /// Where on the host the tested machine's memory begins.
    pub(crate) fn ram_address(&self) -> u64 {
        self.machines[0].memory.ram().address() as u64
    }

    /// Makes machines that have run nothing.
    fn renew(&mut self) {
        self.machines = self.create.map(|create| Machine::new(create, 1));
    }

    /// Runs `trial` on both machines.
    ///
    /// # Errors
    /// A report for people if they differ.
    pub(crate) fn check(&mut self, trial: &Trial) -> Result<Checked, String> {
        let program = &trial.generated.program;
        let Some([tested, reference]) = self.outcomes(trial, program) else {
            return Ok(Checked::Unencodable);
        };
        if [&tested, &reference].map(|outcome| &outcome.end) == [&End::TimedOut; 2] {
            return Ok(Checked::Endless);
        }
        let found = compare::differences(&trial.scene, &tested, &reference);
        if found.is_empty() {
            return Ok(match reference.end {
                End::Shutdown => Checked::Shutdown,
                _ => Checked::Same,
            });
        }
        self.renew();
        let again = self.differences(trial, program);
        let history = again.is_none_or(|again| again.is_empty());
        self.renew();
        let (program, found) = if history {
            (program.clone(), found)
        } else {
            self.shrink(trial, found)
        };
        self.renew();
        Err(report(trial, &program, &found, history))
    }

    /// The shortest program found that still shows a difference, and that difference.
    fn shrink(&mut self, trial: &Trial, found: Vec<String>) -> (Program, Vec<String>) {
        let began = Instant::now();
        let mut best = (trial.generated.program.clone(), found);
        let mut size = best.0.units().len().max(1);
        loop {
            let mut shorter = false;
            let mut at = 0;
            loop {
                let units = best.0.units();
                // The last one ends the program.
                let last = units.len().saturating_sub(1);
                if at >= last {
                    break;
                }
                if began.elapsed() > SHRINKING {
                    return best;
                }
                let end = (at + size).min(last);
                let removed: Vec<usize> = units[at..end].iter().flatten().copied().collect();
                let candidate = best.0.without(&removed);
                for machine in &mut self.machines {
                    machine.patience = IMPATIENCE;
                }
                match self.differences(trial, &candidate) {
                    Some(found) if !found.is_empty() => {
                        best = (candidate, found);
                        shorter = true;
                        // An engine may have broken down.
                        self.renew();
                    }
                    _ => at = end,
                }
            }
            if size == 1 && !shorter {
                return best;
            }
            size = (size / 2).max(1);
        }
    }
}

/// How a trial went in which there was no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    Same,
    /// The program was too long, or a branch in it.
    Unencodable,
    /// Both machines ran until they were stopped.
    Endless,
    /// Both ended in a triple fault.
    Shutdown,
}

fn report(trial: &Trial, program: &Program, found: &[String], history: bool) -> String {
    let text = match trial.assemble(program) {
        Ok(image) => program.disassemble(&image),
        Err(error) => error.0,
    };
    let scene = &trial.scene;
    let gprs: Vec<String> = scene.gpr.iter().map(|value| format!("{value:x}")).collect();
    let alone = if history {
        " (only after the programs before it)"
    } else {
        ""
    };
    format!(
        "{:?}, seed {}{alone}:\n  {}\n{text}  from {} cr0 {:x} cr4 {:x} fs {:x} gs {:x}",
        scene.mode,
        trial.seed,
        found.join("\n  "),
        gprs.join(" "),
        scene.cr0.bits(),
        scene.cr4.bits(),
        scene.fs_base,
        scene.gs_base,
    )
}
