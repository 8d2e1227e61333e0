//! What CPUID shows: only what works.
//!
//! The vendor is the host's, since data instructions run on the host and differ in what the
//! architecture leaves undefined. Family and model are those of a recent CPU of the vendor that
//! needs no workarounds; where a bit says that a CPU does not leak through speculation, it is set,
//! for there is none here. Sources: SDM vol. 2, CPUID; APM vol. 3, appendix E; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst.

use crate::cpu::Cpu;
use crate::paging::PHYSICAL_BITS;
use native::Features;
use x86::cpuid::{Answer, Table, Vendor};
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

/// Family 0x19, model 1, stepping 1.
const AMD_SIGNATURE: u32 = 0x00a0_0f11;
/// Family 6, model 0x8f, stepping 8.
const INTEL_SIGNATURE: u32 = 0x0008_06f8;
const BRAND: &[u8; 48] =
    b"Doppel virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Bytes of the XSAVE area's legacy region and header, and of YMM's upper halves.
const XSAVE_BASE: u32 = 576;
const XSAVE_AVX: u32 = 256;

/// What the table of one vCPU is made from.
struct Shape<'a> {
    vendor: Vendor,
    index: u32,
    count: u32,
    tsc_khz: u64,
    host: &'a Features,
}

/// What CPUID shows on vCPU `index` of `count`, whose TSC counts at `tsc_khz`.
pub fn table(index: u32, count: u32, tsc_khz: u64) -> Table {
    let shape = Shape {
        vendor: native::host_vendor(),
        index,
        count: count.max(1),
        tsc_khz,
        host: Features::host(),
    };
    let mut table = Table::new();
    shape.basic(&mut table);
    shape.topology(&mut table);
    shape.paravirtual(&mut table);
    shape.extended(&mut table);
    // The highest leaves, now that all are there.
    for first in [0, 0x8000_0000] {
        let mut answer = table.get(first, 0);
        answer.eax = table.highest(first);
        table.set(first, answer);
    }
    table
}

/// The bits whose condition holds.
fn bits(flags: &[(u32, bool)]) -> u32 {
    flags
        .iter()
        .filter(|(_, on)| *on)
        .fold(0, |all, (bit, _)| all | 1 << bit)
}

/// A set of bits.
fn set(bits: &[u32]) -> u32 {
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}

