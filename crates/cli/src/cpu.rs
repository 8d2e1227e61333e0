//! `--cpu`: which CPU the guest sees.

use config::{Cpu, CpuModel, Feature, FeatureSet};
use machine::CpuReport;
use std::io::Write;

/// Columns of a terminal.
const WIDTH: usize = 80;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CpuArgument {
    /// A list of what there is, as QEMU has it.
    Help,
    /// A CPU.
    Cpu(Cpu),
}

impl CpuArgument {
    /// The CPU; the default for [`CpuArgument::Help`], which runs no machine.
    pub(crate) fn cpu(self) -> Cpu {
        match self {
            Self::Help => Cpu::default(),
            Self::Cpu(cpu) => cpu,
        }
    }
}

pub(crate) fn parse_argument(text: &str) -> Result<CpuArgument, String> {
    match text {
        "help" | "?" => Ok(CpuArgument::Help),
        _ => parse(text).map(CpuArgument::Cpu),
    }
}

/// Prints what there is.
pub(crate) fn print() -> anyhow::Result<u8> {
    let text = describe(&machine::cpu_models());
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(crate::status::OK)
}

/// A CPU from text such as `x86-64-v3,+sha-ni,-movbe`. QEMU's `sha-ni=on` and `movbe=off` will do.
fn parse(text: &str) -> Result<Cpu, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let model = CpuModel::by_name(name).ok_or_else(|| {
        let names = CpuModel::ALL.map(CpuModel::name).join(", ");
        format!("there is no CPU model '{name}', but {names}")
    })?;
    let (mut more, mut less) = (FeatureSet::NONE, FeatureSet::NONE);
    for part in parts {
        let (feature, on) = switch(part)?;
        let one = FeatureSet::of(&[feature]);
        if on {
            more = more.union(one);
        } else {
            less = less.union(one);
        }
    }
    Cpu::new(model, more, less).map_err(|problem| problem.to_string())
}

/// A feature, and whether it is to be there.
fn switch(part: &str) -> Result<(Feature, bool), String> {
    let (name, on) = match part.split_at_checked(1) {
        Some(("+", name)) => (name, true),
        Some(("-", name)) => (name, false),
        _ => match part.split_once('=') {
            Some((name, "on")) => (name, true),
            Some((name, "off")) => (name, false),
            _ => return Err(format!("'{part}' is no +FEATURE or -FEATURE")),
        },
    };
    let feature = Feature::by_name(name)
        .ok_or_else(|| format!("there is no feature '{name}': see --cpu help"))?;
    Ok((feature, on))
}

/// What a model is, in few words.
fn about(model: CpuModel) -> &'static str {
    match model {
        CpuModel::Common => "what every engine here has (default)",
        CpuModel::Host => "all that the engine has here (or: max)",
        CpuModel::V1 => "any 64-bit CPU: SSE2",
        CpuModel::V2 => "about 2009: SSE4.2, POPCNT, CMPXCHG16B",
        CpuModel::V3 => "about 2013: AVX2, BMI, FMA",
        CpuModel::V4 => "about 2017: AVX-512",
    }
}

/// The models, and which engine can give them; then their features, and all that there are.
fn describe(models: &[CpuReport]) -> String {
    let engines = models.first().map_or(&[][..], |report| &report.engines);
    let mut text = format!("{:<11}", "MODEL");
    for (name, _) in engines {
        text += &format!("{}  ", name.to_uppercase());
    }
    text += "WHAT IT IS\n";
    for report in models {
        text += &format!("{:<11}", report.model.name());
        for (name, features) in &report.engines {
            let can = if features.is_ok() { "yes" } else { "no" };
            text += &format!("{can:<width$}", width = name.len() + 2);
        }
        text += about(report.model);
        text.push('\n');
    }
    for report in models {
        for (engine, features) in &report.engines {
            if let Err(missing) = features {
                let title = format!(
                    "{} can't be had of the {engine}, which has no",
                    report.model.name()
                );
                text += &paragraph(&title, *missing);
            }
        }
    }
    let mut lower = FeatureSet::NONE;
    for report in models {
        if let Some(level) = report.model.level() {
            let and = if lower.is_empty() {
                ""
            } else {
                ", beyond the last one,"
            };
            let title = format!("{}{and} has", report.model.name());
            text += &paragraph(&title, level.without(lower));
            lower = level;
        }
    }
    // The last one is in software: it has all of it, and a KVM that emulates may have less.
    if let Some((_, Ok(common))) = engines.last() {
        text += &paragraph("common has, on this host,", *common);
    }
    let all = Feature::ALL.iter().copied().collect();
    text += &paragraph("+FEATURE and -FEATURE may be", all);
    text
}

/// A title, and behind it the features, on lines that fit a terminal.
fn paragraph(title: &str, features: FeatureSet) -> String {
    let mut text = format!("\n{title}\n");
    let mut column = 0;
    for word in features.to_string().split_whitespace() {
        if column == 0 || column + 1 + word.len() > WIDTH {
            text += if column == 0 { "   " } else { "\n   " };
            column = 3;
        }
        text += &format!(" {word}");
        column += 1 + word.len();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_as_qemu_and_libvirt_write_them() {
        for (text, same) in [
            ("host", "host"),
            ("max", "host"),
            ("common", "common"),
            ("x86-64", "x86-64"),
            ("x86-64-v1", "x86-64"),
            ("x86-64-v3,+sha-ni,-movbe", "x86-64-v3,+sha-ni,-movbe"),
            ("x86-64-v3,sha-ni=on,movbe=off", "x86-64-v3,+sha-ni,-movbe"),
            ("x86-64-v2,+sse4_2,-lahf_lm", "x86-64-v2,+sse4.2,-lahf-lm"),
        ] {
            let cpu = parse(text).unwrap();
            assert_eq!(cpu.to_string(), same);
            assert_eq!(parse(same), Ok(cpu), "what is shown can be given");
        }
    }

    #[test]
    fn what_is_wrong_with_a_cpu_is_named() {
        for (text, part) in [
            ("", "no CPU model ''"),
            ("x86-64-v9", "x86-64-v3, x86-64-v4"),
            ("+avx", "no CPU model '+avx'"),
            ("host,avx", "'avx' is no +FEATURE"),
            ("host,", "'' is no +FEATURE"),
            ("host,+", "no feature ''"),
            ("host,é", "'é' is no +FEATURE"),
            ("host,+avx5", "no feature 'avx5': see --cpu help"),
            ("host,avx=yes", "'avx=yes' is no +FEATURE"),
            ("host,-sse2", "every x86-64 CPU has sse2"),
            ("host,+avx2,-avx", "avx2 can't be there without avx"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn the_list_has_every_model_feature_and_engine() {
        let models = machine::cpu_models();
        let text = describe(&models);
        for model in CpuModel::ALL {
            let line = text.lines().find(|line| line.starts_with(model.name()));
            assert!(line.is_some(), "{model:?} in {text}");
        }
        for (name, _) in &models[0].engines {
            assert!(text.contains(&name.to_uppercase()), "{name} in {text}");
        }
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        for feature in Feature::ALL {
            assert!(text.contains(feature.name()), "{feature:?} in {text}");
        }
        for report in &models {
            let lacks = report.engines.iter().any(|(_, features)| features.is_err());
            let says = text.contains(&format!("\n{} can't be had", report.model.name()));
            assert_eq!(lacks, says, "{:?}", report.model);
        }
    }
}
