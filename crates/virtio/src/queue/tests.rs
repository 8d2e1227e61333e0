use super::*;
use crate::testing::{BUFFERS, DriverQueue, MEMORY_BYTES, memory};
use std::sync::Arc;

const SIZE: u16 = 8;

struct Bench {
    memory: Arc<GuestMemory>,
    driver: DriverQueue,
    queue: Queue,
}

impl Bench {
    fn new(features: RingFeatures) -> Self {
        let memory = memory();
        let driver = DriverQueue::new(&memory, 0, SIZE);
        let mut queue = Queue::new(SIZE);
        queue.features = features;
        queue.layout = Layout {
            size: SIZE,
            descriptors: driver.descriptors,
            available: driver.available,
            used: driver.used,
        };
        queue.enable().unwrap();
        Self {
            memory,
            driver,
            queue,
        }
    }

    fn plain() -> Self {
        Self::new(RingFeatures::default())
    }

    fn with_indirect() -> Self {
        Self::new(RingFeatures {
            indirect: true,
            event_idx: false,
        })
    }

    fn with_events() -> Self {
        Self::new(RingFeatures {
            indirect: false,
            event_idx: true,
        })
    }

    fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        self.queue.begin(&self.memory)?;
        self.queue.pop(&self.memory)
    }

    fn use_one(&mut self) {
        let chain = self.pop().unwrap().expect("a request is available");
        self.queue.push(&self.memory, chain, 0).unwrap();
    }

    fn interrupt_due(&mut self) -> bool {
        self.queue.interrupt_due(&self.memory).unwrap()
    }

    /// The error that the one descriptor chain given by `descriptors` (address, length, flags,
    /// next) leads to.
    fn error_of(&mut self, descriptors: &[(u64, u32, u16, u16)]) -> QueueError {
        for (i, (gpa, len, flags, next)) in descriptors.iter().enumerate() {
            let table = self.driver.descriptors;
            self.driver
                .write_descriptor(table, i as u16, (*gpa, *len), (*flags, *next));
        }
        self.driver.make_available(0);
        self.pop().unwrap_err()
    }
}

#[test]
fn a_request_travels_there_and_back() {
    let mut bench = Bench::plain();
    bench.memory.write(BUFFERS, b"hello, ").unwrap();
    bench.memory.write(BUFFERS + 0x100, b"world").unwrap();
    let head = bench.driver.add(&[
        (BUFFERS, 7, false),
        (BUFFERS + 0x100, 5, false),
        (BUFFERS + 0x200, 2, true),
        (BUFFERS + 0x300, 4, true),
    ]);
    let chain = bench.pop().unwrap().unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (12, 6));
    let mut bytes = [0; 20];
    let mut reader = chain.reader(&bench.memory);
    assert_eq!(reader.read(&mut bytes[..3]), Ok(3));
    assert_eq!(reader.read(&mut bytes[3..]), Ok(9));
    assert_eq!(reader.read(&mut bytes), Ok(0));
    assert_eq!(&bytes[..3], b"hel");
    assert_eq!(chain.writer(&bench.memory).write(b"12345678"), Ok(6));
    bench.queue.push(&bench.memory, chain, 6).unwrap();
    assert_eq!(bench.driver.take_used(), Some((head, 6)));
    let mut there = [0; 4];
    bench.memory.read(BUFFERS + 0x300, &mut there).unwrap();
    assert_eq!(&there, b"3456");
    assert_eq!(bench.pop(), Ok(None));
}

#[test]
fn indices_wrap_around() {
    let mut bench = Bench::with_events();
    for _ in 0..70_000 {
        let head = bench.driver.add(&[(BUFFERS, 1, false)]);
        bench.driver.interrupt_after(1);
        bench.use_one();
        assert!(bench.interrupt_due());
        assert_eq!(bench.driver.take_used(), Some((head, 0)));
    }
}

#[test]
fn section_2_7_5_3_indirect_descriptors() {
    let mut bench = Bench::with_indirect();
    let table = BUFFERS + 0x1000;
    // A table may be longer than the queue.
    for i in 0..20 {
        bench
            .driver
            .write_descriptor(table, i, (BUFFERS, 3), (u16::from(i < 19), i + 1));
    }
    bench.driver.write_descriptor(0, 0, (BUFFERS, 4), (NEXT, 1));
    bench
        .driver
        .write_descriptor(0, 1, (table, 20 * 16), (INDIRECT | WRITE, 0));
    bench.driver.make_available(0);
    assert_eq!(bench.pop().unwrap().unwrap().readable_bytes(), 64);
}

