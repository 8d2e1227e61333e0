//! The host CPU as an oracle, for tests: executes one arbitrary user-mode instruction of
//! 64-bit code with full control over the registers and three pages of memory.
//!
//! The instruction runs in a child process under ptrace. The child's address space is emptied
//! first, so that any access but to its code page and data pages faults. A case costs a few
//! system calls and two context switches: some tens of thousands of cases per second.
//!
//! What can't be observed: accesses between which another instruction would have to run,
//! and, on AMD, FOP, FIP and FDP while no x87 exception is pending (XSAVE leaves them out).
#![expect(unsafe_code, reason = "forks and traces a child")]
// UNSAFETY: ptrace and fork have no safe wrappers. The child runs nothing but a few system calls
// between fork and its first stop; everything else acts on the child only.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::{fmt, io, mem, ptr};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};
use libc::{c_int, c_long, c_uint, iovec, pid_t, siginfo_t, user_regs_struct};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use crate::image::{FXSAVE_BYTES, FxFormat, load_x87, store_x87};
use crate::state::{MXCSR_MASK, MXCSR_RESET, VectorState};

/// Size of a page.
pub const PAGE: usize = 4096;

/// A page of the child's memory.
pub type Page = [u8; PAGE];

/// Where the child's pages are. Code is filled up with INT3 around the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The code page, readable and executable.
    pub code: u64,
    /// Offset of the instruction in the code page.
    pub offset: u16,
    /// Two data pages, readable and writable.
    pub data: [u64; 2],
}

impl Default for Layout {
    /// Everything below 2 GiB, within reach of 32-bit addresses; the data pages are adjacent,
    /// with unmapped pages around them.
    fn default() -> Self {
        Self {
            code: 0x2000_0000,
            offset: 0x800,
            data: [0x2010_0000, 0x2010_1000],
        }
    }
}

/// What to execute, and from which state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// One instruction, in 64-bit code.
    pub code: Vec<u8>,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gprs: [u64; 16],
    /// The status flags and DF; other bits are the kernel's to decide (IF is 1, IOPL 0).
    pub rflags: u64,
    /// Vector and x87 registers.
    pub vectors: VectorState,
    /// Contents of the data pages.
    pub data: Box<[Page; 2]>,
}

impl Case {
    /// `code` with all registers and memory zero or reset (x87 as after FNINIT).
    pub fn new(code: &[u8]) -> Self {
        let vectors = VectorState {
            fpu: crate::Fpu::init(),
            ..VectorState::reset()
        };
        let data = Box::new([[0; PAGE]; 2]);
        Self {
            code: code.to_vec(),
            gprs: [0; 16],
            rflags: 2,
            vectors,
            data,
        }
    }
}

/// The state after a [`Case`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The signal that the instruction raised, if it did not complete.
    pub signal: Option<Signal>,
    /// Where execution goes on; the instruction's own address after a fault.
    pub rip: u64,
    /// As in [`Case`].
    pub gprs: [u64; 16],
    /// All of RFLAGS, without RF, which the kernel sets after some faults.
    pub rflags: u64,
    /// As in [`Case`]. On hosts without AVX the upper halves are as they were.
    pub vectors: VectorState,
    /// As in [`Case`].
    pub data: Box<[Page; 2]>,
}

/// A signal, which stands for a CPU exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGSEGV of a page fault at this address.
    PageFault(u64),
    /// SIGSEGV of another kind: `#GP`, or an address that is not canonical.
    Protection,
    /// SIGBUS: `#SS`, or `#AC`.
    Bus,
    /// SIGFPE with its `si_code`: `#DE` is FPE_INTDIV (1), `#MF` and `#XM` are the others.
    Arithmetic(i32),
    /// SIGILL: `#UD`.
    IllegalInstruction,
    /// SIGTRAP that our own INT3 did not raise: `#DB`, or INT1 and INT3 themselves.
    Trap,
    /// Any other signal.
    Other(i32),
}

/// Why a case has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not a single valid-length instruction, or does not fit the code page.
    #[error("not one instruction")]
    NotOneInstruction,
    /// It enters the kernel on purpose, or might never end.
    #[error("system calls and software interrupts are not executed")]
    SystemCall,
    /// The host failed.
    #[error("the traced child")]
    Host(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Host(errno.into())
    }
}

