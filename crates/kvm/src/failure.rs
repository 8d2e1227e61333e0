//! What people are told when KVM can't go on.

use crate::run_page::{InternalError, RunExit};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use std::fmt::Write;

/// What to do about it.
const MEND: &str = "try --engine translator";

/// Where a vCPU stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: usize,
    pub(crate) cs: u16,
    pub(crate) rip: u64,
    /// The bytes there, as far as they are known.
    pub(crate) code: Vec<u8>,
}

impl Place {
    fn describe(&self, code: &[u8]) -> String {
        let mut text = format!("vCPU {} at {:#x}:{:#x}", self.index, self.cs, self.rip);
        if !code.is_empty() {
            text += ", instruction bytes";
            for byte in code {
                // Writing to a string does not fail.
                let _ = write!(text, " {byte:02x}");
            }
        }
        text
    }
}

/// One line for an exit that nobody can handle.
pub(crate) fn describe(exit: &RunExit, place: &Place) -> String {
    let (what, code) = match exit {
        RunExit::InternalError(InternalError {
            kind,
            instruction: (bytes, count),
        }) => {
            let what = match *kind {
                KVM_INTERNAL_ERROR_EMULATION => "can't emulate an instruction".to_owned(),
                KVM_INTERNAL_ERROR_SIMUL_EX => "met two exceptions at once".to_owned(),
                KVM_INTERNAL_ERROR_DELIVERY_EV => {
                    "can't deliver an event whose delivery touches a device".to_owned()
                }
                KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                    "left the guest for a reason that it does not know".to_owned()
                }
                kind => format!("met internal error {kind}"),
            };
            let known = &bytes[..usize::from(*count)];
            (
                what,
                if known.is_empty() {
                    &place.code[..]
                } else {
                    known
                },
            )
        }
        RunExit::FailedEntry(reason) => (
            format!("can't enter the guest: the CPU's reason is {reason:#x}"),
            &place.code[..],
        ),
        exit => (format!("can't handle {exit:?}"), &place.code[..]),
    };
    format!("the host's KVM {what} ({}): {MEND}", place.describe(code))
}

/// One line for a `KVM_RUN` that failed.
pub(crate) fn describe_error(error: &std::io::Error, place: &Place) -> String {
    let place = place.describe(&place.code);
    format!("the host's KVM can't go on: {error} ({place}): {MEND}")
}

/// One line for a triple fault. KVM does not say which faults it were.
pub(crate) fn describe_shutdown(place: &Place) -> String {
    format!("triple fault: {}", place.describe(&place.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            index: 1,
            cs: 8,
            rip: 0x1234,
            code: vec![0xf0, 0x48],
        }
    }

    #[test]
    fn an_instruction_that_is_not_emulated_is_named() {
        let mut bytes = [0; 15];
        bytes[..3].copy_from_slice(&[0xf0, 0x48, 0x0f]);
        let exit = |count| {
            RunExit::InternalError(InternalError {
                kind: KVM_INTERNAL_ERROR_EMULATION,
                instruction: (bytes, count),
            })
        };
        assert_eq!(
            describe(&exit(3), &place()),
            "the host's KVM can't emulate an instruction (vCPU 1 at 0x8:0x1234, instruction bytes \
             f0 48 0f): try --engine translator"
        );
        assert!(describe(&exit(0), &place()).contains("bytes f0 48)"));
    }

    #[test]
    fn every_failure_is_one_line_that_names_the_way_out() {
        for exit in [
            RunExit::FailedEntry(0x8000_0021),
            RunExit::Other(99),
            RunExit::SystemEvent(3),
        ] {
            let text = describe(&exit, &place());
            assert!(
                text.contains("--engine translator") && text.lines().count() == 1,
                "{text}"
            );
        }
    }
}
