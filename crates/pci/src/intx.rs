//! Interrupt pins of bus 0 and the lines that they share.

use crate::Slot;
use device::{InterruptLine, LineTarget};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// The first global system interrupt of the four that PCI pins are wired to.
const FIRST_GSI: u32 = 16;

/// The global system interrupt that pin `pin` (0 is INTA#) of device `device` is wired to. The
/// pins are swizzled so that devices, most of which have only INTA#, spread over the lines.
pub const fn gsi(device: u8, pin: u8) -> u32 {
    FIRST_GSI + line(device, pin) as u32
}

const fn line(device: u8, pin: u8) -> usize {
    (device as usize + pin as usize) % 4
}

/// Ties pins together: a shared line is high while any of its pins is.
pub(crate) struct Router {
    lines: Mutex<[Shared; 4]>,
}

struct Shared {
    line: InterruptLine,
    /// The slots' numbers whose pins are high.
    high: BTreeSet<u32>,
}

impl Router {
    /// Towards the lines of GSI 16, 17, 18 and 19.
    pub(crate) fn new(lines: [InterruptLine; 4]) -> Arc<Self> {
        let lines = lines.map(|line| Shared {
            line,
            high: BTreeSet::new(),
        });
        Arc::new(Self {
            lines: Mutex::new(lines),
        })
    }

    /// The line behind pin INTA# of the function in `slot`.
    pub(crate) fn pin(self: &Arc<Self>, slot: Slot) -> InterruptLine {
        InterruptLine::new(self.clone(), slot.number().into())
    }
}

impl LineTarget for Router {
    fn set_line(&self, number: u32, high: bool) {
        let device = Slot::from_number(number as u8).device();
        let mut lines = device::lock(&self.lines);
        let shared = &mut lines[line(device, 0)];
        let changed = match high {
            true => shared.high.insert(number),
            false => shared.high.remove(&number),
        };
        if changed {
            // Under the lock: two pins that change at once must not pass each other.
            shared.line.set(!shared.high.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::testing::Recorder;

    #[test]
    fn a_shared_line_is_high_while_any_pin_is() {
        let lines = Recorder::new();
        let router = Router::new([0, 1, 2, 3].map(|n| InterruptLine::new(lines.clone(), n)));
        let a = router.pin(Slot::new(1));
        let b = router.pin(Slot::with_function(5, 3));
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(lines.level(1));
        b.set(false);
        assert!(!lines.level(1));
        assert_eq!(lines.edges(1), 1);
    }

    #[test]
    fn pins_are_swizzled() {
        assert_eq!(
            [gsi(0, 0), gsi(1, 0), gsi(1, 3), gsi(31, 0)],
            [16, 17, 16, 19]
        );
    }
}