/// A child process that executes cases. Belongs to the thread that made it, as ptrace demands.
pub struct Oracle {
    child: pid_t,
    /// The child's pages: code, data, data.
    pages: OwnedFd,
    layout: Layout,
    /// Size of the kernel's XSAVE image.
    xsave_bytes: usize,
    thread_bound: PhantomData<*mut ()>,
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// `NT_X86_XSTATE`, the register set of PTRACE_GETREGSET in XSAVE's standard format.
const NT_X86_XSTATE: c_int = 0x202;
/// Asks for a [`RseqConfiguration`] (Linux 5.13).
const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;

/// `struct ptrace_rseq_configuration` of `linux/ptrace.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// Offset of XSTATE_BV in an XSAVE image.
const XSTATE_BV: usize = FXSAVE_BYTES;
/// Offset of the upper halves of YMM0 to YMM15 (the same on all processors).
const YMM_HIGH: usize = 576;
/// An XSAVE image is never larger, nor are AMX tiles in it unless asked for.
const XSAVE_BYTES_MAX: usize = 16 << 10;
/// RFLAGS.RF.
const RF: u64 = 1 << 16;
/// RFLAGS bits a case may set: CF, PF, AF, ZF, SF, DF, OF.
const SETTABLE_FLAGS: u64 = 0xcd5;

impl Oracle {
    /// Starts a child with the [default layout](Layout::default).
    ///
    /// # Errors
    /// [`Error::Host`] if ptrace is forbidden or the addresses are taken.
    pub fn new() -> Result<Self, Error> {
        Self::with_layout(Layout::default())
    }

    /// Starts a child with its pages at the addresses in `layout`.
    ///
    /// # Errors
    /// [`Error::Host`] if ptrace is forbidden or the addresses are not free page addresses.
    pub fn with_layout(layout: Layout) -> Result<Self, Error> {
        let pages = memfd_create("oracle", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("oracle", MemfdFlags::CLOEXEC))?;
        ftruncate(&pages, 3 * PAGE as u64)?;
        pwrite(&pages, &[0xcc; PAGE], 0)?;
        let file = pages.as_raw_fd();
        // SAFETY: the child calls only `child`, which is async-signal-safe and does not return.
        let child = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            0 => run_child(file, layout),
            child => child,
        };
        let mut oracle = Self {
            child,
            pages,
            layout,
            xsave_bytes: 0,
            thread_bound: PhantomData,
        };
        oracle.wait()?;
        oracle.unregister_rseq()?;
        oracle.empty_address_space()?;
        oracle.xsave_bytes = oracle.xsave()?.len();
        Ok(oracle)
    }

    /// Where the pages are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Executes `case`.
    ///
    /// # Errors
    /// [`Error`]; a fault of the instruction is not one, see [`Effect::signal`].
    pub fn run(&mut self, case: &Case) -> Result<Effect, Error> {
        let branches = self.check(&case.code)?;
        let start = self.layout.code + u64::from(self.layout.offset);
        pwrite(&self.pages, &case.code, u64::from(self.layout.offset))?;
        pwrite(&self.pages, case.data.as_flattened(), PAGE as u64)?;
        self.set_vectors(&case.vectors)?;
        let mut registers = self.registers()?;
        set_gprs(&mut registers, &case.gprs);
        registers.rip = start;
        registers.eflags = registers.eflags & !(SETTABLE_FLAGS | RF) | case.rflags & SETTABLE_FLAGS;
        // Not in a system call, so that nothing is restarted.
        registers.orig_rax = u64::MAX;
        self.set_registers(&registers)?;

        // An INT3 follows. Single-stepping would show up in PUSHF, but a branch may go anywhere.
        self.resume(if branches {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        })?;
        let raised = self.wait()?;
        let effect = self.effect(
            raised,
            branches,
            start + case.code.len() as u64,
            &case.vectors,
        );
        pwrite(
            &self.pages,
            &[0xcc; 16][..case.code.len()],
            u64::from(self.layout.offset),
        )?;
        effect
    }

