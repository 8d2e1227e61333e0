//! What a virtual machine is: plain, validated types.
//!
//! Nothing here parses text or touches a file: the command line, an API or a saved machine fill
//! these in, and `machine` builds from them.
#![forbid(unsafe_code)]

use std::num::NonZeroU32;

pub use x86::cpuid::{Choice as Cpu, Contradiction, Feature, FeatureSet, Model as CpuModel};

/// The least memory, in bytes.
pub const MEMORY_MIN: u64 = 64 << 20;
/// The most memory, in bytes.
pub const MEMORY_MAX: u64 = 1 << 40;
/// The most vCPUs.
pub const CPUS_MAX: u32 = 64;
/// The least room for translated code, in bytes for each vCPU.
pub const CODE_CACHE_MIN: u64 = 1 << 20;
/// The most room for translated code, in bytes for each vCPU: a near jump reaches all of it.
pub const CODE_CACHE_MAX: u64 = 1 << 30;
/// The frequencies that a TSC can have, in kHz.
const TSC_KHZ: std::ops::RangeInclusive<u64> = 1_000..=16_000_000;
/// The room for translated code if nobody says otherwise, in bytes for each vCPU: an eighth of
/// the guest's memory, within these bounds.
const CODE_CACHE_DEFAULT: std::ops::RangeInclusive<u64> = 64 << 20..=256 << 20;

/// A value that no machine can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too little, too much, or not whole pages.
    #[error("{0} bytes of memory can't be: give 64M to 1024G, in whole 4K pages")]
    Memory(u64),
    /// None or too many.
    #[error("{0} CPUs can't be: give 1 to {CPUS_MAX}")]
    Cpus(u32),
    /// Too little or too much for so many vCPUs.
    #[error("a code cache of {0} bytes can't be: give 1M to 1024M times the number of CPUs ({1})")]
    CodeCache(u64, u32),
    /// Something that only the translator has, with another engine.
    #[error(
        "the engine {} translates nothing: a code cache, a perf map, windows or a check of \
         translations are the translator's", .0.name()
    )]
    NothingTranslated(EngineKind),
    /// Translations are checked in a machine with more than one vCPU.
    #[error(
        "translations can be checked with one CPU only, not {0}: what others do can't be repeated"
    )]
    CheckedCpus(u32),
    /// No TSC counts like that.
    #[error("a TSC of {0} kHz can't be: give 1 MHz to 16 GHz")]
    Tsc(u64),
    /// Translations are checked, and all user code is to run in windows.
    #[error(
        "translations are checked outside of windows only: leave out --windows always or \
         --check-translation"
    )]
    CheckedWindows,
    /// All user code is to run in windows, and memory to be of huge pages.
    #[error(
        "windows map memory by small pages: leave out --windows always or the hugepages of --memory"
    )]
    HugeWindows,
}

/// Which CPU engine runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// The fastest that is right on this host.
    #[default]
    Auto,
    /// x86 on the host's CPU, by hardware virtualization.
    Kvm,
    /// x86 to x86, translated.
    Translator,
    /// x86 in software.
    Interpreter,
}

impl EngineKind {
    /// The name by which a user selects it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Translator => "translator",
            Self::Interpreter => "interpreter",
        }
    }
}

