//! Tests by section of the HPET Specification 1.0a.

use super::*;
use crate::testing::{self, Bench, Random, Subject, subject_device};

/// Lines on the bench: routes by their number, then these.
const LEGACY_0: u32 = 24;
const LEGACY_1: u32 = 25;
const LEGACY_ACTIVE: u32 = 26;
const TICK: u64 = 10;

fn hpet(bench: &Bench) -> Shared<Hpet> {
    let wires = HpetWires {
        routes: (20..24)
            .map(|pin| (pin, bench.wires.line(pin.into())))
            .collect(),
        legacy: [bench.wires.line(LEGACY_0), bench.wires.line(LEGACY_1)],
        legacy_active: bench.wires.line(LEGACY_ACTIVE),
        msi: bench.wires.msi(),
    };
    Hpet::new(bench.clock.clone(), &bench.timers, wires)
}

struct Rig {
    bench: Bench,
    hpet: Shared<Hpet>,
}

impl Rig {
    fn new() -> Self {
        let bench = Bench::new();
        let hpet = hpet(&bench);
        Self { bench, hpet }
    }

    fn read(&self, offset: u64) -> u64 {
        lock(&self.hpet).mmio_read(offset, Width::Qword)
    }

    fn write(&self, offset: u64, value: u64) {
        lock(&self.hpet).mmio_write(offset, Width::Qword, value);
    }

    fn pass(&self, ticks: u64) {
        self.bench.run(ticks * TICK);
    }

    fn edges(&self, line: u32) -> u32 {
        self.bench.wires.take_edges(line)
    }
}

#[test]
fn capabilities_2_3_4() {
    let rig = Rig::new();
    assert_eq!(rig.read(0), 0x0098_9680_8086_a201);
    let narrow = lock(&rig.hpet).mmio_read(4, Width::Dword);
    assert_eq!(narrow, 10_000_000);
    assert_eq!(rig.read(0x100), 0x00f0_0000_0000_8030);
}

#[test]
fn the_counter_runs_while_enabled_and_is_written_while_it_stands_2_3_7() {
    let rig = Rig::new();
    rig.pass(100);
    assert_eq!(rig.read(0xf0), 0);
    rig.write(0xf0, u64::from(u32::MAX));
    rig.write(0x10, 1);
    rig.pass(5);
    assert_eq!(rig.read(0xf0), (1 << 32) + 4);
    rig.write(0xf0, 0);
    assert_eq!(rig.read(0xf0), (1 << 32) + 4);
    rig.write(0x10, 0);
    rig.pass(5);
    assert_eq!(rig.read(0xf0), (1 << 32) + 4);
}

#[test]
fn one_shot_edge_at_the_match() {
    let rig = Rig::new();
    rig.write(0x100, 20 << 9 | 1 << 2);
    rig.write(0x108, 1000);
    rig.write(0x10, 1);
    rig.pass(999);
    assert_eq!(rig.edges(20), 0);
    rig.pass(1);
    assert_eq!(rig.edges(20), 1);
    rig.pass(100_000);
    assert_eq!(rig.edges(20), 0);
    rig.write(0x108, rig.read(0xf0));
    assert_eq!(rig.edges(20), 1, "the value of now matches at once");
}

#[test]
fn level_interrupts_last_until_the_status_is_cleared_2_3_6() {
    let rig = Rig::new();
    rig.write(0x120, 21 << 9 | 1 << 2 | 1 << 1);
    rig.write(0x128, 10);
    rig.write(0x10, 1);
    rig.pass(10);
    assert!(rig.bench.wires.level(21));
    assert_eq!(rig.read(0x20), 2);
    rig.write(0x20, 5);
    assert!(rig.bench.wires.level(21));
    rig.write(0x20, 2);
    assert!(!rig.bench.wires.level(21));
    assert_eq!(rig.read(0x20), 0);
}

#[test]
fn a_disabled_comparator_sets_its_status_without_interrupting() {
    let rig = Rig::new();
    rig.write(0x100, 20 << 9 | 1 << 1);
    rig.write(0x108, 10);
    rig.write(0x10, 1);
    rig.pass(20);
    assert_eq!((rig.read(0x20), rig.bench.wires.level(20)), (1, false));
    rig.write(0x100, 20 << 9 | 1 << 1 | 1 << 2);
    assert!(rig.bench.wires.level(20));
}

#[test]
fn shared_routes_are_high_while_one_comparator_asserts() {
    let rig = Rig::new();
    for base in [0x100, 0x120] {
        rig.write(base, 22 << 9 | 1 << 2 | 1 << 1);
        rig.write(base + 8, 10);
    }
    rig.write(0x10, 1);
    rig.pass(10);
    rig.write(0x20, 1);
    assert!(rig.bench.wires.level(22));
    rig.write(0x20, 2);
    assert!(!rig.bench.wires.level(22));
}