    /// Whether the instruction, which must be one that may be executed, branches.
    fn check(&self, code: &[u8]) -> Result<bool, Error> {
        let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
        // What iced-x86 does not know may still be given, to see that it is `#UD`.
        let whole = instruction.is_invalid() || instruction.len() == code.len();
        if code.is_empty() || code.len() > 15 || !whole {
            return Err(Error::NotOneInstruction);
        }
        if usize::from(self.layout.offset) + code.len() >= PAGE {
            return Err(Error::NotOneInstruction);
        }
        let enters_kernel = matches!(
            instruction.mnemonic(),
            Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Int | Mnemonic::Into
        );
        if enters_kernel {
            return Err(Error::SystemCall);
        }
        Ok(instruction.flow_control() != FlowControl::Next)
    }

    /// Reads the state after a stop.
    fn effect(
        &self,
        raised: c_int,
        stepped: bool,
        end: u64,
        before: &VectorState,
    ) -> Result<Effect, Error> {
        let mut registers = self.registers()?;
        let done = raised == libc::SIGTRAP
            && if stepped {
                self.signal_info()?.si_code == libc::TRAP_TRACE
            } else {
                registers.rip == end + 1
            };
        if done && !stepped {
            registers.rip = end;
        }
        let signal = if done {
            None
        } else {
            Some(self.signal(raised)?)
        };
        let mut data = Box::new([[0; PAGE]; 2]);
        pread(&self.pages, data.as_flattened_mut(), PAGE as u64)?;
        Ok(Effect {
            signal,
            rip: registers.rip,
            gprs: gprs(&registers),
            rflags: registers.eflags & !RF,
            vectors: self.vectors(before)?,
            data,
        })
    }

    fn signal(&self, raised: c_int) -> Result<Signal, Error> {
        Ok(match raised {
            libc::SIGSEGV => {
                let info = self.signal_info()?;
                // SEGV_MAPERR and SEGV_ACCERR are page faults; SI_KERNEL is not.
                if matches!(info.si_code, 1 | 2) {
                    // SAFETY: a SIGSEGV of these codes has an address.
                    Signal::PageFault(unsafe { info.si_addr() } as u64)
                } else {
                    Signal::Protection
                }
            }
            libc::SIGFPE => Signal::Arithmetic(self.signal_info()?.si_code),
            libc::SIGILL => Signal::IllegalInstruction,
            libc::SIGBUS => Signal::Bus,
            libc::SIGTRAP => Signal::Trap,
            other => Signal::Other(other),
        })
    }

    fn set_vectors(&self, vectors: &VectorState) -> Result<(), Error> {
        let mut image = vec![0; self.xsave_bytes];
        let (legacy, _) = image
            .split_first_chunk_mut::<FXSAVE_BYTES>()
            .ok_or_else(too_small)?;
        store_x87(&vectors.fpu, FxFormat::Long64, legacy);
        legacy[24..28].copy_from_slice(&(vectors.mxcsr & MXCSR_MASK).to_le_bytes());
        for (slot, ymm) in legacy[160..416].chunks_exact_mut(16).zip(&vectors.ymm) {
            slot.copy_from_slice(&ymm[..16]);
        }
        let avx = crate::Features::host().avx;
        image[XSTATE_BV] = in_use(vectors);
        if avx {
            let high = image
                .get_mut(YMM_HIGH..YMM_HIGH + 256)
                .ok_or_else(too_small)?;
            for (slot, ymm) in high.chunks_exact_mut(16).zip(&vectors.ymm) {
                slot.copy_from_slice(&ymm[16..]);
            }
        }
        let mut vector = iovec {
            iov_base: image.as_mut_ptr().cast(),
            iov_len: image.len(),
        };
        self.trace(
            libc::PTRACE_SETREGSET,
            NT_X86_XSTATE as usize,
            (&raw mut vector).cast(),
        )
    }

