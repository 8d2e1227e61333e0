//! What translated code works with besides the guest's registers: one memory block per vCPU,
//! reached through the host's GS base.
#![expect(
    unsafe_code,
    reason = "maps memory that is addressed by translated code"
)]
// UNSAFETY: owns one anonymous mapping, valid as all zeros, for as long as the `Context` lives.

use crate::crossing::Crossing;
use crate::gs_pages::{GS_PAGES, GS_VIEWS, GsPage};
use crate::window::place;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Entries of a table of the software TLB, a power of two.
pub(crate) const TLB_ENTRIES: usize = 4096;
/// Pages from that in which a checked access begins to the one in which it ends, at most: checks
/// look up the first byte's entry and compare the last byte's page.
pub(crate) const REACH_PAGES: usize = 16;
/// Elements of a string that inline code serves are fewer, a power of two: a page full of bytes is
/// such a string.
pub(crate) const STRING_COUNT_END: usize = 8192;
const _: () = assert!(
    STRING_COUNT_END * 8 <= REACH_PAGES * 4096,
    "the reach of a check of elements of 8 bytes"
);
/// Entries of a view of its second level, a power of two: 256 MiB in one piece fit.
pub(crate) const SECOND_ENTRIES: usize = 1 << 16;
/// Views of the software TLB: supervisor with user pages, supervisor without, user.
pub(crate) const TLB_VIEWS: usize = 3;
/// Entries of the TLB in one of the host's cache lines: those that share a bit of
/// [`Context::filled`].
pub(crate) const LINE_ENTRIES: usize = 64 / size_of::<TlbEntry>();
/// Bits of [`Context::filled`] for one half of the address space, a power of two.
pub(crate) const FILLED_BITS: usize =
    (2 * TLB_VIEWS * TLB_ENTRIES / LINE_ENTRIES).next_power_of_two();
/// Entries of a jump cache, a power of two.
pub(crate) const JUMP_ENTRIES: usize = 1 << 14;
/// The bits of a guest address that index a jump cache.
const JUMP_MASK: u64 = JUMP_ENTRIES as u64 - 1;
/// Jump caches: one for each [`Mode::slot`](crate::mode::Mode::slot).
pub(crate) const JUMP_CACHES: usize = 8;
/// Bytes of a jail's stacks: a signal's frame has all vector registers of the host.
const STACK_BYTES: usize = 128 << 10;
/// Bytes of the standard-format XSAVE area with x87, SSE and AVX state (SDM vol. 1, 13.4).
pub(crate) const XSAVE_BYTES: usize = 832;

/// One page in the software TLB. It matches an address if the address plus the tag is an offset
/// in a page: below 4096.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct TlbEntry {
    /// Minus the linear address of the page.
    pub(crate) tag: u64,
    /// Added to the linear address: the host address.
    pub(crate) bias: u64,
}

/// One page in the second level of the software TLB, which [`crate::refill`] describes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct SecondEntry {
    /// The linear address of the page, plus the generation of its half of the address space. 0 in
    /// an entry that is empty.
    pub(crate) tag: u64,
    /// Added to the linear address: the host address. A multiple of 4096, plus the generation of
    /// permissions to write if the page may be written.
    pub(crate) bias: u64,
}

/// The second level of the software TLB, in pages of its own: a table for each view.
#[repr(C, align(4096))]
pub(crate) struct SecondLevel(pub(crate) [[SecondEntry; SECOND_ENTRIES]; TLB_VIEWS]);

/// A guest address and where its translation begins.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct JumpEntry {
    /// Minus the guest address; 0 in an entry that is empty.
    pub(crate) tag: u64,
    /// The host address, where blocks are entered.
    pub(crate) host: u64,
}

