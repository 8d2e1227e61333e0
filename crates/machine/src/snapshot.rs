//! A whole machine, saved.

use crate::{Error, cpu};
use memory::{GuestMemory, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use state::Saved;
use x86::cpuid::Table;

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
        let mut from = state::Reader::from_bytes(&self.state)?;
        let MachineV2 { cpuid, .. } = from.take("machine")?;
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
