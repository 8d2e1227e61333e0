//! What stops a vCPU for somebody: the guest's debug registers (SDM vol. 3, chapter 18) and the
//! debugger outside.

use crate::cpu::{Cpu, Result};
use crate::decode::{BLOCK_BYTES, INSTRUCTION_MAX};
use engine::{DebugRequest, Stop};
use x86::{Cr4, Dr6, Dr7, Exception, Rflags, Vector};

/// The outer debugger's request, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Request {
    wanted: DebugRequest,
    stop: Option<Stop>,
    /// The linear address of a breakpoint that the debugger was told of: when the debugger goes on,
    /// it goes on from there.
    told: Option<u64>,
}

impl Request {
    pub(crate) fn set(&mut self, wanted: &DebugRequest) {
        self.wanted.clone_from(wanted);
        self.stop = None;
    }

    pub(crate) fn steps_singly(&self) -> bool {
        self.wanted.single_step
    }

    /// Whether a debugger waits for anything, or has to be told something.
    pub(crate) fn wants_anything(&self) -> bool {
        self.stop.is_some() || !self.wanted.is_empty()
    }

    pub(crate) fn has_breakpoints(&self) -> bool {
        !self.wanted.breakpoints.is_empty()
    }

    /// Whether to stop before the instruction at `linear`.
    pub(crate) fn breaks_at(&mut self, linear: u64) -> bool {
        let told = self.told.take();
        let hit = self.wanted.breakpoints.contains(&linear) && told != Some(linear);
        if hit {
            self.told = Some(linear);
        }
        hit
    }

    /// Whether a block that begins at `linear` may hold a breakpoint.
    pub(crate) fn breaks_in_block_at(&self, linear: u64) -> bool {
        let block = 0..(BLOCK_BYTES + INSTRUCTION_MAX) as u64;
        let breakpoints = &self.wanted.breakpoints;
        breakpoints
            .iter()
            .any(|breakpoint| block.contains(&breakpoint.wrapping_sub(linear)))
    }

    /// The instruction, or the exception that it raised instead, is complete.
    pub(crate) fn stepped(&mut self) {
        if self.wanted.single_step && self.stop.is_none() {
            self.stop = Some(Stop::Step);
        }
    }

    /// The instruction faulted: it did not access what was noted.
    pub(crate) fn faulted(&mut self) {
        self.stop = None;
    }

    pub(crate) fn take_stop(&mut self) -> Option<Stop> {
        self.stop.take()
    }
}

impl Cpu {
    /// Whether breakpoints on data are set, by anybody.
    pub(crate) fn watches_data(&self) -> bool {
        !self.debug.wanted.watchpoints.is_empty() || self.breakpoints().any(|b| b.kind & 1 != 0)
    }

    /// Whether the guest has breakpoints on code.
    pub(crate) fn watches_code(&self) -> bool {
        self.breakpoints().any(|b| b.kind == 0)
    }

    /// The guest's breakpoints that are enabled.
    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr, dr7) = (self.dr, self.dr7);
        let enabled = (0..4).filter(move |i| dr7 >> (2 * i) & 3 != 0);
        enabled.map(move |i| Breakpoint {
            number: i,
            address: dr[i],
            kind: (dr7 >> (16 + 4 * i) & 3) as u8,
            len: [1, 2, 8, 4][(dr7 >> (18 + 4 * i) & 3) as usize],
        })
    }

    /// The breakpoint on code at `linear`, as bits of DR6; 0 if there is none.
    pub(crate) fn code_breakpoint(&self, linear: u64) -> u64 {
        let hits = self
            .breakpoints()
            .filter(|b| b.kind == 0 && b.address == linear);
        hits.fold(0, |bits, b| bits | 1 << b.number)
    }

    /// Remembers a data access for whoever watches it.
    pub(crate) fn note_access(&mut self, linear: u64, size: u64, write: bool) {
        let overlaps = |address: u64, len: u64| {
            linear < address.saturating_add(len) && address < linear.saturating_add(size)
        };
        let hit = self.breakpoints().filter(|b| {
            // Kind 1 is writes, kind 3 reads and writes; the address is aligned to the length.
            let kind_matches = b.kind == 3 || b.kind == 1 && write;
            kind_matches && overlaps(b.address & !(b.len - 1), b.len)
        });
        let bits = hit.fold(0, |bits, b| bits | 1u64 << b.number);
        if bits != 0 {
            self.debug_trap |= bits;
            self.stop = true;
            self.attend();
        }
        let watch = &self.debug.wanted.watchpoints;
        let seen = watch
            .iter()
            .find(|w| (if write { w.write } else { w.read }) && overlaps(w.address, w.len));
        if seen.is_some() {
            self.debug.stop = Some(Stop::Watchpoint {
                address: linear,
                write,
            });
            self.stop = true;
            self.attend();
        }
    }

    /// Raises #DB if a breakpoint on code is at `linear`, unless RF says that it was already
    /// (SDM vol. 3, 18.3.1.1).
    pub(crate) fn check_code_breakpoints(&mut self, linear: u64) -> Result {
        if self.flags.system().contains(Rflags::RF) || !self.watches_code() {
            return Ok(());
        }
        match self.code_breakpoint(linear) {
            0 => Ok(()),
            payload => self.raise(Exception {
                vector: Vector::Debug,
                error_code: 0,
                payload,
            }),
        }
    }

    /// Remembers a port access for breakpoints on I/O, which CR4.DE enables (SDM vol. 3, 18.2.4).
    pub(crate) fn note_port(&mut self, port: u16, size: u64) {
        if self.dr7 & Dr7::ENABLES.bits() == 0 || !self.cr4.contains(Cr4::DE) {
            return;
        }
        let port = u64::from(port);
        let hit = self.breakpoints().filter(|b| {
            let first = b.address & !(b.len - 1);
            b.kind == 2 && port < first.saturating_add(b.len) && first < port + size
        });
        let bits = hit.fold(0, |bits, b| bits | 1u64 << b.number);
        if bits != 0 {
            self.debug_trap |= bits;
            self.stop = true;
            self.attend();
        }
    }

    /// An instruction was executed by itself; `trap` if RFLAGS.TF was set before it.
    pub(crate) fn after_step(&mut self, trap: bool) {
        if trap {
            self.debug_trap |= Dr6::BS.bits();
        }
        self.debug.stepped();
    }
}

/// One of the guest's breakpoints.
struct Breakpoint {
    number: usize,
    address: u64,
    /// R/W field: 0 code, 1 writes, 2 I/O, 3 reads and writes.
    kind: u8,
    /// 1, 2, 4 or 8 bytes.
    len: u64,
}
