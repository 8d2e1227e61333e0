//! The pair of Intel 8259A interrupt controllers.
//!
//! Two [`Chip`]s, the slave's INT wired to IR2 of the master, with the edge/level control
//! registers that PCI chipsets added. The master's INT is the line handed to [`Pic::new`]; the
//! interrupt acknowledge cycle of the CPU is [`Pic::acknowledge`].
//!
//! The vector is always formed as in 8086 mode: there is no 8080 here to take a CALL.

mod chip;
#[cfg(test)]
mod tests;

use crate::bytewise;
use chip::{Chip, ChipV1};
use device::{Device, InterruptLine, PortIo, Width};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Intel 8259A data sheet (order 231468-003); edge/level registers: Intel 82371AB (PIIX4) data
/// sheet (order 290562-001), 4.2.4.
mod spec {
    /// A0 = 0: ICW1, OCW2, OCW3; reads IRR, ISR or the poll word.
    pub(super) const MASTER_COMMAND: u16 = 0x20;
    /// A0 = 1: ICW2 to ICW4, OCW1.
    pub(super) const MASTER_DATA: u16 = 0x21;
    pub(super) const SLAVE_COMMAND: u16 = 0xa0;
    pub(super) const SLAVE_DATA: u16 = 0xa1;
    /// A set bit makes the input level-triggered.
    pub(super) const MASTER_ELCR: u16 = 0x4d0;
    pub(super) const SLAVE_ELCR: u16 = 0x4d1;
    /// IRQ0 (timer), IRQ1 (keyboard) and IRQ2 (cascade) are edge-triggered for good.
    pub(super) const MASTER_ELCR_WRITABLE: u8 = 0xf8;
    /// So are IRQ8 (clock) and IRQ13 (FPU error).
    pub(super) const SLAVE_ELCR_WRITABLE: u8 = 0xde;
    /// The master's input at which the slave's INT arrives.
    pub(super) const CASCADE: u8 = 2;
    /// The input whose vector stands for a request that has gone.
    pub(super) const SPURIOUS: u8 = 7;
}

/// The pair of interrupt controllers of a PC.
#[derive(Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    /// The level driven on `intr`.
    intr_level: bool,
    intr: InterruptLine,
}

impl Pic {
    /// The ports that the device decodes: first port and length.
    pub const PORTS: [(u16, u16); 3] = [
        (spec::MASTER_COMMAND, 2),
        (spec::SLAVE_COMMAND, 2),
        (spec::MASTER_ELCR, 2),
    ];

    /// Two controllers after power-on whose INT drives `intr`.
    pub fn new(intr: InterruptLine) -> Self {
        Self {
            master: Chip::default(),
            slave: Chip::default(),
            intr_level: false,
            intr,
        }
    }

    /// Drives input `irq` (0 to 15). IRQ2 does not exist: its pin is the cascade.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn set_irq(&mut self, irq: u8, high: bool) {
        assert!(irq < 16, "the PIC has 16 inputs");
        match irq {
            spec::CASCADE => return,
            0..8 => self.master.set_input(irq, high),
            _ => self.slave.set_input(irq - 8, high),
        }
        self.update();
    }

    /// The CPU's interrupt acknowledge cycle: the vector of the highest request, which is now in
    /// service. If the request has gone meanwhile, the vector is that of IRQ7 or IRQ15, and
    /// nothing of that controller is in service.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge(true) {
            Some(spec::CASCADE) => {
                let irq = self.slave.acknowledge(false).unwrap_or(spec::SPURIOUS);
                // INT falls with the acknowledge and rises again if more requests wait: the
                // master, whose input is edge-triggered, must see that edge.
                self.master.set_input(spec::CASCADE, false);
                self.slave.vector(irq)
            }
            Some(irq) => self.master.vector(irq),
            None => self.master.vector(spec::SPURIOUS),
        };
        self.update();
        vector
    }

    /// The level of INTR.
    pub fn intr(&self) -> bool {
        self.intr_level
    }

    /// Passes requests on: slave to master, master to the CPU.
    fn update(&mut self) {
        self.master
            .set_input(spec::CASCADE, self.slave.request(false).is_some());
        let high = self.master.request(true).is_some();
        if high != self.intr_level {
            self.intr_level = high;
            self.intr.set(high);
        }
    }

    fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            spec::MASTER_COMMAND => self.master.read_command(true),
            spec::SLAVE_COMMAND => self.slave.read_command(false),
            spec::MASTER_DATA => self.master.read_data(true),
            spec::SLAVE_DATA => self.slave.read_data(false),
            spec::MASTER_ELCR => self.master.elcr(),
            spec::SLAVE_ELCR => self.slave.elcr(),
            _ => 0xff,
        };
        // A poll acknowledges.
        self.update();
        value
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            spec::MASTER_COMMAND => self.master.write_command(value),
            spec::SLAVE_COMMAND => self.slave.write_command(value),
            spec::MASTER_DATA => self.master.write_data(value),
            spec::SLAVE_DATA => self.slave.write_data(value),
            spec::MASTER_ELCR => self.master.set_elcr(value & spec::MASTER_ELCR_WRITABLE),
            spec::SLAVE_ELCR => self.slave.set_elcr(value & spec::SLAVE_ELCR_WRITABLE),
            _ => {}
        }
        self.update();
    }
}

impl PortIo for Pic {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        bytewise::read(port, width, |port| self.read(port))
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| self.write(port, value));
    }
}

/// The saved state of a [`Pic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicV1 {
    master: ChipV1,
    slave: ChipV1,
}

impl Saved for PicV1 {
    const KIND: &'static str = "i8259";
    const VERSION: u16 = 1;
}

impl Persist for Pic {
    type State = PicV1;

    fn save(&self) -> PicV1 {
        let Self {
            master,
            slave,
            intr_level: _,
            intr: _,
        } = self;
        PicV1 {
            master: master.save(),
            slave: slave.save(),
        }
    }

    fn restore(&mut self, state: PicV1) -> Result<(), Invalid> {
        let PicV1 { master, slave } = state;
        let master = Chip::restored(master, spec::MASTER_ELCR_WRITABLE)?;
        let slave = Chip::restored(slave, spec::SLAVE_ELCR_WRITABLE)?;
        if master.input(spec::CASCADE) != slave.request(false).is_some() {
            return Err(Invalid::new("the cascade line is not at the slave's level"));
        }
        (self.master, self.slave) = (master, slave);
        self.intr_level = self.master.request(true).is_some();
        self.intr.set(self.intr_level);
        Ok(())
    }
}

impl Device for Pic {
    fn reset(&mut self) {
        // The devices reset their lines themselves.
        self.master.reset();
        self.slave.reset();
        self.update();
    }

    device::saved_by_persist!();
}