/// See the module's text. All-zero is a valid value: see [`ContextBox::new`].
#[repr(C, align(4096))]
pub(crate) struct Context {
    /// Guest values of registers that the running block uses for itself.
    pub(crate) spilled: [u64; 16],
    /// All host registers while Rust code runs.
    pub(crate) host: [u64; 16],
    /// Host RFLAGS while Rust code runs: the guest's arithmetic flags and DF.
    pub(crate) flags: u64,
    /// RSP of the Rust code that entered translated code.
    pub(crate) host_rsp: u64,
    /// Where a gate goes on in translated code.
    pub(crate) jump: u64,
    /// RCX, while a sequence that must leave the flags alone needs it.
    pub(crate) saved_rcx: u64,
    /// Another register that a sequence needs for a while.
    pub(crate) saved_other: u64,
    /// Linear address of the guest code that is jumped to.
    pub(crate) pc: u64,
    /// The target of an indirect call while the return address is pushed.
    pub(crate) target: u64,
    /// Linear address of the page in which guest code runs (position-independent blocks).
    pub(crate) page: u64,
    /// The linear address of an access that missed the TLB.
    pub(crate) linear: u64,
    /// Where its check begins, as an offset in the code cache.
    pub(crate) retry: u32,
    /// RAX, RCX, RDX and RBX while the second level is asked.
    pub(crate) saved_for_refill: [u64; 4],
    /// How often the second level had the page.
    pub(crate) refills: u64,
    /// The current generations of entries of the second level, for the lower and the upper half of
    /// the linear address space: 1 to 4095.
    pub(crate) generations: [u64; 2],
    /// The current generation of permissions to write there, likewise.
    pub(crate) write_generation: u64,
    /// Where entries of the TLB were filled: a bit for each of its [`LINE_ENTRIES`], in the order
    /// of [`filled_bit`].
    pub(crate) filled: [u64; 2 * FILLED_BITS / 64],
    /// What a gate was reached for: block and site or exit.
    pub(crate) argument: u32,
    /// Which gate was taken ([`crate::gate::Reason`]).
    pub(crate) reason: u32,
    /// Set by anybody who wants something of the vCPU: code leaves at the next poll.
    pub(crate) attention: AtomicU32,
    /// RFLAGS.IF, in its place.
    pub(crate) interrupt_flag: u32,
    /// RFLAGS.AC, in its place.
    pub(crate) access_flag: u32,
    /// Selectors of ES, CS, SS, DS, FS and GS.
    pub(crate) selectors: [u32; 6],
    /// An interrupt would be taken if IF were set.
    pub(crate) interrupt_waits: u32,
    /// The guest's vector registers are in the host's.
    pub(crate) vectors_loaded: u32,
    /// Load the vector registers on entry.
    pub(crate) vectors_wanted: u32,
    /// The guest's MXCSR during an assist.
    pub(crate) mxcsr: u32,
    /// MXCSR of Rust code.
    pub(crate) host_mxcsr: u32,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) cr2: u64,
    /// RFLAGS but for the arithmetic flags, DF, IF and AC, as PUSHF shows it.
    pub(crate) other_flags: u64,
    /// Selects the arithmetic flags.
    pub(crate) status_mask: u64,
    /// Select the offset of a bit in a word.
    pub(crate) bits_of_64: u64,
    pub(crate) bits_of_32: u64,
    /// How the guest's TSC follows from the host's, if that is not below the floor: as the upper
    /// half of its product with `tsc_mult`, plus both offsets ([`crate::counter`]).
    pub(crate) tsc_floor: u64,
    pub(crate) tsc_mult: u64,
    pub(crate) machine_offset: u64,
    pub(crate) tsc_offset: u64,
    /// What RDTSCP leaves in ECX.
    pub(crate) tsc_aux: u32,
    /// Selects the bits of an address that index the TLB.
    pub(crate) tlb_mask: u64,
    /// Selects the bits of an address above the offset in a page.
    pub(crate) page_mask: u64,
    /// Selects the bits that make a count too large for an inline string instruction.
    pub(crate) count_mask: u64,
    /// Selects the bits of an address, or of its hash, that index a jump cache. 0 makes every look-up miss: how
    /// indirect jumps poll.
    pub(crate) jump_mask: AtomicU64,
    /// Jumps that the second jump cache had.
    pub(crate) second_hits: u64,
    /// Addresses of the gates, see [`crate::gate`].
    pub(crate) assist_gate: u64,
    pub(crate) vectors_gate: u64,
    /// Addresses of [`crate::crossing`]'s code.
    pub(crate) syscall_gate: u64,
    pub(crate) sysret_gate: u64,
    pub(crate) crossing: Crossing,
    /// The vCPU, for [`crate::assist::assist`], while translated code runs.
    pub(crate) vcpu: u64,
    /// In a jail ([`crate::window`]): the descriptor by which its system calls are seen.
    pub(crate) jail_listener: AtomicI32,
    /// There, too: where its translated code goes on, or was when a signal came. (Not in `jump`:
    /// the code may be about to jump by that.)
    pub(crate) resume: u64,
    /// After so many instructions it stops, if TF is set in `flags`.
    pub(crate) steps: u32,
    /// Why it has stopped: `ASKED` of its stub, or the number of the signal that came; 0 if it has not gone on
    /// at all.
    pub(crate) stopped_by: u32,
    /// Of the last signal: error code, vector and address of the CPU's exception.
    pub(crate) fault_error: u32,
    pub(crate) fault_vector: u32,
    pub(crate) fault_address: u64,
    /// When the jail's runner is interrupted next, and the address of that.
    pub(crate) alarm: libc::itimerspec,
    pub(crate) alarm_address: u64,
    /// Not 0 if the runner did not set its timer to that yet.
    pub(crate) alarm_is_new: u32,
    /// The address of `xsave`.
    pub(crate) xsave_address: u64,
    /// The guest's x87, SSE and AVX registers when they are not in the host's.
    pub(crate) xsave: Xsave,
    /// Whether XGETBV tells which components of the state are in use (CPUID.(0DH,1):EAX bit 2).
    pub(crate) tells_use: u32,
    /// Whether `ymm` has whole registers, or only their lower halves, as the upper ones are in their
    /// initial state.
    pub(crate) upper_halves: u32,
    /// YMM registers during an assist.
    pub(crate) ymm: [[u8; 32]; 16],
    /// For each view the pages that may be read, then those that may be written.
    pub(crate) tlb: [[[TlbEntry; TLB_ENTRIES]; 2]; TLB_VIEWS],
    /// For each view of kernel code the pages behind the base of GS that may be read, then those
    /// that may be written.
    pub(crate) gs_pages: [[[GsPage; GS_PAGES]; 2]; GS_VIEWS],
    pub(crate) second: SecondLevel,
    /// The jump caches: first those that code looks into by itself, then, as many, those that
    /// are asked when the first has another jump in its place.
    pub(crate) jumps: [[JumpEntry; JUMP_ENTRIES]; 2 * JUMP_CACHES],
    /// In a jail: the lower half for signal handlers, the upper half for the gates.
    pub(crate) stack: [u8; STACK_BYTES],
    /// Other threads write `attention` and `jump_mask` through a pointer of their own, so an
    /// exclusive reference to a context is not exclusive for these two: the type is not `Unpin`,
    /// which keeps the compiler from assuming it.
    pub(crate) pinned: std::marker::PhantomPinned,
}

