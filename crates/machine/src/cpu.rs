//! Which CPU the guest sees, and which engine can give it.
//!
//! A CPU is a set of features (`x86::cpuid`): everything else in the table is the same on every
//! machine of its shape and vendor. So two engines that can give the features show the same
//! table, and a saved machine goes on wherever its features are.

use crate::engines::KINDS;
use crate::kvm_speed;
use config::{Cpu, CpuModel, EngineKind};
use x86::cpuid::{FeatureSet, Offer, Table, Vendor};

/// Why the guest can't have its CPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The engine, or this host, lacks features.
    #[error("{who} {missing}, which --cpu {wanted} needs: give {instead}")]
    Missing {
        /// Which engine, and that it lacks.
        who: String,
        /// What was asked for.
        wanted: Cpu,
        /// What is not there.
        missing: FeatureSet,
        /// What would do.
        instead: String,
    },
    /// A saved machine has features that are not here.
    #[error(
        "can't restore: the saved machine's CPU ({model}) has {missing}, which the {engine} can't \
         give on this host{instead}"
    )]
    Lost {
        /// The saved machine's CPU, as it was asked for.
        model: String,
        /// What is not there.
        missing: FeatureSet,
        /// Which engine.
        engine: &'static str,
        /// What would do.
        instead: String,
    },
    /// A saved machine has features that this machine has not, or the other way round.
    #[error("can't restore: the saved machine has another CPU: give --cpu {0}")]
    Other(Cpu),
    /// A saved machine has a CPU of another vendor.
    #[error(
        "can't restore: the saved machine has a CPU of {saved:?}, and this host one of {here:?}"
    )]
    Vendor {
        /// The saved machine's.
        saved: Vendor,
        /// The host's.
        here: Vendor,
    },
    /// CPUID differs in something that is no feature.
    #[error(
        "can't restore: the saved machine's CPUID differs in leaf {0:#x}: another version saved it"
    )]
    Leaf(u32),
}

/// How much of a saved machine's description of its CPU is shown.
const MODEL_SHOWN: usize = 100;

/// What an engine can give on this host; `None` if the host has no such engine. This is where an
/// engine says what it can: the interpreter and the translator what is in software or what the
/// host has for user code.
fn offered(kind: EngineKind) -> Option<FeatureSet> {
    match kind {
        EngineKind::Translator | EngineKind::Interpreter => Some(interpreter::cpuid::features()),
        EngineKind::Kvm => kvm::Host::open().and_then(|host| host.features()).ok(),
        EngineKind::Auto => None,
    }
}

/// What every engine of this host can give that `auto` may take: a KVM that emulates instructions
/// takes no feature from the others.
fn common() -> FeatureSet {
    let all = KINDS.into_iter().filter(counts).filter_map(offered);
    all.reduce(FeatureSet::intersection).unwrap_or_default()
}

/// Whether what `kind` can give limits [`common`].
fn counts(kind: &EngineKind) -> bool {
    *kind != EngineKind::Kvm || kvm_speed::is_hardware()
}

fn offer(kind: EngineKind) -> Offer {
    let engine = offered(kind).unwrap_or_default();
    Offer {
        engine,
        common: common().intersection(engine),
    }
}

/// The features of the machine's CPU under the engine `kind`.
fn features(cpu: &Cpu, kind: EngineKind) -> Result<FeatureSet, CpuError> {
    let offer = self::offer(kind);
    cpu.features(&offer).map_err(|missing| {
        let nearest = format!("--cpu {}", cpu.nearest(&offer));
        let can = |kind: &EngineKind| cpu.features(&self::offer(*kind)).is_ok();
        CpuError::Missing {
            who: format!("the {} lacks", kind.name()),
            wanted: *cpu,
            missing,
            instead: match KINDS.into_iter().find(can) {
                Some(other) => format!("--engine {} or {nearest}", other.name()),
                None => nearest,
            },
        }
    })
}

/// Checks that the engine of a machine of the shape `config`, or one of those that `auto` tries,
/// can give its CPU on this host. [`crate::Machine::new`] does, too; this needs no memory.
///
/// # Errors
/// If none can.
pub fn check_cpu(config: &config::Machine) -> Result<(), CpuError> {
    if config.engine == EngineKind::Kvm && offered(EngineKind::Kvm).is_none() {
        // The machine can't be made, and that says why.
        return Ok(());
    }
    if config.engine != EngineKind::Auto {
        return features(&config.cpu, config.engine).map(|_| ());
    }
    let tries = KINDS.map(|kind| features(&config.cpu, kind));
    if tries.iter().any(Result::is_ok) {
        return Ok(());
    }
    // Not that of KVM, which many hosts have not.
    let [_, mut problem, _] = tries.map(Result::unwrap_err);
    if let CpuError::Missing { who, .. } = &mut problem {
        "the engines of this host lack".clone_into(who);
    }
    Err(problem)
}

