use super::*;
use crate::PowerRequest;
use crate::power::testing::Requests;
use device::testing::Recorder;

const IRQ: (u32, u32, u32) = (1, 12, 20);

struct Bench {
    controller: Controller,
    lines: Arc<Recorder>,
    requests: Arc<Requests>,
}

impl Bench {
    fn new() -> Self {
        let lines = Recorder::new();
        let requests = Requests::new();
        let line = |number| InterruptLine::new(lines.clone(), number);
        let controller = Controller::new(ControllerWires {
            keyboard: line(IRQ.0),
            aux: line(IRQ.1),
            a20: line(IRQ.2),
            power: requests.clone(),
        });
        Self {
            controller,
            lines,
            requests,
        }
    }

    fn command(&mut self, value: u8) {
        self.controller
            .port_write(COMMAND_PORT, Width::Byte, value.into());
    }

    fn data(&mut self, value: u8) {
        self.controller
            .port_write(DATA_PORT, Width::Byte, value.into());
    }

    fn status(&mut self) -> u8 {
        self.controller.port_read(COMMAND_PORT, Width::Byte) as u8
    }

    /// What a driver reads while the output buffer is full, with where it comes from.
    fn drain(&mut self) -> Vec<(u8, bool)> {
        let mut bytes = Vec::new();
        loop {
            let status = self.status();
            if status & status::OUTPUT_FULL == 0 {
                return bytes;
            }
            let byte = self.controller.port_read(DATA_PORT, Width::Byte) as u8;
            bytes.push((byte, status & status::AUX_FULL != 0));
        }
    }

    fn keyboard_bytes(&mut self) -> Vec<u8> {
        let bytes = self.drain();
        assert!(bytes.iter().all(|(_, aux)| !aux), "{bytes:x?}");
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }

    fn mouse_command(&mut self, value: u8) -> Vec<u8> {
        self.command(0xd4);
        self.data(value);
        let bytes = self.drain();
        assert!(bytes.iter().all(|(_, aux)| *aux), "{bytes:x?}");
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }
}

#[test]
fn the_probe_that_operating_systems_make() {
    let mut bench = Bench::new();
    bench.command(0xad);
    bench.command(0xa7);
    bench.drain();
    bench.command(0xaa);
    assert_eq!(bench.keyboard_bytes(), [0x55]);
    bench.command(0x60);
    bench.data(0x03);
    bench.command(0x20);
    assert_eq!(bench.keyboard_bytes(), [0x03]);
    bench.command(0xab);
    assert_eq!(bench.keyboard_bytes(), [0]);
    bench.command(0xa9);
    assert_eq!(bench.keyboard_bytes(), [0]);
    // The auxiliary loop: what is written with 0xd3 comes back as if from the mouse.
    bench.command(0xd3);
    bench.data(0x5a);
    assert_eq!(bench.drain(), [(0x5a, true)]);
    bench.data(0xf2);
    assert_eq!(bench.keyboard_bytes(), [0xfa, 0xab, 0x83]);
    bench.data(0xff);
    assert_eq!(bench.keyboard_bytes(), [0xfa, 0xaa]);
    bench.data(0xed);
    assert_eq!(bench.keyboard_bytes(), [0xfa]);
    bench.data(0x02);
    assert_eq!(bench.keyboard_bytes(), [0xfa]);
}