impl Context {
    /// Empties the second level of the TLB of a vCPU's own context. What it held is the host's
    /// again.
    pub(crate) fn empty_second(&mut self) {
        let second = &raw mut self.second;
        // SAFETY: whole pages of a private anonymous mapping, which nobody else uses, become zero,
        // and zero is an entry that is empty.
        let given = unsafe {
            let advice = rustix::mm::Advice::LinuxDontNeed;
            rustix::mm::madvise(second.cast(), size_of::<SecondLevel>(), advice)
        };
        if given.is_err() {
            self.second
                .0
                .as_flattened_mut()
                .fill(SecondEntry::default());
        }
    }
}

/// A standard-format XSAVE area.
#[repr(C, align(64))]
pub(crate) struct Xsave {
    pub(crate) bytes: [u8; XSAVE_BYTES],
}

/// Offset of a field of [`Context`], as a displacement from GS.
macro_rules! field {
    ($($name:tt)+) => {
        std::mem::offset_of!($crate::context::Context, $($name)+) as i32
    };
}
pub(crate) use field;

/// Displacement of the slot of register `reg` in [`Context::spilled`].
pub(crate) const fn spill_slot(reg: u8) -> i32 {
    field!(spilled) + 8 * reg as i32
}

/// Displacements of the first entry's tag and bias in the TLB of `view`, for reads or writes.
pub(crate) const fn tlb_fields(view: usize, write: bool) -> (i32, i32) {
    let table = 2 * view + write as usize;
    let first = std::mem::offset_of!(Context, tlb) + table * size_of::<[TlbEntry; TLB_ENTRIES]>();
    (
        (first + std::mem::offset_of!(TlbEntry, tag)) as i32,
        (first + std::mem::offset_of!(TlbEntry, bias)) as i32,
    )
}

/// The bit of [`Context::filled`] for the TLB's entry `index`, which is for an address in `half`
/// of the address space.
pub(crate) const fn filled_bit(half: usize, view: usize, write: bool, index: usize) -> usize {
    let table = 2 * view + write as usize;
    half * FILLED_BITS + (table * TLB_ENTRIES + index) / LINE_ENTRIES
}

