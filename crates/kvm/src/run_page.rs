//! The page that a vCPU shares with the kernel: `struct kvm_run` (api.rst, 5).
#![expect(
    unsafe_code,
    reason = "owns the mapping that the kernel writes exits to"
)]
// UNSAFETY: one mapping, made in `new` and unmapped in `drop`. It is never a Rust reference: every
// access is volatile or atomic, and bounded by the structure or by the mapping's length.

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, kvm_run,
};
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags};
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// Port accesses of one exit: a string instruction may make many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortExit {
    pub(crate) port: u16,
    /// Bytes of each access: 1, 2 or 4.
    pub(crate) bytes: u8,
    pub(crate) count: u32,
    pub(crate) write: bool,
    /// Where in the page the values are.
    pub(crate) offset: u64,
}

/// An access to guest-physical memory that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryExit {
    pub(crate) gpa: u64,
    /// At most 8.
    pub(crate) bytes: u32,
    /// The bytes written; `None` for a read.
    pub(crate) write: Option<[u8; 8]>,
}

/// Why the kernel could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub(crate) kind: u32,
    /// The bytes at RIP that it fetched, and how many.
    pub(crate) instruction: ([u8; 15], u8),
}

/// Why `KVM_RUN` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunExit {
    Port(PortExit),
    Memory(MemoryExit),
    /// The guest can take an interrupt.
    Window,
    /// A signal came.
    Interrupted,
    /// The guest ended a level-triggered interrupt with this vector.
    EndOfInterrupt(u8),
    /// Triple fault.
    Shutdown,
    /// What `KVM_SET_GUEST_DEBUG` asked for: the exception's vector, RIP linear, and DR6.
    Debug {
        exception: u32,
        pc: u64,
        dr6: u64,
    },
    InternalError(InternalError),
    /// The hardware refused to enter the guest, with its reason.
    FailedEntry(u64),
    /// The guest asked for a reset or power-off through a hypercall.
    SystemEvent(u32),
    Other(u32),
}

/// No exit has this number: to see whether the guest was entered.
const NOT_ENTERED: u32 = u32::MAX;

/// The mapping of one vCPU's `struct kvm_run`.
#[derive(Debug)]
pub(crate) struct RunPage {
    base: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: other threads only store to one byte, atomically (`set_immediate_exit`); all else is the
// vCPU's thread's.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// A field of the structure, as a pointer into the mapping.
macro_rules! field {
    ($page:expr, $($path:tt)+) => {{
        let base = $page.base.as_ptr();
        // SAFETY: `new` made the mapping at least as long as the structure.
        unsafe { &raw mut (*base).$($path)+ }
    }};
}

/// Loads a field.
macro_rules! load {
    ($page:expr, $($path:tt)+) => {{
        let field = field!($page, $($path)+);
        // SAFETY: inside of the mapping and aligned; plain integers, of which all bits are values.
        unsafe { field.read_volatile() }
    }};
}

impl RunPage {
    /// The page of the vCPU behind `vcpu`, which is `len` bytes long; without one, a page that no
    /// kernel writes to.
    pub(crate) fn new(vcpu: Option<BorrowedFd<'_>>, len: usize) -> rustix::io::Result<Self> {
        let len = len.max(size_of::<kvm_run>());
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED;
        let anywhere = std::ptr::null_mut();
        // SAFETY: fresh mappings at addresses of the kernel's choice.
        let base = unsafe {
            match vcpu {
                Some(vcpu) => rustix::mm::mmap(anywhere, len, prot, flags, vcpu, 0)?,
                None => rustix::mm::mmap_anonymous(anywhere, len, prot, flags)?,
            }
        };
        Ok(Self {
            base: NonNull::new(base.cast()).expect("not null"),
            len,
        })
    }

    /// Makes `KVM_RUN` return at once, before the guest is entered, or lets it enter. By any thread.
    pub(crate) fn set_immediate_exit(&self, exit: bool) {
        let flag = field!(self, immediate_exit);
        // SAFETY: a byte of the mapping, which lives as long as `self`. All accesses on this side
        // are atomic.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(exit.into(), Ordering::SeqCst);
    }

    /// Asks for [`RunExit::Window`] as soon as the guest can take an interrupt.
    pub(crate) fn request_window(&self, wanted: bool) {
        let field = field!(self, request_interrupt_window);
        // SAFETY: inside of the mapping; the kernel reads it in `KVM_RUN` only.
        unsafe { field.write_volatile(wanted.into()) }
    }

    /// Whether the guest could take an interrupt when `KVM_RUN` last returned.
    pub(crate) fn is_ready_for_interrupt(&self) -> bool {
        load!(self, ready_for_interrupt_injection) != 0
    }

    /// Before `KVM_RUN`, so that [`RunPage::was_entered`] can tell.
    pub(crate) fn prepare(&self) {
        let field = field!(self, exit_reason);
        // SAFETY: inside of the mapping; the kernel writes it in `KVM_RUN` only.
        unsafe { field.write_volatile(NOT_ENTERED) }
    }

    /// Whether the last `KVM_RUN` came as far as to the guest.
    pub(crate) fn was_entered(&self) -> bool {
        load!(self, exit_reason) != NOT_ENTERED
    }

