//! The local APIC in software, for engines whose host has none
