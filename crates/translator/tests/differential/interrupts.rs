//! Interrupts at any point of a program change nothing but what their handler does.

use crate::compare::differences;
use crate::generator::Family;
use crate::layout::*;
use crate::machine::{Create, Machine, Outcome, interpreter, translator, windows};
use crate::random::Random;
use crate::trial::Trial;
use memory::GuestMemory;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Programs for each mode.
const CASES: u64 = 15;
/// Address and data of an MSI for vCPU 0, fixed delivery.
const MESSAGE: (u64, u32) = (0xfee0_0000, INTERRUPT_VECTOR as u32);

/// The longest run of a program, on a host that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of interrupts that the guest has handled.
fn count(memory: &GuestMemory) -> u64 {
    let mut bytes = [0; 8];
    memory
        .read(INTERRUPTS, &mut bytes)
        .expect("there is memory");
    u64::from_le_bytes(bytes)
}

/// Runs `trial` while interrupts come.
fn run_interrupted(machine: &mut Machine, trial: &Trial) -> Outcome {
    let image = trial
        .assemble(&trial.generated.program)
        .expect("it was run before");
    let stop = AtomicBool::new(false);
    let engine = machine.engine.clone();
    let memory = machine.memory.clone();
    machine.patience = PATIENCE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(trial.seed);
            let mut handled = 0;
            while !stop.load(Ordering::Acquire) {
                engine.send_message(MESSAGE.0, MESSAGE.1);
                // One at a time, or a slow host does nothing else. One that came before the CPU
                // was ready is lost.
                let before = handled;
                for _ in 0..10 {
                    std::thread::sleep(Duration::from_micros(random.below(60)));
                    handled = count(&memory);
                    if handled != before {
                        break;
                    }
                }
            }
        });
        let outcome = trial.run(machine, &image);
        stop.store(true, Ordering::Release);
        outcome
    })
}

/// Takes out of `outcome` what the interrupts' handler leaves. Returns the number of interrupts.
fn remove_interrupts(outcome: &mut Outcome, without: &Outcome) -> u64 {
    let at = INTERRUPTS as usize;
    let count = outcome.lower[at..at + 8].try_into().expect("8 bytes");
    let page = |top: u64| (top - PAGE) as usize..top as usize;
    for range in [at..at + 8, page(INTERRUPT_STACK), page(KERNEL_STACK)] {
        outcome.lower[range.clone()].copy_from_slice(&without.lower[range]);
    }
    outcome.state.apic = without.state.apic.clone();
    u64::from_le_bytes(count)
}

/// Compares programs of `mode` under `tested` with interrupts with those under the interpreter
/// without.
fn compare(tested: Create, mode: Mode) {
    let mut families = vec![
        Family::Integer,
        Family::Vector,
        Family::Strings,
        Family::Stack,
        Family::Branches,
        Family::Loop,
        Family::Function,
        Family::Modify,
    ];
    if mode == Mode::User64 {
        families.push(Family::SystemCalls);
    }
    let mut interrupts = 0;
    for seed in 1..=CASES {
        let trial = Trial::long(mode, seed, &families);
        let Ok(image) = trial.assemble(&trial.generated.program) else {
            continue;
        };
        let reference = trial.run(&mut Machine::new(interpreter, 1), &image);
        let mut outcome = run_interrupted(&mut Machine::new(tested, 1), &trial);
        interrupts += remove_interrupts(&mut outcome, &reference);
        let found = differences(&trial.scene, &outcome, &reference);
        assert!(
            found.is_empty(),
            "{mode:?}, seed {seed}:\n  {}\n{}",
            found.join("\n  "),
            trial.generated.program.disassemble(&image)
        );
    }
    assert!(
        interrupts > 2 * CASES,
        "only {interrupts} interrupts were delivered"
    );
}

#[test]
fn the_interpreter_returns_to_where_it_was() {
    compare(interpreter, Mode::User64);
}

#[test]
fn kernel_code() {
    compare(translator, Mode::Kernel64);
}

#[test]
fn user_code() {
    compare(translator, Mode::User64);
}

#[test]
fn user_code_in_windows() {
    compare(windows, Mode::User64);
}

#[test]
fn user_code_of_32_bits() {
    compare(translator, Mode::Compatibility);
}

#[test]
fn user_code_of_a_32_bit_system() {
    compare(translator, Mode::User32);
}