/// Comparator 0 periodic: first match at `first`, then every `period`.
fn start_periodic(rig: &Rig, first: u64, period: u64) {
    rig.write(0x100, 20 << 9 | 1 << 6 | 1 << 3 | 1 << 2);
    rig.write(0x108, first);
    rig.write(0x108, period);
    rig.write(0x10, 1);
}

#[test]
fn periodic_mode_sets_accumulator_then_period_2_3_9_2_2() {
    let rig = Rig::new();
    start_periodic(&rig, 5_000, 100_000);
    assert_eq!(rig.read(0x100) & 1 << 6, 0, "the bit clears itself");
    rig.pass(5_000);
    assert_eq!(rig.edges(20), 1);
    assert_eq!(rig.read(0x108), 105_000);
    rig.pass(100_000 * 1_000);
    assert_eq!(rig.edges(20), 1_000);
    rig.write(0x108, 50_000);
    rig.pass(100_000);
    assert_eq!(rig.edges(20), 1, "a new period counts from the next match");
    rig.pass(50_000);
    assert_eq!(rig.edges(20), 1);
}

#[test]
fn missed_periods_are_coalesced_on_the_grid() {
    let rig = Rig::new();
    start_periodic(&rig, 1_000, 1_000);
    rig.bench.advance(10_500 * TICK);
    assert_eq!(rig.edges(20), 1);
    assert_eq!(rig.read(0x108), 11_000);
}

#[test]
fn a_tiny_period_does_not_flood_the_host() {
    let rig = Rig::new();
    start_periodic(&rig, 1, 1);
    rig.bench.run(1_000_000);
    assert!(rig.edges(20) <= (1_000_000 / GAP_NANOS_MIN) as u32 + 2);
}

#[test]
fn thirty_two_bit_mode_matches_every_turn_of_the_low_half() {
    let rig = Rig::new();
    rig.write(0xf0, 0x1_ffff_ff00);
    rig.write(0x100, 20 << 9 | 1 << 8 | 1 << 2);
    rig.write(0x108, 0x10);
    rig.write(0x10, 1);
    rig.pass(0x110);
    assert_eq!(rig.edges(20), 1);
    rig.pass(1 << 32);
    assert_eq!(rig.edges(20), 1);
}

#[test]
fn legacy_replacement_takes_irq0_and_irq8_2_3_5() {
    let rig = Rig::new();
    assert!(!rig.bench.wires.level(LEGACY_ACTIVE));
    for (base, at) in [(0x100, 10), (0x120, 20), (0x140, 30)] {
        rig.write(base, 23 << 9 | 1 << 2);
        rig.write(base + 8, at);
    }
    rig.write(0x10, 3);
    assert!(rig.bench.wires.level(LEGACY_ACTIVE));
    rig.pass(100_000);
    assert_eq!(
        [LEGACY_0, LEGACY_1, 23].map(|line| rig.edges(line)),
        [1, 1, 1]
    );
    rig.write(0x10, 1);
    assert!(!rig.bench.wires.level(LEGACY_ACTIVE));
}

#[test]
fn messages_go_to_the_address_in_the_upper_half() {
    let rig = Rig::new();
    rig.write(0x140, 1 << 14 | 1 << 2);
    rig.write(0x150, 0xfee0_1000 << 32 | 0x55);
    rig.write(0x148, 10);
    rig.write(0x10, 1);
    rig.pass(10);
    assert_eq!(rig.bench.wires.take_messages(), [(0xfee0_1000, 0x55)]);
}

#[test]
fn a_route_that_there_is_not_is_not_taken() {
    let rig = Rig::new();
    rig.write(0x100, 21 << 9);
    rig.write(0x100, 3 << 9 | 1 << 2);
    assert_eq!(rig.read(0x100) & 0xffff, 21 << 9 | 1 << 2 | 0x8030);
}

struct Hostile(Shared<Hpet>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        Self(hpet(bench))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut hpet = lock(&self.0);
        let width = random.pick(&[Width::Dword, Width::Qword, Width::Qword, Width::Byte]);
        let offset = match random.below(4) {
            0 => random.below(0x3f8),
            1 => random.pick(&[0x10, 0x20, 0xf0]),
            _ => 0x100 + random.below(24) * 4,
        };
        match random.below(3) {
            0 => hpet.mmio_read(offset, width),
            _ => {
                hpet.mmio_write(offset, width, random.any_size() & width.ones());
                0
            }
        }
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0x4e7);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0x4e7);
}

#[test]
fn resets_to_power_on() {
    testing::resets_to_power_on::<Hostile>(0x4e7);
}
