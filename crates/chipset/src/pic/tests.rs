use super::*;
use crate::testing::{self, Bench, Random, Subject, Wires, subject_device};
use device::{Shared, lock, shared};
use std::sync::Arc;

struct Rig {
    pic: Pic,
    wires: Arc<Wires>,
}

impl Rig {
    /// As a PC's firmware sets the pair up: vectors 0x20 and 0x28, nothing masked.
    fn new() -> Self {
        Self::with_icw4(0x01)
    }

    fn with_icw4(icw4: u8) -> Self {
        let wires = Wires::new();
        let mut rig = Self {
            pic: Pic::new(wires.line(0)),
            wires,
        };
        rig.initialize(0x11, icw4);
        rig
    }

    fn initialize(&mut self, icw1: u8, icw4: u8) {
        for (port, base, icw3) in [(0x20, 0x20, 0x04), (0xa0, 0x28, 0x02)] {
            self.write(port, icw1);
            self.write(port + 1, base);
            self.write(port + 1, icw3);
            self.write(port + 1, icw4);
        }
    }

    fn write(&mut self, port: u16, value: u8) {
        self.pic.port_write(port, Width::Byte, value.into());
    }

    fn read(&mut self, port: u16) -> u8 {
        self.pic.port_read(port, Width::Byte) as u8
    }

    fn in_service(&mut self, port: u16) -> u8 {
        self.write(port, 0x0b);
        self.read(port)
    }

    fn pulse(&mut self, irq: u8) {
        self.pic.set_irq(irq, true);
        self.pic.set_irq(irq, false);
    }

    fn intr(&self) -> bool {
        assert_eq!(self.wires.level(0), self.pic.intr());
        self.pic.intr()
    }
}

#[test]
fn an_uninitialized_controller_asks_for_nothing() {
    let mut rig = Rig::new();
    rig.pic.reset();
    rig.pulse(0);
    assert!(!rig.intr());
}

#[test]
fn fully_nested_mode_serves_the_highest_priority_first() {
    let mut rig = Rig::new();
    for irq in [6, 12, 3] {
        rig.pulse(irq);
    }
    // The slave's requests rank where the cascade is, between IRQ1 and IRQ3.
    assert_eq!(rig.pic.acknowledge(), 0x2c);
    assert!(!rig.intr(), "lower ones wait");
    rig.pulse(1);
    assert!(rig.intr(), "a higher one interrupts");
    assert_eq!(rig.pic.acknowledge(), 0x21);
    rig.write(0x20, 0x20);
    rig.write(0xa0, 0x20);
    rig.write(0x20, 0x20);
    assert_eq!(rig.pic.acknowledge(), 0x23);
    rig.write(0x20, 0x20);
    assert_eq!(rig.pic.acknowledge(), 0x26);
}

#[test]
fn an_edge_asks_once_and_a_level_asks_until_it_falls() {
    let mut rig = Rig::new();
    rig.write(0x4d0, 0x20);
    rig.pic.set_irq(4, true);
    assert_eq!(rig.pic.acknowledge(), 0x24);
    rig.write(0x20, 0x20);
    assert!(!rig.intr(), "the edge was served");
    rig.pic.set_irq(5, true);
    assert_eq!(rig.pic.acknowledge(), 0x25);
    rig.write(0x20, 0x20);
    assert!(rig.intr(), "the level is still high");
    rig.pic.set_irq(5, false);
    assert!(!rig.intr());
}

#[test]
fn a_request_that_went_away_is_irq7_and_not_in_service() {
    let mut rig = Rig::new();
    rig.write(0x4d0, 0x20);
    rig.pic.set_irq(5, true);
    rig.pic.set_irq(5, false);
    assert_eq!(rig.pic.acknowledge(), 0x27);
    assert_eq!(rig.in_service(0x20), 0);
}

#[test]
fn a_slave_request_that_went_away_is_irq15_with_the_cascade_in_service() {
    let mut rig = Rig::new();
    rig.write(0x4d1, 0x02);
    rig.pic.set_irq(9, true);
    rig.pic.set_irq(9, false);
    assert_eq!(rig.pic.acknowledge(), 0x2f);
    assert_eq!(rig.in_service(0x20), 0x04);
    assert_eq!(rig.in_service(0xa0), 0);
}

#[test]
fn the_system_inputs_cannot_be_made_level_triggered() {
    let mut rig = Rig::new();
    rig.pic.port_write(0x4d0, Width::Word, 0xffff);
    assert_eq!(rig.pic.port_read(0x4d0, Width::Word), 0xdef8);
}

#[test]
fn masked_requests_wait_in_irr() {
    let mut rig = Rig::new();
    rig.write(0x21, 0x10);
    rig.pulse(4);
    assert!(!rig.intr());
    assert_eq!(rig.read(0x20), 0x10, "IRR is what is read after ICW1");
    rig.write(0x21, 0);
    assert!(rig.intr());
}

#[test]
fn specific_eoi_ends_the_input_named() {
    let mut rig = Rig::new();
    rig.pulse(4);
    rig.pic.acknowledge();
    rig.pulse(1);
    rig.pic.acknowledge();
    assert_eq!(rig.in_service(0x20), 0x12);
    rig.write(0x20, 0x64);
    assert_eq!(rig.in_service(0x20), 0x02);
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let mut rig = Rig::with_icw4(0x03);
    rig.pulse(9);
    rig.pulse(10);
    assert_eq!(rig.pic.acknowledge(), 0x29);
    assert_eq!((rig.in_service(0x20), rig.in_service(0xa0)), (0, 0));
    assert!(rig.intr(), "the slave's next request makes a new edge");
    assert_eq!(rig.pic.acknowledge(), 0x2a);
    assert!(!rig.intr());
}