    /// The registers now. Components in their initial state are not in the image.
    fn vectors(&self, before: &VectorState) -> Result<VectorState, Error> {
        let image = self.xsave()?;
        let present = image.get(XSTATE_BV).copied().ok_or_else(too_small)?;
        let legacy = image.first_chunk::<FXSAVE_BYTES>().ok_or_else(too_small)?;
        let mut vectors = VectorState {
            fpu: crate::Fpu::init(),
            ..VectorState::reset()
        };
        if present & 1 != 0 {
            load_x87(&mut vectors.fpu, FxFormat::Long64, legacy);
            // As the CPU stored it, not as we would compute it.
            vectors.fpu.fsw = u16::from_le_bytes([legacy[2], legacy[3]]);
        }
        vectors.mxcsr = u32::from_le_bytes([legacy[24], legacy[25], legacy[26], legacy[27]]);
        for (n, ymm) in vectors.ymm.iter_mut().enumerate() {
            if present & 2 != 0 {
                ymm[..16].copy_from_slice(&legacy[160 + 16 * n..][..16]);
            }
            if !crate::Features::host().avx {
                ymm[16..].copy_from_slice(&before.ymm[n][16..]);
            } else if present & 4 != 0 {
                let high = image
                    .get(YMM_HIGH + 16 * n..)
                    .and_then(|high| high.get(..16));
                ymm[16..].copy_from_slice(high.ok_or_else(too_small)?);
            }
        }
        Ok(vectors)
    }

    /// The child's XSAVE image.
    fn xsave(&self) -> Result<Vec<u8>, Error> {
        let mut image = vec![
            0;
            if self.xsave_bytes == 0 {
                XSAVE_BYTES_MAX
            } else {
                self.xsave_bytes
            }
        ];
        let mut vector = iovec {
            iov_base: image.as_mut_ptr().cast(),
            iov_len: image.len(),
        };
        self.trace(
            libc::PTRACE_GETREGSET,
            NT_X86_XSTATE as usize,
            (&raw mut vector).cast(),
        )?;
        image.truncate(vector.iov_len);
        Ok(image)
    }

    fn registers(&self) -> Result<user_regs_struct, Error> {
        let mut registers = MaybeUninit::<user_regs_struct>::zeroed();
        self.trace(libc::PTRACE_GETREGS, 0, registers.as_mut_ptr().cast())?;
        // SAFETY: all-zero bytes are valid, and ptrace has filled them in.
        Ok(unsafe { registers.assume_init() })
    }

    fn set_registers(&self, registers: &user_regs_struct) -> Result<(), Error> {
        self.trace(
            libc::PTRACE_SETREGS,
            0,
            ptr::from_ref(registers).cast_mut().cast(),
        )
    }

    fn signal_info(&self) -> Result<siginfo_t, Error> {
        let mut info = MaybeUninit::<siginfo_t>::zeroed();
        self.trace(libc::PTRACE_GETSIGINFO, 0, info.as_mut_ptr().cast())?;
        // SAFETY: all-zero bytes are valid, and ptrace has filled them in.
        Ok(unsafe { info.assume_init() })
    }

    /// Lets the child go on, without the signal that stopped it.
    fn resume(&self, request: c_uint) -> Result<(), Error> {
        self.trace(request, 0, ptr::null_mut())
    }

    /// A ptrace request to the child. `data` must be what `request` demands.
    fn trace(&self, request: c_uint, address: usize, data: *mut c_void) -> Result<(), Error> {
        // SAFETY: all callers are above: `data` is null or points to the structure which the
        // kernel reads or fills in for this request, or to an iovec with the length of its
        // buffer.
        let result: c_long = unsafe { libc::ptrace(request, self.child, address, data) };
        if result == -1 {
            Err(io::Error::last_os_error().into())
        } else {
            Ok(())
        }
    }

