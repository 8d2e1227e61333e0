//! Tests of one instruction at a time on a vCPU of their own.

mod exceptions;
mod host;
mod random;
mod x87;
mod xsave;
