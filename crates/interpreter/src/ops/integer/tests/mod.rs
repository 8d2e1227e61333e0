//! Integer instructions against the host CPU and, outside 64-bit code, against the manuals.

mod host;
mod legacy;
mod memory;
