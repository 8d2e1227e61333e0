//! What a CPUID table implies: vendor, and the control-register bits that exist.

use x86::cpuid::{Feature, FeatureSet, Table, Vendor};
use x86::{Cr0, Cr4, Efer, Xcr0};

/// The CPU that a vCPU's CPUID shows.
pub(crate) struct Model {
    pub(crate) table: Table,
    pub(crate) features: FeatureSet,
    pub(crate) vendor: Vendor,
    /// Bits of CR4 that may be set.
    pub(crate) cr4: Cr4,
    /// Bits of EFER that may be set, LMA among them.
    pub(crate) efer: Efer,
    /// Bits of XCR0 that may be set.
    pub(crate) xcr0: Xcr0,
}

/// Bits of CR0 that exist (SDM vol. 3, 2.5).
pub(crate) const CR0_BITS: Cr0 = Cr0::from_bits_retain(0xe005_003f);

/// EFER.AIBRSE (APM vol. 2, 3.1.7).
const AUTOMATIC_IBRS: Efer = Efer::from_bits_retain(1 << 21);

/// A feature bit of CPUID and the bits of a register that come with it.
type Rule<T> = (u32, u32, T);

impl Model {
    pub(crate) fn new(table: &Table) -> Self {
        Self {
            vendor: Vendor::of_signature(table.get(0, 0).ebx),
            cr4: allowed_cr4(table),
            efer: allowed_efer(table),
            xcr0: Xcr0::from_bits_retain(table.get(0xd, 0).eax.into()) | Xcr0::X87,
            features: FeatureSet::of_table(table),
            table: table.clone(),
        }
    }

    /// Whether the CPU has `feature`.
    #[inline]
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// Whether the vendor is AMD.
    pub(crate) fn is_amd(&self) -> bool {
        self.vendor == Vendor::Amd
    }
}

fn collect<T: Copy + std::ops::BitOr<Output = T>>(none: T, rules: &[Rule<T>]) -> T {
    let shown = rules.iter().filter(|(word, bit, _)| word >> bit & 1 != 0);
    shown.fold(none, |all, (_, _, bits)| all | *bits)
}

/// SDM vol. 3, 2.5, with the CPUID bits of vol. 2.
fn allowed_cr4(table: &Table) -> Cr4 {
    let (one, seven) = (table.get(1, 0), table.get(7, 0));
    let rules = [
        (one.edx, 1, Cr4::VME | Cr4::PVI),
        (one.edx, 2, Cr4::DE),
        (one.edx, 3, Cr4::PSE),
        (one.edx, 4, Cr4::TSD),
        (one.edx, 6, Cr4::PAE),
        (one.edx, 7, Cr4::MCE),
        (one.edx, 13, Cr4::PGE),
        (one.edx, 24, Cr4::OSFXSR),
        (one.edx, 25, Cr4::OSXMMEXCPT),
        (one.ecx, 17, Cr4::PCIDE),
        (one.ecx, 26, Cr4::OSXSAVE),
        (seven.ebx, 0, Cr4::FSGSBASE),
        (seven.ebx, 7, Cr4::SMEP),
        (seven.ebx, 20, Cr4::SMAP),
        (seven.ecx, 2, Cr4::UMIP),
        (seven.ecx, 16, Cr4::LA57),
    ];
    collect(Cr4::PCE, &rules)
}

/// SDM vol. 3, 2.2.1.
fn allowed_efer(table: &Table) -> Efer {
    let edx = table.get(0x8000_0001, 0).edx;
    let amd = table.get(0x8000_0021, 0).eax;
    let rules = [
        (edx, 11, Efer::SCE),
        (edx, 20, Efer::NXE),
        (edx, 29, Efer::LME | Efer::LMA),
        (amd, 8, AUTOMATIC_IBRS),
    ];
    collect(Efer::empty(), &rules)
}