fn words(text: &[u8]) -> Vec<u32> {
    text.chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

impl Shape<'_> {
    fn is_amd(&self) -> bool {
        self.vendor == Vendor::Amd
    }

    fn has_avx(&self) -> bool {
        self.host.avx
    }

    fn vendor_leaf(&self) -> Answer {
        let text = if self.is_amd() {
            b"AuthenticAMD"
        } else {
            b"GenuineIntel"
        };
        let text = words(text);
        Answer {
            eax: 0,
            ebx: text[0],
            edx: text[1],
            ecx: text[2],
        }
    }

    fn signature(&self) -> u32 {
        if self.is_amd() {
            AMD_SIGNATURE
        } else {
            INTEL_SIGNATURE
        }
    }

    /// EDX of leaf 1: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT,
    /// PSE-36, CLFSH, MMX, FXSR, SSE, SSE2, and HTT with several vCPUs. The APIC's bit follows
    /// IA32_APIC_BASE.
    fn classic_features(&self) -> u32 {
        set(&[
            0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
        ]) | bits(&[(28, self.count > 1)])
    }

    fn basic(&self, table: &mut Table) {
        table.set(0, self.vendor_leaf());
        let host = self.host;
        table.set(
            1,
            Answer {
                eax: self.signature(),
                ebx: self.index << 24 | self.count.min(255) << 16 | 8 << 8,
                ecx: bits(&[
                    (0, host.sse3),
                    (1, host.pclmulqdq),
                    (9, host.ssse3),
                    (12, host.fma && self.has_avx()),
                    (13, true), // CX16
                    (17, true), // PCID
                    (19, host.sse4_1),
                    (20, host.sse4_2),
                    (21, true), // x2APIC
                    (22, true), // MOVBE
                    (23, true), // POPCNT
                    (24, true), // TSC deadline
                    (25, host.aes),
                    (26, true), // XSAVE
                    (28, self.has_avx()),
                    (29, host.f16c && self.has_avx()),
                    (30, true), // RDRAND
                    (31, true), // hypervisor
                ]),
                edx: self.classic_features(),
            },
        );
        if !self.is_amd() {
            // Leaf 2 refers to leaf 4.
            table.set(2, answer(0x00fe_ff01, 0, 0, 0));
            self.intel_caches(table);
        }
        // ARAT: the APIC's timer runs in every state.
        table.set(6, answer(1 << 2, 0, 0, 0));
        self.leaf_seven(table);
        self.leaf_xsave(table);
        if !self.is_amd() {
            self.frequencies(table);
        }
    }

    fn leaf_seven(&self, table: &mut Table) {
        let host = self.host;
        let ebx = bits(&[
            (0, true), // FSGSBASE
            (1, true), // TSC_ADJUST
            (3, true), // BMI1
            (5, host.avx2),
            (7, true),  // SMEP
            (8, true),  // BMI2
            (9, true),  // ERMS
            (10, true), // INVPCID
            (18, true), // RDSEED
            (19, true), // ADX
            (20, true), // SMAP
            (23, true), // CLFLUSHOPT
            (24, true), // CLWB
            (29, host.sha),
        ]);
        let ecx = bits(&[
            (2, true), // UMIP
            (8, host.gfni),
            (9, host.vaes && host.avx2),
            (10, host.vpclmulqdq && host.avx2),
            (22, true), // RDPID
        ]);
        // FSRM; on Intel SPEC_CTRL, STIBP, ARCH_CAPABILITIES and SSBD, too.
        let edx = bits(&[
            (4, true),
            (26, !self.is_amd()),
            (27, !self.is_amd()),
            (29, !self.is_amd()),
            (31, !self.is_amd()),
        ]);
        table.set_subleaf(7, 0, answer(2, ebx, ecx, edx));
        table.set_subleaf(7, 1, Answer::default());
        // On Intel BHI_CTRL: kernels that don't trust ARCH_CAPABILITIES' word about the history of
        // branches set BHI_DIS_S once, rather than clear the history at each system call.
        let edx = bits(&[(4, !self.is_amd())]);
        table.set_subleaf(7, 2, answer(0, 0, 0, edx));
    }

    fn leaf_xsave(&self, table: &mut Table) {
        let avx = self.has_avx();
        let components = Xcr0::X87 | Xcr0::SSE | if avx { Xcr0::AVX } else { Xcr0::empty() };
        let size = XSAVE_BASE + if avx { XSAVE_AVX } else { 0 };
        table.set_subleaf(0xd, 0, answer(components.bits() as u32, size, size, 0));
        // XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES.
        table.set_subleaf(0xd, 1, answer(0xf, size, 0, 0));
        if avx {
            table.set_subleaf(0xd, 2, answer(XSAVE_AVX, XSAVE_BASE, 0, 0));
        }
    }

    /// Leaves 0x15 and 0x16: the crystal is the APIC timer's clock, since that is what software
    /// takes from there.
    fn frequencies(&self, table: &mut Table) {
        let khz = u32::try_from(self.tsc_khz).unwrap_or(u32::MAX);
        let crystal = lapic::BUS_HZ as u32;
        table.set(0x15, answer(crystal / 1000, khz, crystal, 0));
        table.set(0x16, answer(khz / 1000, khz / 1000, 100, 0));
    }

    /// Bits of an APIC ID that number the cores.
    fn core_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    /// Leaves 0xb and 0x1f: one thread in each core, one socket.
    fn topology(&self, table: &mut Table) {
        const THREADS: u32 = 1;
        const CORES: u32 = 2;
        let leaves: &[u32] = if self.is_amd() { &[0xb] } else { &[0xb, 0x1f] };
        for leaf in leaves {
            table.set_subleaf(*leaf, 0, answer(0, 1, THREADS << 8, self.index));
            let cores = answer(self.core_bits(), self.count, CORES << 8 | 1, self.index);
            table.set_subleaf(*leaf, 1, cores);
            table.set_subleaf(*leaf, 2, answer(0, 0, 2, self.index));
        }
    }

    /// Caches as EAX, EBX, ECX of leaf 4, and of 0x8000_001d.
    fn caches(&self) -> [Answer; 4] {
        const DATA: u32 = 1;
        const CODE: u32 = 2;
        const UNIFIED: u32 = 3;
        let cache = |kind: u32, level: u32, ways: u32, sets: u32, sharing: u32| {
            let self_initializing = 1 << 8;
            let eax = kind | level << 5 | self_initializing | (sharing - 1) << 14;
            answer(eax, 63 | (ways - 1) << 22, sets - 1, 0)
        };
        [
            cache(DATA, 1, 8, 64, 1),
            cache(CODE, 1, 8, 64, 1),
            cache(UNIFIED, 2, 8, 1024, 1),
            cache(UNIFIED, 3, 16, 16384, self.count.min(4096)),
        ]
    }

    fn intel_caches(&self, table: &mut Table) {
        let cores = (1 << self.core_bits().min(6)) - 1;
        for (subleaf, mut cache) in (0..).zip(self.caches()) {
            cache.eax |= cores << 26;
            table.set_subleaf(4, subleaf, cache);
        }
        table.set_subleaf(4, 4, Answer::default());
    }

    /// KVM's leaves.
    fn paravirtual(&self, table: &mut Table) {
        const FIRST: u32 = 0x4000_0000;
        let signature = words(b"KVMKVMKVM\0\0\0");
        let highest = FIRST + 0x10;
        table.set(
            FIRST,
            answer(highest, signature[0], signature[1], signature[2]),
        );
        // NOP_IO_DELAY, CLOCKSOURCE2, PV_EOI, CLOCKSOURCE_STABLE_BIT.
        table.set(FIRST + 1, answer(set(&[1, 3, 6, 24]), 0, 0, 0));
        // Frequencies of the TSC and of the APIC timer in kHz.
        let khz = u32::try_from(self.tsc_khz).unwrap_or(u32::MAX);
        let bus = (lapic::BUS_HZ / 1000) as u32;
        table.set(FIRST + 0x10, answer(khz, bus, 0, 0));
    }

    fn extended(&self, table: &mut Table) {
        const FIRST: u32 = 0x8000_0000;
        let amd = self.is_amd();
        let vendor = self.vendor_leaf();
        let head = if amd { vendor } else { Answer::default() };
        table.set(FIRST, head);
        // AMD repeats leaf 1's EDX, but for SEP, HTT and the SSE bits, and has MMXEXT.
        let repeated = self.classic_features() & 0x0183_f3ff | 1 << 22;
        table.set(
            FIRST + 1,
            Answer {
                eax: if amd { self.signature() } else { 0 },
                ebx: 0,
                // LAHF, CMP_LEGACY, LZCNT, PREFETCHW, TOPOEXT.
                ecx: bits(&[
                    (0, true),
                    (1, amd && self.count > 1),
                    (5, true),
                    (8, true),
                    (22, amd),
                ]),
                // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
                edx: set(&[11, 20, 26, 27, 29]) | if amd { repeated } else { 0 },
            },
        );
        for (leaf, part) in (FIRST + 2..).zip(BRAND.chunks_exact(16)) {
            let part = words(part);
            table.set(leaf, answer(part[0], part[1], part[2], part[3]));
        }
        if amd {
            // 32 KiB, 8 ways, 64-byte lines, each.
            let level_one = 32 << 24 | 8 << 16 | 1 << 8 | 64;
            table.set(FIRST + 5, answer(0, 0, level_one, level_one));
        }
        // L2: 512 KiB, 8 ways; L3: 16 MiB, 16 ways.
        let level_two = 512 << 16 | 6 << 12 | 1 << 8 | 64;
        let level_three = 32 << 18 | 8 << 12 | 1 << 8 | 64;
        let level_three = if amd { level_three } else { 0 };
        table.set(FIRST + 6, answer(0, 0, level_two, level_three));
        // The TSC is invariant.
        table.set(FIRST + 7, answer(0, 0, 0, 1 << 8));
        // WBNOINVD; on AMD x87 error pointers are always saved, no speculative store bypass, no
        // branch type confusion.
        let ebx = bits(&[(2, amd), (9, true), (26, amd), (29, amd)]);
        let cores = (self.count - 1).min(255) | self.core_bits() << 12;
        let ecx = if amd { cores } else { 0 };
        table.set(FIRST + 8, answer(PHYSICAL_BITS | 48 << 8, ebx, ecx, 0));
        if amd {
            self.amd_leaves(table);
        }
    }

    fn amd_leaves(&self, table: &mut Table) {
        for (subleaf, cache) in (0..).zip(self.caches()) {
            table.set_subleaf(0x8000_001d, subleaf, cache);
        }
        table.set_subleaf(0x8000_001d, 4, Answer::default());
        table.set(0x8000_001e, answer(self.index, self.index & 0xff, 0, 0));
        // No nested data breakpoints, LFENCE waits, null selectors clear the base, automatic
        // IBRS, no SRSO; ECX: no TSA.
        let eax = set(&[0, 2, 6, 8, 29]);
        table.set(0x8000_0021, answer(eax, 0, set(&[1, 2]), 0));
    }
}

