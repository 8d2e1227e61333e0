//! Requests of the guest to the machine as a whole.

/// What takes a guest's requests to end or restart the machine.
///
/// A device calls these from a vCPU's access, under its own lock: an implementation records the
/// request and returns at once. The access completes; what the vCPUs execute until the machine
/// acts is bounded by its kick.
pub trait PowerControl: Send + Sync {
    /// The guest switched the machine off (ACPI S5).
    fn power_off(&self);

    /// The guest asked for a reset of the whole machine.
    fn reset(&self);

    /// The guest ended the machine with `status` for whoever started it.
    fn exit(&self, status: u8);
}

/// A request that came through [`PowerControl`], as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// [`PowerControl::power_off`].
    PowerOff,
    /// [`PowerControl::reset`].
    Reset,
    /// [`PowerControl::exit`].
    Exit(u8),
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{PowerControl, PowerRequest};
    use std::sync::{Arc, Mutex};

    /// Remembers what was asked for.
    #[derive(Debug, Default)]
    pub(crate) struct Requests(Mutex<Vec<PowerRequest>>);

    impl Requests {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// Takes the requests since the last call.
        pub(crate) fn take(&self) -> Vec<PowerRequest> {
            std::mem::take(&mut self.0.lock().unwrap())
        }

        fn push(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    impl PowerControl for Requests {
        fn power_off(&self) {
            self.push(PowerRequest::PowerOff);
        }
        fn reset(&self) {
            self.push(PowerRequest::Reset);
        }
        fn exit(&self, status: u8) {
            self.push(PowerRequest::Exit(status));
        }
    }
}
