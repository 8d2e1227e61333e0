//! A whole machine, saved.

use crate::{Error, cpu};
use memory::{GuestMemory, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use state::{Invalid, Reader, Saved};
use x86::cpuid::Table;

/// Under which name the machine's own section is saved.
pub(crate) const INSTANCE: &str = "machine";

/// The machine's own section: what must fit before anything else is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineV2 {
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) tsc_khz: u64,
    /// Machine time, nanoseconds.
    pub(crate) now: u64,
    /// The CPU that was asked for, for people.
    pub(crate) cpu: String,
    /// What CPUID answers on the first vCPU. On the others it is the same but for their index.
    pub(crate) cpuid: Table,
}

impl Saved for MachineV2 {
    const KIND: &'static str = "machine";
    const VERSION: u16 = 2;
}

/// The most leaves of a CPUID table: several times what any machine has.
const LEAVES_MAX: usize = 1024;

impl MachineV2 {
    /// The machine's own section of a saved machine.
    pub(crate) fn take(from: &mut Reader) -> Result<Self, state::Error> {
        let machine: Self = from.take(INSTANCE)?;
        if machine.cpuid.leaves().len() > LEAVES_MAX {
            return Err(state::Error::Invalid {
                kind: Self::KIND,
                instance: INSTANCE.to_owned(),
                source: Invalid::new("CPUID has too many leaves"),
            });
        }
        Ok(machine)
    }
}

/// A saved machine: the sections of its components, and the pages of its memory that are not all
/// zero.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) state: Vec<u8>,
    pub(crate) pages: Vec<(usize, Box<[u8; PAGE_SIZE]>)>,
}

impl Snapshot {
    pub(crate) fn new(state: Vec<u8>, memory: &GuestMemory) -> std::io::Result<Self> {
        let ram = memory.ram();
        let mut pages = Vec::new();
        for offset in memory
            .written_ranges()?
            .into_iter()
            .flat_map(|r| r.step_by(PAGE_SIZE))
        {
            let mut page = Box::new([0; PAGE_SIZE]);
            ram.read(offset, page.as_mut_slice());
            if page.iter().any(|byte| *byte != 0) {
                pages.push((offset, page));
            }
        }
        Ok(Self { state, pages })
    }

    /// Fills fresh memory, which is zero.
    pub(crate) fn fill(&self, memory: &GuestMemory) {
        for (offset, page) in &self.pages {
            memory.ram().write(*offset, page.as_slice());
        }
    }

    /// The CPU that a machine must be made with to be restored from this, on this host.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn cpu(&self) -> Result<config::Cpu, Error> {
        let MachineV2 { cpuid, .. } = MachineV2::take(&mut Reader::from_bytes(&self.state)?)?;
        Ok(cpu::choice(&cpuid))
    }

    /// The component's sections as one checked byte string.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// How many pages of memory it holds.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::cpuid::Answer;

    #[test]
    fn a_table_without_end_is_refused() {
        let section = |leaves: u32| {
            let mut cpuid = Table::new();
            (0..leaves).for_each(|leaf| cpuid.set(leaf, Answer::default()));
            let mut out = state::Writer::new();
            let machine = MachineV2 {
                cpus: 1,
                memory: 0,
                tsc_khz: 0,
                now: 0,
                cpu: String::new(),
                cpuid,
            };
            out.put(INSTANCE, &machine);
            MachineV2::take(&mut Reader::from_bytes(&out.into_bytes()).unwrap())
        };
        assert!(section(LEAVES_MAX as u32).is_ok());
        let refused = section(LEAVES_MAX as u32 + 1);
        assert!(matches!(refused, Err(state::Error::Invalid { .. })));
    }
}
