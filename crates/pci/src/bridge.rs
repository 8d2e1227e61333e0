//! The functions that make a board: host bridge and ISA bridge, with the identities that firmware
//! and operating systems expect of an Intel Q35 board.

use crate::config::spec::HEADER_END;
use crate::{CONFIG_BYTES, ConfigSpace, Function, Identity, Slot, Wires};
use device::{Device, Width};

const INTEL: u16 = 0x8086;

/// A bridge without behaviour: its registers hold what is written to them, and nothing comes of
/// it. What they would control is fixed in this machine.
pub struct Bridge {
    config: ConfigSpace,
}

impl Bridge {
    /// Where the host bridge belongs.
    pub const HOST: Slot = Slot::new(0);
    /// Where the ISA bridge belongs.
    pub const ISA: Slot = Slot::new(0x1f);

    /// The host bridge (Intel 3 Series Chipset Family datasheet, 5.1: DRAM controller, 82Q35),
    /// with `ecam` as what PCIEXBAR says after power-on.
    pub fn host(wires: Wires, ecam: u64) -> Self {
        let mut bridge = Self::new(0x29c0, [0x06, 0x00, 0x00], wires);
        // Enabled, 256 MiB.
        bridge
            .config
            .define(0x60, &(ecam | 1).to_le_bytes(), &[0xff; 8]);
        bridge
    }

    /// The ISA bridge (Intel ICH9 datasheet, chapter 13: LPC interface).
    pub fn isa(wires: Wires) -> Self {
        let mut bridge = Self::new(0x2918, [0x06, 0x01, 0x00], wires);
        // On such a board, SATA and SMBus are further functions of this device.
        bridge.config.set_multi_function();
        // PIRQA to PIRQH: not routed to an ISA interrupt.
        for at in [0x60, 0x68] {
            bridge.config.define(at, &[0x80; 4], &[0x8f; 4]);
        }
        bridge
    }

    fn new(device: u16, class: [u8; 3], wires: Wires) -> Self {
        let identity = Identity {
            vendor: INTEL,
            device,
            revision: 2,
            class,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(identity, wires);
        const OWN: usize = CONFIG_BYTES - HEADER_END;
        config.define(HEADER_END, &[0; OWN], &[0xff; OWN]);
        Self { config }
    }
}

impl Function for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, _: u8, _: u64, width: Width) -> u64 {
        width.ones()
    }

    fn bar_write(&mut self, _: u8, _: u64, _: Width, _: u64) {}
}

impl Device for Bridge {
    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self, instance: &str, out: &mut state::Writer) {
        out.save(instance, &self.config);
    }

    fn restore(&mut self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error> {
        from.restore(instance, &mut self.config)
    }
}
