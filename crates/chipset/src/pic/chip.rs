//! One 8259A, without its wires.

use super::spec::{CASCADE, SPURIOUS};
use serde::{Deserialize, Serialize};
use state::Invalid;

/// Bits of the command words (8259A data sheet, figures 7 and 8).
mod bits {
    /// ICW1, told from OCW2 and OCW3 by this bit.
    pub(super) const ICW1: u8 = 0x10;
    /// ICW1: ICW4 follows.
    pub(super) const ICW1_IC4: u8 = 0x01;
    /// ICW1: single, no ICW3.
    pub(super) const ICW1_SINGLE: u8 = 0x02;
    /// ICW1: all inputs are level-triggered.
    pub(super) const ICW1_LEVEL: u8 = 0x08;
    /// ICW4: automatic end of interrupt.
    pub(super) const ICW4_AUTO_EOI: u8 = 0x02;
    /// ICW4: special fully nested mode.
    pub(super) const ICW4_NESTED: u8 = 0x10;
    /// OCW3, told from OCW2 by this bit.
    pub(super) const OCW3: u8 = 0x08;
    /// OCW3: which register to read, valid with [`OCW3_READ`].
    pub(super) const OCW3_READ_ISR: u8 = 0x01;
    pub(super) const OCW3_READ: u8 = 0x02;
    /// OCW3: the next read polls.
    pub(super) const OCW3_POLL: u8 = 0x04;
    /// OCW3: special mask mode, valid with [`OCW3_SET_MASK_MODE`].
    pub(super) const OCW3_MASK_MODE: u8 = 0x20;
    pub(super) const OCW3_SET_MASK_MODE: u8 = 0x40;
    /// Poll word: there is a request.
    pub(super) const POLL_REQUEST: u8 = 0x80;
}

/// What the next write with A0 = 1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    /// OCW1, of a controller that was never initialized: it asks for nothing.
    Nothing,
    Icw2,
    Icw3,
    Icw4,
    /// OCW1; the controller works.
    Operation,
}

/// One interrupt controller.
#[derive(Debug)]
pub(super) struct Chip {
    expect: Expect,
    icw1: u8,
    icw2: u8,
    icw3: u8,
    icw4: u8,
    elcr: u8,
    /// Levels of the inputs.
    inputs: u8,
    /// Edges that were not yet acknowledged. An edge is kept when its input falls before the
    /// acknowledge, where the chip forgets it: devices that pulse their line would lose
    /// interrupts to the monitor's timing. KVM's and QEMU's controllers keep it too.
    edges: u8,
    mask: u8,
    in_service: u8,
    /// The input with the lowest priority; the one after it has the highest.
    lowest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Default for Chip {
    fn default() -> Self {
        Self {
            expect: Expect::Nothing,
            icw1: 0,
            icw2: 0,
            icw3: 0,
            icw4: 0,
            elcr: 0,
            inputs: 0,
            edges: 0,
            mask: 0,
            in_service: 0,
            lowest: 7,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
        }
    }
}

impl Chip {
    /// Returns to the state after power-on; the inputs are as they are.
    pub(super) fn reset(&mut self) {
        *self = Self {
            inputs: self.inputs,
            ..Self::default()
        };
    }

    /// Inputs that are level-triggered.
    fn level_triggered(&self) -> u8 {
        if self.icw1 & bits::ICW1_LEVEL != 0 {
            0xff
        } else {
            self.elcr
        }
    }

    /// The interrupt request register.
    fn requests(&self) -> u8 {
        let level = self.level_triggered();
        self.inputs & level | self.edges & !level
    }

    /// The level of input `irq`.
    pub(super) fn input(&self, irq: u8) -> bool {
        self.inputs >> irq & 1 != 0
    }

    /// Drives input `irq` (0 to 7).
    pub(super) fn set_input(&mut self, irq: u8, high: bool) {
        let bit = 1 << irq;
        if high {
            self.edges |= bit & !self.inputs & !self.level_triggered();
            self.inputs |= bit;
        } else {
            self.inputs &= !bit;
        }
    }