#[test]
fn keys_are_translated_to_set_1() {
    let mut bench = Bench::new();
    bench.controller.key(Key(0x1e), true);
    bench.controller.key(Key(0x1e), false);
    bench.controller.key(Key(0xe048), true);
    bench.controller.key(Key(0xe048), false);
    assert_eq!(bench.keyboard_bytes(), [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
    bench.controller.key(Key::PAUSE, true);
    assert_eq!(bench.keyboard_bytes(), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    bench.controller.key(Key::PRINT_SCREEN, true);
    assert_eq!(bench.keyboard_bytes(), [0xe0, 0x2a, 0xe0, 0x37]);
}

#[test]
fn without_translation_set_2_arrives() {
    let mut bench = Bench::new();
    bench.command(0x60);
    bench.data(0x01);
    bench.controller.key(Key(0x1e), true);
    bench.controller.key(Key(0x1e), false);
    assert_eq!(bench.keyboard_bytes(), [0x1c, 0xf0, 0x1c]);
}

#[test]
fn set_1_can_be_selected_and_set_3_not() {
    let mut bench = Bench::new();
    bench.command(0x60);
    bench.data(0x00);
    bench.data(0xf0);
    bench.data(1);
    bench.data(0xf0);
    bench.data(0);
    assert_eq!(bench.keyboard_bytes()[1..], [0xfa, 1]);
    bench.controller.key(Key(0x1e), false);
    assert_eq!(bench.keyboard_bytes(), [0x9e]);
    bench.data(0xf0);
    bench.data(3);
    assert_eq!(bench.keyboard_bytes().last(), Some(&0xfe));
}

#[test]
fn each_byte_is_an_edge_of_its_own() {
    let mut bench = Bench::new();
    bench.command(0x60);
    bench.data(0x41);
    bench.controller.key(Key(0xe048), true);
    assert!(bench.lines.level(IRQ.0));
    assert_eq!(bench.lines.edges(IRQ.0), 1);
    bench.controller.port_read(DATA_PORT, Width::Byte);
    assert_eq!(bench.lines.edges(IRQ.0), 2);
    bench.controller.port_read(DATA_PORT, Width::Byte);
    assert!(!bench.lines.level(IRQ.0));
    assert_eq!(bench.lines.edges(IRQ.1), 0);
}

#[test]
fn an_unfetched_flood_is_bounded_and_marked() {
    let mut bench = Bench::new();
    bench.command(0x60);
    bench.data(0x00);
    for _ in 0..1000 {
        bench.controller.key(Key(0x1e), true);
        bench.controller.mouse(1000, -1000, 1, Buttons::default());
    }
    let bytes = bench.keyboard_bytes();
    assert!(bytes.len() <= 18);
    assert_eq!(bytes.last(), Some(&0));
}

#[test]
fn reset_by_pulse_and_by_output_port() {
    let mut bench = Bench::new();
    bench.command(0xff);
    assert!(bench.requests.take().is_empty());
    bench.command(0xfe);
    assert_eq!(bench.requests.take(), [PowerRequest::Reset]);
    bench.command(0xd1);
    bench.data(0xde);
    assert_eq!(bench.requests.take(), [PowerRequest::Reset]);
}

#[test]
fn the_output_port_drives_a20() {
    let mut bench = Bench::new();
    assert!(bench.lines.level(IRQ.2));
    bench.command(0xd1);
    bench.data(0xdd);
    assert!(!bench.lines.level(IRQ.2));
    bench.command(0xd0);
    assert_eq!(bench.keyboard_bytes()[0] & 2, 0);
    bench.command(0xd1);
    bench.data(0xdf);
    assert!(bench.lines.level(IRQ.2));
}

#[test]
fn a_mouse_answers_and_reports() {
    let mut bench = Bench::new();
    assert_eq!(bench.mouse_command(0xff), [0xfa, 0xaa, 0]);
    assert_eq!(bench.mouse_command(0xf2), [0xfa, 0]);
    assert_eq!(bench.mouse_command(0xf4), [0xfa]);
    let left = Buttons {
        left: true,
        ..Buttons::default()
    };
    bench.controller.mouse(5, -3, 0, left);
    assert_eq!(bench.drain(), [(0x29, true), (5, true), (0xfd, true)]);
    assert_eq!(bench.mouse_command(0xe9), [0xfa, 0x24, 2, 100]);
}

#[test]
fn sample_rates_unlock_the_wheel() {
    for (rates, id) in [([200, 100, 80], 3), ([200, 200, 80], 4)] {
        let mut bench = Bench::new();
        for rate in rates {
            bench.mouse_command(0xf3);
            assert_eq!(bench.mouse_command(rate), [0xfa]);
        }
        assert_eq!(bench.mouse_command(0xf2), [0xfa, id]);
        bench.mouse_command(0xf4);
        bench.controller.mouse(0, 0, -1, Buttons::default());
        assert_eq!(bench.drain().len(), 4);
    }
}

#[test]
fn movement_beyond_a_packet_follows_in_the_next() {
    let mut bench = Bench::new();
    bench.mouse_command(0xf4);
    bench.controller.mouse(600, 0, 0, Buttons::default());
    let packets = bench.drain();
    let moved: i32 = packets.chunks(3).map(|p| i32::from(p[1].0)).sum();
    assert_eq!((packets.len(), moved), (9, 600));
}

#[test]
fn a_saved_controller_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.command(0x60);
    bench.data(0x43);
    bench.mouse_command(0xf4);
    bench.controller.key(Key(0xe048), true);
    bench.controller.mouse(1, 2, 0, Buttons::default());
    let state = Persist::save(&bench.controller);
    let mut other = Bench::new();
    Persist::restore(&mut other.controller, state.clone()).unwrap();
    assert_eq!(Persist::save(&other.controller), state);
    assert!(other.lines.level(IRQ.0));
    assert_eq!(other.drain(), bench.drain());
}

#[test]
fn random_accesses_never_panic() {
    let mut bench = Bench::new();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    for _ in 0..200_000 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let [kind, value, x, y, ..] = seed.to_le_bytes();
        match kind % 6 {
            0 => bench.command(value),
            1 | 2 => bench.data(value),
            3 => drop(bench.drain()),
            4 => bench
                .controller
                .key(Key(u16::from_be_bytes([x, value])), y & 1 != 0),
            _ => bench
                .controller
                .mouse(x.into(), -i32::from(y), 0, Buttons::default()),
        }
        let state = Persist::save(&bench.controller);
        assert!(Persist::restore(&mut bench.controller, state).is_ok());
    }
}
