use super::*;
use crate::queue::QueueError;
use crate::rng::Rng;
use crate::testing::{BUFFERS, Driver, LINE};
use ::device::testing::Recorder;

fn rng() -> Rng {
    Rng::new(Box::new(|bytes| {
        bytes.fill(7);
        Ok(())
    }))
}

fn ready() -> Driver<Rng> {
    Driver::ready(rng(), 0)
}

/// Enables MSI-X.
fn enable_msix(driver: &mut Driver<Rng>) {
    let config = driver.pci.config_mut();
    let mut at = config.read(0x34, Width::Byte) as u16;
    while config.read(at, Width::Byte) != 0x11 {
        at = config.read(at + 1, Width::Byte) as u16;
    }
    config.write(at + 2, Width::Word, 0x8000);
}

#[test]
fn the_function_says_what_it_is() {
    let driver = Driver::new(rng());
    let config = driver.pci.config();
    assert_eq!(config.read(0, Width::Dword), 0x1044_1af4);
    assert!(
        config.read(8, Width::Byte) >= 1,
        "revision of a modern device"
    );
    assert_eq!(driver.structures.multiplier, 4);
    assert_ne!(driver.structures.notify, 0);
    assert_ne!(driver.structures.window, 0);
}

#[test]
fn section_2_2_2_features_are_agreed_on_once() {
    let mut driver = Driver::new(rng());
    driver.set_status(3);
    for refused in [features::EVENT_IDX, features::VERSION_1 | 1 << 63] {
        driver.accept(refused);
        driver.set_status(11);
        assert_eq!(driver.status(), 3);
    }
    driver.accept(features::VERSION_1);
    driver.set_status(11);
    assert_eq!(driver.status(), 11);
    driver.accept(features::OFFERED);
    assert_eq!(
        driver.common(0x0c, Width::Dword),
        features::VERSION_1 >> 32,
        "too late"
    );
}

#[test]
fn offered_features_are_read_in_halves() {
    let mut driver = Driver::new(rng());
    let mut offered = 0;
    for half in [1, 0, 2] {
        driver.set_common(0, Width::Dword, half);
        let bits = driver.common(4, Width::Dword);
        offered |= if half < 2 { bits << (32 * half) } else { bits };
    }
    assert_eq!(offered, features::OFFERED);
}

#[test]
fn nothing_is_served_before_driver_ok() {
    let mut driver = ready();
    let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
    driver.accept(features::VERSION_1);
    driver.set_status(agreed);
    let queue = driver.queues[0].clone();
    driver.enable_queue(0, &queue);
    driver.queues[0] = crate::testing::DriverQueue::new(&driver.memory, 0, 16);
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), None);
    driver.set_status(agreed | status::DRIVER_OK);
    assert_eq!(
        driver.queues[0].take_used(),
        Some((0, 8)),
        "what waited is served"
    );
}

#[test]
fn section_4_1_4_5_isr_and_the_pin() {
    let mut driver = ready();
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert!(driver.log.level(LINE));
    assert_eq!(driver.isr(), 1);
    assert!(!driver.log.level(LINE));
    assert_eq!(driver.isr(), 0);
}

#[test]
fn section_4_1_5_1_2_vectors() {
    let mut driver = ready();
    enable_msix(&mut driver);
    driver.set_common(0x10, Width::Word, 1);
    assert_eq!(driver.common(0x10, Width::Word), 1);
    driver.set_common(0x10, Width::Word, 2);
    assert_eq!(
        driver.common(0x10, Width::Word),
        0xffff,
        "there is no vector 2"
    );
    assert_eq!(driver.common(0x1a, Width::Word), 1);
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert!(!driver.log.level(LINE));
    assert_eq!(driver.isr(), 0);
}

#[test]
fn queue_registers() {
    let mut driver = Driver::new(rng());
    assert_eq!(driver.common(0x12, Width::Word), 1);
    assert_eq!(driver.common(0x18, Width::Word), 64);
    for wrong in [0, 3, 128] {
        driver.set_common(0x18, Width::Word, wrong);
        assert_eq!(driver.common(0x18, Width::Word), 64);
    }
    driver.set_common(0x18, Width::Word, 32);
    driver.set_common(0x20, Width::Qword, 0x1_0000);
    driver.set_common(0x1c, Width::Word, 1);
    driver.set_common(0x18, Width::Word, 16);
    driver.set_common(0x24, Width::Dword, 5);
    assert_eq!(driver.common(0x18, Width::Word), 32, "in service");
    assert_eq!(driver.common(0x20, Width::Qword), 0x1_0000);
    driver.set_common(0x16, Width::Word, 1);
    assert_eq!(driver.common(0x18, Width::Word), 0, "no such queue");
    driver.set_common(0x1c, Width::Word, 1);
    assert_eq!(driver.common(0x1c, Width::Word), 0);
}

