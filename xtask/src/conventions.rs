//! Conventions that neither the compiler nor clippy knows (CONTRIBUTING.md).

use crate::workspace::{self, Crate};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates with modules that need `unsafe`. All others forbid it.
const UNSAFE_CRATES: [&str; 4] = ["kvm", "memory", "native", "translator"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = [
    "base", "common", "helper", "helpers", "misc", "util", "utils",
];

/// The most lines of code in a `lib.rs` that has modules beside it: what the crate is, its
/// modules, its re-exports, and the few types or traits that are the crate's point.
const ROOT_LINES_MAX: usize = 60;

/// Marks of work that is not done. Split, so that this file does not contain them.
const UNFINISHED: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
];

/// Checks the workspace.
pub(crate) fn run() -> Result<()> {
    let (files, wrong) = check_all(&workspace::crates()?)?;
    if !wrong.is_empty() {
        bail!(
            "conventions (see xtask/src/conventions.rs):\n  {}",
            wrong.join("\n  ")
        );
    }
    println!("{files} source files keep to the conventions");
    Ok(())
}

/// The number of source files in `crates`, and what is wrong with them.
fn check_all(crates: &[Crate]) -> Result<(usize, Vec<String>)> {
    let (mut count, mut wrong) = (0, Vec::new());
    for member in crates {
        if EMPTY_NAMES.contains(&member.name.as_str()) {
            wrong.push(format!(
                "a crate's name says what it is, unlike {}",
                member.name
            ));
        }
        let files = sources(&member.directory)?;
        count += files.len();
        let modules = files
            .iter()
            .filter(|f| f.starts_with(member.directory.join("src")))
            .count();
        for path in &files {
            let text = fs::read_to_string(path)
                .with_context(|| format!("can't read {}", path.display()))?;
            let shown = path.strip_prefix(workspace::root()).unwrap_or(path);
            let found = lines_to_mend(&text)
                .into_iter()
                .chain(file_name_to_mend(path));
            wrong.extend(found.map(|what| format!("{}{what}", shown.display())));
            if is_root(path, &member.directory) {
                let found =
                    root_to_mend(&member.name, &text, path.ends_with("lib.rs") && modules > 1);
                wrong.extend(found.map(|what| format!("{}: {what}", shown.display())));
            }
        }
    }
    Ok((count, wrong))
}

/// All Rust sources below `directory`, in the order of their names.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("can't read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether `path` is the crate's main module.
fn is_root(path: &Path, directory: &Path) -> bool {
    ["src/lib.rs", "src/main.rs"]
        .iter()
        .any(|root| path == directory.join(root))
}

/// What is wrong with the main module of crate `name`, which may have to be small.
fn root_to_mend(name: &str, text: &str, is_small: bool) -> impl Iterator<Item = String> {
    let mut wrong = Vec::new();
    let forbids = text.lines().any(|line| line == "#![forbid(unsafe_code)]");
    if forbids == UNSAFE_CRATES.contains(&name) {
        wrong.push(match forbids {
            true => format!("{name} forbids `unsafe`: take it off the list of those that don't"),
            false => "`#![forbid(unsafe_code)]` is missing".to_owned(),
        });
    }
    let lines = text.lines().map(str::trim);
    let lines = lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count();
    if is_small && lines > ROOT_LINES_MAX {
        wrong.push(format!(
            "{lines} lines of code, of at most {ROOT_LINES_MAX}: make a module"
        ));
    }
    wrong.into_iter()
}

/// What is wrong with the name of a source file.
fn file_name_to_mend(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    EMPTY_NAMES
        .contains(&stem)
        .then(|| ": a module's name says what it is".to_owned())
}

/// What is wrong with single lines of a source file, with their numbers.
fn lines_to_mend(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if let Some(mark) = UNFINISHED.iter().find(|mark| contains_word(line, mark)) {
            wrong.push(format!(":{number}: {mark} is for work that is not done"));
        }
        if is_conditional_code(line) {
            wrong.push(format!(":{number}: a target's code is a module of its own"));
        }
    }
    wrong
}

/// Whether `line` holds `word`, not as a part of a longer one.
fn contains_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(in_word) && (word.ends_with('(') || !after.is_some_and(in_word))
    })
}

/// Whether `line` makes code depend on the target inside of an item: modules and whole items
/// begin in the first column.
fn is_conditional_code(line: &str) -> bool {
    let code = line.trim_start();
    let attribute = code.starts_with(concat!("#[cfg", "(")) && code.len() < line.len();
    let expression = code.contains(concat!("cfg", "!(")) && !code.starts_with("//");
    (attribute || expression) && code.contains(concat!("target_", "arch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_the_conventions() {
        let (files, wrong) = check_all(&workspace::crates().unwrap()).unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(files > 50, "the sources were found");
    }

    #[test]
    fn unfinished_work_is_found() {
        for mark in UNFINISHED {
            assert_eq!(
                lines_to_mend(&format!("fn f() {{}}\n  // {mark}: x\n")).len(),
                1,
                "{mark}"
            );
        }
        assert_eq!(lines_to_mend("0x5XXXX mktodo!(x)").len(), 0);
    }

    #[test]
    fn targets_are_told_apart_by_modules() {
        let attribute = concat!("#[cfg", "(target_", "arch = \"x86_64\")]");
        assert!(!is_conditional_code(attribute));
        assert!(is_conditional_code(&format!("    {attribute}")));
        assert!(is_conditional_code(concat!(
            "if cfg",
            "!(target_",
            "arch = \"x86_64\") {"
        )));
        assert!(!is_conditional_code("    #[cfg(test)]"));
    }

    #[test]
    fn main_modules_forbid_unsafe_and_are_small() {
        let mend = |name, text: &str, modules| root_to_mend(name, text, modules).count();
        let good = "//! Crate.\n#![forbid(unsafe_code)]\n";
        assert_eq!(mend("pci", good, true), 0);
        assert_eq!(mend("pci", "//! Crate.\n", true), 1);
        assert_eq!(mend("memory", "//! Crate.\n", true), 0);
        assert_eq!(mend("memory", good, true), 1);
        let long = format!(
            "{good}{}{}",
            "/// A doc.\n".repeat(99),
            "struct S;\n".repeat(60)
        );
        assert_eq!(mend("pci", &long, true), 1);
        assert_eq!(mend("pci", &long, false), 0, "there is nothing else");
    }

    #[test]
    fn modules_have_names_that_say_something() {
        assert!(file_name_to_mend(Path::new("src/utils.rs")).is_some());
        assert!(file_name_to_mend(Path::new("src/pit.rs")).is_none());
    }
}
