//! Sections, and the two ends that fill and empty a list of them.

use crate::{Error, Persist, Saved, codec};

/// One component's saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// [`Saved::KIND`].
    pub kind: String,
    /// Which component of the machine, such as `"vcpu0"`.
    pub instance: String,
    /// [`Saved::VERSION`].
    pub version: u16,
    /// The encoded state.
    pub payload: Vec<u8>,
}

/// Collects the sections of a machine that is being saved.
#[derive(Debug, Default)]
pub struct Writer {
    sections: Vec<Section>,
}

impl Writer {
    /// An empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `value` under `instance`.
    ///
    /// # Panics
    /// If a section of this kind and instance was added already, or the value can't be encoded:
    /// both are mistakes of ours.
    pub fn put<T: Saved>(&mut self, instance: &str, value: &T) {
        assert!(
            !self
                .sections
                .iter()
                .any(|s| s.kind == T::KIND && s.instance == instance),
            "section {} of {instance} saved twice",
            T::KIND
        );
        let payload = postcard::to_stdvec(value).expect("saved types are plain data");
        self.sections.push(Section {
            kind: T::KIND.into(),
            instance: instance.into(),
            version: T::VERSION,
            payload,
        });
    }

    /// Saves `component` under `instance`.
    pub fn save<C: Persist>(&mut self, instance: &str, component: &C) {
        self.put(instance, &component.save());
    }

    /// The sections, in the order in which they were added.
    pub fn into_sections(self) -> Vec<Section> {
        self.sections
    }

    /// All sections as one checked byte string.
    pub fn into_bytes(self) -> Vec<u8> {
        codec::encode(&self.sections)
    }
}

/// Hands the sections of a saved machine to the components of a new one.
#[derive(Debug)]
pub struct Reader {
    sections: Vec<Section>,
}

impl Reader {
    /// Over sections that never left the process.
    pub fn new(sections: Vec<Section>) -> Self {
        Self { sections }
    }

    /// Over a byte string made by [`Writer::into_bytes`], untrusted.
    ///
    /// # Errors
    /// If the bytes are not a saved state, are damaged, or were written by a newer format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            sections: codec::decode(bytes)?,
        })
    }

    /// Takes the section of `T` under `instance` out.
    ///
    /// # Errors
    /// If it is missing, newer than `T`, or does not decode to the last byte.
    pub fn take<T: Saved>(&mut self, instance: &str) -> Result<T, Error> {
        let missing = || Error::Missing {
            kind: T::KIND,
            instance: instance.into(),
        };
        let at = self
            .sections
            .iter()
            .position(|s| s.kind == T::KIND && s.instance == instance)
            .ok_or_else(missing)?;
        let section = self.sections.remove(at);
        if section.version > T::VERSION {
            return Err(Error::Newer {
                what: section.kind,
                found: section.version,
                known: T::VERSION,
            });
        }
        let damaged = || Error::Payload {
            kind: T::KIND,
            instance: instance.into(),
        };
        if section.version != T::VERSION {
            return Err(damaged());
        }
        match postcard::take_from_bytes(&section.payload) {
            Ok((value, [])) => Ok(value),
            _ => Err(damaged()),
        }
    }

    /// Restores `component` from its section under `instance`.
    ///
    /// # Errors
    /// As [`Reader::take`], or if the component refuses the state.
    pub fn restore<C: Persist>(&mut self, instance: &str, component: &mut C) -> Result<(), Error> {
        let state = self.take::<C::State>(instance)?;
        component.restore(state).map_err(|source| Error::Invalid {
            kind: C::State::KIND,
            instance: instance.into(),
            source,
        })
    }

    /// The sections that nobody took.
    pub fn into_sections(self) -> Vec<Section> {
        self.sections
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If a section is left that no component took.
    pub fn finish(self) -> Result<(), Error> {
        if self.sections.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self
            .sections
            .iter()
            .map(|s| format!("{} of {}", s.kind, s.instance))
            .collect();
        Err(Error::Unclaimed(names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Invalid;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct CounterV1 {
        count: u32,
    }

    impl Saved for CounterV1 {
        const KIND: &'static str = "counter";
        const VERSION: u16 = 1;
    }

    struct Counter(u32);

    impl Persist for Counter {
        type State = CounterV1;
        fn save(&self) -> CounterV1 {
            CounterV1 { count: self.0 }
        }
        fn restore(&mut self, state: CounterV1) -> Result<(), Invalid> {
            if state.count > 9 {
                return Err(Invalid::new("count above 9"));
            }
            self.0 = state.count;
            Ok(())
        }
    }

    fn saved(count: u32) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.save("a", &Counter(count));
        writer.into_bytes()
    }

    #[test]
    fn round_trip() {
        let mut counter = Counter(0);
        let mut reader = Reader::from_bytes(&saved(7)).unwrap();
        reader.restore("a", &mut counter).unwrap();
        assert_eq!(counter.0, 7);
        reader.finish().unwrap();
    }

    #[test]
    fn refused_state_leaves_the_component_alone() {
        let mut counter = Counter(3);
        let mut reader = Reader::from_bytes(&saved(10)).unwrap();
        assert!(matches!(
            reader.restore("a", &mut counter),
            Err(Error::Invalid { .. })
        ));
        assert_eq!(counter.0, 3);
    }

    #[test]
    fn unclaimed_and_missing_sections_are_errors() {
        let mut reader = Reader::from_bytes(&saved(1)).unwrap();
        assert!(matches!(
            reader.take::<CounterV1>("b"),
            Err(Error::Missing { .. })
        ));
        assert!(matches!(reader.finish(), Err(Error::Unclaimed(_))));
    }

    #[test]
    fn no_damage_goes_unseen() {
        let good = saved(5);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Reader::from_bytes(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(Reader::from_bytes(&good[..at]).is_err(), "cut at {at}");
        }
    }
}
