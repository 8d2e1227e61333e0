//! The event trace: engine events and device accesses as lines of text.

use engine::{Access, Event, Kinds, Space, Tracer};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Names of event kinds, as a user gives them.
const NAMES: [(&str, Kinds); 8] = [
    ("exec", Kinds::INSTRUCTIONS),
    ("exception", Kinds::EXCEPTIONS),
    ("interrupt", Kinds::INTERRUPTS),
    ("msr", Kinds::MSRS),
    ("control", Kinds::CONTROL),
    ("cpuid", Kinds::CPUID),
    ("port", Kinds::PORTS),
    ("mmio", Kinds::MMIO),
];

/// The kinds in a list such as `"exception,msr"`; `"all"` is all but `exec`.
///
/// # Errors
/// A line that names the unknown word and the known ones.
pub fn parse_kinds(list: &str) -> Result<Kinds, String> {
    let mut kinds = Kinds::empty();
    for word in list.split(',') {
        kinds |= match NAMES.iter().find(|(name, _)| *name == word) {
            Some((_, kind)) => *kind,
            None if word == "all" => Kinds::all().difference(Kinds::INSTRUCTIONS),
            None => {
                let known: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "'{word}' is no kind of event; there are {} and all",
                    known.join(", ")
                ));
            }
        };
    }
    Ok(kinds)
}

/// Writes events as lines.
pub struct TraceSink {
    kinds: Kinds,
    output: Mutex<Box<dyn Write + Send>>,
}

impl TraceSink {
    /// Events of `kinds` to `output`.
    pub fn new(kinds: Kinds, output: Box<dyn Write + Send>) -> Self {
        Self {
            kinds,
            output: Mutex::new(output),
        }
    }

    /// What is reported.
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn line(&self, text: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A trace that nobody can read any more must not stop the guest.
        let _ = writeln!(output, "{text}");
    }

    /// Reports an access to a device, if that is wanted.
    pub(crate) fn access(&self, access: &Access, value: u64) {
        let (kind, space) = match access.space {
            Space::Port => (Kinds::PORTS, "port"),
            Space::Memory => (Kinds::MMIO, "mmio"),
        };
        if self.kinds.contains(kind) {
            let Access { address, bytes, .. } = *access;
            let (arrow, value) = match access.write {
                Some(value) => ("<-", value),
                None => ("->", value),
            };
            self.line(&format!("{space} {address:#x}.{bytes} {arrow} {value:#x}"));
        }
    }
}

impl Tracer for TraceSink {
    fn event(&self, index: usize, event: &Event) {
        let text = match event {
            Event::Instruction { linear, text } => format!("{linear:016x} {text}"),
            Event::Exception { exception, rip } => format!(
                "exception {:?} code {:#x} payload {:#x} at {rip:#x}",
                exception.vector, exception.error_code, exception.payload
            ),
            Event::Interrupt { vector, rip } => format!("interrupt {vector:#x} at {rip:#x}"),
            Event::Signal(name) => (*name).to_owned(),
            Event::Msr {
                number,
                value,
                write,
                refused,
                rip,
            } => {
                let verb = if *write { "wrmsr" } else { "rdmsr" };
                let refused = if *refused { " refused" } else { "" };
                format!("{verb} {number:#x} {value:#x} at {rip:#x}{refused}")
            }
            Event::Control {
                register,
                value,
                rip,
            } => {
                format!("cr{register} <- {value:#x} at {rip:#x}")
            }
            Event::Cpuid { question, answer } => format!(
                "cpuid {:#x}.{:#x} -> {:08x} {:08x} {:08x} {:08x}",
                question.0, question.1, answer.eax, answer.ebx, answer.ecx, answer.edx
            ),
        };
        self.line(&format!("cpu{index} {text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_kinds() {
        assert_eq!(parse_kinds("msr,port"), Ok(Kinds::MSRS | Kinds::PORTS));
        assert!(!parse_kinds("all").unwrap().contains(Kinds::INSTRUCTIONS));
        assert!(parse_kinds("nonsense").unwrap_err().contains("'nonsense'"));
        assert!(parse_kinds("").is_err());
    }
}