    /// Waits until the child stops, and returns the signal that stopped it.
    fn wait(&self) -> Result<c_int, Error> {
        let mut status = 0;
        loop {
            // SAFETY: waits for our own child.
            let waited = unsafe { libc::waitpid(self.child, &mut status, libc::__WALL) };
            if waited == self.child {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
        if libc::WIFSTOPPED(status) {
            Ok(libc::WSTOPSIG(status))
        } else {
            Err(io::Error::other(format!("the child ended, status {status:#x}")).into())
        }
    }

    /// Unmaps all of the child's memory but our pages.
    fn empty_address_space(&self) -> Result<(), Error> {
        /// The end of user space with four-level paging.
        const END: u64 = 0x7fff_ffff_f000;
        let mut kept = [self.layout.code, self.layout.data[0], self.layout.data[1]];
        kept.sort_unstable();
        let mut start = 0;
        for page in kept.into_iter().chain([END]) {
            if page > start {
                self.unmap(start, page - start)?;
            }
            start = page + PAGE as u64;
        }
        Ok(())
    }

    fn unmap(&self, start: u64, bytes: u64) -> Result<(), Error> {
        self.inject(libc::SYS_munmap, [start, bytes, 0, 0])
    }

    /// Takes back libc's registration of restartable sequences: the kernel would kill the
    /// child for the unmapped memory that it names.
    fn unregister_rseq(&self) -> Result<(), Error> {
        const UNREGISTER: u64 = 1;
        let mut registered = RseqConfiguration::default();
        let size = mem::size_of::<RseqConfiguration>();
        let data = (&raw mut registered).cast();
        // Kernels before 5.13 can't tell; libc of their time registers none.
        let known = self
            .trace(PTRACE_GET_RSEQ_CONFIGURATION, size, data)
            .is_ok();
        let RseqConfiguration {
            pointer,
            size,
            signature,
            ..
        } = registered;
        if !known || pointer == 0 {
            return Ok(());
        }
        self.inject(
            libc::SYS_rseq,
            [pointer, size.into(), UNREGISTER, signature.into()],
        )
    }

    /// Makes the child execute a system call, which must succeed.
    fn inject(&self, number: c_long, arguments: [u64; 4]) -> Result<(), Error> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        pwrite(&self.pages, &SYSCALL, 0)?;
        let mut registers = self.registers()?;
        registers.rip = self.layout.code;
        registers.rax = number as u64;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
        registers.orig_rax = u64::MAX;
        self.set_registers(&registers)?;
        self.resume(libc::PTRACE_CONT)?;
        let signal = self.wait()?;
        pwrite(&self.pages, &[0xcc; 2], 0)?;
        let result = self.registers()?.rax as i64;
        if signal == libc::SIGTRAP && result == 0 {
            return Ok(());
        }
        let what = format!("system call {number} in the child: signal {signal}, result {result}");
        Err(io::Error::other(what).into())
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: kills and reaps our own child, which has not been waited for.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, ptr::null_mut(), libc::__WALL);
        }
    }
}

fn too_small() -> Error {
    io::Error::other("the kernel's XSAVE image is too small").into()
}

/// The state components of `vectors` that are not in their initial configuration, as XSTATE_BV.
///
/// Only these are loaded. A processor may take any other that is loaded for one in use (Intel SDM
/// vol. 1, 13.6; Intel's do, AMD's look at the value), which XSAVE shows.
fn in_use(vectors: &VectorState) -> u8 {
    let (x87, sse, avx) = (1, 2, 4);
    let any = |half: std::ops::Range<usize>| {
        let mut bytes = vectors.ymm.iter().flat_map(|ymm| &ymm[half.clone()]);
        bytes.any(|byte| *byte != 0)
    };
    let mut components = 0;
    if vectors.fpu != crate::Fpu::init() {
        components |= x87;
    }
    if vectors.mxcsr & MXCSR_MASK != MXCSR_RESET || any(0..16) {
        components |= sse;
    }
    if crate::Features::host().avx && any(16..32) {
        components |= avx;
    }
    components
}

/// The child: maps its pages and stops until it is traced to its end.
fn run_child(file: RawFd, layout: Layout) -> ! {
    let map = |address: u64, protection, offset: usize| {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces no mapping.
        let mapped = unsafe {
            libc::mmap(
                address as *mut c_void,
                PAGE,
                protection,
                flags,
                file,
                offset as libc::off_t,
            )
        };
        mapped as u64 == address
    };
    let data = libc::PROT_READ | libc::PROT_WRITE;
    let mapped = map(layout.code, libc::PROT_READ | libc::PROT_EXEC, 0)
        && map(layout.data[0], data, PAGE)
        && map(layout.data[1], data, 2 * PAGE);
    // SAFETY: async-signal-safe calls, which end in a stop or the end of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // A blocked or ignored SIGFPE or SIGSEGV would be as good, but leave nothing to chance.
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        if mapped && libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0 {
            libc::raise(libc::SIGSTOP);
        }
        libc::_exit(1)
    }
}

fn gprs(r: &user_regs_struct) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

