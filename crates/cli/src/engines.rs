//! `doppel engines`.

use crate::kvm_speed;
use machine::EngineReport;
use std::io::Write;

/// Prints what this host can run.
pub(crate) fn print() -> anyhow::Result<u8> {
    kvm_speed::recall();
    let text = describe(&machine::engines());
    kvm_speed::keep();
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(crate::status::OK)
}

/// What an engine is, in few words.
fn about(name: &str) -> &'static str {
    match name {
        "kvm" => "the host's CPU itself, by hardware virtualization",
        "translator" => "x86 translated to x86; needs no /dev/kvm and no privilege",
        "interpreter" => "x86 in software, instruction by instruction",
        _ => "",
    }
}

/// The engines, fastest first, as a table; then what `auto` takes.
fn describe(engines: &[EngineReport]) -> String {
    let mut text = "ENGINE       STATE     WHY\n".to_owned();
    for engine in engines {
        let name = engine.name;
        let (state, why) = match (&engine.problem, &engine.drawback) {
            (None, None) => ("ready", about(name).to_owned()),
            (None, Some(drawback)) => ("slow", drawback.to_string()),
            (Some(problem), _) => ("can't run", problem.to_string()),
        };
        text += &format!("{name:<11}  {state:<9} {why}\n");
    }
    let is_taken = |engine: &EngineReport| engine.problem.is_none() && engine.drawback.is_none();
    let taken = engines.iter().position(is_taken);
    text += "auto takes   ";
    text += &match taken {
        None => "none: no engine can run here".to_owned(),
        Some(0) => format!("{}, the fastest of this version", engines[0].name),
        Some(at) => format!("{}, the fastest that can run here", engines[at].name),
    };
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::Error;

    fn report(name: &'static str, problem: Option<&str>) -> EngineReport {
        let problem = problem.map(|text| Error::Board(text.to_owned()));
        EngineReport {
            name,
            problem,
            drawback: None,
        }
    }

    #[test]
    fn auto_takes_the_first_that_runs() {
        let last_line = |problems: [Option<&str>; 2]| {
            let engines = [
                report("translator", problems[0]),
                report("interpreter", problems[1]),
            ];
            let text = describe(&engines);
            text.lines().last().unwrap().to_owned()
        };
        assert!(last_line([None, None]).starts_with("auto takes   translator, "));
        assert!(last_line([Some("no"), None]).starts_with("auto takes   interpreter, "));
        assert!(last_line([Some("no"), Some("no")]).starts_with("auto takes   none"));
    }

    #[test]
    fn auto_passes_a_slow_engine_over() {
        let slow = EngineReport {
            drawback: Some(Error::SlowKvm(1200.0)),
            ..report("kvm", None)
        };
        let text = describe(&[slow, report("translator", None)]);
        assert!(text.contains("kvm          slow "), "{text}");
        assert!(text.contains("1200 times as long"), "{text}");
        assert!(
            text.contains("auto takes   translator, the fastest that can run"),
            "{text}"
        );
    }

    #[test]
    fn every_engine_has_a_line_that_says_why() {
        let engines = machine::engines();
        let text = describe(&engines);
        for (line, engine) in text.lines().skip(1).zip(&engines) {
            let words: Vec<_> = line.split_whitespace().collect();
            assert_eq!(words[0], engine.name);
            assert!(words.len() > 3, "{line}");
        }
        let broken = describe(&[report("translator", Some("no executable memory"))]);
        assert!(broken.contains("can't run"), "{broken}");
        assert!(broken.contains("no executable memory"), "{broken}");
    }
}
