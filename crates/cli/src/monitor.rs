//! The monitor prompt: Ctrl-a c on the console.

use crate::statistics;
use machine::Machine;
use std::io::{Write, stdout};

const PROMPT: &str = "(doppel) ";
/// The longest line that is taken.
const LINE_BYTES_MAX: usize = 1024;

const HELP: &str = "\
registers   where each CPU stands
stats       what the engine counted so far
pause       stop the guest
resume      let it go on
reset       press the reset button
quit        end the machine
help        this
Ctrl-a c    back to the guest's console";

/// What the owner of the machine has to do after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Keep the guest paused.
    Pause,
    /// Let it run.
    Resume,
    Reset,
    Quit,
}

/// Collects a line on a terminal in raw mode.
#[derive(Default)]
pub(crate) struct LineEditor {
    line: Vec<u8>,
}

impl LineEditor {
    /// Prints the prompt.
    pub(crate) fn start() -> Self {
        print(&format!("\n{PROMPT}"));
        Self::default()
    }

    /// Takes what is typed, echoes it, and returns the lines that it completes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    print("\n");
                    let line = std::mem::take(&mut self.line);
                    lines.push(String::from_utf8_lossy(&line).trim().to_owned());
                }
                0x7f | 0x08 if self.line.pop().is_some() => print("\u{8} \u{8}"),
                // Ctrl-u.
                0x15 => {
                    print(&"\u{8} \u{8}".repeat(self.line.len()));
                    self.line.clear();
                }
                b' '..=b'~' if self.line.len() < LINE_BYTES_MAX => {
                    self.line.push(byte);
                    print(&char::from(byte).to_string());
                }
                _ => {}
            }
        }
        lines
    }
}

/// Says that the console is the guest's again.
pub(crate) fn leave() {
    print("\n");
}

/// Executes `line` on `machine`, which is paused.
pub(crate) fn execute(machine: &Machine, line: &str) -> Action {
    let action = match line {
        "" => Action::None,
        "registers" | "info registers" => {
            for report in machine.reports() {
                print(&format!("{report}\n"));
            }
            Action::None
        }
        "stats" => {
            print(&statistics::table(machine));
            Action::None
        }
        "pause" | "stop" => Action::Pause,
        "resume" | "cont" | "c" => Action::Resume,
        "reset" | "system_reset" => Action::Reset,
        "quit" | "q" => Action::Quit,
        "help" | "?" => {
            print(&format!("{HELP}\n"));
            Action::None
        }
        _ => {
            print(&format!("'{line}' is no command; try help\n"));
            Action::None
        }
    };
    if action != Action::Quit {
        print(PROMPT);
    }
    action
}

/// Prints on a terminal that may be in raw mode.
pub(crate) fn print(text: &str) {
    let mut out = stdout();
    // There is nobody to tell.
    let _ = out.write_all(text.replace('\n', "\r\n").as_bytes());
    let _ = out.flush();
}