#[test]
fn wrong_indirect_descriptors_are_refused() {
    let table = BUFFERS + 0x1000;
    for (descriptor, error) in [
        ((table, 16, INDIRECT | NEXT, 1), QueueError::Indirect),
        ((table, 0, INDIRECT, 0), QueueError::Indirect),
        ((table, 17, INDIRECT, 0), QueueError::Indirect),
        // The table's first descriptor is an indirect one.
        ((0, 16, INDIRECT, 0), QueueError::Indirect),
        (
            (u64::MAX - 15, 32, INDIRECT, 0),
            QueueError::Memory(OutOfRange { gpa: u64::MAX - 15 }),
        ),
    ] {
        assert_eq!(
            Bench::with_indirect().error_of(&[descriptor]),
            error,
            "{descriptor:x?}"
        );
    }
    let unasked = (table, 16, INDIRECT, 0);
    assert_eq!(Bench::plain().error_of(&[unasked]), QueueError::Indirect);
    // A table that loops.
    let mut bench = Bench::with_indirect();
    bench
        .driver
        .write_descriptor(table, 0, (BUFFERS, 1), (NEXT, 0));
    assert_eq!(
        bench.error_of(&[(table, 16, INDIRECT, 0)]),
        QueueError::ChainLength
    );
    // One that leads out of itself.
    bench = Bench::with_indirect();
    bench
        .driver
        .write_descriptor(table, 0, (BUFFERS, 1), (NEXT, 1));
    assert_eq!(
        bench.error_of(&[(table, 16, INDIRECT, 0)]),
        QueueError::Descriptor
    );
}

#[test]
fn wrong_chains_are_refused() {
    let b = BUFFERS;
    for (chain, error) in [
        (
            &[(b, 1, NEXT, 1), (b, 1, NEXT, 0)][..],
            QueueError::ChainLength,
        ),
        (&[(b, 1, NEXT, SIZE)], QueueError::Descriptor),
        (&[(b, 1, WRITE | NEXT, 1), (b, 1, 0, 0)], QueueError::Order),
        (&[(b, u32::MAX, NEXT, 1), (b, 1, 0, 0)], QueueError::Length),
    ] {
        assert_eq!(Bench::plain().error_of(chain), error, "{chain:x?}");
    }
    let mut bench = Bench::plain();
    bench.driver.make_available(SIZE);
    assert_eq!(bench.pop(), Err(QueueError::Descriptor));
    bench = Bench::plain();
    bench
        .memory
        .store(bench.driver.available + 2, SIZE + 1)
        .unwrap();
    assert_eq!(bench.pop(), Err(QueueError::AvailableIndex));
}

#[test]
fn a_chain_may_be_as_long_as_the_queue() {
    let mut bench = Bench::plain();
    bench.driver.add(&[(BUFFERS, 1, false); SIZE as usize]);
    assert_eq!(bench.pop().unwrap().unwrap().readable_bytes(), SIZE.into());
}

#[test]
fn buffers_outside_memory_are_errors_and_not_accesses() {
    for gpa in [MEMORY_BYTES - 4, MEMORY_BYTES, u64::MAX - 3] {
        let mut bench = Bench::plain();
        bench.driver.add(&[(gpa, 8, false), (gpa, 8, true)]);
        let chain = bench.pop().unwrap().unwrap();
        assert!(chain.reader(&bench.memory).read(&mut [0; 8]).is_err());
        assert!(chain.writer(&bench.memory).write(&[0; 8]).is_err());
    }
}

#[test]
fn queues_that_cannot_lie_there_are_refused() {
    let good = Layout {
        size: 8,
        descriptors: 0x10,
        available: 2,
        used: 4,
    };
    for bad in [
        Layout {
            descriptors: 8,
            ..good
        },
        Layout {
            available: 1,
            ..good
        },
        Layout { used: 2, ..good },
        Layout {
            descriptors: !15,
            ..good
        },
        Layout {
            available: u64::MAX - 1,
            ..good
        },
        Layout { used: !3, ..good },
    ] {
        let mut queue = Queue::new(8);
        queue.layout = bad;
        assert_eq!(queue.enable(), Err(QueueError::Layout), "{bad:x?}");
        assert!(!queue.enabled());
    }
}

#[test]
fn section_2_7_7_no_interrupt_flag() {
    let mut bench = Bench::plain();
    assert!(!bench.interrupt_due(), "nothing used");
    bench.driver.add(&[(BUFFERS, 1, false)]);
    bench.use_one();
    assert!(bench.interrupt_due());
    assert!(!bench.interrupt_due(), "once");
    bench.driver.set_no_interrupt(true);
    bench.driver.add(&[(BUFFERS, 1, false)]);
    bench.use_one();
    assert!(!bench.interrupt_due());
}

