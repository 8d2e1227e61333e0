//! Small programs, made by hand, for what the translator does by itself: they check themselves, or
//! leave results in registers.

mod bases;
mod code;
mod crossings;
mod dirty;
mod gs_pages;
mod guest;
mod jumps;
mod lock_step;
mod straddling;
mod time;
mod tlb;
mod windows;