const fn answer(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Answer {
    Answer { eax, ebx, ecx, edx }
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
            (0xd, 0 | 1) => {
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

    #[test]
    fn sdm_2_cpuid_topology_numbers_cores_by_apic_id() {
        for count in [1, 2, 3, 4, 17] {
            for index in 0..count {
                let table = table(index, count, 2_000_000);
                assert_eq!(table.get(1, 0).ebx >> 24, index);
                let cores = table.get(0xb, 1);
                assert_eq!((cores.ebx, cores.edx), (count, index));
                assert!(1 << cores.eax >= count, "all cores fit");
            }
        }
    }

    #[test]
    fn the_first_leaf_of_a_range_names_the_last() {
        let table = table(0, 1, 2_000_000);
        for first in [0, 0x4000_0000, 0x8000_0000] {
            assert_eq!(table.get(first, 0).eax, table.highest(first));
        }
    }

    #[test]
    fn sdm_2_cpuid_15h_gives_the_tsc_frequency() {
        let shape = Shape {
            vendor: Vendor::Intel,
            index: 0,
            count: 1,
            tsc_khz: 2_649_998,
            host: Features::host(),
        };
        let mut table = Table::new();
        shape.frequencies(&mut table);
        let leaf = table.get(0x15, 0);
        let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        assert_eq!(hz, 2_649_998_000);
    }
}
