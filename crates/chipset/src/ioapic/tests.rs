use super::*;
use crate::testing::{self, Bench, Random, Subject, Wires, subject_device};
use device::{Shared, lock, shared};
use std::sync::Arc;

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

fn rig() -> (IoApic, Arc<Wires>) {
    let wires = Wires::new();
    (IoApic::new(wires.msi()), wires)
}

fn write(chip: &mut IoApic, register: u8, value: u32) {
    chip.mmio_write(0x00, Width::Dword, register.into());
    chip.mmio_write(0x10, Width::Dword, value.into());
}

fn read(chip: &mut IoApic, register: u8) -> u32 {
    chip.mmio_write(0x00, Width::Dword, register.into());
    chip.mmio_read(0x10, Width::Dword) as u32
}

fn set_entry(chip: &mut IoApic, pin: u8, entry: u64) {
    write(chip, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(chip, 0x10 + 2 * pin, entry as u32);
}

fn entry(chip: &mut IoApic, pin: u8) -> u64 {
    u64::from(read(chip, 0x11 + 2 * pin)) << 32 | u64::from(read(chip, 0x10 + 2 * pin))
}

#[test]
fn after_reset_every_entry_is_masked() {
    let (mut chip, wires) = rig();
    assert_eq!(read(&mut chip, 1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(entry(&mut chip, pin), MASKED);
        chip.set_pin(pin.into(), true);
    }
    assert_eq!(wires.take_messages(), []);
}

#[test]
fn id_has_four_bits_and_is_the_arbitration_id() {
    let (mut chip, _) = rig();
    write(&mut chip, 0, u32::MAX);
    assert_eq!(
        (read(&mut chip, 0), read(&mut chip, 2)),
        (0x0f00_0000, 0x0f00_0000)
    );
}

#[test]
fn an_edge_sends_once_and_a_masked_edge_is_lost() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 4, 0x0300_0000_0000_0044);
    chip.set_pin(4, true);
    chip.set_pin(4, true);
    assert_eq!(wires.take_messages(), [(0xfee0_3000, 0x44)]);
    chip.set_pin(4, false);
    set_entry(&mut chip, 4, 0x44 | MASKED);
    chip.set_pin(4, true);
    set_entry(&mut chip, 4, 0x44);
    assert_eq!(wires.take_messages(), []);
}

#[test]
fn a_level_is_sent_again_after_eoi_while_it_is_high() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    chip.set_pin(9, true);
    chip.set_pin(9, true);
    assert_eq!(wires.take_messages(), [(0xfee0_0000, 0xc059)]);
    assert_eq!(entry(&mut chip, 9), 0x59 | LEVEL | 1 << 14, "remote IRR");
    chip.end_of_interrupt(0x58);
    assert_eq!(wires.take_messages(), []);
    chip.end_of_interrupt(0x59);
    assert_eq!(wires.take_messages().len(), 1);
    chip.set_pin(9, false);
    chip.mmio_write(0x40, Width::Dword, 0x59);
    assert_eq!(wires.take_messages(), []);
    assert_eq!(entry(&mut chip, 9), 0x59 | LEVEL);
}

#[test]
fn a_level_at_a_masked_input_is_sent_when_unmasked() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 9, 0x59 | LEVEL | MASKED);
    chip.set_pin(9, true);
    assert_eq!(wires.take_messages(), []);
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    assert_eq!(wires.take_messages().len(), 1);
}

#[test]
fn switching_to_edge_and_back_ends_a_level_interrupt() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    chip.set_pin(9, true);
    wires.take_messages();
    set_entry(&mut chip, 9, 0x59 | MASKED);
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    assert_eq!(wires.take_messages().len(), 1);
}

#[test]
fn status_bits_are_read_only() {
    let (mut chip, _) = rig();
    set_entry(&mut chip, 0, u64::MAX);
    assert_eq!(entry(&mut chip, 0), 0xfffe_0000_0001_afff);
}

#[test]
fn messages_carry_destination_mode_delivery_mode_and_extended_destination() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 2, 0x0f02_0000_0000_0930);
    chip.set_pin(2, true);
    assert_eq!(wires.take_messages(), [(0xfee0_f024, 0x130)]);
    set_entry(&mut chip, 3, 0x0000_0000_0000_8400);
    chip.set_pin(3, true);
    assert_eq!(
        wires.take_messages(),
        [(0xfee0_0000, 0x400)],
        "NMI is an edge"
    );
}

#[test]
fn extint_entries_send_nothing() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 0, 0x700);
    chip.set_pin(0, true);
    assert_eq!(wires.take_messages(), []);
}

#[test]
fn reset_masks_every_entry_and_keeps_the_levels_of_the_inputs() {
    let (mut chip, wires) = rig();
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    chip.set_pin(9, true);
    wires.take_messages();
    Device::reset(&mut chip);
    assert_eq!(entry(&mut chip, 9), MASKED);
    set_entry(&mut chip, 9, 0x59 | LEVEL);
    assert_eq!(wires.take_messages().len(), 1);
}

struct Hostile(Shared<IoApic>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        Self(shared(IoApic::new(bench.wires.msi())))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut chip = lock(&self.0);
        let offset = random.pick(&[0, 0x10, 0x10, 0x40, 0x13, 0xffc]);
        match random.below(5) {
            0 => return chip.mmio_read(offset, Width::Dword),
            1 => chip.mmio_write(offset, Width::Dword, random.any_size() & 0xffff_ffff),
            2 => write(
                &mut chip,
                random.below(0x42) as u8,
                random.any_size() as u32,
            ),
            3 => chip.end_of_interrupt(random.next() as u8),
            _ => chip.set_pin(random.below(24) as usize, random.below(2) == 0),
        }
        0
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0x82093);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0x82093);
}
