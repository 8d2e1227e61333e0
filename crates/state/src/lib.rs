//! Saved state: versioned sections, their codec and limits.
//!
//! A machine's state is a list of [`Section`]s. Each is one component's own type, marked with a
//! kind and a version, under an instance name that is unique in the machine. The types that are
//! saved are not the types that run: a component writes its state out by exhaustive
//! destructuring, so that a new field stops the build until someone decided what becomes of it.
//!
//! What is read back is untrusted: lengths are bounded, checksums are verified, and a section
//! that nobody asked for is an error, never ignored.
#![forbid(unsafe_code)]

mod codec;
mod section;

pub use codec::{FORMAT_VERSION, SECTION_BYTES_MAX, SECTIONS_MAX};
pub use section::{Reader, Section, Writer};

use serde::{Serialize, de::DeserializeOwned};

/// A type that may stand in a saved machine.
///
/// `KIND` and `VERSION` name the layout for ever: a change of the layout is a new version (and,
/// where old files are still to be read, a new type beside the old one).
pub trait Saved: Serialize + DeserializeOwned {
    /// What this is, such as `"i8254"`. Unique in the project.
    const KIND: &'static str;
    /// The layout's version, from 1.
    const VERSION: u16;
}

/// A component that saves and restores itself.
pub trait Persist {
    /// What is saved.
    type State: Saved;

    /// The state now. Called only while the machine is paused.
    fn save(&self) -> Self::State;

    /// Takes `state` over, all or nothing, and recomputes whatever is derived from it.
    ///
    /// # Errors
    /// [`Invalid`] if the state can't be one that this component was ever in; the component is
    /// then unchanged.
    fn restore(&mut self, state: Self::State) -> Result<(), Invalid>;
}

/// A state that no component can have been in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// An error that says `what` is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Why a saved state can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not a saved state, or a damaged one.
    #[error("not a saved state: {0}")]
    Format(&'static str),
    /// A later Doppel wrote it.
    #[error(
        "saved by a newer version: {what} has version {found}, this program reads up to {known}"
    )]
    Newer {
        /// The format itself or a section's kind.
        what: String,
        /// The version found.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// A component's section is not there.
    #[error("the saved state has no section {kind} for {instance}")]
    Missing {
        /// The section's kind.
        kind: &'static str,
        /// The component's name in the machine.
        instance: String,
    },
    /// Sections are there that no component of this machine takes.
    #[error("the saved state has sections that this machine has no component for: {0}")]
    Unclaimed(String),
    /// A section's payload does not decode.
    #[error("section {kind} of {instance} is damaged")]
    Payload {
        /// The section's kind.
        kind: &'static str,
        /// The component's name in the machine.
        instance: String,
    },
    /// The payload decodes, but to a state that can't be.
    #[error("section {kind} of {instance}")]
    Invalid {
        /// The section's kind.
        kind: &'static str,
        /// The component's name in the machine.
        instance: String,
        /// What is wrong with it.
        source: Invalid,
    },
}
