//! `cargo xtask long`: tests that take too long, or need too much, for every change.
//!
//! They are ordinary tests, marked `#[ignore]` with the reason, or the everyday ones with more
//! cases. A [`Suite`] names some of them, and what the host must have for them.

use crate::host::{self, Need};
use crate::step::{program, step};
use crate::workspace::cargo;
use anyhow::{Result, bail};
use std::process::Command;

/// Tests that belong together.
struct Suite {
    /// The name by which it is chosen.
    name: &'static str,
    /// What it shows.
    about: &'static str,
    /// The package that its tests are in.
    package: &'static str,
    /// Which tests.
    tests: Tests,
    /// What the host must have.
    needs: &'static [Need],
}

/// A choice of tests.
enum Tests {
    /// Those that are ignored in this test target (a file in the package's `tests`).
    Ignored(&'static str),
    /// The unit tests whose names contain this, with so many cases (`DOPPEL_CASES`).
    Cases(&'static str, u32),
}

const SUITES: [Suite; 6] = [
    Suite {
        name: "instructions",
        about: "every user-mode instruction against the host CPU, 3000 cases of each form",
        package: "interpreter",
        tests: Tests::Cases("tests::host", 3000),
        needs: &[],
    },
    Suite {
        name: "kernels",
        about: "Debian's kernels in every shape of machine; memtest86+; an hour's clock in little",
        package: "cli",
        tests: Tests::Ignored("kernels"),
        needs: &[],
    },
    Suite {
        name: "userland",
        about: "a Debian sets itself up, installs packages, compiles C and tests Python",
        package: "cli",
        tests: Tests::Ignored("userland"),
        needs: &[],
    },
    Suite {
        name: "gdb",
        about: "the real gdb against a guest",
        package: "machine",
        tests: Tests::Ignored("gdb"),
        needs: &[Need::new("gdb", "gdb")],
    },
    Suite {
        name: "packages",
        about: "guests are made from Debian's archive, once",
        package: "image",
        tests: Tests::Ignored("guest"),
        needs: &[],
    },
    Suite {
        name: "guests-on-qemu",
        about: "the guests are right, by an emulator that is not ours",
        package: "image",
        tests: Tests::Ignored("boot"),
        needs: &[Need::new("qemu-system-x86_64", "qemu-system-x86")],
    },
];

/// Options of `cargo xtask long`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Suites to run [default: all]
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,

    /// Print the suites there are
    #[arg(long)]
    list: bool,
}

/// Runs the chosen suites.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for suite in &SUITES {
            println!("{:16} {}", suite.name, suite.about);
        }
        return Ok(());
    }
    for suite in chosen(&args.suites)? {
        step(&format!("what {} needs", suite.name), || {
            host::require(suite.needs)
        })?;
        program(
            &format!("{}: {}", suite.name, suite.about),
            &mut suite.command(),
        )?;
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Suite>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| SUITES.iter().all(|s| s.name != **name))
    {
        bail!("there is no suite {unknown}; `cargo xtask long --list` prints those there are");
    }
    let is_chosen = |suite: &&Suite| names.is_empty() || names.iter().any(|n| n == suite.name);
    Ok(SUITES.iter().filter(is_chosen).collect())
}

impl Suite {
    /// Only tests that are ignored otherwise: `check` runs the others.
    fn command(&self) -> Command {
        let mut command = cargo();
        command.args(["test", "--release", "--package", self.package]);
        match self.tests {
            Tests::Ignored(target) => {
                command.args(["--test", target, "--", "--ignored", "--test-threads", "1"]);
            }
            Tests::Cases(filter, cases) => {
                command.env("DOPPEL_CASES", cases.to_string());
                command.args(["--lib", "--", filter]);
            }
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{crates, root};

    #[test]
    fn suites_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap().len(), SUITES.len());
        let names = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.into()).collect() };
        let one = chosen(&names(&["packages"])).unwrap();
        assert_eq!(one.iter().map(|s| s.name).collect::<Vec<_>>(), ["packages"]);
        assert!(chosen(&names(&["packages", "nothing"])).is_err());
    }

    #[test]
    fn every_suite_is_there() {
        let crates = crates().unwrap();
        for suite in &SUITES {
            let member = crates.iter().find(|c| c.name == suite.package);
            let member = member.unwrap_or_else(|| panic!("no crate {}", suite.package));
            let Tests::Ignored(target) = suite.tests else {
                continue;
            };
            let target = member
                .directory
                .join("tests")
                .join(target)
                .with_extension("rs");
            assert!(target.is_file(), "{:?}", target.strip_prefix(root()));
        }
    }
}