#[test]
fn rotation_on_automatic_eoi_serves_all_in_turn() {
    let mut rig = Rig::with_icw4(0x03);
    rig.write(0x20, 0x80);
    rig.pulse(0);
    assert_eq!(rig.pic.acknowledge(), 0x20);
    rig.pulse(0);
    rig.pulse(1);
    assert_eq!(rig.pic.acknowledge(), 0x21);
    rig.write(0x20, 0x00);
    rig.pulse(1);
    assert_eq!(
        rig.pic.acknowledge(),
        0x20,
        "IRQ0 is the highest but for IRQ2 on"
    );
}

#[test]
fn rotation_on_nonspecific_eoi_makes_the_served_input_the_lowest() {
    let mut rig = Rig::new();
    rig.pulse(3);
    rig.pic.acknowledge();
    rig.write(0x20, 0xa0);
    rig.pulse(3);
    rig.pulse(4);
    assert_eq!(rig.pic.acknowledge(), 0x24);
}

#[test]
fn rotation_on_specific_eoi_and_set_priority_name_the_lowest() {
    let mut rig = Rig::new();
    rig.pulse(6);
    rig.pic.acknowledge();
    rig.write(0x20, 0xe6);
    assert_eq!(rig.in_service(0x20), 0);
    rig.pulse(6);
    rig.pulse(7);
    assert_eq!(rig.pic.acknowledge(), 0x27);
    rig.write(0x20, 0x67);
    rig.write(0x20, 0xc5);
    rig.pulse(0);
    assert_eq!(rig.pic.acknowledge(), 0x26);
}

#[test]
fn special_mask_mode_lets_lower_priorities_in() {
    let mut rig = Rig::new();
    rig.pulse(1);
    rig.pic.acknowledge();
    rig.pulse(5);
    assert!(!rig.intr());
    rig.write(0x21, 0x02);
    rig.write(0x20, 0x68);
    assert!(rig.intr());
    rig.pic.acknowledge();
    rig.write(0x20, 0x20);
    assert_eq!(rig.in_service(0x20), 0x02, "the masked one is passed over");
    rig.write(0x20, 0x20);
    assert_eq!(rig.in_service(0x20), 0x02);
    rig.write(0x20, 0x48);
    rig.write(0x20, 0x20);
    assert_eq!(rig.in_service(0x20), 0);
}

#[test]
fn special_fully_nested_mode_admits_higher_requests_of_the_slave() {
    for (icw4, admitted) in [(0x01, false), (0x11, true)] {
        let mut rig = Rig::with_icw4(icw4);
        rig.pulse(12);
        assert_eq!(rig.pic.acknowledge(), 0x2c);
        rig.pulse(9);
        assert_eq!(rig.intr(), admitted);
        rig.pulse(14);
    }
}

#[test]
fn the_poll_word_acknowledges() {
    let mut rig = Rig::new();
    rig.write(0x20, 0x0c);
    assert_eq!(rig.read(0x20), 0);
    rig.pulse(5);
    rig.write(0x20, 0x0c);
    assert_eq!(rig.read(0x20), 0x85);
    assert!(!rig.intr());
    assert_eq!(rig.in_service(0x20), 0x20);
}

#[test]
fn icw1_resets_mask_edges_and_modes() {
    let mut rig = Rig::new();
    rig.write(0x21, 0xff);
    rig.pic.set_irq(3, true);
    rig.initialize(0x11, 0x01);
    assert_eq!(rig.read(0x21), 0);
    assert!(!rig.intr(), "a high input needs a new edge");
    rig.pic.set_irq(3, false);
    rig.pic.set_irq(3, true);
    assert!(rig.intr());
}

#[test]
fn without_icw4_the_sequence_is_shorter() {
    let mut rig = Rig::with_icw4(0x03);
    rig.write(0x20, 0x12);
    rig.write(0x21, 0x40);
    rig.write(0x21, 0xfe);
    assert_eq!(rig.read(0x21), 0xfe, "single, no ICW4: OCW1 follows ICW2");
    rig.pulse(0);
    assert_eq!(rig.pic.acknowledge(), 0x40);
    assert_eq!(rig.in_service(0x20), 1, "no ICW4: its functions are off");
}

#[test]
fn reset_forgets_all_but_the_levels_of_the_inputs() {
    let mut rig = Rig::new();
    rig.write(0x4d0, 0x20);
    rig.pic.set_irq(5, true);
    assert!(rig.intr());
    Device::reset(&mut rig.pic);
    assert!(!rig.intr());
    assert_eq!((rig.read(0x4d0), rig.in_service(0x20)), (0, 0));
    rig.initialize(0x19, 0x01);
    assert!(
        rig.intr(),
        "the line is still high, and ICW1 makes it level-triggered"
    );
}

struct Hostile(Shared<Pic>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        Self(shared(Pic::new(bench.wires.line(0))))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut pic = lock(&self.0);
        let port = random.pick(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
        let width = random.pick(&[Width::Byte, Width::Byte, Width::Word, Width::Dword]);
        match random.below(5) {
            0 => pic.port_read(port, width).into(),
            1 => {
                // Mostly sensible words, else the pair is hardly ever initialized.
                let any = random.next();
                let value = random.pick(&[0x11, 0x20, 0x01, 0x02, 0x04, 0x0c, 0x68, any]);
                pic.port_write(port, width, value as u32 & width.ones() as u32);
                0
            }
            2 => pic.acknowledge().into(),
            _ => {
                pic.set_irq(random.below(16) as u8, random.below(2) == 0);
                pic.intr().into()
            }
        }
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0x8259);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0x8259);
}