    /// Why `KVM_RUN` returned.
    pub(crate) fn exit(&self) -> RunExit {
        match load!(self, exit_reason) {
            KVM_EXIT_IO => {
                let io = load!(self, __bindgen_anon_1.io);
                RunExit::Port(PortExit {
                    port: io.port,
                    bytes: io.size,
                    count: io.count,
                    write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
                    offset: io.data_offset,
                })
            }
            KVM_EXIT_MMIO => {
                let mmio = load!(self, __bindgen_anon_1.mmio);
                RunExit::Memory(MemoryExit {
                    gpa: mmio.phys_addr,
                    bytes: mmio.len.min(8),
                    write: (mmio.is_write != 0).then_some(mmio.data),
                })
            }
            KVM_EXIT_IRQ_WINDOW_OPEN => RunExit::Window,
            KVM_EXIT_INTR => RunExit::Interrupted,
            KVM_EXIT_IOAPIC_EOI => {
                RunExit::EndOfInterrupt(load!(self, __bindgen_anon_1.eoi).vector)
            }
            KVM_EXIT_SHUTDOWN => RunExit::Shutdown,
            KVM_EXIT_DEBUG => {
                let debug = load!(self, __bindgen_anon_1.debug.arch);
                RunExit::Debug {
                    exception: debug.exception,
                    pc: debug.pc,
                    dr6: debug.dr6,
                }
            }
            KVM_EXIT_INTERNAL_ERROR => RunExit::InternalError(self.internal_error()),
            KVM_EXIT_FAIL_ENTRY => {
                let entry = load!(self, __bindgen_anon_1.fail_entry);
                RunExit::FailedEntry(entry.hardware_entry_failure_reason)
            }
            KVM_EXIT_SYSTEM_EVENT => {
                RunExit::SystemEvent(load!(self, __bindgen_anon_1.system_event.type_))
            }
            other => RunExit::Other(other),
        }
    }

    fn internal_error(&self) -> InternalError {
        use kvm_bindings::{
            KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
        };
        let error = load!(self, __bindgen_anon_1.internal);
        let mut instruction = ([0; 15], 0);
        // The flags are the first data word, where there is one.
        let has_bytes = error.suberror == KVM_INTERNAL_ERROR_EMULATION
            && error.ndata >= 3
            && error.data[0] & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        if has_bytes {
            let bytes = load!(
                self,
                __bindgen_anon_1
                    .emulation_failure
                    .__bindgen_anon_1
                    .__bindgen_anon_1
            );
            instruction = (bytes.insn_bytes, bytes.insn_size.min(15));
        }
        InternalError {
            kind: error.suberror,
            instruction,
        }
    }

    /// The value of `bytes` bytes, at most 8, at `offset` in the page.
    ///
    /// # Panics
    /// Here and below: if they are not in the page.
    pub(crate) fn value(&self, offset: u64, bytes: u8) -> u64 {
        let at = self.at(offset, bytes);
        (0..usize::from(bytes)).rev().fold(0, |value, i| {
            // SAFETY: `at` bounds it.
            value << 8 | u64::from(unsafe { at.add(i).read_volatile() })
        })
    }

    /// Stores the lowest `bytes` bytes, at most 8, of `value` at `offset` in the page.
    pub(crate) fn set_value(&self, offset: u64, bytes: u8, value: u64) {
        let at = self.at(offset, bytes);
        for (i, byte) in value.to_le_bytes()[..usize::from(bytes)].iter().enumerate() {
            // SAFETY: `at` bounds it.
            unsafe { at.add(i).write_volatile(*byte) };
        }
    }

    /// Where the bytes of a [`MemoryExit`] are.
    pub(crate) const fn memory_data() -> u64 {
        // Of `struct kvm_run`: the union, and in it `mmio.data`.
        (offset_of!(kvm_run, __bindgen_anon_1) + size_of::<u64>()) as u64
    }

    fn at(&self, offset: u64, bytes: u8) -> *mut u8 {
        assert!(bytes <= 8, "an access has at most 8 bytes");
        let end = offset.checked_add(bytes.into());
        assert!(
            end.is_some_and(|end| end <= self.len as u64),
            "the kernel's data is in its page"
        );
        // SAFETY: just bounded.
        unsafe { self.base.as_ptr().cast::<u8>().add(offset as usize) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nobody has a pointer into it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What a kernel would write, for tests.
#[cfg(test)]
impl RunPage {
    pub(crate) fn put_exit(&self, reason: u32, fill: impl FnOnce(&mut kvm_run)) {
        let mut run = kvm_run {
            exit_reason: reason,
            ..kvm_run::default()
        };
        fill(&mut run);
        run.immediate_exit = load!(self, immediate_exit);
        run.request_interrupt_window = load!(self, request_interrupt_window);
        // SAFETY: the whole structure is in the mapping, and nobody else uses it.
        unsafe { self.base.as_ptr().write_volatile(run) };
    }

    pub(crate) fn wants_immediate_exit(&self) -> bool {
        load!(self, immediate_exit) != 0
    }

    pub(crate) fn wants_window(&self) -> bool {
        load!(self, request_interrupt_window) != 0
    }
}