    /// Distance of `irq` from the highest priority, 0 to 7.
    fn rank(&self, irq: u8) -> u8 {
        irq.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The input in `set` with the highest priority.
    fn highest(&self, set: u8) -> Option<u8> {
        (0..8)
            .filter(|irq| set >> irq & 1 != 0)
            .min_by_key(|irq| self.rank(*irq))
    }

    /// The request that INT stands for: unmasked, and of higher priority than all in service.
    pub(super) fn request(&self, is_master: bool) -> Option<u8> {
        if self.expect != Expect::Operation {
            return None;
        }
        let irq = self.highest(self.requests() & !self.mask)?;
        let mut blocking = self.in_service;
        if self.special_mask {
            // A masked input in service holds nothing off ("Special Mask Mode").
            blocking &= !self.mask;
        }
        if is_master && self.icw4 & bits::ICW4_NESTED != 0 {
            // The slave may ask again for a higher one of its inputs ("The Special Fully Nested
            // Mode").
            blocking &= !(1 << CASCADE);
        }
        match self.highest(blocking) {
            Some(busy) if self.rank(busy) <= self.rank(irq) => None,
            _ => Some(irq),
        }
    }

    /// An acknowledge cycle: the highest request is now in service.
    pub(super) fn acknowledge(&mut self, is_master: bool) -> Option<u8> {
        let irq = self.request(is_master)?;
        let bit = 1 << irq;
        self.edges &= !bit;
        if self.icw4 & bits::ICW4_AUTO_EOI != 0 {
            if self.rotate_on_auto_eoi {
                self.lowest = irq;
            }
        } else {
            self.in_service |= bit;
        }
        Some(irq)
    }

    /// The vector of input `irq`.
    pub(super) fn vector(&self, irq: u8) -> u8 {
        debug_assert!(irq <= SPURIOUS);
        self.icw2 & 0xf8 | irq
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.edges &= !self.level_triggered();
    }

    /// Reads with A0 = 0.
    pub(super) fn read_command(&mut self, is_master: bool) -> u8 {
        if self.poll {
            self.read_poll(is_master)
        } else if self.read_in_service {
            self.in_service
        } else {
            self.requests()
        }
    }

    /// Reads with A0 = 1.
    pub(super) fn read_data(&mut self, is_master: bool) -> u8 {
        if self.poll {
            self.read_poll(is_master)
        } else {
            self.mask
        }
    }

    /// The read after a poll command acknowledges like the CPU ("Poll Command").
    fn read_poll(&mut self, is_master: bool) -> u8 {
        self.poll = false;
        self.acknowledge(is_master)
            .map_or(0, |irq| bits::POLL_REQUEST | irq)
    }

    /// Writes with A0 = 0.
    pub(super) fn write_command(&mut self, value: u8) {
        if value & bits::ICW1 != 0 {
            self.start_initialization(value);
        } else if value & bits::OCW3 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// Writes with A0 = 1.
    pub(super) fn write_data(&mut self, value: u8) {
        match self.expect {
            Expect::Nothing | Expect::Operation => self.mask = value,
            Expect::Icw2 => {
                self.icw2 = value;
                self.expect = if self.icw1 & bits::ICW1_SINGLE == 0 {
                    Expect::Icw3
                } else {
                    self.after_icw3()
                };
            }
            Expect::Icw3 => {
                self.icw3 = value;
                self.expect = self.after_icw3();
            }
            Expect::Icw4 => {
                self.icw4 = value;
                self.expect = Expect::Operation;
            }
        }
    }

    fn after_icw3(&self) -> Expect {
        if self.icw1 & bits::ICW1_IC4 != 0 {
            Expect::Icw4
        } else {
            Expect::Operation
        }
    }

    /// ICW1 ("Initialization Command Words 1 and 2", a to f). What is in service is forgotten
    /// too: operating systems count on it when they take over from firmware.
    fn start_initialization(&mut self, icw1: u8) {
        *self = Self {
            expect: Expect::Icw2,
            icw1,
            icw2: self.icw2,
            icw3: self.icw3,
            elcr: self.elcr,
            inputs: self.inputs,
            ..Self::default()
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & bits::OCW3_SET_MASK_MODE != 0 {
            self.special_mask = value & bits::OCW3_MASK_MODE != 0;
        }
        self.poll = value & bits::OCW3_POLL != 0;
        if value & bits::OCW3_READ != 0 {
            self.read_in_service = value & bits::OCW3_READ_ISR != 0;
        }
    }

    /// OCW2: R, SL and EOI in bits 7 to 5, the input in bits 2 to 0.
    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(irq) = self.end_highest() {
                    self.lowest = irq;
                }
            }
            0b011 => self.in_service &= !(1 << named),
            0b111 => {
                self.in_service &= !(1 << named);
                self.lowest = named;
            }
            0b110 => self.lowest = named,
            _ => {}
        }
    }

    /// Non-specific end of interrupt. In special mask mode it passes over masked inputs ("End
    /// of Interrupt").
    fn end_highest(&mut self) -> Option<u8> {
        let hidden = if self.special_mask { self.mask } else { 0 };
        let irq = self.highest(self.in_service & !hidden)?;
        self.in_service &= !(1 << irq);
        Some(irq)
    }
}

/// The saved state of one controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChipV1 {
    expect: Expect,
    icw: [u8; 4],
    elcr: u8,
    inputs: u8,
    edges: u8,
    mask: u8,
    in_service: u8,
    lowest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    pub(super) fn save(&self) -> ChipV1 {
        let Self {
            expect,
            icw1,
            icw2,
            icw3,
            icw4,
            elcr,
            inputs,
            edges,
            mask,
            in_service,
            lowest,
            rotate_on_auto_eoi,
            special_mask,
            read_in_service,
            poll,
        } = *self;
        ChipV1 {
            expect,
            icw: [icw1, icw2, icw3, icw4],
            elcr,
            inputs,
            edges,
            mask,
            in_service,
            lowest,
            rotate_on_auto_eoi,
            special_mask,
            read_in_service,
            poll,
        }
    }

    /// The controller that was saved as `state`, with the ELCR bits `elcr_writable`.
    pub(super) fn restored(state: ChipV1, elcr_writable: u8) -> Result<Self, Invalid> {
        let ChipV1 {
            expect,
            icw: [icw1, icw2, icw3, icw4],
            elcr,
            inputs,
            edges,
            mask,
            in_service,
            lowest,
            rotate_on_auto_eoi,
            special_mask,
            read_in_service,
            poll,
        } = state;
        if elcr & !elcr_writable != 0 {
            return Err(Invalid::new("an input is level-triggered that can't be"));
        }
        if lowest > 7 {
            return Err(Invalid::new("the lowest priority is not an input"));
        }
        let chip = Self {
            expect,
            icw1,
            icw2,
            icw3,
            icw4,
            elcr,
            inputs,
            edges,
            mask,
            in_service,
            lowest,
            rotate_on_auto_eoi,
            special_mask,
            read_in_service,
            poll,
        };
        if edges & chip.level_triggered() != 0 {
            return Err(Invalid::new("a level-triggered input has latched an edge"));
        }
        Ok(chip)
    }
}
