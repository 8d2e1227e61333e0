//! Tests by mode of the 8254 data sheet. Time is in ticks of CLK.

use super::*;
use crate::testing::{self, Bench, Random, Subject, subject_device};

struct Rig {
    bench: Bench,
    pit: Shared<Pit>,
}

impl Rig {
    fn new() -> Self {
        let bench = Bench::new();
        let pit = Pit::new(bench.clock.clone(), &bench.timers, bench.wires.line(0));
        Self { bench, pit }
    }

    fn write(&self, port: u16, value: u8) {
        lock(&self.pit).port_write(port, Width::Byte, value.into());
    }

    fn read(&self, port: u16) -> u8 {
        lock(&self.pit).port_read(port, Width::Byte) as u8
    }

    /// Programs counter `index` with low and high byte.
    fn program(&self, index: u8, mode: u8, count: u16) {
        self.write(0x43, index << 6 | 0x30 | mode << 1);
        self.load(index, count);
    }

    fn load(&self, index: u8, count: u16) {
        for byte in count.to_le_bytes() {
            self.write(0x40 + u16::from(index), byte);
        }
    }

    fn count(&self, index: u8) -> u16 {
        let port = 0x40 + u16::from(index);
        self.write(0x43, index << 6);
        u16::from_le_bytes([self.read(port), self.read(port)])
    }

    /// OUT and the rest of the status byte.
    fn status(&self, index: u8) -> (bool, u8) {
        self.write(0x43, 0xe0 | 2 << index);
        let status = self.read(0x40 + u16::from(index));
        (status & 0x80 != 0, status & 0x7f)
    }

    fn out(&self, index: u8) -> bool {
        self.status(index).0
    }

    fn gate_2(&self, high: bool) {
        self.write(0x61, high.into());
    }

    /// Lets `ticks` pass with every deadline met.
    fn pass(&self, ticks: u64) {
        let now = self.bench.clock.now();
        let tick = clock::ticks(now, spec::HZ) + ticks;
        self.bench.run(clock::nanos(tick, spec::HZ) - now);
    }

    /// OUT at each of the next `ticks` ticks.
    fn wave(&self, index: u8, ticks: usize) -> String {
        (0..ticks)
            .map(|_| {
                self.pass(1);
                if self.out(index) { 'H' } else { '_' }
            })
            .collect()
    }

    fn edges(&self) -> u32 {
        self.bench.wires.take_edges(0)
    }
}

#[test]
fn mode_0_rises_n_plus_1_ticks_after_the_count_was_written() {
    let rig = Rig::new();
    rig.program(0, 0, 4);
    assert_eq!(rig.wave(0, 7), "____HHH");
    assert_eq!(rig.edges(), 1);
}

#[test]
fn mode_0_counts_on_below_zero() {
    let rig = Rig::new();
    rig.program(0, 0, 4);
    rig.pass(3);
    assert_eq!(rig.count(0), 2);
    rig.pass(5);
    assert_eq!(rig.count(0), 0xfffd);
}

#[test]
fn mode_0_first_byte_of_a_new_count_sets_out_low() {
    let rig = Rig::new();
    rig.program(0, 0, 1);
    rig.pass(5);
    assert!(rig.out(0));
    rig.write(0x40, 9);
    assert!(!rig.out(0));
    rig.pass(100);
    assert!(!rig.out(0), "it waits for the second byte");
    rig.write(0x40, 0);
    assert_eq!(rig.wave(0, 11), "_________HH");
}

#[test]
fn mode_0_gate_holds_the_count() {
    let rig = Rig::new();
    rig.gate_2(true);
    rig.program(2, 0, 10);
    rig.pass(4);
    rig.gate_2(false);
    rig.pass(50);
    assert_eq!(rig.count(2), 7);
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 8), "______HH");
}

