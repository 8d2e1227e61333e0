//! The reference CPU engine: x86 in software, every mode
