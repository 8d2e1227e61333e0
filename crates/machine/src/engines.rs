//! Which engine runs a machine.

use crate::{Error, kvm_speed};
use config::EngineKind;
use engine::{Engine, Setup, Vcpu};
use interpreter::Interpreter;
use kvm::Kvm;
use memory::Backing;
use std::sync::Arc;
use translator::Translator;

/// The engines that `auto` tries, in this order: the fastest first.
pub(crate) const KINDS: [EngineKind; 3] = [
    EngineKind::Kvm,
    EngineKind::Translator,
    EngineKind::Interpreter,
];

/// An engine of this version, and whether this host can run it.
#[derive(Debug)]
pub struct EngineReport {
    /// The name by which a user selects it.
    pub name: &'static str,
    /// Why it can't run here, if it can't.
    pub problem: Option<Error>,
    /// Why `auto` does not take it, although it can run.
    pub drawback: Option<Error>,
}

/// Tries every engine with a small machine. The fastest is the first, and the first that has no
/// problem and no drawback is what [`EngineKind::Auto`] takes.
pub fn engines() -> Vec<EngineReport> {
    KINDS.map(report).into()
}

fn report(kind: EngineKind) -> EngineReport {
    let config = config::Machine {
        engine: kind,
        code_cache: (kind == EngineKind::Translator).then_some(config::CODE_CACHE_MIN),
        memory: config::MEMORY_MIN,
        ..config::Machine::default()
    };
    let problem = crate::Machine::new(config, crate::Consoles::default(), None).err();
    EngineReport {
        name: kind.name(),
        drawback: match (kind, &problem) {
            (EngineKind::Kvm, None) => kvm_speed::check().err(),
            _ => None,
        },
        problem,
    }
}

/// An engine with its vCPUs.
pub(crate) struct Created {
    pub(crate) kind: EngineKind,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    /// What the engine was made from.
    pub(crate) setup: Setup,
    /// Engines that were passed over, and why.
    pub(crate) passed_over: Vec<(&'static str, Error)>,
}

/// Makes the engine that `config` names, or the fastest that runs here. Each try gets a `setup`
/// of its own, since a memory belongs to the engine that observes it.
pub(crate) fn create(
    config: &config::Machine,
    mut setup: impl FnMut(EngineKind) -> Result<Setup, Error>,
) -> Result<Created, Error> {
    let kinds = match &config.engine {
        EngineKind::Auto => &KINDS[..],
        kind => std::slice::from_ref(kind),
    };
    let ((kind, engine, vcpus, setup), passed_over) = first(kinds, |kind| {
        if kind == EngineKind::Kvm && config.engine == EngineKind::Auto {
            kvm_speed::check()?;
            // What only the translator has was asked for: it is meant.
            let wanted = config::Machine {
                engine: kind,
                ..config.clone()
            };
            wanted.validate()?;
        }
        let setup = setup(kind)?;
        let (engine, vcpus) = create_one(kind, config, &setup)?;
        Ok((kind, engine, vcpus, setup))
    })?;
    let passed_over = passed_over.into_iter();
    Ok(Created {
        kind,
        engine,
        vcpus,
        setup,
        passed_over: passed_over
            .map(|(kind, error)| (kind.name(), error))
            .collect(),
    })
}

/// What `make` makes of the first of `kinds` that it can, and those before, with their errors.
fn first<T, E>(
    kinds: &[EngineKind],
    mut make: impl FnMut(EngineKind) -> Result<T, E>,
) -> Result<(T, Vec<(EngineKind, E)>), E> {
    let (last, others) = kinds.split_last().expect("there is an engine to try");
    let mut passed_over = Vec::new();
    for kind in others {
        match make(*kind) {
            Ok(made) => return Ok((made, passed_over)),
            Err(error) => passed_over.push((*kind, error)),
        }
    }
    Ok((make(*last)?, passed_over))
}

type Parts = (Arc<dyn Engine>, Vec<Box<dyn Vcpu>>);

fn create_one(kind: EngineKind, config: &config::Machine, setup: &Setup) -> Result<Parts, Error> {
    match kind {
        EngineKind::Kvm => {
            let (engine, vcpus) = Kvm::create(setup)?;
            Ok((engine, vcpus))
        }
        EngineKind::Translator => {
            let options = translator::Options {
                code_cache: config.code_cache_per_cpu() as usize,
                windows: match config.windows {
                    // There are no windows into reserved huge pages: they map small ones.
                    _ if setup.memory.backing() == Backing::Reserved => translator::When::Never,
                    config::Windows::Auto => translator::When::Auto,
                    config::Windows::Always => translator::When::Always,
                    config::Windows::Never => translator::When::Never,
                },
                perf_map: config.perf_map,
                lockstep: config.check_translation,
            };
            let (engine, vcpus) = Translator::create(setup, &options)?;
            Ok((engine, vcpus))
        }
        EngineKind::Interpreter => {
            let (engine, vcpus) = Interpreter::create(setup)?;
            Ok((engine, vcpus))
        }
        EngineKind::Auto => unreachable!("`create` has resolved it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EngineKind::{Interpreter as Slow, Kvm, Translator};

    #[test]
    fn auto_takes_the_first_that_runs_and_says_why_not_the_others() {
        let all = first::<_, ()>(&KINDS, Ok);
        assert_eq!(all, Ok((Kvm, Vec::new())));
        let refuse = |refused: &'static [EngineKind]| {
            move |kind| {
                if refused.contains(&kind) {
                    Err(kind.name())
                } else {
                    Ok(kind)
                }
            }
        };
        let translator = first(&KINDS, refuse(&[Kvm]));
        assert_eq!(translator, Ok((Translator, vec![(Kvm, "kvm")])));
        let slow = first(&KINDS, refuse(&[Kvm, Translator]));
        let reasons = vec![(Kvm, "kvm"), (Translator, "translator")];
        assert_eq!(slow, Ok((Slow, reasons)));
        assert_eq!(first(&KINDS, refuse(&KINDS)), Err("interpreter"));
    }

    #[test]
    fn a_machine_has_the_engine_that_was_asked_for() {
        for kind in KINDS {
            let config = config::Machine {
                engine: kind,
                memory: config::MEMORY_MIN,
                ..config::Machine::default()
            };
            let machine = crate::Machine::new(config, crate::Consoles::default(), None);
            match machine {
                Err(Error::Kvm(problem)) => eprintln!("skipped: {problem}"),
                machine => {
                    let machine = machine.unwrap();
                    assert_eq!(machine.engine_name(), kind.name());
                    assert!(machine.passed_over().is_empty());
                }
            }
        }
    }

    #[test]
    fn auto_takes_kvm_where_the_cpu_runs_its_guests_and_says_why_not_elsewhere() {
        let config = config::Machine {
            memory: config::MEMORY_MIN,
            ..config::Machine::default()
        };
        let machine = crate::Machine::new(config, crate::Consoles::default(), None).unwrap();
        if kvm_speed::is_hardware() {
            assert_eq!(machine.engine_name(), "kvm");
            return;
        }
        assert_ne!(machine.engine_name(), "kvm");
        let (name, reason) = &machine.passed_over()[0];
        assert_eq!(*name, "kvm");
        assert!(
            matches!(reason, Error::SlowKvm(_) | Error::NoKvm(_)),
            "{reason}"
        );
    }
}
