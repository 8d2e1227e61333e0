//! What CPUID shows: only what works, and of that what is wanted.
//!
//! Where a bit says that a CPU does not leak through speculation, it is offered, for there is none
//! here.

use crate::cpu::Cpu;
use crate::paging::PHYSICAL_BITS;
use native::Features;
use x86::cpuid::{Answer, Feature as F, FeatureSet, Processor, Table, Vendor};
use x86::{Cr4, Xcr0};

/// IA32_ARCH_CAPABILITIES: no RDCL, L1TF, SSB, MDS, PSCHANGE, TAA, MMIO stale data, BHI, PBRSB,
/// GDS, RFDS, ITS; IBRS is always on.
pub(crate) const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 7 << 13
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// Bytes of the XSAVE area's legacy region and header, and of YMM's upper halves.
const XSAVE_BASE: u32 = 576;
const XSAVE_AVX: u32 = 256;

/// Features that are in software here, and need nothing of the host.
const ALWAYS: FeatureSet = FeatureSet::of(&[
    F::Fpu,
    F::De,
    F::Pse,
    F::Tsc,
    F::Msr,
    F::Pae,
    F::Mce,
    F::Cx8,
    F::Sep,
    F::Mtrr,
    F::Pge,
    F::Mca,
    F::Cmov,
    F::Pat,
    F::Pse36,
    F::Clflush,
    F::Mmx,
    F::Fxsr,
    F::Sse,
    F::Sse2,
    F::Cx16,
    F::Pcid,
    F::X2Apic,
    F::Movbe,
    F::Popcnt,
    F::TscDeadline,
    F::Xsave,
    F::Rdrand,
    F::Arat,
    F::Fsgsbase,
    F::TscAdjust,
    F::Bmi1,
    F::Smep,
    F::Bmi2,
    F::Erms,
    F::Invpcid,
    F::Rdseed,
    F::Adx,
    F::Smap,
    F::Clflushopt,
    F::Clwb,
    F::Umip,
    F::Rdpid,
    F::Fsrm,
    F::Xsaveopt,
    F::Xsavec,
    F::Xgetbv1,
    F::Xsaves,
    F::LahfLm,
    F::Lzcnt,
    F::Prefetchw,
    F::Syscall,
    F::Nx,
    F::Pdpe1gb,
    F::Rdtscp,
    F::Lm,
    F::InvariantTsc,
    F::Wbnoinvd,
]);

/// How Intel's CPUs speak of speculation. Kernels that don't trust ARCH_CAPABILITIES' word about
/// the history of branches set BHI_DIS_S once, rather than clear the history at each system call.
const INTEL: FeatureSet = FeatureSet::of(&[
    F::SpecCtrl,
    F::Stibp,
    F::ArchCapabilities,
    F::Ssbd,
    F::BhiCtrl,
]);

/// How AMD's CPUs speak of speculation, and what their newer ones do better.
const AMD: FeatureSet = FeatureSet::of(&[
    F::XsaveErrorPointers,
    F::SsbNo,
    F::BtcNo,
    F::NoNestedDataBreakpoints,
    F::LfenceSerializing,
    F::NullSelectorClearsBase,
    F::AutomaticIbrs,
    F::SrsoNo,
    F::TsaSqNo,
    F::TsaL1No,
]);

/// All that the software engines can give on this host.
pub fn features() -> FeatureSet {
    let host = Features::host();
    let vectors = [
        (F::Sse3, host.sse3),
        (F::Pclmulqdq, host.pclmulqdq),
        (F::Ssse3, host.ssse3),
        (F::Fma, host.fma && host.avx),
        (F::Sse41, host.sse4_1),
        (F::Sse42, host.sse4_2),
        (F::Aes, host.aes),
        (F::Avx, host.avx),
        (F::F16c, host.f16c && host.avx),
        (F::Avx2, host.avx2),
        (F::Sha, host.sha),
        (F::Gfni, host.gfni),
        (F::Vaes, host.vaes && host.avx2),
        (F::Vpclmulqdq, host.vpclmulqdq && host.avx2),
    ];
    let vectors = vectors.into_iter().filter(|(_, has)| *has);
    let vectors: FeatureSet = vectors.map(|(feature, _)| feature).collect();
    let vendors = match native::host_vendor() {
        Vendor::Intel => INTEL,
        Vendor::Amd => AMD,
    };
    ALWAYS.union(vectors).union(vendors)
}

/// What CPUID shows on vCPU `index` of `count`, whose TSC counts at `tsc_khz`, with all that can
/// be given.
pub fn table(index: u32, count: u32, tsc_khz: u64) -> Table {
    table_with(index, count, tsc_khz, features())
}

/// As [`table`], with these `features`.
pub fn table_with(index: u32, count: u32, tsc_khz: u64, features: FeatureSet) -> Table {
    Processor {
        vendor: native::host_vendor(),
        index,
        count: count.max(1),
        tsc_khz,
        bus_hz: lapic::BUS_HZ,
        physical_bits: PHYSICAL_BITS,
        features,
    }
    .table()
}

impl Cpu {
    /// What CPUID answers now: the table, and the bits that follow registers.
    pub(crate) fn answer_cpuid(&self, leaf: u32, subleaf: u32) -> Answer {
        const APIC: u32 = 1 << 9;
        const OSXSAVE: u32 = 1 << 27;
        let mut answer = self.model.table.get(leaf, subleaf);
        let apic_enabled = self.lapic.base() & 1 << 11 != 0;
        match (leaf, subleaf) {
            (1, _) => {
                if !apic_enabled {
                    answer.edx &= !APIC;
                }
                if self.cr4.contains(Cr4::OSXSAVE) {
                    answer.ecx |= OSXSAVE;
                }
            }
            (0x8000_0001, _) if !apic_enabled => answer.edx &= !APIC,
            (0xd, 0 | 1) if self.model.has(F::Xsave) => {
                let avx = self.xcr0.contains(Xcr0::AVX);
                answer.ebx = XSAVE_BASE + if avx { XSAVE_AVX } else { 0 };
            }
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::cpuid::Model;

    #[test]
    fn the_first_levels_need_nothing_of_the_host() {
        assert!(ALWAYS.contains(Model::V1.level().unwrap()));
        // Any x86-64 CPU that has SSE 4.2 and AVX2.
        let host = Features::host();
        let reaches = |model: Model| features().contains(model.level().unwrap());
        assert_eq!(reaches(Model::V2), host.sse4_2 && host.ssse3);
        assert_eq!(reaches(Model::V3), host.avx2 && host.fma && host.f16c);
        assert!(!reaches(Model::V4), "there is no AVX-512 in software");
    }

    #[test]
    fn what_is_offered_builds_on_what_is_offered() {
        assert_eq!(features().with_needed(), features());
        assert_eq!(FeatureSet::of_table(&table(0, 1, 1)), features());
    }
}