#[test]
fn section_2_6_1_a_queue_is_reset_alone() {
    let mut driver = Driver::ready(rng(), features::RING_RESET);
    driver.request(0, &[(BUFFERS, 8, true)]);
    driver.set_common(0x3a, Width::Word, 1);
    assert_eq!(driver.common(0x3a, Width::Word), 0, "done");
    assert_eq!(driver.common(0x1c, Width::Word), 0);
    driver.notify(0);
    let queue = crate::testing::DriverQueue::new(&driver.memory, 0x1_0000, 16);
    driver.enable_queue(0, &queue);
    driver.queues[0] = queue;
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, 8)));
}

#[test]
fn section_2_1_2_a_broken_queue_needs_a_reset() {
    let mut driver = ready();
    driver.queues[0].make_available(99);
    driver.notify(0);
    assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
    assert_eq!(driver.isr(), 2, "the driver is told");
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), None);
    driver.start(0);
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, 8)));
}

#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    let mut driver = Driver::new(rng());
    driver.set_common(0x20, Width::Dword, 1);
    driver.set_common(0x1c, Width::Word, 1);
    assert_eq!(driver.common(0x1c, Width::Word), 0);
    assert_eq!(driver.status(), status::DEVICE_NEEDS_RESET);
}

#[test]
fn section_4_1_4_9_access_through_configuration_space() {
    let mut driver = ready();
    let window = driver.structures.window;
    let status = driver.structures.common + 0x14;
    driver
        .pci
        .config_write(window + 8, Width::Dword, status as u32);
    driver.pci.config_write(window + 12, Width::Dword, 1);
    assert_eq!(driver.pci.config_read(window + 16, Width::Byte), 15);
    driver.pci.config_write(window + 16, Width::Byte, 0);
    assert_eq!(driver.status(), 0);
    // Nothing is there: nothing happens.
    for (bar, offset, len) in [(0, 0x4000, 4), (0, 2, 4), (0, 0, 3), (1, 0, 4), (9, 0, 4)] {
        driver.pci.config_write(window + 4, Width::Byte, bar);
        driver.pci.config_write(window + 8, Width::Dword, offset);
        driver.pci.config_write(window + 12, Width::Dword, len);
        driver
            .pci
            .config_write(window + 16, Width::Dword, 0x1234_5678);
        assert_eq!(
            driver.pci.config_read(window + 16, Width::Dword),
            0x1234_5678
        );
    }
}

#[test]
fn a_saved_device_goes_on_with_what_was_under_way() {
    let mut driver = Driver::ready(rng(), features::EVENT_IDX | features::INDIRECT_DESC);
    driver.request(0, &[(BUFFERS, 8, true)]);
    driver.queues[0].take_used();
    // Available and not yet notified, while an interrupt is not yet acknowledged.
    driver.queues[0].add(&[(BUFFERS, 24, true)]);
    let mut out = state::Writer::new();
    Device::save(&driver.pci, "rng", &mut out);
    let bytes = out.into_bytes();

    let mut other = Driver::with_memory(rng(), driver.memory.clone());
    let mut from = state::Reader::from_bytes(&bytes).unwrap();
    Device::restore(&mut other.pci, "rng", &mut from).unwrap();
    from.finish().unwrap();
    other.queues = driver.queues;
    assert!(other.log.level(LINE));
    assert_eq!(other.isr(), 1);
    other.notify(0);
    assert_eq!(other.queues[0].take_used(), Some((1, 24)));
    let mut again = state::Writer::new();
    Device::save(&other.pci, "rng", &mut again);
    assert_ne!(again.into_bytes(), bytes);
}

#[test]
fn a_state_of_another_device_is_refused() {
    let driver = ready();
    let mut out = state::Writer::new();
    Device::save(&driver.pci, "x", &mut out);
    let mut from = state::Reader::new(out.into_sections());
    let console = crate::Console::new(Box::new(std::io::sink()), Arc::new(|| {}));
    let mut other = Driver::new(console);
    assert!(Device::restore(&mut other.pci, "x", &mut from).is_err());
}

