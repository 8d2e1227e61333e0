use super::*;
use crate::PowerRequest;
use crate::power::testing::Requests;
use crate::testing::{self, Bench, Random, Subject, subject_device};

struct Rig {
    bench: Bench,
    requests: Arc<Requests>,
    pm: Shared<AcpiPm>,
}

impl Rig {
    fn new() -> Self {
        let bench = Bench::new();
        let requests = Requests::new();
        let sci = bench.wires.line(0);
        let pm = AcpiPm::new(bench.clock.clone(), &bench.timers, sci, requests.clone());
        Self {
            bench,
            requests,
            pm,
        }
    }

    fn read(&self, port: u16, width: Width) -> u32 {
        lock(&self.pm).port_read(port, width)
    }

    fn write(&self, port: u16, width: Width, value: u32) {
        lock(&self.pm).port_write(port, width, value);
    }

    fn sci(&self) -> bool {
        self.bench.wires.level(0)
    }
}

#[test]
fn the_timer_runs_at_3_579545_mhz() {
    let rig = Rig::new();
    rig.bench.advance(clock::NANOS_PER_SECOND);
    assert_eq!(rig.read(0x608, Width::Dword), 3_579_545);
    rig.bench.advance(3_600 * clock::NANOS_PER_SECOND);
    assert_eq!(rig.read(0x608, Width::Dword), (3_601 * 3_579_545u64) as u32);
}

#[test]
fn timer_status_is_set_when_the_top_bit_changes() {
    let rig = Rig::new();
    rig.write(0x602, Width::Word, 1);
    for changes in 1..4 {
        let change = clock::nanos(changes << 31, spec::TIMER_HZ);
        rig.bench.run(change - rig.bench.clock.now() - 1);
        assert!(!rig.sci());
        rig.bench.run(1);
        assert!(rig.sci());
        assert_eq!(rig.read(0x600, Width::Word), 1);
        rig.write(0x600, Width::Word, 1);
        assert!(!rig.sci());
    }
}

#[test]
fn the_power_button_interrupts_until_its_status_is_cleared() {
    let rig = Rig::new();
    lock(&rig.pm).press_power_button();
    assert!(!rig.sci(), "not enabled");
    rig.write(0x602, Width::Word, 0x100);
    assert!(rig.sci());
    rig.write(0x600, Width::Word, 0);
    assert!(rig.sci(), "writing 0 clears nothing");
    rig.write(0x600, Width::Dword, 0x100 << 16 | 0x100);
    assert!(!rig.sci());
    assert_eq!(rig.read(0x600, Width::Dword), 0x100 << 16);
}

#[test]
fn general_purpose_events_interrupt_while_status_and_enable_are_set() {
    let rig = Rig::new();
    rig.write(0x622, Width::Word, 1 << 9);
    lock(&rig.pm).raise_gpe(8);
    assert!(!rig.sci());
    lock(&rig.pm).raise_gpe(9);
    assert!(rig.sci());
    assert_eq!(rig.read(0x620, Width::Dword), 1 << 25 | 3 << 8);
    rig.write(0x621, Width::Byte, 1 << 1);
    assert!(!rig.sci());
}

#[test]
fn the_machine_is_always_in_acpi_mode() {
    let rig = Rig::new();
    rig.write(0x604, Width::Word, 0);
    assert_eq!(rig.read(0x604, Width::Word), 1);
}

#[test]
fn sleep_enable_with_the_type_of_s5_switches_off() {
    let rig = Rig::new();
    rig.write(0x604, Width::Word, 1 << 13);
    rig.write(0x604, Width::Word, 5 << 10);
    assert_eq!(rig.requests.take(), []);
    rig.write(0x604, Width::Word, 5 << 10 | 1 << 13);
    assert_eq!(rig.requests.take(), [PowerRequest::PowerOff]);
    assert_eq!(
        rig.read(0x604, Width::Word),
        5 << 10 | 1,
        "SLP_EN reads as 0"
    );
}

struct Hostile(Shared<AcpiPm>);

impl Subject for Hostile {
    fn on(bench: &Bench) -> Self {
        let sci = bench.wires.line(0);
        let clock = bench.clock.clone();
        Self(AcpiPm::new(clock, &bench.timers, sci, Requests::new()))
    }

    fn step(&mut self, random: &mut Random) -> u64 {
        let mut pm = lock(&self.0);
        let width = random.pick(&[Width::Byte, Width::Word, Width::Dword]);
        let port = 0x600 + random.below(0x28) as u16;
        match random.below(8) {
            0..4 => return pm.port_read(port, width).into(),
            4 => pm.press_power_button(),
            5 => pm.raise_gpe(random.below(16) as u8),
            _ => pm.port_write(port, width, random.next() as u32 & width.ones() as u32),
        }
        0
    }

    subject_device!(0);
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    testing::survives_hostile_accesses_and_snapshots::<Hostile>(0xac);
}

#[test]
fn refuses_damaged_states_unchanged() {
    testing::refuses_damaged_states_unchanged::<Hostile>(0xac);
}

#[test]
fn resets_to_power_on() {
    testing::resets_to_power_on::<Hostile>(0xac);
}