#[test]
fn mode_1_is_low_for_n_ticks_after_each_trigger() {
    let rig = Rig::new();
    rig.program(2, 1, 3);
    assert_eq!(rig.wave(2, 3), "HHH");
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 5), "___HH");
    rig.gate_2(false);
    rig.gate_2(true);
    rig.pass(2);
    rig.gate_2(false);
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 5), "___HH", "it is retriggerable");
}

#[test]
fn mode_1_takes_a_new_count_with_the_next_trigger() {
    let rig = Rig::new();
    rig.program(2, 1, 4);
    rig.gate_2(true);
    rig.pass(1);
    rig.load(2, 2);
    assert_eq!(rig.wave(2, 4), "___H");
    assert_eq!(rig.status(2).1 & 0x40, 0x40, "null count");
    rig.gate_2(false);
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 4), "__HH");
    assert_eq!(rig.status(2).1 & 0x40, 0);
}

#[test]
fn mode_2_is_low_for_one_tick_in_n() {
    let rig = Rig::new();
    rig.program(0, 2, 3);
    assert_eq!(rig.wave(0, 9), "HH_HH_HH_");
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_cycle() {
    let rig = Rig::new();
    rig.program(0, 2, 4);
    rig.pass(1);
    rig.load(0, 2);
    assert_eq!(rig.wave(0, 7), "HH_H_H_");
}

#[test]
fn mode_2_low_gate_sets_out_high_and_its_rise_starts_anew() {
    let rig = Rig::new();
    rig.gate_2(true);
    rig.program(2, 2, 3);
    rig.pass(3);
    assert!(!rig.out(2));
    rig.gate_2(false);
    assert_eq!(rig.wave(2, 4), "HHHH");
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 6), "HH_HH_");
}

#[test]
fn mode_3_is_high_for_the_longer_half() {
    let rig = Rig::new();
    rig.program(0, 3, 4);
    assert_eq!(rig.wave(0, 8), "HH__HH__");
    rig.program(0, 3, 5);
    assert_eq!(rig.wave(0, 10), "HHH__HHH__");
}

#[test]
fn mode_3_counts_by_two() {
    let rig = Rig::new();
    for (count, counts) in [(6, [6, 4, 2, 6, 4, 2, 6]), (5, [4, 2, 0, 4, 2, 4, 2])] {
        rig.program(0, 3, count);
        for expected in counts {
            rig.pass(1);
            assert_eq!(rig.count(0), expected, "count {count}");
        }
    }
}

#[test]
fn mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() {
    let rig = Rig::new();
    rig.program(0, 3, 8);
    rig.pass(2);
    rig.load(0, 4);
    assert_eq!(rig.wave(0, 8), "HH__HH__");
}

#[test]
fn mode_4_strobes_once_n_plus_1_ticks_after_the_count() {
    let rig = Rig::new();
    rig.program(0, 4, 3);
    assert_eq!(rig.wave(0, 7), "HHH_HHH");
    rig.edges();
    rig.load(0, 2);
    assert_eq!(rig.wave(0, 5), "HH_HH");
    assert_eq!(rig.edges(), 1, "it rises at the end of the strobe");
}

#[test]
fn mode_5_strobes_after_a_trigger() {
    let rig = Rig::new();
    rig.program(2, 5, 3);
    assert_eq!(rig.wave(2, 5), "HHHHH");
    rig.gate_2(true);
    assert_eq!(rig.wave(2, 6), "HHH_HH");
}

#[test]
fn counts_in_bcd() {
    let rig = Rig::new();
    rig.write(0x43, 0x31);
    rig.load(0, 0x1000);
    rig.pass(2);
    assert_eq!(rig.count(0), 0x0999);
    rig.write(0x43, 0x35);
    rig.load(0, 0);
    rig.pass(2);
    assert_eq!(rig.count(0), 0x9999, "0 is 10000");
}

