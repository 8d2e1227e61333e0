use super::*;
use crate::testing::{BUFFERS, Driver, LINE};
use crate::transport::{features, status};
use ::device::{Device, Width};
use pci::Function;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Default)]
struct Terminal {
    shown: Arc<Mutex<Vec<u8>>>,
    rooms: Arc<AtomicUsize>,
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.shown.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Terminal {
    fn console(&self) -> Console {
        let rooms = self.rooms.clone();
        let room = move || {
            rooms.fetch_add(1, Ordering::Relaxed);
        };
        Console::new(Box::new(self.clone()), Arc::new(room))
    }

    fn rooms(&self) -> usize {
        self.rooms.load(Ordering::Relaxed)
    }
}

fn ready(features: u64) -> (Driver<Console>, Terminal) {
    let terminal = Terminal::default();
    (Driver::ready(terminal.console(), features), terminal)
}

fn text(driver: &Driver<Console>, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    driver.memory.read(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn output_is_shown_when_the_notification_completes() {
    let (mut driver, terminal) = ready(0);
    let long: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    driver.memory.write(BUFFERS, &long).unwrap();
    driver.request(
        TRANSMIT,
        &[(BUFFERS, 6_000, false), (BUFFERS + 6_000, 4_000, false)],
    );
    assert_eq!(*terminal.shown.lock().unwrap(), long);
    assert_eq!(driver.queues[1].take_used(), Some((0, 0)));
    assert_eq!(driver.isr(), 1);
}

#[test]
fn no_byte_of_a_long_paste_is_lost() {
    for wanted in [0, features::EVENT_IDX] {
        let (mut driver, terminal) = ready(wanted);
        let paste: Vec<u8> = (0..100_000u32).map(|i| (i % 253) as u8).collect();
        assert_eq!(driver.pci.receive(&paste), 0, "no buffers yet");
        let (mut sent, mut seen) = (0, Vec::new());
        while seen.len() < paste.len() {
            let rooms = terminal.rooms();
            for i in 0..4 {
                driver.queues[0].add(&[(BUFFERS + i * 64, 20 + i as u32, true)]);
            }
            driver.notify(RECEIVE);
            if sent < paste.len() {
                assert_eq!(terminal.rooms(), rooms + 1, "told of the room");
                sent += driver.pci.receive(&paste[sent..]);
            }
            let mut at = BUFFERS;
            while let Some((_, len)) = driver.queues[0].take_used() {
                seen.extend(text(&driver, at, len));
                at += 64;
            }
        }
        assert_eq!(seen, paste);
    }
}

#[test]
fn input_that_came_before_the_driver_is_asked_for_when_it_is_there() {
    let terminal = Terminal::default();
    let mut driver = Driver::new(terminal.console());
    assert_eq!(driver.pci.receive(b"early"), 0);
    driver.start(0);
    assert_eq!(terminal.rooms(), 1);
}

#[test]
fn section_5_3_4_the_size_of_the_terminal() {
    let (mut driver, _) = ready(F_SIZE);
    let at = driver.structures.device;
    let size = |driver: &mut Driver<Console>| driver.pci.bar_read(0, at, Width::Dword);
    assert_eq!(size(&mut driver), 25 << 16 | 80);
    let generation = driver.common(0x15, Width::Byte);
    driver.pci.resize(132, 50);
    assert_eq!(size(&mut driver), 50 << 16 | 132);
    assert_eq!(driver.common(0x15, Width::Byte), generation + 1);
    assert_eq!(driver.isr(), 2);
    driver.pci.resize(132, 50);
    assert!(!driver.log.level(LINE), "no change, no interrupt");
    driver.set_status(0);
    driver.pci.resize(80, 25);
    assert!(!driver.log.level(LINE), "nobody to tell");
}

#[test]
fn emergency_output_needs_no_queue() {
    let terminal = Terminal::default();
    let mut driver = Driver::new(terminal.console());
    let at = driver.structures.device + EMERG_WRITE as u64;
    driver.pci.bar_write(0, at, Width::Dword, b'!'.into());
    assert_eq!(*terminal.shown.lock().unwrap(), b"!");
}

#[test]
fn hostile_requests_need_a_reset() {
    let far = 1 << 40;
    for (queue, part) in [
        (TRANSMIT, (far, 4, false)),
        (TRANSMIT, (BUFFERS, REQUEST_BYTES_MAX + 1, false)),
        (RECEIVE, (far, 4, true)),
    ] {
        let (mut driver, _) = ready(0);
        driver.request(queue, &[part]);
        driver.pci.receive(b"x");
        assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0, "{part:x?}");
    }
    // A buffer that can't be written takes nothing and is given back.
    let (mut driver, _) = ready(0);
    driver.request(RECEIVE, &[(BUFFERS, 4, false)]);
    assert_eq!(driver.pci.receive(b"x"), 0);
    assert_eq!(driver.queues[0].take_used(), Some((0, 0)));
}

#[test]
fn buffers_that_wait_for_input_survive_a_save() {
    let (mut driver, _) = ready(features::EVENT_IDX);
    driver.pci.resize(100, 40);
    driver.isr();
    driver.request(RECEIVE, &[(BUFFERS, 16, true)]);
    driver.request(RECEIVE, &[(BUFFERS + 16, 16, true)]);
    assert_eq!(driver.pci.receive(b"first"), 5);
    let mut out = state::Writer::new();
    Device::save(&driver.pci, "console", &mut out);

    let terminal = Terminal::default();
    let mut other = Driver::with_memory(terminal.console(), driver.memory.clone());
    let mut from = state::Reader::from_bytes(&out.into_bytes()).unwrap();
    Device::restore(&mut other.pci, "console", &mut from).unwrap();
    from.finish().unwrap();
    other.queues = driver.queues;
    assert_eq!(terminal.rooms(), 1, "the new machine's input is asked for");
    assert_eq!(other.pci.receive(b"second"), 6);
    assert_eq!(other.queues[0].take_used(), Some((0, 5)));
    assert_eq!(other.queues[0].take_used(), Some((1, 6)));
    assert_eq!(text(&other, BUFFERS + 16, 6), b"second");
    let at = other.structures.device;
    assert_eq!(other.pci.bar_read(0, at, Width::Word), 100);
}