/// A driver that does anything anywhere: registers, configuration space, rings and descriptors.
fn harass<D: VirtioDevice>(driver: &mut Driver<D>, mut each: impl FnMut(&mut Driver<D>)) {
    let mut seed = 0xda94_2042_e4dd_58b5u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let widths = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
    for _ in 0..100_000 {
        let (bits, value) = (random(), random());
        let width = widths[bits as usize % 4];
        let value = [value, value & 0xffff, value & 15, 1][(bits >> 2) as usize % 4];
        let value = value & width.ones();
        let at = bits >> 16 & 0x3fff;
        let offset = [at & 0x3f, at.min(0x4000 - 8)][(bits >> 4) as usize & 1];
        match bits >> 5 & 15 {
            0 => drop(driver.pci.bar_read(0, offset, width)),
            1 => drop(driver.pci.config_read(offset as u16 & 0xfc, Width::Dword)),
            2 => {
                let register = offset as u16 & 0xfc;
                driver
                    .pci
                    .config_write(register, Width::Dword, value as u32);
            }
            3 | 4 => driver.pci.bar_write(0, offset, width, value),
            5 | 6 if !driver.queues.is_empty() => {
                // Descriptors, the available ring, the used ring.
                let queue = &driver.queues[at as usize % driver.queues.len()];
                let part = [queue.descriptors, queue.available, queue.used][bits as usize % 3];
                let at = part + (at & 0xf8);
                driver
                    .memory
                    .store(at, value & 0x001f_000f_001f_ffff)
                    .unwrap();
            }
            7 if bits >> 40 & 15 == 0 => driver.start(features::OFFERED & !features::VERSION_1),
            7 => driver.notify(at as u16 & 3),
            8..12 if !driver.queues.is_empty() => {
                let index = at as usize % driver.queues.len();
                let part = (
                    BUFFERS + (value & 0xfff),
                    at as u32 & 0x1ff,
                    bits >> 30 & 1 != 0,
                );
                driver.request(index as u16, &[part]);
            }
            _ => each(driver),
        }
    }
    let mut out = state::Writer::new();
    Device::save(&driver.pci, "it", &mut out);
    let mut from = state::Reader::new(out.into_sections());
    Device::restore(&mut driver.pci, "it", &mut from).unwrap();
    // Whatever happened, a reset makes it good.
    driver.start(0);
    assert!(driver.pci.is_live());
}

#[test]
fn a_hostile_driver_breaks_only_its_own_device() {
    let mut driver = Driver::new(rng());
    let (mut live, mut broken) = (0, 0);
    harass(&mut driver, |driver| {
        live += usize::from(driver.pci.is_live());
        broken += usize::from(driver.status() & status::DEVICE_NEEDS_RESET != 0);
    });
    assert!(
        live > 100 && broken > 100,
        "{live} times live, {broken} times broken"
    );
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, 8)));

    let console = crate::Console::new(Box::new(std::io::sink()), Arc::new(|| {}));
    let mut driver = Driver::new(console);
    let mut taken = 0;
    harass(&mut driver, |driver| {
        taken += driver.pci.receive(b"some input");
        driver.pci.resize(taken as u16, 24);
    });
    assert!(taken > 100, "{taken} bytes taken");
}

#[test]
fn work_on_a_device_that_is_not_ready_is_not_done() {
    let log = Recorder::new();
    let mut pci = VirtioPci::new(rng(), crate::testing::wires(&log), crate::testing::memory());
    pci.with_queues(|_, _| Err(QueueError::Layout));
    assert_eq!(pci.registers.status, 0);
}

#[test]
fn a_device_behind_the_root_interrupts_by_message() {
    let log = Recorder::new();
    let lines = [0, 1, 2, 3].map(|n| ::device::InterruptLine::new(log.clone(), n));
    let root = pci::Root::new(lines, ::device::Msi::new(log.clone()));
    let slot = pci::Slot::new(1);
    let memory = crate::testing::memory();
    let device = ::device::shared(VirtioPci::new(rng(), root.wires(slot), memory.clone()));
    root.add(slot, device.clone()).unwrap();
    let space = pci::Space {
        memory32: 0xc000_0000..0xd000_0000,
        memory64: 0..0,
        io: 0..0,
    };
    root.assign(&space).unwrap();
    let bar = |n: u16| u64::from(root.config_read(slot, 0x10 + 4 * n, Width::Dword));
    let (structures, table) = (bar(0), bar(1));
    root.memory_write(table + 16, Width::Qword, 0xfee0_0000);
    root.memory_write(table + 24, Width::Qword, 0x41);
    root.config_write(slot, 0x42, Width::Word, 0x8000);

    let mut queue = crate::testing::DriverQueue::new(&memory, 0, 16);
    let common = |at, width, value| root.memory_write(structures + at, width, value);
    common(0x14, Width::Byte, 3);
    common(0x08, Width::Dword, 1);
    common(0x0c, Width::Dword, 1);
    common(0x14, Width::Byte, 11);
    common(0x18, Width::Word, 16);
    common(0x1a, Width::Word, 1);
    common(0x20, Width::Dword, queue.descriptors);
    common(0x28, Width::Dword, queue.available);
    common(0x30, Width::Dword, queue.used);
    common(0x1c, Width::Word, 1);
    common(0x14, Width::Byte, 15);
    queue.add(&[(BUFFERS, 8, true)]);
    root.memory_write(structures + NOTIFY, Width::Word, 0);
    assert_eq!(queue.take_used(), Some((0, 8)));
    assert_eq!(log.take_messages(), [(0xfee0_0000, 0x41)]);
    assert!(!log.level(1), "the pin is silent");
}