/// Displacements of the first entry's tag and host address in jump table `table`.
pub(crate) const fn jump_fields(table: usize) -> (i32, i32) {
    let first =
        std::mem::offset_of!(Context, jumps) + table * size_of::<[JumpEntry; JUMP_ENTRIES]>();
    (
        (first + std::mem::offset_of!(JumpEntry, tag)) as i32,
        (first + std::mem::offset_of!(JumpEntry, host)) as i32,
    )
}

/// The mapping that a [`Context`] is in.
struct Mapping(NonNull<Context>);

// SAFETY: it is an owned allocation, used through `ContextBox` by one thread at a time, and
// through `Bell` only by atomic accesses to two fields.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), size_of::<Context>()) };
    }
}

/// A vCPU's own [`Context`], at a fixed place.
pub(crate) struct ContextBox(Arc<Mapping>);

/// Most jails of a vCPU.
pub(crate) const JAILS: usize = 4;
/// Contexts that one vCPU may have: its own, and one for each of its jails.
const CONTEXTS_MAX: usize = 1 + JAILS;

/// Makes a vCPU that is in translated code leave it soon. From any thread, and from signal
/// handlers.
///
/// It rings in all contexts of the vCPU, which it keeps for ever: who rings can't know in which
/// of them code runs.
#[derive(Clone)]
pub(crate) struct Bell(Arc<Contexts>);

#[derive(Default)]
struct Contexts {
    /// The first is the vCPU's own, the only one that no jail can write.
    mappings: [OnceLock<Arc<Mapping>>; CONTEXTS_MAX],
    /// The jail that runs, unless it was interrupted: its process and its thread, or 0.
    runner: AtomicU64,
}

impl Bell {
    /// Rings.
    pub(crate) fn ring(&self) {
        self.ring_here();
        let runner = self.0.runner.swap(0, Ordering::SeqCst);
        if runner != 0 {
            crate::window::interrupt((runner >> 32) as i32, runner as i32);
        }
    }

    /// Rings, but leaves a jail alone that runs.
    pub(crate) fn ring_here(&self) {
        for (attention, mask) in self.fields() {
            attention.store(1, Ordering::SeqCst);
            mask.store(0, Ordering::SeqCst);
        }
    }

    /// Whoever rings from now on interrupts this process's thread, once. Who has rung before does
    /// not: look whether it rings afterwards.
    pub(crate) fn set_runner(&self, runner: Option<(i32, i32)>) {
        let both = runner.map_or(0, |(pid, tid)| (pid as u64) << 32 | tid as u64);
        self.0.runner.store(both, Ordering::SeqCst);
    }

    /// Ends the ringing. Whatever is asked for after that rings again.
    pub(crate) fn silence(&self) {
        for (attention, mask) in self.fields() {
            mask.store(JUMP_MASK, Ordering::SeqCst);
            attention.store(0, Ordering::SeqCst);
        }
    }

    /// Whether it rings.
    pub(crate) fn is_ringing(&self) -> bool {
        let mut fields = self.fields();
        fields
            .next()
            .is_some_and(|(attention, _)| attention.load(Ordering::SeqCst) != 0)
    }

    /// Rings in `context`, too, from now on.
    ///
    /// # Panics
    /// If there are [`CONTEXTS_MAX`] already.
    pub(crate) fn join(&self, context: &ContextBox) {
        let mapping = context.0.clone();
        let mut mapping = Some(mapping);
        for slot in &self.0.mappings {
            if let Some(mine) = mapping.take()
                && let Err(back) = slot.set(mine)
            {
                mapping = Some(back);
            }
        }
        assert!(mapping.is_none(), "a vCPU has few contexts");
    }

    fn fields(&self) -> impl Iterator<Item = (&AtomicU32, &AtomicU64)> {
        let mappings = self.0.mappings.iter().filter_map(OnceLock::get);
        mappings.map(|mapping| {
            let context = mapping.0.as_ptr();
            // SAFETY: the mapping lives as long as `self`, and its owner knows that these fields
            // change under it.
            unsafe { (&(*context).attention, &(*context).jump_mask) }
        })
    }
}

