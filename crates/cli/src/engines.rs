//! `doppel engines`.

use machine::EngineReport;
use std::io::Write;

/// Prints what this host can run.
pub(crate) fn print() -> anyhow::Result<u8> {
    let text = describe(&machine::engines());
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(crate::status::OK)
}

/// What an engine is, in few words.
fn about(name: &str) -> &'static str {
    match name {
        "translator" => "x86 translated to x86; needs no /dev/kvm and no privilege",
        "interpreter" => "x86 in software, instruction by instruction",
        _ => "",
    }
}

/// The engines, fastest first, as a table; then what `auto` takes.
fn describe(engines: &[EngineReport]) -> String {
    let mut text = "ENGINE       STATE     WHY\n".to_owned();
    for EngineReport { name, problem } in engines {
        let (state, why) = match problem {
            None => ("ready", about(name).to_owned()),
            Some(problem) => ("can't run", problem.to_string()),
        };
        text += &format!("{name:<11}  {state:<9} {why}\n");
    }
    let taken = engines.iter().position(|engine| engine.problem.is_none());
    text += "auto takes   ";
    text += &match taken {
        None => "none: no engine can run here".to_owned(),
        Some(0) => format!("{}, the fastest of this version", engines[0].name),
        Some(at) => format!("{}, the fastest that can run here", engines[at].name),
    };
    text += "; KVM is not used yet\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::Error;

    fn report(name: &'static str, problem: Option<&str>) -> EngineReport {
        let problem = problem.map(|text| Error::Board(text.to_owned()));
        EngineReport { name, problem }
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
