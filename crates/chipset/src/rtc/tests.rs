//! Tests by section of the MC146818A data sheet.

use super::*;
use crate::testing::{self, Bench, Random, Subject, subject_device};
use device::lock;

/// Tuesday, 14 November 2023, 22:13:20 UTC.
const START: u64 = 1_700_000_000;
const S: u64 = clock::NANOS_PER_SECOND;

fn rtc(bench: &Bench) -> Shared<Rtc> {
    let clock = bench.clock.clone();
    let wall = Box::new(move || START * S + clock.now());
    let memory = MemorySizes {
        below_4g: 3 << 30,
        above_4g: 5 << 30,
    };
    let irq = bench.wires.line(8);
    Rtc::new(bench.clock.clone(), wall, &bench.timers, irq, memory)
}

struct Rig {
    bench: Bench,
    rtc: Shared<Rtc>,
}

impl Rig {
    fn new() -> Self {
        let bench = Bench::new();
        let rtc = rtc(&bench);
        Self { bench, rtc }
    }

    fn read(&self, index: u8) -> u8 {
        let mut rtc = lock(&self.rtc);
        rtc.port_write(0x70, Width::Byte, index.into());
        rtc.port_read(0x71, Width::Byte) as u8
    }

    fn write(&self, index: u8, value: u8) {
        let mut rtc = lock(&self.rtc);
        rtc.port_write(0x70, Width::Byte, index.into());
        rtc.port_write(0x71, Width::Byte, value.into());
    }

    /// Century, year, month, day, weekday, hour, minute, second.
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }

    fn set_time(&self, time: [u8; 8]) {
        self.write(0x0b, 0x82);
        for (index, byte) in [0x32, 9, 8, 7, 6, 4, 2, 0].into_iter().zip(time) {
            self.write(index, byte);
        }
        self.write(0x0b, 0x02);
    }

    fn edges(&self) -> u32 {
        self.bench.wires.take_edges(8)
    }
}

