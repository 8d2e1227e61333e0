//! CPU models: which features a guest sees.
//!
//! The levels are the micro-architecture levels of the x86-64 psABI (System V ABI, AMD64
//! Architecture Processor Supplement, 3.1.1), by which compilers and distributions say what
//! programs need, with what kernels use on every CPU of such a level. A level is the same on all
//! hosts.

use super::Feature as F;
use super::{Feature, FeatureSet};
use std::fmt;

/// Features that a model begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Model {
    /// What every engine of the host can give.
    #[default]
    Common,
    /// All that the engine can give on this host.
    Host,
    /// x86-64-v1, the first 64-bit CPUs.
    V1,
    /// x86-64-v2.
    V2,
    /// x86-64-v3.
    V3,
    /// x86-64-v4.
    V4,
}

/// What no CPU of the machine can be without: what 64-bit software takes for granted, CPUID or
/// not (psABI's first level, and what goes with long mode).
const INDISPENSABLE: FeatureSet = FeatureSet::of(&[
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
    F::Syscall,
    F::Nx,
    F::Lm,
]);

/// The first level, and timers and an APIC that every hypervisor gives.
const V1: FeatureSet = INDISPENSABLE.union(FeatureSet::of(&[
    F::X2Apic,
    F::TscDeadline,
    F::TscAdjust,
    F::Arat,
]));

const V2: FeatureSet = V1.union(FeatureSet::of(&[
    F::Cx16,
    F::LahfLm,
    F::Popcnt,
    F::Sse3,
    F::Sse41,
    F::Sse42,
    F::Ssse3,
    // For kernels.
    F::Rdtscp,
]));

const V3: FeatureSet = V2.union(FeatureSet::of(&[
    F::Avx,
    F::Avx2,
    F::Bmi1,
    F::Bmi2,
    F::F16c,
    F::Fma,
    F::Lzcnt,
    F::Movbe,
    // OSXSAVE, which a kernel may set then.
    F::Xsave,
    // For kernels: Haswell and Excavator have them.
    F::Xsaveopt,
    F::Fsgsbase,
    F::Smep,
    F::Rdrand,
    F::Pdpe1gb,
]));

const V4: FeatureSet = V3.union(FeatureSet::of(&[
    F::Avx512f,
    F::Avx512bw,
    F::Avx512cd,
    F::Avx512dq,
    F::Avx512vl,
    // For kernels: Skylake's server parts and Zen 4 have them.
    F::Smap,
    F::Pcid,
    F::Invpcid,
    F::Erms,
    F::Rdseed,
    F::Adx,
    F::Clflushopt,
    F::Clwb,
    F::Prefetchw,
    F::Xsavec,
    F::Xgetbv1,
    F::Xsaves,
]));

/// What a CPU says of itself, rather than what code is written for: what it does not leak, how to
/// keep it from leaking, and that its clock is steady. Every model has of these what is common to
/// the engines of the host, since a level can't promise it.
const PROPERTIES: FeatureSet = FeatureSet::of(&[
    F::SpecCtrl,
    F::Stibp,
    F::ArchCapabilities,
    F::Ssbd,
    F::BhiCtrl,
    F::InvariantTsc,
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

impl Model {
    /// All models.
    pub const ALL: [Self; 6] = [
        Self::Common,
        Self::Host,
        Self::V1,
        Self::V2,
        Self::V3,
        Self::V4,
    ];

    /// The name by which a user selects it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::Host => "host",
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// The model called `name`. `max` is QEMU's name for what `host` is here.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "max" => Some(Self::Host),
            "x86-64-v1" => Some(Self::V1),
            _ => Self::ALL.into_iter().find(|model| model.name() == name),
        }
    }

    /// What the model has on every host, for those that are levels.
    pub const fn level(self) -> Option<FeatureSet> {
        match self {
            Self::Common | Self::Host => None,
            Self::V1 => Some(V1),
            Self::V2 => Some(V2),
            Self::V3 => Some(V3),
            Self::V4 => Some(V4),
        }
    }
}

/// What an engine can give on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// All features that the engine can give.
    pub engine: FeatureSet,
    /// Those that every engine of the host can give.
    pub common: FeatureSet,
}

/// The CPU that somebody wants: a model, features more, features less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice {
    model: Model,
    more: FeatureSet,
    less: FeatureSet,
}

/// A CPU that can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Nothing runs without it.
    #[error("every x86-64 CPU has {}: it can't be left out", .0.name())]
    Indispensable(Feature),
    /// It is asked for, and what it builds on is to be left out.
    #[error("{} can't be there without {}, which is to be left out", .0.name(), .1.name())]
    Torn(Feature, Feature),
}

