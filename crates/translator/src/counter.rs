//! The guest's TSC in translated code: a function of the host's, computed with its numbers from
//! the [`Context`](crate::context::Context).

use crate::vcpu::TranslatorVcpu;
use clock::TscScale;

/// A floor that no counter reaches: everything is left to the interpreter.
const NEVER: u64 = i64::MAX as u64;

/// What [`Context`](crate::context::Context) holds of a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    floor: u64,
    mult: u64,
    offset: u64,
}

impl Numbers {
    /// Those of `scale`. Translated code takes the upper half of a product instead of shifting by
    /// [`TscScale::SHIFT`], which a host's TSC of less than 1 GHz does not allow; and it may compare
    /// with the floor by the sign of a difference.
    fn new(scale: Option<TscScale>) -> Self {
        const MORE: u32 = 64 - TscScale::SHIFT;
        match scale {
            Some(scale) if scale.mult.leading_zeros() >= MORE && scale.floor < NEVER => Self {
                floor: scale.floor,
                mult: scale.mult << MORE,
                offset: scale.offset,
            },
            _ => Self {
                floor: NEVER,
                mult: 0,
                offset: 0,
            },
        }
    }
}

impl TranslatorVcpu {
    /// Takes how machine time follows from the host's TSC. That holds until the machine is paused,
    /// or the host's counter starts anew: to be called when a vCPU begins to run, and time and
    /// again.
    pub(crate) fn take_scale(&mut self) {
        // In lock-step, every reader sees the same counter: it is left to the interpreter.
        let scale = self.core.tsc_scale().filter(|_| self.lockstep.is_none());
        let numbers = Numbers::new(scale);
        self.context.tsc_floor = numbers.floor;
        self.context.tsc_mult = numbers.mult;
        self.context.machine_offset = numbers.offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What translated code computes.
    fn nanos(numbers: &Numbers, tsc: u64) -> u64 {
        let product = u128::from(tsc) * u128::from(numbers.mult);
        ((product >> 64) as u64).wrapping_add(numbers.offset)
    }

    #[test]
    fn it_is_what_the_clock_computes() {
        // From hardly more than 1 GHz to 16 GHz.
        for mult in [(1 << 62) - 1, 0x1555_5555_5555_5555, 1 << 58] {
            let scale = TscScale {
                mult,
                offset: 12_345u64.wrapping_neg(),
                floor: 77,
            };
            let numbers = Numbers::new(Some(scale));
            assert_eq!(numbers.floor, 77);
            for tsc in [77, 78, 1 << 32, 0x1234_5678_9abc_def0, (1 << 63) - 1] {
                assert_eq!(nanos(&numbers, tsc), scale.nanos(tsc), "{tsc} * {mult}");
            }
        }
    }

    #[test]
    fn what_it_cannot_compute_is_left_to_the_interpreter() {
        let scale = |mult, floor| TscScale {
            mult,
            offset: 0,
            floor,
        };
        for scale in [
            None,
            Some(scale(1 << 62, 0)),
            Some(scale(1 << 60, NEVER)),
            Some(scale(1 << 60, 1 << 63)),
        ] {
            assert_eq!(Numbers::new(scale).floor, NEVER, "{scale:?}");
        }
    }
}
