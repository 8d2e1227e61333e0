//! The binary translator: 64-bit and 32-bit x86 guests on x86 hosts, without /dev/kvm.

mod translator;

pub use translator::{NewError, Options, Translator};
