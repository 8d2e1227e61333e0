//! Architectural facts of x86: registers, descriptors, page tables, CPUID, the local APIC's layout
