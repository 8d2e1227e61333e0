//! The binary translator: 64-bit and 32-bit x86 guests on x86 hosts, without /dev/kvm.

mod asm;
mod assist;
mod block;
mod code_memory;
mod context;
mod counter;
mod crossing;
mod emit;
mod gate;
mod gs_pages;
mod lockstep;
mod lookup;
mod mode;
mod perf_map;
mod plan;
mod refill;
mod signals;
mod statistics;
mod store;
mod timer;
mod translator;
mod vcpu;
mod vectors;
mod window;

pub use translator::{NewError, Options, Translator};
pub use window::When;
