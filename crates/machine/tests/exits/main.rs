//! What an access to a device costs: no allocation, under no engine.
#![expect(
    unsafe_code,
    reason = "an allocator that counts is an unsafe trait's implementation"
)]
// UNSAFETY: every call goes on to the system's allocator as it came.

#[macro_use]
#[path = "../engines/mod.rs"]
mod engines;
#[expect(
    dead_code,
    reason = "`cargo xtask exits` has the guest, too, and a use for all of it"
)]
mod guest;

use config::EngineKind;
use guest::{Kind, mark};
use machine::{Consoles, Machine, Payload};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

thread_local! {
    /// Allocations of this thread so far.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: what `System` promises holds for these calls of it. `count` does not allocate: the
// variable has a constant initial value and nothing to drop.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// A round's length, in 16 accesses: an allocation in two thousand accesses would be seen.
const LOOPS: u32 = 128;
const ROUNDS: u32 = 5;
/// As many marks of a kind come before all of its code is decoded and translated: the way back to a
/// round's beginning is taken after the first.
const WARM: usize = 2;

/// The debug console: notes each mark with the number of allocations that the vCPU's thread had
/// made when it wrote it.
struct Marks {
    noted: Arc<Mutex<Vec<(u8, u64)>>>,
    end: Sender<()>,
}

impl Write for Marks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut noted = self.noted.lock().unwrap();
        assert!(noted.len() < noted.capacity(), "taking notes allocates");
        noted.push((bytes[0], ALLOCATIONS.get()));
        if bytes[0] == mark::END {
            self.end.send(()).unwrap();
        }
        Ok(1)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn any_kvm() -> Result<(), String> {
    machine::kvm_speed()
        .map(|_| ())
        .map_err(|error| error.to_string())
}

on_every_engine! {
    any_kvm;
    no_access_allocates,
}

fn no_access_allocates(engine: EngineKind) {
    let noted = Arc::new(Mutex::new(Vec::with_capacity(1000)));
    let (end, ended) = channel();
    let consoles = Consoles {
        debug: Some(Box::new(Marks {
            noted: noted.clone(),
            end,
        })),
        ..Consoles::default()
    };
    let shape = config::Machine {
        engine,
        memory: 128 << 20,
        ..config::Machine::default()
    };
    let mut machine = Machine::new(shape, consoles, None).unwrap();
    let payload = Payload {
        kernel: Arc::new(guest::kernel([LOOPS; Kind::ALL.len()], ROUNDS)),
        ..Payload::default()
    };
    machine.load(payload).unwrap();
    machine.resume();
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(ended, Ok(()), "{:?}", noted.lock().unwrap());
    let noted = noted.lock().unwrap().clone();
    assert!(!noted.iter().any(|(mark, _)| *mark == mark::NO_DEVICE));
    for kind in Kind::ALL {
        let of_kind = |(mark, count): &(u8, u64)| (*mark == mark::round(kind)).then_some(*count);
        let counts: Vec<_> = noted.iter().filter_map(of_kind).collect();
        assert_eq!(counts.len(), ROUNDS as usize);
        let of_accesses = counts[counts.len() - 1] - counts[WARM - 1];
        assert_eq!(of_accesses, 0, "{kind:?} allocates: {counts:?}");
    }
}

#[test]
fn allocations_are_counted() {
    let before = ALLOCATIONS.get();
    let memory = std::hint::black_box(vec![0u8; 10]);
    let mut memory = std::hint::black_box(memory);
    memory.reserve_exact(1000);
    assert_eq!(ALLOCATIONS.get() - before, 2);
}