/// What CPUID answers on the vCPUs of a machine of the shape `config` under the engine `kind`.
pub(crate) fn tables(
    config: &config::Machine,
    kind: EngineKind,
    tsc_khz: u64,
) -> Result<Vec<Table>, CpuError> {
    let features = features(&config.cpu, kind)?;
    let one = |index| interpreter::cpuid::table_with(index, config.cpus, tsc_khz, features);
    Ok((0..config.cpus).map(one).collect())
}

/// The choice that makes a machine on this host with the CPU of `table`.
pub(crate) fn choice(table: &Table) -> Cpu {
    Cpu::exactly(FeatureSet::of_table(table), common())
}

fn vendor(table: &Table) -> Vendor {
    Vendor::of_signature(table.get(0, 0).ebx)
}

/// Whether a machine under the engine `kind` whose first vCPU has the table `here` may go on with
/// what a machine with the table `saved` was doing. `model` is what that one was asked for.
pub(crate) fn check_saved(
    saved: &Table,
    model: &str,
    here: &Table,
    kind: EngineKind,
) -> Result<(), CpuError> {
    if vendor(saved) != vendor(here) {
        return Err(CpuError::Vendor {
            saved: vendor(saved),
            here: vendor(here),
        });
    }
    let wanted = FeatureSet::of_table(saved);
    let gives = |kind: &EngineKind| offered(*kind).is_some_and(|given| given.contains(wanted));
    if !gives(&kind) {
        let other = KINDS.into_iter().find(gives);
        return Err(CpuError::Lost {
            model: model.escape_debug().take(MODEL_SHOWN).collect(),
            missing: wanted.without(offered(kind).unwrap_or_default()),
            engine: kind.name(),
            instead: other.map_or(String::new(), |kind| {
                format!(": use --engine {}", kind.name())
            }),
        });
    }
    if wanted != FeatureSet::of_table(here) {
        return Err(CpuError::Other(choice(saved)));
    }
    // Tables of the same features are made in the same order.
    let rows = saved.leaves().iter().zip(here.leaves());
    let differs = rows.into_iter().find(|(saved, here)| saved != here);
    match differs {
        Some((_, row)) => Err(CpuError::Leaf(row.leaf)),
        None if saved.leaves().len() != here.leaves().len() => Err(CpuError::Leaf(0)),
        None => Ok(()),
    }
}

