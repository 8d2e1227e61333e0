//! CPUID's feature bits by name, and sets of them.
//!
//! The names are those that QEMU, libvirt and Linux's `/proc/cpuinfo` have for them.

use super::{Answer, Table};
use std::fmt;

/// A register of an [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where a feature's bit is: leaf, subleaf, register, and number of the bit.
type Place = (u32, u32, Word, u32);

macro_rules! features {
    ($($(#[$doc:meta])* $feature:ident $names:tt = ($leaf:literal, $subleaf:literal, $word:ident, $bit:literal) $needs:tt;)*) => {
        /// A feature that CPUID shows by a bit, and that one CPU has and another has not.
        ///
        /// Bits that describe the machine around the CPU are none: HTT, the APIC's, OSXSAVE, the
        /// hypervisor bit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "named after the bits in SDM vol. 2 and APM vol. 3")]
        pub enum Feature {
            $($(#[$doc])* $feature,)*
        }

        impl Feature {
            /// All features, in the order of their bits.
            pub const ALL: &'static [Self] = &[$(Self::$feature),*];

            /// The name, and those that others have for it.
            fn names(self) -> &'static [&'static str] {
                match self {
                    $(Self::$feature => &$names,)*
                }
            }

            fn place(self) -> Place {
                match self {
                    $(Self::$feature => ($leaf, $subleaf, Word::$word, $bit),)*
                }
            }

            /// What it builds on, directly.
            const fn needs(self) -> &'static [Self] {
                use Feature::*;
                match self {
                    $($feature => &$needs,)*
                }
            }
        }
    };
}

features! {
    Fpu ["fpu"] = (1, 0, Edx, 0) [];
    De ["de"] = (1, 0, Edx, 2) [];
    Pse ["pse"] = (1, 0, Edx, 3) [];
    Tsc ["tsc"] = (1, 0, Edx, 4) [];
    Msr ["msr"] = (1, 0, Edx, 5) [];
    Pae ["pae"] = (1, 0, Edx, 6) [];
    Mce ["mce"] = (1, 0, Edx, 7) [];
    Cx8 ["cx8"] = (1, 0, Edx, 8) [];
    Sep ["sep"] = (1, 0, Edx, 11) [];
    Mtrr ["mtrr"] = (1, 0, Edx, 12) [];
    Pge ["pge"] = (1, 0, Edx, 13) [];
    Mca ["mca"] = (1, 0, Edx, 14) [];
    Cmov ["cmov"] = (1, 0, Edx, 15) [];
    Pat ["pat"] = (1, 0, Edx, 16) [];
    Pse36 ["pse36"] = (1, 0, Edx, 17) [];
    Clflush ["clflush"] = (1, 0, Edx, 19) [];
    Mmx ["mmx"] = (1, 0, Edx, 23) [];
    Fxsr ["fxsr"] = (1, 0, Edx, 24) [];
    Sse ["sse"] = (1, 0, Edx, 25) [];
    Sse2 ["sse2"] = (1, 0, Edx, 26) [];
    Sse3 ["sse3", "pni"] = (1, 0, Ecx, 0) [];
    Pclmulqdq ["pclmulqdq"] = (1, 0, Ecx, 1) [];
    Ssse3 ["ssse3"] = (1, 0, Ecx, 9) [Sse3];
    Fma ["fma"] = (1, 0, Ecx, 12) [Avx];
    Cx16 ["cx16"] = (1, 0, Ecx, 13) [];
    Pcid ["pcid"] = (1, 0, Ecx, 17) [];
    Sse41 ["sse4.1"] = (1, 0, Ecx, 19) [Ssse3];
    Sse42 ["sse4.2"] = (1, 0, Ecx, 20) [Sse41];
    X2Apic ["x2apic"] = (1, 0, Ecx, 21) [];
    Movbe ["movbe"] = (1, 0, Ecx, 22) [];
    Popcnt ["popcnt"] = (1, 0, Ecx, 23) [];
    TscDeadline ["tsc-deadline", "tsc-deadline-timer"] = (1, 0, Ecx, 24) [];
    Aes ["aes"] = (1, 0, Ecx, 25) [];
    Xsave ["xsave"] = (1, 0, Ecx, 26) [];
    Avx ["avx"] = (1, 0, Ecx, 28) [Xsave, Sse42];
    F16c ["f16c"] = (1, 0, Ecx, 29) [Avx];
    Rdrand ["rdrand"] = (1, 0, Ecx, 30) [];
    Arat ["arat"] = (6, 0, Eax, 2) [];
    Fsgsbase ["fsgsbase"] = (7, 0, Ebx, 0) [];
    TscAdjust ["tsc-adjust"] = (7, 0, Ebx, 1) [];
    Bmi1 ["bmi1"] = (7, 0, Ebx, 3) [];
    Avx2 ["avx2"] = (7, 0, Ebx, 5) [Avx];
    Smep ["smep"] = (7, 0, Ebx, 7) [];
    Bmi2 ["bmi2"] = (7, 0, Ebx, 8) [];
    Erms ["erms"] = (7, 0, Ebx, 9) [];
    Invpcid ["invpcid"] = (7, 0, Ebx, 10) [];
    Avx512f ["avx512f"] = (7, 0, Ebx, 16) [Avx2, Fma, F16c];
    Avx512dq ["avx512dq"] = (7, 0, Ebx, 17) [Avx512f];
    Rdseed ["rdseed"] = (7, 0, Ebx, 18) [];
    Adx ["adx"] = (7, 0, Ebx, 19) [];
    Smap ["smap"] = (7, 0, Ebx, 20) [];
    Avx512ifma ["avx512ifma"] = (7, 0, Ebx, 21) [Avx512f];
    Clflushopt ["clflushopt"] = (7, 0, Ebx, 23) [];
    Clwb ["clwb"] = (7, 0, Ebx, 24) [];
    Avx512cd ["avx512cd"] = (7, 0, Ebx, 28) [Avx512f];
    Sha ["sha-ni", "sha"] = (7, 0, Ebx, 29) [];
    Avx512bw ["avx512bw"] = (7, 0, Ebx, 30) [Avx512f];
    Avx512vl ["avx512vl"] = (7, 0, Ebx, 31) [Avx512f];
    Avx512vbmi ["avx512vbmi"] = (7, 0, Ecx, 1) [Avx512bw];
    Umip ["umip"] = (7, 0, Ecx, 2) [];
    Avx512vbmi2 ["avx512-vbmi2", "avx512vbmi2"] = (7, 0, Ecx, 6) [Avx512bw];
    Gfni ["gfni"] = (7, 0, Ecx, 8) [];
    Vaes ["vaes"] = (7, 0, Ecx, 9) [Aes, Avx2];
    Vpclmulqdq ["vpclmulqdq"] = (7, 0, Ecx, 10) [Pclmulqdq, Avx2];
    Avx512vnni ["avx512-vnni", "avx512vnni"] = (7, 0, Ecx, 11) [Avx512f];
    Avx512bitalg ["avx512-bitalg", "avx512bitalg"] = (7, 0, Ecx, 12) [Avx512bw];
    Avx512vpopcntdq ["avx512-vpopcntdq"] = (7, 0, Ecx, 14) [Avx512f];
    Rdpid ["rdpid"] = (7, 0, Ecx, 22) [];
    Fsrm ["fsrm"] = (7, 0, Edx, 4) [];
    SpecCtrl ["spec-ctrl"] = (7, 0, Edx, 26) [];
    Stibp ["stibp"] = (7, 0, Edx, 27) [];
    ArchCapabilities ["arch-capabilities"] = (7, 0, Edx, 29) [];
    Ssbd ["ssbd"] = (7, 0, Edx, 31) [SpecCtrl];
    BhiCtrl ["bhi-ctrl"] = (7, 2, Edx, 4) [SpecCtrl];
    Xsaveopt ["xsaveopt"] = (0xd, 1, Eax, 0) [Xsave];
    Xsavec ["xsavec"] = (0xd, 1, Eax, 1) [Xsave];
    Xgetbv1 ["xgetbv1"] = (0xd, 1, Eax, 2) [Xsave];
    Xsaves ["xsaves"] = (0xd, 1, Eax, 3) [Xsavec];
    LahfLm ["lahf-lm"] = (0x8000_0001, 0, Ecx, 0) [];
    Lzcnt ["abm", "lzcnt"] = (0x8000_0001, 0, Ecx, 5) [];
    Prefetchw ["3dnowprefetch", "prefetchw"] = (0x8000_0001, 0, Ecx, 8) [];
    Syscall ["syscall"] = (0x8000_0001, 0, Edx, 11) [];
    Nx ["nx"] = (0x8000_0001, 0, Edx, 20) [];
    Pdpe1gb ["pdpe1gb"] = (0x8000_0001, 0, Edx, 26) [];
    Rdtscp ["rdtscp"] = (0x8000_0001, 0, Edx, 27) [];
    Lm ["lm"] = (0x8000_0001, 0, Edx, 29) [];
    InvariantTsc ["invtsc"] = (0x8000_0007, 0, Edx, 8) [];
    /// x87 error pointers are always saved.
    XsaveErrorPointers ["xsaveerptr"] = (0x8000_0008, 0, Ebx, 2) [];
    Wbnoinvd ["wbnoinvd"] = (0x8000_0008, 0, Ebx, 9) [];
    /// No speculative store bypass.
    SsbNo ["amd-no-ssb"] = (0x8000_0008, 0, Ebx, 26) [];
    /// No branch type confusion.
    BtcNo ["btc-no"] = (0x8000_0008, 0, Ebx, 29) [];
    NoNestedDataBreakpoints ["no-nested-data-bp"] = (0x8000_0021, 0, Eax, 0) [];
    /// LFENCE waits.
    LfenceSerializing ["lfence-always-serializing"] = (0x8000_0021, 0, Eax, 2) [];
    /// A null selector clears the base.
    NullSelectorClearsBase ["null-sel-clr-base"] = (0x8000_0021, 0, Eax, 6) [];
    AutomaticIbrs ["auto-ibrs"] = (0x8000_0021, 0, Eax, 8) [];
    /// No speculative return stack overflow.
    SrsoNo ["srso-no"] = (0x8000_0021, 0, Eax, 29) [];
    /// No transient scheduler attack by way of the store queue.
    TsaSqNo ["tsa-sq-no"] = (0x8000_0021, 0, Ecx, 1) [];
    /// No transient scheduler attack by way of the L1 data cache.
    TsaL1No ["tsa-l1-no"] = (0x8000_0021, 0, Ecx, 2) [];
}

impl Feature {
    /// The name by which a user selects it.
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The feature called `name`, in which `_`, `-` and `.` are the same.
    pub fn by_name(name: &str) -> Option<Self> {
        let plain = |name: &str| name.replace(['_', '.'], "-");
        let wanted = plain(name);
        let mut all = Self::ALL.iter().copied();
        all.find(|feature| feature.names().iter().any(|name| plain(name) == wanted))
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct FeatureSet(u128);

const _: () = assert!(Feature::ALL.len() <= 128, "a set is one word");

impl FeatureSet {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// The set of `features`.
    pub const fn of(features: &[Feature]) -> Self {
        let (mut set, mut i) = (0, 0);
        while i < features.len() {
            set |= 1 << features[i] as u8;
            i += 1;
        }
        Self(set)
    }

    /// What `table` shows.
    pub fn of_table(table: &Table) -> Self {
        let shown = |feature: &Feature| {
            let (leaf, subleaf, word, bit) = feature.place();
            *register(&mut table.get(leaf, subleaf), word) >> bit & 1 != 0
        };
        Feature::ALL.iter().copied().filter(shown).collect()
    }

    /// Sets the bits of the set in `table`, which has no others of features.
    pub(super) fn show(self, table: &mut Table) {
        for feature in self.iter() {
            let (leaf, subleaf, word, bit) = feature.place();
            let answer = table.entry(leaf, (leaf == 7 || leaf == 0xd).then_some(subleaf));
            *register(answer, word) |= 1 << bit;
        }
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `feature` is in it.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Those in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The features, in the order of their bits.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        let all = Feature::ALL.iter().copied();
        all.filter(move |feature| self.has(*feature))
    }

    /// These, and all that they build on.
    pub fn with_needed(self) -> Self {
        self.grown(|set, feature| {
            let needed = FeatureSet::of(feature.needs());
            if set.has(feature) { needed } else { Self::NONE }
        })
    }

    /// These, and all that builds on them.
    pub fn with_dependents(self) -> Self {
        self.grown(|set, feature| {
            let needed = FeatureSet::of(feature.needs());
            if needed.intersection(set).is_empty() {
                Self::NONE
            } else {
                Self::of(&[feature])
            }
        })
    }

    /// The set with what `more` adds for each feature, until nothing is new.
    fn grown(self, more: impl Fn(Self, Feature) -> Self) -> Self {
        let all = Feature::ALL.iter();
        let grown = all.fold(self, |set, feature| set.union(more(set, *feature)));
        if grown == self {
            self
        } else {
            grown.grown(more)
        }
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let one = |feature| Self::of(&[feature]);
        let all = features.into_iter().map(one);
        all.fold(Self::NONE, Self::union)
    }
}

/// The names, separated by commas.
impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Feature::name).collect();
        f.write_str(&names.join(", "))
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

fn register(answer: &mut Answer, word: Word) -> &mut u32 {
    match word {
        Word::Eax => &mut answer.eax,
        Word::Ebx => &mut answer.ebx,
        Word::Ecx => &mut answer.ecx,
        Word::Edx => &mut answer.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_feature_has_its_own_bit_and_its_own_names() {
        let mut places = HashSet::new();
        let mut names = HashSet::new();
        for feature in Feature::ALL {
            let (leaf, subleaf, word, bit) = feature.place();
            assert!(bit < 32);
            assert!(
                places.insert((leaf, subleaf, word as u8, bit)),
                "{feature:?}"
            );
            for name in feature.names() {
                assert!(names.insert(name.replace('.', "-")), "{name}");
                assert_eq!(Feature::by_name(name), Some(*feature));
            }
        }
    }

    #[test]
    fn names_are_found_as_qemu_and_linux_write_them() {
        for (name, feature) in [
            ("sse4_1", Feature::Sse41),
            ("sse4.1", Feature::Sse41),
            ("sse4-2", Feature::Sse42),
            ("pni", Feature::Sse3),
            ("lahf_lm", Feature::LahfLm),
            ("abm", Feature::Lzcnt),
            ("lzcnt", Feature::Lzcnt),
            ("tsc_deadline_timer", Feature::TscDeadline),
            ("sha_ni", Feature::Sha),
        ] {
            assert_eq!(Feature::by_name(name), Some(feature), "{name}");
        }
        for name in ["", "AVX", "sse5", "avx 2"] {
            assert_eq!(Feature::by_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_table_shows_the_set_that_it_was_made_from() {
        for feature in Feature::ALL {
            let set = FeatureSet::of(&[*feature]);
            let mut table = Table::new();
            set.show(&mut table);
            assert_eq!(FeatureSet::of_table(&table), set);
        }
    }

    #[test]
    fn what_builds_on_a_feature_goes_with_it() {
        use Feature as F;
        let vaes = FeatureSet::of(&[F::Vaes]).with_needed();
        let needed = [F::Aes, F::Avx2, F::Avx, F::Xsave, F::Sse42, F::Sse3];
        assert!(vaes.contains(FeatureSet::of(&needed)));
        assert!(!vaes.has(F::Fma));
        let xsave = FeatureSet::of(&[F::Xsave]).with_dependents();
        let dependents = [
            F::Xsaves,
            F::Avx,
            F::Fma,
            F::Vaes,
            F::Avx512vl,
            F::Avx512vbmi,
        ];
        assert!(xsave.contains(FeatureSet::of(&dependents)));
        assert!(!xsave.has(F::Aes) && !xsave.has(F::Sse42) && !xsave.has(F::Bmi2));
    }
}