#[test]
fn one_byte_counts_leave_the_other_byte_0() {
    let rig = Rig::new();
    rig.write(0x43, 0x24);
    rig.write(0x40, 2);
    rig.pass(1);
    assert_eq!(rig.read(0x40), 2);
    rig.write(0x43, 0x14);
    rig.write(0x40, 7);
    rig.pass(2);
    assert_eq!((rig.read(0x40), rig.read(0x40)), (6, 6));
}

#[test]
fn a_latched_count_stays_until_it_is_read() {
    let rig = Rig::new();
    rig.program(0, 2, 1000);
    rig.pass(11);
    rig.write(0x43, 0x00);
    rig.pass(100);
    rig.write(0x43, 0x00);
    assert_eq!((rig.read(0x40), rig.read(0x40)), (0xde, 0x03));
    assert_eq!(rig.read(0x40), (1000 - 110) as u8, "live again");
}

#[test]
fn read_back_latches_status_before_count() {
    let rig = Rig::new();
    rig.program(0, 3, 1000);
    rig.write(0x43, 0xc2);
    assert_eq!(
        rig.read(0x40),
        0xf6,
        "OUT high, null count, two bytes, mode 3"
    );
    rig.read(0x40);
    rig.read(0x40);
    rig.pass(1);
    assert_eq!(rig.status(0), (true, 0x36));
}

#[test]
fn port_b_shows_gate_out_and_the_refresh_toggle() {
    let rig = Rig::new();
    rig.write(0x61, 0xff);
    assert_eq!(rig.read(0x61), 0x0f);
    rig.program(2, 0, 2);
    rig.pass(18);
    assert_eq!(rig.read(0x61), 0x3f);
    rig.pass(18);
    assert_eq!(rig.read(0x61), 0x2f);
}

#[test]
fn a_periodic_interrupt_does_not_drift() {
    let rig = Rig::new();
    rig.program(0, 2, 1193);
    rig.pass(1);
    rig.edges();
    for _ in 0..10 {
        rig.pass(1193 * 100);
        assert_eq!(rig.edges(), 100);
    }
    // A timer thread that is late by up to most of a period loses nothing either.
    for _ in 0..1000 {
        let deadline = rig.bench.timers.next_deadline().unwrap();
        rig.bench
            .advance(deadline - rig.bench.clock.now() + 700_000);
    }
    assert_eq!(rig.edges(), 1000);
    let ticks = clock::ticks(rig.bench.clock.now(), spec::HZ);
    assert_eq!(ticks / 1193, 2000);
}

#[test]
fn missed_periods_are_coalesced_into_one_edge_on_the_grid() {
    let rig = Rig::new();
    rig.program(0, 2, 1000);
    rig.pass(1);
    rig.edges();
    rig.bench.advance(clock::nanos(10_500, spec::HZ));
    assert_eq!(rig.edges(), 1);
    let next = rig.bench.timers.next_deadline().unwrap();
    assert_eq!(next, clock::nanos(11_001, spec::HZ));
}

#[test]
fn the_shortest_period_does_not_flood_the_host() {
    let rig = Rig::new();
    rig.program(0, 2, 1);
    rig.pass(2);
    rig.edges();
    rig.bench.run(1_000_000);
    assert!(rig.edges() <= (1_000_000 / GAP_NANOS_MIN) as u32 + 1);
}

struct Hostile(Shared<Pit>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        let irq = bench.wires.line(0);
        Self(Pit::new(bench.clock.clone(), &bench.timers, irq))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut pit = lock(&self.0);
        let port = random.pick(&[0x40, 0x41, 0x42, 0x43, 0x61]);
        let width = random.pick(&[Width::Byte, Width::Byte, Width::Word, Width::Dword]);
        let value = random.pick(&[random.clone().next(), 0, 1, 2, 3]);
        random.next();
        if random.below(2) == 0 {
            pit.port_read(port, width).into()
        } else {
            pit.port_write(port, width, value as u32 & width.ones() as u32);
            0
        }
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0x8254);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0x8254);
}

#[test]
fn resets_to_power_on() {
    testing::resets_to_power_on::<Hostile>(0x8254);
}