fn set_gprs(registers: &mut user_regs_struct, gprs: &[u64; 16]) {
    let r = registers;
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ] = *gprs;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_completes() {
        let mut oracle = Oracle::new().expect("ptrace");
        let mut case = Case::new(&[0x48, 0x01, 0xd8]); // add rax, rbx
        case.gprs[0] = u64::MAX;
        case.gprs[3] = 1;
        let effect = oracle.run(&case).expect("runs");
        assert_eq!(effect.signal, None);
        assert_eq!(effect.rip, 0x2000_0803);
        assert_eq!(effect.gprs[0], 0);
        assert_eq!(effect.rflags & 0x8d5, 0x55);
    }

    #[test]
    fn memory_outside_the_data_pages_does_not_exist() {
        let mut oracle = Oracle::new().expect("ptrace");
        let mut case = Case::new(&[0x48, 0x8b, 0x03]); // mov rax, [rbx]
        let here = &raw const case as u64;
        for address in [0, here, 0x2010_0000 - 8, 0x2010_2000] {
            case.gprs[3] = address;
            let effect = oracle.run(&case).expect("runs");
            assert_eq!(effect.signal, Some(Signal::PageFault(address)));
            assert_eq!(effect.rip, 0x2000_0800);
        }
        case.gprs[3] = 1 << 63;
        assert_eq!(
            oracle.run(&case).expect("runs").signal,
            Some(Signal::Protection)
        );
        case.gprs[3] = 0x2010_0ffc;
        case.data[0][4092..].fill(0x11);
        case.data[1][..4].fill(0x22);
        let effect = oracle.run(&case).expect("runs");
        assert_eq!(
            (effect.signal, effect.gprs[0]),
            (None, 0x2222_2222_1111_1111)
        );
    }

    #[test]
    fn faults_are_told_apart() {
        let mut oracle = Oracle::new().expect("ptrace");
        let mut signal = |code: &[u8]| oracle.run(&Case::new(code)).expect("runs").signal;
        assert_eq!(signal(&[0x0f, 0x0b]), Some(Signal::IllegalInstruction)); // ud2
        assert_eq!(signal(&[0xf7, 0xf1]), Some(Signal::Arithmetic(1))); // div ecx
        assert_eq!(signal(&[0xf4]), Some(Signal::Protection)); // hlt
        assert_eq!(signal(&[0x90]), None);
    }

    #[test]
    fn branches_are_followed_one_step() {
        let mut oracle = Oracle::new().expect("ptrace");
        // jmp to itself
        let effect = oracle.run(&Case::new(&[0xeb, 0xfe])).expect("runs");
        assert_eq!((effect.signal, effect.rip), (None, 0x2000_0800));
        // jmp rax into the data page
        let mut case = Case::new(&[0xff, 0xe0]);
        case.gprs[0] = 0x1234_5678;
        let effect = oracle.run(&case).expect("runs");
        assert_eq!(effect.rip, 0x1234_5678);
    }

    #[test]
    fn vector_state_goes_in_and_comes_out() {
        let mut oracle = Oracle::new().expect("ptrace");
        let mut case = Case::new(&[0x0f, 0x58, 0xca]); // addps xmm1, xmm2
        for (n, ymm) in case.vectors.ymm.iter_mut().enumerate() {
            ymm.fill(n as u8);
        }
        case.vectors.ymm[1][..4].copy_from_slice(&1f32.to_le_bytes());
        case.vectors.ymm[2][..4].copy_from_slice(&2f32.to_le_bytes());
        case.vectors.fpu.st[0] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        case.vectors.fpu.ftw = 1;
        let effect = oracle.run(&case).expect("runs");
        assert_eq!(effect.signal, None);
        assert_eq!(effect.vectors.ymm[1][..4], 3f32.to_le_bytes());
        assert_eq!(effect.vectors.ymm[1][16..], case.vectors.ymm[1][16..]);
        assert_eq!(effect.vectors.ymm[15], case.vectors.ymm[15]);
        assert_eq!(effect.vectors.fpu, case.vectors.fpu);
    }

    #[test]
    fn system_calls_are_refused() {
        let mut oracle = Oracle::new().expect("ptrace");
        for code in [&[0x0f, 0x05][..], &[0xcd, 0x80], &[0x0f, 0x34]] {
            assert!(matches!(
                oracle.run(&Case::new(code)),
                Err(Error::SystemCall)
            ));
        }
        assert!(matches!(
            oracle.run(&Case::new(&[0x90, 0x90])),
            Err(Error::NotOneInstruction)
        ));
    }
}
