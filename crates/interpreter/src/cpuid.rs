//! What CPUID shows.
