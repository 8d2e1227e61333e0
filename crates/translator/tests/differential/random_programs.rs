//! Random programs of every family, in every mode.

use crate::generator::Family;
use crate::layout::Mode;
use crate::machine::{Create, interpreter, lock_step, small_translator, translator, windows};
use crate::trial::{Checked, Pair, Trial};

/// Programs for each mode.
const CASES: u64 = 700;
/// Programs that one pair of machines runs.
const SESSION: u64 = 50;
/// Differences after which nothing more is tried.
const REPORTS_MAX: usize = 3;

/// The number in the environment variable `name`.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs random programs of `families` under `tested` and the interpreter.
fn compare(tested: Create, mode: Mode, families: &[Family], cases: u64) {
    let first = setting("DOPPEL_SEED").unwrap_or(1);
    let cases = setting("DOPPEL_CASES").unwrap_or(cases);
    let mut reports = Vec::new();
    let mut pair = Pair::new(tested, interpreter);
    let mut same = 0;
    for seed in first..first + cases {
        if (seed - first) % SESSION == SESSION - 1 {
            pair = Pair::new(tested, interpreter);
        }
        let trial = Trial::random(mode, seed, families);
        match pair.check(&trial) {
            Ok(Checked::Same) => same += 1,
            // About one in a thousand does not end, under either engine.
            Ok(_) => {}
            Err(report) => reports.push(report),
        }
        if reports.len() >= REPORTS_MAX {
            break;
        }
    }
    assert!(
        reports.is_empty(),
        "the engines differ:\n{}",
        reports.join("\n\n")
    );
    assert!(
        same * 10 > cases * 8,
        "only {same} of {cases} programs ran to an end"
    );
}

#[test]
fn kernel_code() {
    compare(translator, Mode::Kernel64, &Family::ALL, CASES);
}

#[test]
fn user_code() {
    compare(translator, Mode::User64, &Family::ALL, CASES);
}

#[test]
fn user_code_in_windows() {
    compare(windows, Mode::User64, &Family::ALL, CASES);
}

#[test]
fn user_code_of_32_bits() {
    compare(translator, Mode::Compatibility, &Family::ALL, CASES);
}

#[test]
fn kernel_code_of_a_32_bit_system() {
    compare(translator, Mode::Kernel32, &Family::ALL, CASES);
}

#[test]
fn user_code_of_a_32_bit_system() {
    compare(translator, Mode::User32, &Family::ALL, CASES);
}

#[test]
fn a_code_cache_that_is_always_full() {
    let families = [
        Family::Integer,
        Family::Branches,
        Family::Function,
        Family::Loop,
    ];
    compare(small_translator, Mode::User64, &families, CASES / 5);
}

/// Whatever programs do: blocks that are left early, faults, code that changes itself.
#[test]
fn every_block_in_lock_step() {
    for mode in Mode::ALL {
        compare(lock_step, mode, &Family::ALL, CASES / 8);
    }
}
