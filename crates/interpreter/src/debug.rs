//! What stops a vCPU for somebody: the guest's debug registers (SDM vol. 3, chapter 18) and the
//! debugger outside.

use crate::cpu::{Cpu, Result};
use engine::{DebugRequest, Stop};
use x86::{Cr4, Dr6, Dr7, Exception, Rflags, Vector};

/// The outer debugger's request, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Request {
    wanted: DebugRequest,
    stop: Option<Stop>,
    /// The debugger was told of this breakpoint: the next instruction is executed all the same.
    passing: bool,
}

impl Request {
    pub(crate) fn set(&mut self, wanted: &DebugRequest) {
        *self = Self {
            wanted: wanted.clone(),
            stop: None,
            passing: true,
        };
    }

    pub(crate) fn is_active(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Whether to stop before the instruction at `linear`.
    pub(crate) fn breaks_at(&mut self, linear: u64) -> bool {
        let passing = std::mem::take(&mut self.passing);
        let hit = self.wanted.breakpoints.contains(&linear);
        if hit && !passing {
            // When the debugger goes on, it goes on from here.
            self.passing = true;
            return true;
        }
        false
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
        if self.debug.wanted.single_step && self.debug.stop.is_none() {
            self.debug.stop = Some(Stop::Step);
        }
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