/// When the translator lets guest user code run in a process of its own, without checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Windows {
    /// Where it pays: code that computes for long.
    #[default]
    Auto,
    /// Always, however slow that makes short runs: for tests.
    Always,
    /// Never.
    Never,
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
    /// Which CPU the guest sees.
    pub cpu: Cpu,
    /// Bytes of translated code that are kept, [`CODE_CACHE_MIN`] to [`CODE_CACHE_MAX`] for each
    /// vCPU, which get equal parts; `None` for an eighth of the memory each, but 64 to 256 MiB.
    pub code_cache: Option<u64>,
    /// When user code runs in a process of its own.
    pub windows: Windows,
    /// Whether the host's `perf` is told where translated code is.
    pub perf_map: bool,
    /// Whether the interpreter repeats what translated code does, and the machine ends where they
    /// differ: all first executions of a block, and one in this many of the others. With one vCPU,
    /// and without windows.
    pub check_translation: Option<NonZeroU32>,
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// Bytes of RAM, [`MEMORY_MIN`] to [`MEMORY_MAX`].
    pub memory: u64,
    /// Whether the memory is made of huge pages of the host.
    pub hugepages: bool,
    /// Frequency of the guest's TSC in kHz; `None` for 1 GHz, a tick of which is a nanosecond, or
    /// the host's if KVM can give no other. A machine that is to go on under another engine needs
    /// the same there.
    pub tsc_khz: Option<u64>,
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
            cpu: Cpu::default(),
            code_cache: None,
            windows: Windows::Auto,
            perf_map: false,
            check_translation: None,
            cpus: 1,
            memory: 1 << 30,
            hugepages: false,
            tsc_khz: None,
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
        let for_translator = self.code_cache.is_some()
            || self.perf_map
            || self.check_translation.is_some()
            || self.windows != Windows::Auto;
        if let Some(khz) = self.tsc_khz
            && !TSC_KHZ.contains(&khz)
        {
            return Err(Error::Tsc(khz));
        }
        let translates = matches!(self.engine, EngineKind::Auto | EngineKind::Translator);
        if !translates && for_translator {
            return Err(Error::NothingTranslated(self.engine));
        }
        if self.check_translation.is_some() && self.cpus != 1 {
            return Err(Error::CheckedCpus(self.cpus));
        }
        if self.check_translation.is_some() && self.windows == Windows::Always {
            return Err(Error::CheckedWindows);
        }
        if self.hugepages && self.windows == Windows::Always {
            return Err(Error::HugeWindows);
        }
        let cpus = u64::from(self.cpus);
        match self.code_cache {
            Some(bytes) if !(CODE_CACHE_MIN * cpus..=CODE_CACHE_MAX * cpus).contains(&bytes) => {
                Err(Error::CodeCache(bytes, self.cpus))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of translated code that each vCPU may keep.
    pub fn code_cache_per_cpu(&self) -> u64 {
        match self.code_cache {
            Some(bytes) => bytes / u64::from(self.cpus),
            None => {
                let (least, most) = (CODE_CACHE_DEFAULT.start(), CODE_CACHE_DEFAULT.end());
                (self.memory / 8).clamp(*least, *most)
            }
        }
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

    #[test]
    fn a_code_cache_is_checked_for_each_cpu_and_split() {
        let with = |cpus, bytes| Machine {
            cpus,
            code_cache: Some(bytes),
            ..Machine::default()
        };
        for cpus in [1, 3, CPUS_MAX] {
            let (least, most) = (
                CODE_CACHE_MIN * u64::from(cpus),
                CODE_CACHE_MAX * u64::from(cpus),
            );
            assert_eq!(with(cpus, least).validate(), Ok(()));
            assert_eq!(with(cpus, least).code_cache_per_cpu(), CODE_CACHE_MIN);
            assert_eq!(with(cpus, most).validate(), Ok(()));
            assert_eq!(with(cpus, most).code_cache_per_cpu(), CODE_CACHE_MAX);
            for bytes in [0, least - 1, most + 1, u64::MAX] {
                assert_eq!(
                    with(cpus, bytes).validate(),
                    Err(Error::CodeCache(bytes, cpus))
                );
            }
        }
    }

    #[test]
    fn large_guests_have_large_code_caches() {
        let default = |memory| {
            let machine = Machine {
                memory,
                ..Machine::default()
            };
            machine.code_cache_per_cpu()
        };
        assert_eq!(default(MEMORY_MIN), 64 << 20);
        assert_eq!(default(1 << 30), 128 << 20);
        assert_eq!(default(MEMORY_MAX), 256 << 20);
    }

    #[test]
    fn only_the_translator_keeps_translated_code() {
        for engine in [EngineKind::Kvm, EngineKind::Interpreter] {
            let other = Machine {
                engine,
                ..Machine::default()
            };
            assert_eq!(other.validate(), Ok(()));
            for wrong in [
                Machine {
                    code_cache: Some(CODE_CACHE_MIN),
                    ..other.clone()
                },
                Machine {
                    perf_map: true,
                    ..other.clone()
                },
                Machine {
                    check_translation: Some(NonZeroU32::MIN),
                    ..other
                },
            ] {
                let refused = Err(Error::NothingTranslated(engine));
                assert_eq!(wrong.validate(), refused);
            }
        }
    }

    #[test]
    fn not_all_code_is_in_windows_with_huge_pages() {
        let with = |windows| Machine {
            windows,
            hugepages: true,
            ..Machine::default()
        };
        assert_eq!(with(Windows::Auto).validate(), Ok(()));
        assert_eq!(with(Windows::Never).validate(), Ok(()));
        assert_eq!(with(Windows::Always).validate(), Err(Error::HugeWindows));
    }

    #[test]
    fn translations_are_checked_with_one_cpu_and_no_windows() {
        let with = |cpus, windows| Machine {
            cpus,
            windows,
            check_translation: Some(NonZeroU32::MIN),
            ..Machine::default()
        };
        assert_eq!(with(1, Windows::Auto).validate(), Ok(()));
        assert_eq!(with(1, Windows::Never).validate(), Ok(()));
        assert_eq!(
            with(2, Windows::Auto).validate(),
            Err(Error::CheckedCpus(2))
        );
        let refused = Err(Error::CheckedWindows);
        assert_eq!(with(1, Windows::Always).validate(), refused);
    }
}
