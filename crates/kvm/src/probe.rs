//! How fast KVM runs a guest here.
//!
//! That there is a /dev/kvm does not say that the CPU runs guests: there are hosts whose KVM emulates
//! unmodified 64-bit code instruction by instruction. So a guest counts down, in long mode, and the
//! same loop runs on the host.
#![expect(
    unsafe_code,
    reason = "runs the guest's loop on the host, instruction by instruction"
)]
// UNSAFETY: three instructions that change a register.

use crate::host::NewError;
use crate::vm::Kvm;
use engine::{Access, Engine, Exit, Platform, Setup, Space};
use memory::{GuestMemory, Kind, RegionSpec};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use x86::cpuid::{Answer, Table};
use x86::{Cr0, Cr4, Efer, Segment, Selector, VcpuState};

/// How much slower than the host a guest may be and still count as run by the CPU.
const HARDWARE_MAX: f64 = 3.0;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// How long a guest takes for what takes the host 1.
    pub slowness: f64,
}

impl Speed {
    /// Whether the CPU runs the guest's code, rather than the host's kernel.
    pub fn is_hardware(self) -> bool {
        self.slowness <= HARDWARE_MAX
    }
}

/// The guest's memory: page tables and code.
const MEMORY: u64 = 0x1_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
/// Where the guest asks how far to count, and stops the watch by that.
const PORT: u64 = 0xf4;

/// ```text
/// again: in eax, 0xf4
///        mov ecx, eax
/// count: dec ecx
///        jnz count
///        jmp again
/// ```
const LOOP: [u8; 10] = [0xe5, 0xf4, 0x89, 0xc1, 0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xf6];

/// A first round that takes no long time even if it is emulated, and the others, which must be long
/// next to an exit.
const FIRST: u64 = 500;
const LONG: u64 = 400_000;
/// What the first round takes at most where it is not emulated.
const FIRST_MAX: Duration = Duration::from_micros(250);
/// How often each is measured; the best counts.
const ROUNDS: usize = 4;

/// Counts down on the host.
fn native(count: u64) -> Duration {
    let began = Instant::now();
    // SAFETY: counts a register down.
    unsafe {
        std::arch::asm!("2: dec {0:e}", "jnz 2b", inout(reg) count => _, options(nomem, nostack));
    }
    began.elapsed()
}

/// The watch: what is at [`PORT`].
struct Watch {
    engine: Arc<Kvm>,
    rounds: Mutex<Rounds>,
}

#[derive(Default)]
struct Rounds {
    began: Option<(u64, Instant)>,
    /// Counts and how long they took.
    taken: Vec<(u64, Duration)>,
}

impl Platform for Watch {
    fn access(&self, access: Access) -> u64 {
        if (access.space, access.address) != (Space::Port, PORT) {
            return 0;
        }
        let now = Instant::now();
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, began)) = rounds.began {
            rounds.taken.push((count, now.duration_since(began)));
        }
        let first = rounds.taken.iter().filter(|(count, _)| *count == FIRST);
        let is_fast = first.clone().any(|(_, took)| *took < FIRST_MAX);
        let count = match rounds.taken.len() {
            0..ROUNDS => FIRST,
            ROUNDS.. if is_fast && rounds.taken.len() < 2 * ROUNDS => LONG,
            _ => {
                self.engine.kick(0);
                1
            }
        };
        rounds.began = Some((count, Instant::now()));
        count
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        0
    }
}

/// Measures. Takes some milliseconds, most of them for making a VM.
///
/// # Errors
/// If KVM can't be used, or does not run this guest to its end.
pub fn speed() -> Result<Speed, NewError> {
    let setup = setup()?;
    let (engine, mut vcpus) = Kvm::create(&setup)?;
    let vcpu = &mut vcpus[0];
    let failed =
        |what: String| NewError::Call("the guest that is to be measured", io::Error::other(what));
    vcpu.set_state(&start())
        .map_err(|invalid| failed(invalid.0))?;
    let watch = Arc::new(Watch {
        engine,
        rounds: Mutex::default(),
    });
    let platform: Arc<dyn Platform> = watch.clone();
    match vcpu.run(&platform) {
        Exit::Kicked => {}
        Exit::Failed(text) | Exit::Shutdown(text) => return Err(failed(text)),
        Exit::Debug(stop) => return Err(failed(format!("{stop:?}"))),
    }
    let rounds = watch.rounds.lock().unwrap_or_else(PoisonError::into_inner);
    let longest = rounds.taken.iter().map(|(count, _)| *count).max();
    let longest = longest.ok_or_else(|| failed("it did nothing".to_owned()))?;
    let of_longest = rounds.taken.iter().filter(|(count, _)| *count == longest);
    let guest = of_longest.map(|(_, took)| *took).min();
    let host = (0..ROUNDS).map(|_| native(longest)).min();
    Ok(Speed {
        slowness: guest.unwrap_or_default().as_secs_f64()
            / host.unwrap_or_default().as_secs_f64().max(1e-9),
    })
}

/// A machine of one vCPU with [`MEMORY`] bytes.
fn setup() -> Result<Setup, NewError> {
    let host = crate::Host::open()?;
    let memory = GuestMemory::new(&[RegionSpec {
        gpa: 0,
        len: MEMORY,
        kind: Kind::Ram,
    }])
    .map_err(|error| NewError::Call("memory", io::Error::other(error)))?;
    // Present and writable; the last is a page of 2 MiB.
    for (table, entry) in [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83)] {
        memory.store(table, entry).expect("in memory");
    }
    memory.load_image(CODE, &LOOP).expect("in memory");
    let mut table = Table::new();
    let leaf = |eax, edx| Answer {
        eax,
        edx,
        ..Answer::default()
    };
    // PAE and MSRs; then long mode.
    table.set(0, leaf(1, 0));
    table.set(1, leaf(0x0f61, 1 << 5 | 1 << 6 | 1 << 9));
    table.set(0x8000_0000, leaf(0x8000_0001, 0));
    table.set(0x8000_0001, leaf(0, 1 << 29));
    Ok(Setup {
        memory,
        clock: clock::Clock::manual(),
        cpuid: vec![table],
        tsc_khz: host.tsc_khz(1_000_000)?,
        tracer: None,
    })
}

/// In long mode, at [`CODE`], without interrupts.
fn start() -> VcpuState {
    let mut state = VcpuState::after_reset(0);
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET;
    state.cr4 = Cr4::PAE;
    state.cr3 = PML4;
    state.efer = Efer::LME | Efer::LMA;
    let flat = |selector, access| Segment {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access,
        unusable: false,
    };
    state.segments = [flat(0x10, 0xc093); 6];
    state.segments[1] = flat(8, 0xa09b);
    state.rip = CODE;
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_measured_where_there_is_a_kvm() {
        match speed() {
            // It can't be much faster than the host.
            Ok(speed) => assert!(speed.slowness > 0.2, "{speed:?}"),
            Err(NewError::Host(problem)) => eprintln!("skipped: {problem}"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn only_a_guest_at_about_the_speed_of_the_host_is_run_by_the_cpu() {
        assert!(Speed { slowness: 1.1 }.is_hardware());
        assert!(!Speed { slowness: 300.0 }.is_hardware());
    }
}