impl Choice {
    /// `model` with the features of `more` and what they build on, without those of `less` and
    /// what builds on them.
    ///
    /// # Errors
    /// If no CPU can be like that.
    pub fn new(model: Model, more: FeatureSet, less: FeatureSet) -> Result<Self, Contradiction> {
        if let Some(feature) = less.intersection(INDISPENSABLE).iter().next() {
            return Err(Contradiction::Indispensable(feature));
        }
        for feature in more.iter() {
            let needed = FeatureSet::of(&[feature]).with_needed();
            if let Some(torn) = needed.intersection(less).iter().next() {
                return Err(Contradiction::Torn(feature, torn));
            }
        }
        Ok(Self { model, more, less })
    }

    /// The choice that gives exactly `features` where `common` is what all engines can give: that,
    /// or the highest level that they hold, and what is more or less.
    pub fn exactly(features: FeatureSet, common: FeatureSet) -> Self {
        if features == common {
            return Self::from(Model::Common);
        }
        let levels = [Model::V4, Model::V3, Model::V2];
        let held = |model: &Model| model.level().is_some_and(|level| features.contains(level));
        let model = levels.into_iter().find(held).unwrap_or(Model::V1);
        let plain = Self::from(model).base(&Offer {
            engine: common,
            common,
        });
        Self {
            model,
            more: features.without(plain),
            less: plain.without(features),
        }
    }

    /// The choice nearest to this one that the engine can give: as high a level as it can, and
    /// of the features that were asked for more those that it has.
    pub fn nearest(&self, offer: &Offer) -> Self {
        let has = |feature: &Feature| {
            let whole = FeatureSet::of(&[*feature]).with_needed();
            offer.engine.contains(whole)
        };
        let more = self.more.iter().filter(has).collect();
        let lower = [Model::V4, Model::V3, Model::V2, Model::V1]
            .into_iter()
            .skip_while(|level| *level != self.model);
        let mut models = std::iter::once(self.model).chain(lower);
        let choices = models.find_map(|model| {
            let choice = Self {
                model,
                more,
                less: self.less,
            };
            choice.features(offer).is_ok().then_some(choice)
        });
        choices.unwrap_or_default()
    }

    /// The model that it begins with.
    pub fn model(&self) -> Model {
        self.model
    }

    fn base(&self, offer: &Offer) -> FeatureSet {
        match self.model {
            Model::Common => offer.common,
            Model::Host => offer.engine,
            level => {
                let level = level.level().unwrap_or_default();
                level.union(offer.common.intersection(PROPERTIES))
            }
        }
    }

    /// The features of this CPU.
    ///
    /// # Errors
    /// Those that the engine can't give.
    pub fn features(&self, offer: &Offer) -> Result<FeatureSet, FeatureSet> {
        let wanted = self.base(offer).union(self.more.with_needed());
        let wanted = wanted.without(self.less.with_dependents());
        let missing = wanted.without(offer.engine);
        if missing.is_empty() {
            Ok(wanted)
        } else {
            Err(missing)
        }
    }
}

impl From<Model> for Choice {
    fn from(model: Model) -> Self {
        Self {
            model,
            ..Self::default()
        }
    }
}

