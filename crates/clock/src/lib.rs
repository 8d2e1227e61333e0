//! Machine time: nanoseconds that pass only while the virtual machine runs.
//!
//! Every clock that a guest can see (TSC, kvmclock, HPET, PIT, PM timer, APIC timer) is a linear
//! function of the one [`Clock`] of its machine, so they can't drift against each other. The host
//! side is its TSC, where that is invariant and the kernel keeps time by it: then generated code
//! can read the clock too ([`TscScale`]), and guest time passes at the rate of the host's crystal,
//! as it does on a machine of metal; to discipline it is the guest's affair. Elsewhere the host
//! side is `CLOCK_MONOTONIC`, which NTP slews.
//! While the machine is paused, machine time stands still.
#![forbid(unsafe_code)]

mod clock;
mod counter;

pub use clock::{Clock, NANOS_PER_SECOND, nanos, ticks};
pub use counter::TscScale;
