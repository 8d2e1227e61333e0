//! The CPUID table of a virtual CPU.
//!
//! The vendor is the host's, since data instructions run on the host and differ in what the
//! architecture leaves undefined. Family and model are those of a recent CPU of the vendor that
//! needs no workarounds. Sources: SDM vol. 2, CPUID; APM vol. 3, appendix E; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst.

use super::{Answer, Feature, FeatureSet, Table, Vendor};

/// Family 0x19, model 1, stepping 1.
const AMD_SIGNATURE: u32 = 0x00a0_0f11;
/// Family 6, model 0x8f, stepping 8.
const INTEL_SIGNATURE: u32 = 0x0008_06f8;
const BRAND: &[u8; 48] =
    b"Doppel virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Bytes of the XSAVE area's legacy region and header.
const XSAVE_BASE: u32 = 576;

/// What the table of one vCPU is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// Whose CPU it is.
    pub vendor: Vendor,
    /// The vCPU's index, which is its APIC ID.
    pub index: u32,
    /// Number of vCPUs, at least 1.
    pub count: u32,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u64,
    /// Frequency of the APIC's timer in Hz.
    pub bus_hz: u64,
    /// Width of a physical address in bits.
    pub physical_bits: u32,
    /// What software may use: the table shows these features and no others.
    pub features: FeatureSet,
}

