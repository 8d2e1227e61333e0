//! What Linux says when it is not content with its machine.

/// Words of its log that must not be there.
pub(crate) const COMPLAINTS: [&str; 7] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "Firmware Bug",
    "unchecked MSR access",
    "soft lockup",
    "rcu_sched self-detected stall",
];
