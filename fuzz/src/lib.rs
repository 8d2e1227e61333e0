//! The targets of the crate `fuzz` for libFuzzer: see `README.md`.

use fuzz::Target;
use std::sync::OnceLock;

pub use libfuzzer_sys::fuzz_target;

/// Makes the program of the target with this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        static TARGET: $crate::Named = $crate::Named::new($name);
        $crate::fuzz_target!(|data: &[u8]| TARGET.run(data));
    };
}

/// A target, looked up once.
pub struct Named {
    name: &'static str,
    target: OnceLock<&'static Target>,
}

impl Named {
    /// The target `name`.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            target: OnceLock::new(),
        }
    }

    /// Runs it on one input.
    pub fn run(&self, data: &[u8]) {
        let target = self
            .target
            .get_or_init(|| fuzz::target(self.name).expect("a target"));
        (target.run)(data);
    }
}
