//! From a device's wire to the engine.

use chipset::{IoApic, Pic};
use device::{InterruptLine, LineTarget, MsiTarget, Shared, lock};
use engine::Engine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The pin of the I/O APIC at which the PIT arrives (ACPI calls this an interrupt source override).
const PIT_PIN: u32 = 2;
/// Interrupts that the PIC has too.
const ISA_INTERRUPTS: u32 = 16;

/// Global system interrupts: 0 to 15 are the ISA bus's and go to the PIC and the I/O APIC, those
/// above only to the latter.
pub(crate) struct Router {
    pub(crate) pic: Shared<Pic>,
    pub(crate) ioapic: Shared<IoApic>,
    /// The HPET drives ISA interrupts 0 and 8 in place of PIT and RTC (HPET 1.0a, 2.4.4).
    pub(crate) legacy_replaced: AtomicBool,
}

impl LineTarget for Router {
    fn set_line(&self, gsi: u32, high: bool) {
        if gsi < ISA_INTERRUPTS {
            lock(&self.pic).set_irq(gsi as u8, high);
        }
        // Pin 2 is the PIT's; the PIC's cascade has no line of its own.
        if gsi != PIT_PIN {
            let pin = if gsi == 0 { PIT_PIN } else { gsi };
            lock(&self.ioapic).set_pin(pin as usize, high);
        }
    }
}

/// Lines of PIT and RTC: cut off while the HPET replaces them.
pub(crate) struct Replaceable(pub(crate) Arc<Router>);

impl LineTarget for Replaceable {
    fn set_line(&self, gsi: u32, high: bool) {
        if !high || !self.0.legacy_replaced.load(Ordering::Relaxed) {
            self.0.set_line(gsi, high);
        }
    }
}

/// The HPET's word that it replaces PIT and RTC.
pub(crate) struct ReplaceLegacy(pub(crate) Arc<Router>);

impl LineTarget for ReplaceLegacy {
    fn set_line(&self, _: u32, high: bool) {
        self.0.legacy_replaced.store(high, Ordering::Relaxed);
    }
}

/// Messages on the interrupt bus.
pub(crate) struct Messages(pub(crate) Arc<dyn Engine>);

impl MsiTarget for Messages {
    fn send(&self, address: u64, data: u32) {
        self.0.send_message(address, data);
    }
}

/// The PIC's INTR output.
pub(crate) struct External(pub(crate) Arc<dyn Engine>);

impl LineTarget for External {
    fn set_line(&self, _: u32, high: bool) {
        self.0.set_external_interrupt(high);
    }
}

/// Two lines that together drive one: it is high while either of them is.
pub(crate) fn wired_or(line: InterruptLine) -> [InterruptLine; 2] {
    struct WiredOr {
        line: InterruptLine,
        /// One bit for each input. Held while the output is driven, so that levels stay in order.
        high: Mutex<u8>,
    }
    impl LineTarget for WiredOr {
        fn set_line(&self, input: u32, high: bool) {
            let mut levels = lock(&self.high);
            if high {
                *levels |= 1 << input;
            } else {
                *levels &= !(1 << input);
            }
            self.line.set(*levels != 0);
        }
    }
    let or = Arc::new(WiredOr {
        line,
        high: Mutex::new(0),
    });
    [0, 1].map(|input| InterruptLine::new(or.clone(), input))
}
