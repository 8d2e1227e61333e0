//! CPUID as a table (SDM vol. 2, CPUID; APM vol. 3, appendix E).

mod feature;
mod model;
mod processor;

pub use feature::{Feature, FeatureSet};
pub use model::{Choice, Contradiction, Model, Offer};
pub use processor::Processor;

use serde::{Deserialize, Serialize};

/// Whose rules hold where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Intel, and anybody else.
    Intel,
    /// AMD and Hygon.
    Amd,
}

impl Vendor {
    /// The name that leaf 0 has: EBX, EDX and ECX.
    pub const fn signature(self) -> &'static [u8; 12] {
        match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        }
    }

    /// By EBX of CPUID leaf 0, the first letters of the vendor's name.
    pub fn of_signature(ebx: u32) -> Self {
        const AUTHENTIC_AMD: u32 = u32::from_le_bytes(*b"Auth");
        const HYGON_GENUINE: u32 = u32::from_le_bytes(*b"Hygo");
        match ebx {
            AUTHENTIC_AMD | HYGON_GENUINE => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// What one leaf and subleaf answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One row of a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question; `None` where the leaf ignores it.
    pub subleaf: Option<u32>,
    /// The answer.
    pub answer: Answer,
}

/// Everything that CPUID answers on one vCPU, apart from the bits that follow control registers
/// (OSXSAVE, APIC enable, the current XSAVE size), which engines fill in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    leaves: Vec<Leaf>,
}

impl Table {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a leaf that ignores ECX.
    pub fn set(&mut self, leaf: u32, answer: Answer) {
        self.insert(Leaf {
            leaf,
            subleaf: None,
            answer,
        });
    }

    /// Sets a subleaf.
    pub fn set_subleaf(&mut self, leaf: u32, subleaf: u32, answer: Answer) {
        self.insert(Leaf {
            leaf,
            subleaf: Some(subleaf),
            answer,
        });
    }

    fn insert(&mut self, row: Leaf) {
        *self.entry(row.leaf, row.subleaf) = row.answer;
    }

    /// The answer of the row for (`leaf`, `subleaf`), which is made, with zeros, if it is not
    /// there.
    fn entry(&mut self, leaf: u32, subleaf: Option<u32>) -> &mut Answer {
        let mut rows = self.leaves.iter();
        let found = rows.position(|l| l.leaf == leaf && l.subleaf == subleaf);
        let at = found.unwrap_or_else(|| {
            self.leaves.push(Leaf {
                leaf,
                subleaf,
                answer: Answer::default(),
            });
            self.leaves.len() - 1
        });
        &mut self.leaves[at].answer
    }

    /// All rows.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The answer to (`leaf`, `subleaf`); zeros where the table has none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Answer {
        let found = self
            .leaves
            .iter()
            .find(|l| l.leaf == leaf && l.subleaf.is_none_or(|s| s == subleaf));
        found.map_or(Answer::default(), |l| l.answer)
    }

    /// The highest leaf of the range that begins at `first` (0, 0x4000_0000, 0x8000_0000).
    pub fn highest(&self, first: u32) -> u32 {
        let in_range = self
            .leaves
            .iter()
            .map(|l| l.leaf)
            .filter(|l| l >> 28 == first >> 28);
        in_range.max().unwrap_or(0)
    }
}