#[test]
fn shows_the_hosts_time_in_bcd() {
    let rig = Rig::new();
    assert_eq!(rig.time(), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    rig.bench.advance(3 * 3600 * S);
    assert_eq!(rig.time(), [0x20, 0x23, 0x11, 0x15, 4, 0x01, 0x13, 0x20]);
}

#[test]
fn shows_binary_and_12_hours_as_register_b_says() {
    let rig = Rig::new();
    rig.write(0x0b, 0x04);
    assert_eq!(rig.time(), [20, 23, 11, 14, 3, 0x80 | 10, 13, 20]);
}

#[test]
fn goes_on_from_the_time_that_the_guest_sets() {
    let rig = Rig::new();
    rig.set_time([0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]);
    rig.bench.advance(S);
    assert_eq!(rig.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
    rig.bench.advance(S);
    assert_eq!(rig.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn the_day_of_the_week_is_what_the_guest_makes_of_it() {
    let rig = Rig::new();
    rig.write(6, 7);
    rig.bench.advance(24 * 3600 * S);
    assert_eq!(rig.read(6), 1);
}

#[test]
fn set_holds_the_time_and_the_bytes_are_kept_as_written() {
    let rig = Rig::new();
    rig.write(0x0b, 0x92);
    assert_eq!(rig.read(0x0b), 0x82, "SET clears UIE");
    rig.write(0, 0xee);
    rig.bench.advance(10 * S);
    assert_eq!(rig.read(0), 0xee);
    assert_eq!(rig.read(0x0c) & 0x30, 0, "no update, no alarm");
}

#[test]
fn update_in_progress_before_each_second() {
    let rig = Rig::new();
    rig.bench.advance(S - 2_228_001);
    assert_eq!(rig.read(0x0a), 0x26);
    rig.bench.advance(1);
    assert_eq!(rig.read(0x0a), 0xa6);
    rig.bench.advance(2_228_000);
    assert_eq!(rig.read(0x0a), 0x26);
}

#[test]
fn update_ended_interrupts_each_second_once_it_is_acknowledged() {
    let rig = Rig::new();
    rig.write(0x0b, 0x12);
    for _ in 0..3 {
        rig.bench.run(S);
        assert_eq!(rig.edges(), 1);
        assert_eq!(rig.read(0x0c) & 0xb0, 0x90);
        assert!(!rig.bench.wires.level(8));
    }
    rig.bench.run(10 * S);
    assert_eq!(
        rig.edges(),
        1,
        "the line stays high until register C is read"
    );
    assert_eq!(
        rig.bench.timers.next_deadline(),
        None,
        "nothing to wait for"
    );
}

#[test]
fn flags_are_set_without_interrupts_too() {
    let rig = Rig::new();
    rig.bench.advance(S);
    assert_eq!(
        rig.read(0x0c),
        0x50,
        "update, and the periodic flag of 1,024 Hz"
    );
    assert_eq!(rig.edges(), 0);
    assert_eq!(rig.read(0x0c), 0);
}

#[test]
fn the_alarm_goes_off_at_its_time_and_bytes_above_bf_match_always() {
    let rig = Rig::new();
    for (index, byte) in [(5, 0x22), (3, 0x14), (1, 0x05)] {
        rig.write(index, byte);
    }
    rig.write(0x0b, 0x22);
    rig.bench.run(44 * S);
    assert_eq!(rig.edges(), 0);
    rig.bench.run(S);
    assert_eq!(rig.edges(), 1, "at 22:14:05");
    assert_eq!(rig.read(0x0c) & 0xa0, 0xa0);
    rig.bench.run(24 * 3600 * S);
    assert_eq!(rig.edges(), 1, "the next day");
    rig.read(0x0c);
    rig.write(5, 0xff);
    rig.write(3, 0xc0);
    rig.bench.run(60 * S);
    assert_eq!(rig.edges(), 1, "each minute");
}

#[test]
fn periodic_interrupts_at_the_rate_selected() {
    let rig = Rig::new();
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        rig.write(0x0a, 0x20 | rate);
        rig.write(0x0b, 0x42);
        rig.read(0x0c);
        rig.edges();
        let end = rig.bench.clock.now() + S;
        let mut interrupts = 0;
        while let Some(deadline) = rig.bench.timers.next_deadline().filter(|d| *d <= end) {
            rig.bench.run(deadline - rig.bench.clock.now());
            interrupts += rig.edges();
            rig.read(0x0c);
        }
        assert_eq!(interrupts, hz, "rate {rate}");
        rig.bench.run(end - rig.bench.clock.now());
    }
}

#[test]
fn the_divider_in_reset_stops_the_clock_and_starts_it_half_a_second_before_an_update() {
    let rig = Rig::new();
    rig.bench.advance(S / 4);
    rig.write(0x0a, 0x66);
    rig.read(0x0c);
    rig.bench.advance(10 * S);
    assert_eq!((rig.read(0), rig.read(0x0c)), (0x20, 0));
    rig.write(0x0a, 0x20);
    rig.bench.advance(S / 2 - 1);
    assert_eq!(rig.read(0x0c), 0);
    rig.bench.advance(1);
    assert_eq!((rig.read(0x0c), rig.read(0)), (0x10, 0x21));
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let rig = Rig::new();
    let word = |index| u16::from_le_bytes([rig.read(index), rig.read(index + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), 0xbf00);
    assert_eq!([0x5b, 0x5c, 0x5d].map(|i| rig.read(i)), [0, 0x40, 0x01]);
}

#[test]
fn ram_and_the_extended_bank_are_two_times_128_bytes() {
    let rig = Rig::new();
    rig.write(0x0f, 0x0a);
    rig.write(0xff, 0x77);
    assert!(lock(&rig.rtc).is_nmi_masked());
    assert_eq!((rig.read(0x7f), rig.read(0x0f)), (0x77, 0x0a));
    let mut rtc = lock(&rig.rtc);
    assert!(!rtc.is_nmi_masked());
    rtc.port_write(0x72, Width::Word, 0x557f);
    rtc.port_write(0x72, Width::Word, 0x660f);
    rtc.port_write(0x72, Width::Byte, 0x7f);
    assert_eq!(rtc.port_read(0x73, Width::Byte), 0x55);
}

#[test]
fn reset_keeps_time_and_ram_and_disables_interrupts() {
    let rig = Rig::new();
    rig.set_time([0x20, 0x30, 0x01, 0x02, 4, 0x03, 0x04, 0x05]);
    rig.write(0x40, 0x99);
    rig.write(0x0b, 0x12);
    rig.bench.run(S);
    assert!(rig.bench.wires.level(8));
    Device::reset(&mut *lock(&rig.rtc));
    assert!(!rig.bench.wires.level(8));
    assert_eq!((rig.read(0x0b), rig.read(0x40)), (0x02, 0x99));
    assert_eq!(rig.time(), [0x20, 0x30, 0x01, 0x02, 4, 0x03, 0x04, 0x06]);
}

struct Hostile(Shared<Rtc>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        Self(rtc(bench))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut rtc = lock(&self.0);
        let width = random.pick(&[Width::Byte, Width::Byte, Width::Word, Width::Dword]);
        let index = match random.below(4) {
            0 => random.below(256),
            1 => 0x32,
            _ => random.below(0x0e),
        };
        rtc.port_write(0x70, Width::Byte, index as u32);
        let port = random.pick(&[0x70, 0x71, 0x71, 0x71, 0x72, 0x73]);
        if random.below(2) == 0 {
            return rtc.port_read(port, width).into();
        }
        // Keep the clock running most of the time.
        let value = match index {
            0x0a => random.pick(&[0x26, 0x21, 0x2f, 0x60]),
            0x0b => random.pick(&[0x02, 0x72, 0x36, 0x70, 0x82]),
            _ => random.next() as u32,
        };
        rtc.port_write(port, width, value & width.ones() as u32);
        0
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0x146818);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0x146818);
}
