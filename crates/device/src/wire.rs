//! Wires from a device to whoever listens.

use std::sync::Arc;

/// The far end of interrupt lines: an interrupt controller, or a router in front of several.
pub trait LineTarget: Send + Sync {
    /// `line` is now high or low. Called on every set, also without a change.
    fn set_line(&self, line: u32, high: bool);
}

/// One interrupt line, held by the device that drives it. High means asserted, whatever the
/// polarity on a real board.
#[derive(Clone)]
pub struct InterruptLine {
    target: Arc<dyn LineTarget>,
    line: u32,
}

impl InterruptLine {
    /// Line number `line` of `target`.
    pub fn new(target: Arc<dyn LineTarget>, line: u32) -> Self {
        Self { target, line }
    }

    /// A line that ends nowhere.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl LineTarget for Nowhere {
            fn set_line(&self, _: u32, _: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    /// Drives the line.
    pub fn set(&self, high: bool) {
        self.target.set_line(self.line, high);
    }

    /// One edge: high, then low.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for InterruptLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InterruptLine").field(&self.line).finish()
    }
}

/// Where message-signalled interrupts go.
pub trait MsiTarget: Send + Sync {
    /// A write of `data` to `address` on the interrupt bus (Intel SDM vol. 3, 11.11).
    fn send(&self, address: u64, data: u32);
}

/// A device's way to send message-signalled interrupts.
#[derive(Clone)]
pub struct Msi(Arc<dyn MsiTarget>);

impl Msi {
    /// Messages to `target`.
    pub fn new(target: Arc<dyn MsiTarget>) -> Self {
        Self(target)
    }

    /// Sends one message.
    pub fn send(&self, address: u64, data: u32) {
        self.0.send(address, data);
    }
}

impl std::fmt::Debug for Msi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Msi")
    }
}

/// Far ends for the tests of devices.
pub mod testing {
    use super::{LineTarget, MsiTarget};
    use std::sync::{Arc, Mutex};

    /// Remembers what was driven and sent.
    #[derive(Debug, Default)]
    pub struct Recorder {
        lines: Mutex<Vec<(u32, bool)>>,
        messages: Mutex<Vec<(u64, u32)>>,
    }

    impl Recorder {
        /// A recorder with an empty record.
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        /// The level of `line`: that of the last set, low before the first.
        pub fn level(&self, line: u32) -> bool {
            let lines = self.lines.lock().unwrap();
            lines
                .iter()
                .rev()
                .find(|(l, _)| *l == line)
                .is_some_and(|(_, high)| *high)
        }

        /// How many rising edges `line` has had.
        pub fn edges(&self, line: u32) -> usize {
            let lines = self.lines.lock().unwrap();
            let mut before = false;
            let mut edges = 0;
            for (_, high) in lines.iter().filter(|(l, _)| *l == line) {
                edges += usize::from(*high && !before);
                before = *high;
            }
            edges
        }

        /// Takes the messages sent since the last call: (address, data).
        pub fn take_messages(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.messages.lock().unwrap())
        }
    }

    impl LineTarget for Recorder {
        fn set_line(&self, line: u32, high: bool) {
            self.lines.lock().unwrap().push((line, high));
        }
    }

    impl MsiTarget for Recorder {
        fn send(&self, address: u64, data: u32) {
            self.messages.lock().unwrap().push((address, data));
        }
    }
}
