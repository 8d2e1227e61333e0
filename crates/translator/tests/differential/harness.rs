//! That these tests find what they look for: the interpreter against itself, with and without a
//! difference made on purpose.

use crate::compare::differences;
use crate::generator::Family;
use crate::layout::*;
use crate::machine::{IMPATIENCE, Machine, Outcome, interpreter};
use crate::trial::{Checked, Pair, Trial};

/// Programs for each mode.
const CASES: u64 = 60;

#[test]
fn two_interpreters_do_the_same() {
    for mode in Mode::ALL {
        let mut pair = Pair::new(interpreter, interpreter);
        for seed in 1..=CASES {
            let trial = Trial::random(mode, seed, &Family::ALL);
            let checked = pair
                .check(&trial)
                .unwrap_or_else(|report| panic!("{report}"));
            assert_ne!(checked, Checked::Endless, "{mode:?}, seed {seed}");
        }
    }
}

/// Programs of which one bit is another one on one of the machines: most end differently. Not all
/// do, since some of the code is jumped over.
#[test]
fn a_bit_of_code_that_differs_is_noticed() {
    let (mut tried, mut noticed) = (0, 0);
    let mut left = 0;
    for mode in Mode::ALL {
        let mut machines = [(); 2].map(|()| Machine::new(interpreter, 1));
        machines[1].patience = IMPATIENCE;
        for seed in 1..=CASES {
            let trial = Trial::random(mode, seed, &Family::ALL);
            let program = &trial.generated.program;
            let Ok(image) = trial.assemble(program) else {
                left += 1;
                continue;
            };
            let places = program.instruction_bytes(&image);
            let at = places[(seed.wrapping_mul(0x9e37_79b9) >> 7) as usize % places.len()];
            let mut changed = image.clone();
            changed.bytes[at] ^= 1 << (seed % 8);
            let reference = trial.run(&mut machines[0], &image);
            let mut tested = trial.run(&mut machines[1], &changed);
            // The code itself is in memory.
            let gpa = trial.scene.code_gpa(trial.generated.offset + at as u64);
            let place = (gpa - PROGRAM_MEMORY) as usize;
            if tested.upper[place] == changed.bytes[at] {
                tested.upper[place] = reference.upper[place];
            }
            tried += 1;
            if !differences(&trial.scene, &tested, &reference).is_empty() {
                noticed += 1;
            }
        }
    }
    assert!(
        noticed * 10 > tried * 6,
        "only {noticed} of {tried} changes were noticed; {left} programs have no encoding"
    );
}

#[test]
fn whatever_is_left_is_compared() {
    let trial = Trial::random(Mode::Kernel64, 1, &Family::ALL);
    let image = trial
        .assemble(&trial.generated.program)
        .expect("it is short");
    let outcome = trial.run(&mut Machine::new(interpreter, 1), &image);
    assert_eq!(differences(&trial.scene, &outcome, &outcome), [""; 0]);
    type Change = (&'static str, fn(&mut Outcome));
    let changes: [Change; 12] = [
        ("r15", |o| o.state.gpr[15] ^= 1 << 63),
        ("rip", |o| o.state.rip ^= 1),
        ("rflags", |o| o.state.rflags ^= x86::Rflags::AF),
        ("ymm9", |o| o.state.fpu.ymm[9][3] ^= 1),
        ("fpu.mxcsr", |o| o.state.fpu.mxcsr ^= x86::Mxcsr::DAZ),
        ("fpu.st", |o| o.state.fpu.st[7][9] ^= 1),
        ("cr2", |o| o.state.cr2 ^= 1),
        ("syscall", |o| o.state.syscall.kernel_gs_base ^= 1),
        ("events", |o| o.state.events.sti_shadow ^= true),
        ("memory at 0x18000", |o| o.lower[TABLES as usize] ^= 0x40),
        ("memory at 0x27fff8", |o| {
            *o.upper.last_mut().expect("memory") ^= 1;
        }),
        ("access", |o| {
            o.accesses.pop().expect("the one that ends the program");
        }),
    ];
    for (name, change) in changes {
        let mut changed = outcome.clone();
        change(&mut changed);
        let found = differences(&trial.scene, &changed, &outcome);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].starts_with(name), "{name}: {found:?}");
    }
}