impl ContextBox {
    /// A context whose TLB and jump caches are empty.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub(crate) fn new() -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        // SAFETY: a new private mapping where the kernel likes.
        let memory = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<Context>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let mut context = Self::in_memory(NonNull::new(memory.cast()).expect("not null"));
        context.begin();
        context.empty_tlb();
        Ok(context)
    }

    /// One in shared memory, where guest programs have nothing, for a jail.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub(crate) fn in_jail() -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        let len = size_of::<Context>();
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        let memory = place::map(len, |at| {
            // SAFETY: a new mapping, which replaces nothing.
            unsafe {
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                rustix::mm::mmap_anonymous(at as *mut _, len, protection, flags)
            }
        })?;
        let mut context = Self::in_memory(memory.cast());
        context.begin_in_jail();
        Ok(context)
    }

    /// As new: one that was in another jail.
    ///
    /// # Errors
    /// If the host does not empty the memory.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        let memory = self.0.0;
        // SAFETY: zeroes memory in which each field is valid as zero, and to which only bells refer
        // besides.
        unsafe {
            let advice = rustix::mm::Advice::LinuxRemove;
            rustix::mm::madvise(memory.as_ptr().cast(), size_of::<Context>(), advice)?;
        }
        self.begin_in_jail();
        Ok(())
    }

    fn begin_in_jail(&mut self) {
        self.begin();
        self.xsave_address = &raw const self.xsave as u64;
        self.alarm_address = &raw const self.alarm as u64;
        self.host_rsp = &raw const self.stack as u64 + STACK_BYTES as u64;
    }

    /// Zeroed memory that becomes the context's, in which nothing is set yet.
    fn in_memory(memory: NonNull<Context>) -> Self {
        Self(Arc::new(Mapping(memory)))
    }

    /// Sets what is not zero.
    fn begin(&mut self) {
        self.tlb_mask = (TLB_ENTRIES as u64 - 1) << 12;
        self.page_mask = !0xfff;
        self.count_mask = !(STRING_COUNT_END as u64 - 1);
        self.status_mask = x86::Rflags::STATUS.bits();
        self.bits_of_64 = 63;
        self.bits_of_32 = 31;
        self.host_mxcsr = native::MXCSR_RESET;
        self.tells_use = (std::arch::x86_64::__cpuid_count(0xd, 1).eax >> 2) & 1;
        self.gs_pages = [[[GsPage::EMPTY; GS_PAGES]; 2]; GS_VIEWS];
        self.generations = [1; 2];
        self.write_generation = 1;
    }

    /// Makes the TLB's entries match nothing. A jail has no TLB.
    fn empty_tlb(&mut self) {
        // A tag of 0 matches addresses of page 0. Accesses that begin there ask entry 0, and those
        // that come there from the end of the address space one of the last.
        let last = TLB_ENTRIES - REACH_PAGES..TLB_ENTRIES;
        for table in self.tlb.iter_mut().flatten() {
            for index in last.clone().chain([0]) {
                table[index] = TlbEntry::empty(index);
            }
        }
    }

    /// The addresses that it takes.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.address()..self.address() + size_of::<Context>()
    }

    /// Its address, for GS.
    pub(crate) fn address(&self) -> usize {
        self.0.0.as_ptr() as usize
    }

    /// What rings for it.
    pub(crate) fn bell(&self) -> Bell {
        let bell = Bell(Arc::new(Default::default()));
        bell.join(self);
        bell
    }
}

impl TlbEntry {
    /// Matches nothing that has entry `index`: neither its first byte nor its last, which is
    /// [`REACH_PAGES`] on at most. What matches is half the table away.
    pub(crate) const fn empty(index: usize) -> Self {
        let page = (index as u64 ^ (TLB_ENTRIES as u64 / 2)) << 12;
        Self {
            tag: page.wrapping_neg(),
            bias: 0,
        }
    }

    /// The page at linear address `page` is at host address `page + bias`.
    pub(crate) const fn new(page: u64, bias: u64) -> Self {
        Self {
            tag: page.wrapping_neg(),
            bias,
        }
    }

    /// The linear address of the page that it matches.
    pub(crate) const fn page(&self) -> u64 {
        self.tag.wrapping_neg()
    }
}

impl Deref for ContextBox {
    type Target = Context;

    fn deref(&self) -> &Context {
        // SAFETY: an owned, initialised mapping.
        unsafe { self.0.0.as_ref() }
    }
}

impl DerefMut for ContextBox {
    fn deref_mut(&mut self) -> &mut Context {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { &mut *self.0.0.as_ptr() }
    }
}