/// As a user writes it: `x86-64-v2,+avx,-popcnt`.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model.name())?;
        for (sign, features) in [('+', self.more), ('-', self.less)] {
            for feature in features.iter() {
                write!(f, ",{sign}{}", feature.name())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> FeatureSet {
        Feature::ALL.iter().copied().collect()
    }

    const fn offer(engine: FeatureSet, common: FeatureSet) -> Offer {
        Offer { engine, common }
    }

    fn named(names: &str) -> FeatureSet {
        let names = names.split_whitespace();
        names.map(|name| Feature::by_name(name).unwrap()).collect()
    }

    /// Table 3.1 of the psABI. OSFXSR and SCE are bits of CR4 and EFER that go with FXSR and
    /// SYSCALL, OSXSAVE is one that goes with XSAVE.
    #[test]
    fn psabi_3_1_1_micro_architecture_levels() {
        let levels = [
            (Model::V1, "cmov cx8 fpu fxsr mmx syscall sse sse2"),
            (Model::V2, "cx16 lahf-lm popcnt sse3 sse4.1 sse4.2 ssse3"),
            (Model::V3, "avx avx2 bmi1 bmi2 f16c fma lzcnt movbe xsave"),
            (Model::V4, "avx512f avx512bw avx512cd avx512dq avx512vl"),
        ];
        for (at, (model, added)) in levels.iter().enumerate() {
            let level = model.level().unwrap();
            for (lower, features) in &levels[..=at] {
                assert!(level.contains(named(features)), "{model:?}: {lower:?}");
            }
            // Vector and data instructions of higher levels are not there.
            for (higher, features) in &levels[at + 1..] {
                let early = level.intersection(named(features));
                assert!(early.is_empty(), "{model:?} has {early} of {higher:?}");
            }
            assert_eq!(level.with_needed(), level, "{model:?} is whole: {added}");
        }
    }

    #[test]
    fn a_level_is_the_same_whatever_the_engine_has_more() {
        for model in Model::ALL {
            let Some(level) = model.level() else { continue };
            let little = Choice::from(model).features(&offer(level, level));
            let much = Choice::from(model).features(&offer(all(), level));
            assert_eq!(little, Ok(level));
            assert_eq!(much, Ok(level));
        }
        let common = V3.union(named("btc-no pcid"));
        let choice = Choice::from(Model::V2);
        let with_properties = Ok(V2.union(named("btc-no")));
        assert_eq!(choice.features(&offer(all(), common)), with_properties);
    }

    #[test]
    fn common_and_host_are_what_is_offered() {
        let (engine, common) = (all(), V2);
        let offer = offer(engine, common);
        assert_eq!(Choice::from(Model::Common).features(&offer), Ok(common));
        assert_eq!(Choice::from(Model::Host).features(&offer), Ok(engine));
    }

    #[test]
    fn features_bring_what_they_need_and_take_along_what_needs_them() {
        let offer = offer(all(), V1);
        let more = Choice::new(Model::V1, named("avx2"), FeatureSet::NONE).unwrap();
        assert!(
            more.features(&offer)
                .unwrap()
                .contains(named("avx2 avx xsave ssse3"))
        );
        let less = Choice::new(Model::V3, FeatureSet::NONE, named("avx")).unwrap();
        let left = less.features(&offer).unwrap();
        assert_eq!(left, V3.without(named("avx avx2 fma f16c")));
        let both = Choice::new(Model::V3, named("sha-ni"), named("avx2")).unwrap();
        assert_eq!(both.to_string(), "x86-64-v3,+sha-ni,-avx2");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let torn = Choice::new(Model::V2, named("fma"), named("avx"));
        assert_eq!(torn, Err(Contradiction::Torn(F::Fma, F::Avx)));
        let same = Choice::new(Model::V2, named("sha-ni"), named("sha-ni"));
        assert_eq!(same, Err(Contradiction::Torn(F::Sha, F::Sha)));
        let bare = Choice::new(Model::Host, FeatureSet::NONE, named("sse2"));
        assert_eq!(bare, Err(Contradiction::Indispensable(F::Sse2)));
    }

    #[test]
    fn what_an_engine_lacks_is_named() {
        let offer = offer(V3.without(named("movbe")), V1);
        let missing = Choice::from(Model::V3).features(&offer);
        assert_eq!(missing, Err(named("movbe")));
        let choice = Choice::new(Model::V2, named("avx512vl"), FeatureSet::NONE).unwrap();
        let missing = choice.features(&offer).unwrap_err();
        assert_eq!(missing, named("avx512f avx512vl"));
    }

    #[test]
    fn the_nearest_choice_is_one_that_can_be_given() {
        let offer = offer(V3.union(named("sha-ni")), V1);
        for (wanted, nearest) in [
            ((Model::V4, ""), "x86-64-v3"),
            ((Model::V4, "sha-ni avx512vl"), "x86-64-v3,+sha-ni"),
            ((Model::V2, "vaes sha-ni"), "x86-64-v2,+sha-ni"),
            ((Model::Common, "gfni"), "common"),
            ((Model::Host, "gfni"), "host"),
        ] {
            let (model, more) = wanted;
            let choice = Choice::new(model, named(more), FeatureSet::NONE).unwrap();
            assert!(choice.features(&offer).is_err(), "{choice}");
            let found = choice.nearest(&offer);
            assert_eq!(found.to_string(), nearest);
            assert!(found.features(&offer).is_ok());
        }
    }

    #[test]
    fn exactly_describes_any_set() {
        let common = V3.union(named("btc-no pcid aes"));
        assert_eq!(Choice::exactly(common, common).to_string(), "common");
        for wanted in [
            V1,
            V2,
            V3,
            common,
            V3.union(named("aes vaes")).without(named("movbe")),
            INDISPENSABLE,
        ] {
            let choice = Choice::exactly(wanted, common);
            assert_eq!(
                choice.features(&offer(all(), common)),
                Ok(wanted),
                "{choice}"
            );
        }
    }

    #[test]
    fn models_have_the_names_that_users_know() {
        for model in Model::ALL {
            assert_eq!(Model::by_name(model.name()), Some(model));
        }
        assert_eq!(Model::by_name("x86-64-v1"), Some(Model::V1));
        assert_eq!(Model::by_name("max"), Some(Model::Host));
        assert_eq!(Model::by_name("x86-64-v5"), None);
    }
}