#[test]
fn section_2_7_10_event_index() {
    let mut bench = Bench::with_events();
    bench.driver.interrupt_after(3);
    let mut due = Vec::new();
    for _ in 0..5 {
        bench.driver.add(&[(BUFFERS, 1, false)]);
        bench.use_one();
        due.push(bench.interrupt_due());
    }
    assert_eq!(due, [false, false, true, false, false]);
    // Several at once pass the event on their way.
    for _ in 0..5 {
        bench.driver.take_used();
    }
    bench.driver.interrupt_after(2);
    for _ in 0..4 {
        bench.driver.add(&[(BUFFERS, 1, false)]);
        bench.use_one();
    }
    assert!(bench.interrupt_due());
}

#[test]
fn a_round_ends_with_what_was_there_and_asks_for_the_rest() {
    let mut bench = Bench::with_events();
    for _ in 0..3 {
        bench.driver.add(&[(BUFFERS, 1, false)]);
    }
    assert_eq!(bench.queue.begin(&bench.memory), Ok(3));
    assert_eq!(bench.driver.notify_at(), 3);
    bench.driver.add(&[(BUFFERS, 1, false)]);
    for _ in 0..3 {
        assert!(bench.queue.pop(&bench.memory).unwrap().is_some());
    }
    assert_eq!(bench.queue.pop(&bench.memory), Ok(None));
    assert_eq!(bench.queue.begin(&bench.memory), Ok(1));
}

#[test]
fn a_driver_on_another_processor_loses_no_request() {
    const REQUESTS: u32 = 20_000;
    let mut bench = Bench::with_events();
    let mut driver = bench.driver.clone();
    let memory = bench.memory.clone();
    let thread = std::thread::spawn(move || {
        let mut written = 0u32;
        let mut done = 0;
        while done < REQUESTS {
            while written < REQUESTS && written - done < u32::from(SIZE) {
                let at = BUFFERS + u64::from(written % u32::from(SIZE)) * 8;
                memory.store(at, written).unwrap();
                driver.add(&[(at, 4, false)]);
                written += 1;
            }
            match driver.take_used() {
                Some((_, value)) => {
                    assert_eq!(value, done);
                    done += 1;
                }
                None => std::thread::yield_now(),
            }
        }
    });
    let mut seen = 0;
    while seen < REQUESTS {
        bench.queue.begin(&bench.memory).unwrap();
        while let Some(chain) = bench.queue.pop(&bench.memory).unwrap() {
            let mut value = [0; 4];
            chain.reader(&bench.memory).read(&mut value).unwrap();
            assert_eq!(u32::from_le_bytes(value), seen);
            bench.queue.push(&bench.memory, chain, seen).unwrap();
            seen += 1;
        }
        std::thread::yield_now();
    }
    thread.join().unwrap();
}

#[test]
fn random_rings_lead_to_errors_and_nothing_else() {
    let mut seed = 0x853c_49e6_748f_ea9bu64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut errors, mut requests) = (0, 0);
    for _ in 0..2_000 {
        let mut bench = Bench::new(RingFeatures {
            indirect: random() & 1 != 0,
            event_idx: random() & 1 != 0,
        });
        for index in 0..SIZE {
            let bits = random();
            let gpa = [0, BUFFERS, random() % (2 * MEMORY_BYTES), random()][bits as usize % 4];
            let len = [0, 16, 128, random() as u32][(bits >> 2) as usize % 4];
            let flags = (bits >> 8) as u16 & 7 & (bits >> 16) as u16;
            let next = (bits >> 32) as u16 % (SIZE + 2);
            bench
                .driver
                .write_descriptor(0, index, (gpa, len), (flags, next));
        }
        for _ in 0..4 {
            bench.driver.make_available(random() as u16 % (SIZE + 1));
        }
        if random() % 8 == 0 {
            bench
                .memory
                .store(bench.driver.available + 2, random() as u16)
                .unwrap();
        }
        let mut round = || -> Result<(), QueueError> {
            bench.queue.begin(&bench.memory)?;
            while let Some(chain) = bench.queue.pop(&bench.memory)? {
                requests += 1;
                let mut bytes = [0; 4096];
                chain.reader(&bench.memory).read(&mut bytes)?;
                let len = chain.writer(&bench.memory).write(&bytes)?;
                bench.queue.push(&bench.memory, chain, len as u32)?;
                bench.queue.interrupt_due(&bench.memory)?;
            }
            Ok(())
        };
        errors += usize::from(round().is_err());
    }
    assert!(
        errors > 100 && requests > 100,
        "{errors} errors, {requests} requests"
    );
}
