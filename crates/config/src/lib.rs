//! What a virtual machine is: plain, validated types.
//!
//! Nothing here parses text or touches a file: the command line, an API or a saved machine fill
//! these in, and `machine` builds from them.
#![forbid(unsafe_code)]

/// The least memory, in bytes.
pub const MEMORY_MIN: u64 = 64 << 20;
/// The most memory, in bytes.
pub const MEMORY_MAX: u64 = 1 << 40;
/// The most vCPUs.
pub const CPUS_MAX: u32 = 64;

/// A value that no machine can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too little, too much, or not whole pages.
    #[error("{0} bytes of memory can't be: give 64M to 1024G, in whole 4K pages")]
    Memory(u64),
    /// None or too many.
    #[error("{0} CPUs can't be: give 1 to {CPUS_MAX}")]
    Cpus(u32),
}

/// Which CPU engine runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// The fastest that is right on this host.
    #[default]
    Auto,
    /// x86 in software.
    Interpreter,
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelEntry {
    /// The way that fits the file: PVH for ELF, 64-bit for a bzImage that has it, else 32-bit.
    #[default]
    Auto,
    /// The 64-bit entry of a bzImage.
    Bits64,
    /// The 32-bit entry of a bzImage.
    Bits32,
}

/// The shape of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What `doppel` calls it, if it has a name.
    pub name: Option<String>,
    /// Which engine.
    pub engine: EngineKind,
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// Bytes of RAM, [`MEMORY_MIN`] to [`MEMORY_MAX`].
    pub memory: u64,
    /// How the kernel is entered.
    pub entry: KernelEntry,
    /// The SMBIOS UUID.
    pub uuid: [u8; 16],
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            name: None,
            engine: EngineKind::Auto,
            cpus: 1,
            memory: 1 << 30,
            entry: KernelEntry::Auto,
            uuid: [0; 16],
        }
    }
}

impl Machine {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first value that can't be.
    pub fn validate(&self) -> Result<(), Error> {
        let whole_pages = self.memory.is_multiple_of(4096);
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&self.memory) || !whole_pages {
            return Err(Error::Memory(self.memory));
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(Error::Cpus(self.cpus));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_inclusive() {
        let machine = Machine::default();
        for (cpus, memory) in [(1, MEMORY_MIN), (CPUS_MAX, MEMORY_MAX)] {
            assert_eq!(
                Machine {
                    cpus,
                    memory,
                    ..machine.clone()
                }
                .validate(),
                Ok(())
            );
        }
        for memory in [0, MEMORY_MIN - 4096, MEMORY_MIN + 1, MEMORY_MAX + 4096] {
            let bad = Machine {
                memory,
                ..machine.clone()
            };
            assert_eq!(bad.validate(), Err(Error::Memory(memory)));
        }
        for cpus in [0, CPUS_MAX + 1] {
            assert_eq!(
                Machine {
                    cpus,
                    ..machine.clone()
                }
                .validate(),
                Err(Error::Cpus(cpus))
            );
        }
    }
}
