//! The translator against the interpreter: the same programs on two machines that are the same but
//! for their engines, and everything is compared that is left.
//!
//! `DOPPEL_CASES` sets the number of random programs for each mode, `DOPPEL_SEED` the first one's
//! seed. A difference is reported with the seed, the shortest program found that still shows it,
//! and the first fields that differ.

mod compare;
mod generator;
mod handlers;
mod harness;
mod interrupts;
mod isolation;
mod layout;
mod machine;
mod program;
mod random;
mod random_programs;
mod scene;
mod smp;
mod tables;
mod trial;