/// Where a state component is in the standard form of the XSAVE area (SDM vol. 1, 13.5).
struct Component {
    number: u32,
    bytes: u32,
    offset: u32,
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

const fn answer(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Answer {
    Answer { eax, ebx, ecx, edx }
}

/// AMD repeats EDX of leaf 1, but for SEP, HTT and the SSE bits, and has MMXEXT.
fn repeat_classic_features(table: &mut Table) {
    let repeated = table.get(1, 0).edx & 0x0183_f3ff | 1 << 22;
    table.entry(0x8000_0001, None).edx |= repeated;
}

impl Processor {
    /// What CPUID shows.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        self.basic(&mut table);
        self.topology(&mut table);
        self.paravirtual(&mut table);
        self.extended(&mut table);
        self.features.show(&mut table);
        if self.is_amd() {
            repeat_classic_features(&mut table);
        }
        // The highest leaves, now that all are there.
        for first in [0, 0x8000_0000] {
            let mut answer = table.get(first, 0);
            answer.eax = table.highest(first);
            table.set(first, answer);
        }
        table
    }

    fn is_amd(&self) -> bool {
        self.vendor == Vendor::Amd
    }

    fn vendor_leaf(&self) -> Answer {
        let text = words(self.vendor.signature());
        answer(0, text[0], text[2], text[1])
    }

    fn signature(&self) -> u32 {
        if self.is_amd() {
            AMD_SIGNATURE
        } else {
            INTEL_SIGNATURE
        }
    }

    fn basic(&self, table: &mut Table) {
        table.set(0, self.vendor_leaf());
        let ebx = self.index << 24 | self.count.min(255) << 16 | 8 << 8;
        // A hypervisor is there. The APIC, whose bit follows IA32_APIC_BASE, and HTT with several
        // vCPUs.
        let (ecx, edx) = (1 << 31, 1 << 9 | u32::from(self.count > 1) << 28);
        table.set(1, answer(self.signature(), ebx, ecx, edx));
        if !self.is_amd() {
            // Leaf 2 refers to leaf 4.
            table.set(2, answer(0x00fe_ff01, 0, 0, 0));
            self.intel_caches(table);
        }
        table.set(6, Answer::default());
        // The highest subleaf is 2.
        table.set_subleaf(7, 0, answer(2, 0, 0, 0));
        table.set_subleaf(7, 1, Answer::default());
        table.set_subleaf(7, 2, Answer::default());
        if self.features.has(Feature::Xsave) {
            self.leaf_xsave(table);
        }
        if !self.is_amd() {
            self.frequencies(table);
        }
    }

    /// What XCR0 may hold beyond x87 and SSE. Where AVX-512's components are is the vendor's
    /// choice: Intel leaves room for MPX before them.
    fn components(&self) -> Vec<Component> {
        let component = |number, bytes, offset| Component {
            number,
            bytes,
            offset,
        };
        let mut components = Vec::new();
        if self.features.has(Feature::Avx) {
            components.push(component(2, 256, XSAVE_BASE));
        }
        if self.features.has(Feature::Avx512f) {
            let first = if self.is_amd() { 832 } else { 1088 };
            components.push(component(5, 64, first));
            components.push(component(6, 512, first + 64));
            components.push(component(7, 1024, first + 576));
        }
        components
    }

    fn leaf_xsave(&self, table: &mut Table) {
        let components = self.components();
        let (x87, sse) = (0, 1);
        let all = components.iter().fold(set(&[x87, sse]), |all, component| {
            all | 1 << component.number
        });
        let ends = components.iter().map(|c| c.offset + c.bytes);
        let size = ends.max().unwrap_or(XSAVE_BASE);
        let bytes: u32 = components.iter().map(|c| c.bytes).sum();
        table.set_subleaf(0xd, 0, answer(all, size, size, 0));
        table.set_subleaf(0xd, 1, answer(0, XSAVE_BASE + bytes, 0, 0));
        for Component {
            number,
            bytes,
            offset,
        } in components
        {
            table.set_subleaf(0xd, number, answer(bytes, offset, 0, 0));
        }
    }

    /// Leaves 0x15 and 0x16: the crystal is the APIC timer's clock, since that is what software
    /// takes from there.
    fn frequencies(&self, table: &mut Table) {
        let khz = u32::try_from(self.tsc_khz).unwrap_or(u32::MAX);
        let crystal = self.bus_hz as u32;
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
        let bus = (self.bus_hz / 1000) as u32;
        table.set(FIRST + 0x10, answer(khz, bus, 0, 0));
    }

    fn extended(&self, table: &mut Table) {
        const FIRST: u32 = 0x8000_0000;
        let amd = self.is_amd();
        let vendor = self.vendor_leaf();
        let head = if amd { vendor } else { Answer::default() };
        table.set(FIRST, head);
        let signature = if amd { self.signature() } else { 0 };
        // CMP_LEGACY with several vCPUs, TOPOEXT.
        let ecx = u32::from(amd) << 22 | u32::from(amd && self.count > 1) << 1;
        table.set(FIRST + 1, answer(signature, 0, ecx, 0));
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
        table.set(FIRST + 7, Answer::default());
        let cores = (self.count - 1).min(255) | self.core_bits() << 12;
        let ecx = if amd { cores } else { 0 };
        table.set(FIRST + 8, answer(self.physical_bits | 48 << 8, 0, ecx, 0));
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
        table.set(0x8000_0021, Answer::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::Model;

    fn processor(vendor: Vendor, features: FeatureSet) -> Processor {
        Processor {
            vendor,
            index: 0,
            count: 1,
            tsc_khz: 2_000_000,
            bus_hz: 1_000_000_000,
            physical_bits: 46,
            features,
        }
    }

    fn levels() -> impl Iterator<Item = FeatureSet> {
        Model::ALL.into_iter().filter_map(Model::level)
    }

    #[test]
    fn a_table_shows_the_features_and_no_others() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            for features in levels() {
                let table = processor(vendor, features).table();
                assert_eq!(FeatureSet::of_table(&table), features);
                assert_eq!(Vendor::of_signature(table.get(0, 0).ebx), vendor);
            }
        }
    }

    #[test]
    fn apm_3_e_amd_repeats_classic_features() {
        for features in levels() {
            let table = processor(Vendor::Amd, features).table();
            let (one, extended) = (table.get(1, 0).edx, table.get(0x8000_0001, 0).edx);
            let (fpu, mmx, mmxext) = (1, 1 << 23, 1 << 22);
            assert_eq!(extended & (fpu | mmx | mmxext), fpu | mmx | mmxext);
            assert_eq!(one & 0x0183_f3ff, extended & 0x0183_f3ff);
        }
    }

    #[test]
    fn sdm_1_13_5_the_xsave_area_follows_the_features() {
        let leaf = |model: Model, subleaf| {
            let features = model.level().unwrap();
            processor(Vendor::Intel, features).table().get(0xd, subleaf)
        };
        for (model, components, bytes) in [
            (Model::V1, 0, 0),
            (Model::V2, 0, 0),
            (Model::V3, 0b111, 832),
            (Model::V4, 0b1110_0111, 2688),
        ] {
            let first = leaf(model, 0);
            let answer = (first.eax, first.ebx, first.ecx);
            assert_eq!(answer, (components, bytes, bytes), "{model:?}");
        }
        let zmm = leaf(Model::V4, 7);
        assert_eq!((zmm.eax, zmm.ebx), (1024, 1664));
    }

    #[test]
    fn sdm_2_cpuid_topology_numbers_cores_by_apic_id() {
        for count in [1, 2, 3, 4, 17] {
            for index in 0..count {
                let one = processor(Vendor::Intel, FeatureSet::NONE);
                let table = Processor {
                    index,
                    count,
                    ..one
                }
                .table();
                assert_eq!(table.get(1, 0).ebx >> 24, index);
                let cores = table.get(0xb, 1);
                assert_eq!((cores.ebx, cores.edx), (count, index));
                assert!(1 << cores.eax >= count, "all cores fit");
            }
        }
    }

    #[test]
    fn the_first_leaf_of_a_range_names_the_last() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            for features in levels() {
                let table = processor(vendor, features).table();
                for first in [0, 0x4000_0000, 0x8000_0000] {
                    assert_eq!(table.get(first, 0).eax, table.highest(first));
                }
            }
        }
    }

    #[test]
    fn sdm_2_cpuid_15h_gives_the_tsc_frequency() {
        let one = processor(Vendor::Intel, FeatureSet::NONE);
        let table = Processor {
            tsc_khz: 2_649_998,
            ..one
        }
        .table();
        let leaf = table.get(0x15, 0);
        let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        assert_eq!(hz, 2_649_998_000);
    }
}