/// A CPU model, and which engines can give it.
#[derive(Debug)]
pub struct CpuReport {
    /// The model.
    pub model: CpuModel,
    /// For each engine of this host, by name: the features, or those that are missing.
    pub engines: Vec<(&'static str, Result<FeatureSet, FeatureSet>)>,
}

/// All CPU models.
pub fn cpu_models() -> Vec<CpuReport> {
    let report = |model| {
        let here = KINDS.into_iter().filter(|kind| offered(*kind).is_some());
        let engines = here.map(|kind| (kind.name(), Cpu::from(model).features(&offer(kind))));
        CpuReport {
            model,
            engines: engines.collect(),
        }
    };
    CpuModel::ALL.map(report).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::TSC_KHZ;
    use crate::{Consoles, Error, Machine};
    use config::Feature;
    use x86::cpuid::Answer;

    fn shape(cpu: Cpu, engine: EngineKind) -> config::Machine {
        config::Machine {
            cpu,
            engine,
            cpus: 3,
            memory: config::MEMORY_MIN,
            code_cache: None,
            ..config::Machine::default()
        }
    }

    fn machine(cpu: Cpu, engine: EngineKind) -> Result<Machine, Error> {
        Machine::new(shape(cpu, engine), Consoles::default(), None)
    }

    fn set(features: &[Feature]) -> FeatureSet {
        FeatureSet::of(features)
    }

    #[test]
    fn a_model_has_the_same_table_under_each_engine_that_can_give_it() {
        for model in CpuModel::ALL.into_iter().filter(|m| *m != CpuModel::Host) {
            let kinds = KINDS.into_iter().filter(counts);
            let able = kinds.map(|kind| tables(&shape(model.into(), kind), kind, TSC_KHZ));
            let able: Vec<_> = able.filter_map(Result::ok).collect();
            assert!(able.windows(2).all(|two| two[0] == two[1]), "{model:?}");
            assert!(!able.is_empty() || model.level().is_some(), "{model:?}");
            for tables in able {
                let features = FeatureSet::of_table(&tables[0]);
                assert!(features.contains(model.level().unwrap_or_default()));
                assert_eq!(tables.len(), 3, "one for each vCPU");
            }
        }
    }

    /// The engines of this host.
    fn here() -> impl Iterator<Item = EngineKind> {
        KINDS.into_iter().filter(|kind| offered(*kind).is_some())
    }

    #[test]
    fn every_engine_can_give_what_is_common() {
        for kind in here() {
            assert!(machine(CpuModel::Common.into(), kind).is_ok(), "{kind:?}");
            let host = tables(&shape(CpuModel::Host.into(), kind), kind, TSC_KHZ).unwrap();
            let features = FeatureSet::of_table(&host[0]);
            assert_eq!(Some(features), offered(kind));
        }
    }

    #[test]
    fn an_engine_says_what_it_lacks_and_what_would_do() {
        let everything = Feature::ALL.iter().copied().collect();
        let wanted = Cpu::new(CpuModel::V2, everything, FeatureSet::NONE).unwrap();
        for kind in here().chain([EngineKind::Auto]) {
            let problem = machine(wanted, kind).err().expect("nothing has it all");
            let Error::Cpu(CpuError::Missing {
                missing, instead, ..
            }) = &problem
            else {
                panic!("{problem}");
            };
            assert!(!missing.is_empty());
            assert!(problem.to_string().contains(&missing.to_string()));
            assert!(instead.contains("--cpu x86-64"), "{instead}");
        }
    }

    #[test]
    fn a_machine_is_restored_where_its_cpu_is() {
        let little = Cpu::from(CpuModel::V2);
        let saved = machine(little, EngineKind::Translator).unwrap().save();
        let saved = saved.unwrap();
        assert_eq!(saved.cpu().unwrap(), little);
        for kind in [EngineKind::Translator, EngineKind::Interpreter] {
            let mut same = machine(saved.cpu().unwrap(), kind).unwrap();
            same.restore(&saved).unwrap();
            let mut other = machine(Cpu::default(), kind).unwrap();
            let problem = other.restore(&saved).unwrap_err().to_string();
            assert!(problem.ends_with("give --cpu x86-64-v2"), "{problem}");
        }
        let default = machine(Cpu::default(), EngineKind::Interpreter).unwrap();
        let saved = default.save().unwrap();
        assert_eq!(saved.cpu().unwrap(), Cpu::default());
    }

    #[test]
    fn what_a_saved_cpu_has_and_this_one_can_not_is_named() {
        let kind = EngineKind::Interpreter;
        let here = &tables(&shape(Cpu::default(), kind), kind, TSC_KHZ).unwrap()[0];
        assert_eq!(check_saved(here, "common", here, kind), Ok(()));
        let change = |leaf: u32, change: fn(&mut Answer)| {
            let mut table = here.clone();
            let mut answer = table.get(leaf, 0);
            change(&mut answer);
            match leaf {
                7 => table.set_subleaf(leaf, 0, answer),
                _ => table.set(leaf, answer),
            }
            table
        };
        let more = change(7, |answer| answer.ebx |= 1 << 16 | 1 << 31);
        let problem = check_saved(&more, "x86-64-v4\x1b[2J", here, kind).unwrap_err();
        let text = problem.to_string();
        assert!(text.contains("avx512f, avx512vl"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let CpuError::Lost { missing, .. } = problem else {
            panic!("{text}");
        };
        assert_eq!(missing, set(&[Feature::Avx512f, Feature::Avx512vl]));

        let less = change(1, |answer| answer.ecx &= !(1 << 30));
        let expected = Cpu::new(CpuModel::Common, FeatureSet::NONE, set(&[Feature::Rdrand]));
        let Err(CpuError::Other(cpu)) = check_saved(&less, "", here, kind) else {
            panic!("another CPU");
        };
        // Whatever way it is written, it is this CPU.
        let [told, expected] = [cpu, expected.unwrap()].map(|cpu| features(&cpu, kind));
        assert_eq!(told, expected);

        let vendor = vendor(here);
        let foreign = change(0, |answer| answer.ebx = u32::from_le_bytes(*b"Auth"));
        let native = change(0, |answer| answer.ebx = u32::from_le_bytes(*b"Genu"));
        let saved = if vendor == Vendor::Amd {
            native
        } else {
            foreign
        };
        let problem = check_saved(&saved, "", here, kind);
        assert!(
            matches!(problem, Err(CpuError::Vendor { .. })),
            "{problem:?}"
        );
        let older = change(0x8000_0002, |answer| answer.eax ^= 1);
        let problem = check_saved(&older, "", here, kind);
        assert_eq!(problem, Err(CpuError::Leaf(0x8000_0002)));
    }
}
