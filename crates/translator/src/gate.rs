//! The gates between Rust and translated code.
//!
//! Translated code has all sixteen general-purpose registers, RSP included, the arithmetic flags
//! and the vector registers of the guest in the host's. The context is behind GS. A gate saves
//! them there and switches to the stack of the Rust code that entered, or the other way round.
#![expect(unsafe_code, reason = "switches between register worlds")]
// UNSAFETY: naked functions. They touch the context, which GS points to while a vCPU runs, and
// the stack of their Rust caller.

use crate::context::field;
use std::arch::naked_asm;

/// What translated code wants of Rust code, which it asks through [`assist`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reason {
    /// An exit of a block that is not linked, or whose poll saw attention. The argument is block
    /// and exit.
    Link = 1,
    /// A jump to [`Context::pc`](crate::context::Context::pc), which the jump cache doesn't have.
    /// The argument is block and site.
    Indirect = 2,
    /// The interpreter has to execute the instruction of a site. The argument is block and site.
    Callout = 3,
    /// The access of a site missed the TLB. As [`Reason::Callout`].
    Memory = 4,
    /// An instruction raised a signal.
    Fault = 5,
    /// Translated code was left, and the guest's state is the interpreter's.
    Left = 6,
}

impl Reason {
    /// From [`Context::reason`](crate::context::Context::reason).
    pub(crate) fn new(number: u32) -> Self {
        match number {
            1 => Self::Link,
            2 => Self::Indirect,
            3 => Self::Callout,
            4 => Self::Memory,
            5 => Self::Fault,
            6 => Self::Left,
            _ => unreachable!("the gates store no other reason"),
        }
    }
}

/// XSAVE components: x87, SSE, AVX (SDM vol. 1, 13.1).
const COMPONENTS: u32 = 7;

macro_rules! save_registers {
    () => {
        "mov gs:[{host} + 0], rax
         mov gs:[{host} + 8], rcx
         mov gs:[{host} + 16], rdx
         mov gs:[{host} + 24], rbx
         mov gs:[{host} + 32], rsp
         mov gs:[{host} + 40], rbp
         mov gs:[{host} + 48], rsi
         mov gs:[{host} + 56], rdi
         mov gs:[{host} + 64], r8
         mov gs:[{host} + 72], r9
         mov gs:[{host} + 80], r10
         mov gs:[{host} + 88], r11
         mov gs:[{host} + 96], r12
         mov gs:[{host} + 104], r13
         mov gs:[{host} + 112], r14
         mov gs:[{host} + 120], r15
         mov rsp, gs:[{host_rsp}]
         pushfq
         pop qword ptr gs:[{flags}]"
    };
}
pub(crate) use save_registers;

/// All but RSP.
macro_rules! load_registers {
    () => {
        "mov rax, gs:[{host} + 0]
         mov rcx, gs:[{host} + 8]
         mov rdx, gs:[{host} + 16]
         mov rbx, gs:[{host} + 24]
         mov rbp, gs:[{host} + 40]
         mov rsi, gs:[{host} + 48]
         mov rdi, gs:[{host} + 56]
         mov r8, gs:[{host} + 64]
         mov r9, gs:[{host} + 72]
         mov r10, gs:[{host} + 80]
         mov r11, gs:[{host} + 88]
         mov r12, gs:[{host} + 96]
         mov r13, gs:[{host} + 104]
         mov r14, gs:[{host} + 112]
         mov r15, gs:[{host} + 120]"
    };
}
pub(crate) use load_registers;

macro_rules! load_flags {
    () => {
        "push qword ptr gs:[{flags}]
         popfq"
    };
}

macro_rules! load_stack_and_go {
    () => {
        "mov rsp, gs:[{host} + 32]
         jmp qword ptr gs:[{jump}]"
    };
}

/// Moves the guest's vector registers, if the host has them, to the context. An x87 exception that
/// is pending (ES of the status word) would be raised in Rust code that uses MMX or x87.
macro_rules! save_vectors {
    () => {
        "cmp dword ptr gs:[{vectors_loaded}], 0
         je 2f
         mov eax, {components}
         xor edx, edx
         xsave64 gs:[{xsave}]
         mov dword ptr gs:[{vectors_loaded}], 0
         ldmxcsr gs:[{host_mxcsr}]
         vzeroupper
         test byte ptr gs:[{xsave} + 2], 0x80
         je 2f
         fnclex
         2:"
    };
}

macro_rules! return_to_rust {
    () => {
        "add rsp, 8
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbp
         pop rbx
         ret"
    };
}

/// Enters translated code at host address `target` with the registers in the context, and returns
/// when it is left through a gate; the context's `reason` says which.
///
/// # Safety
/// GS must point to the context of a vCPU, `target` into its code cache, at the beginning of a
/// block or where a gate was taken, and the context's registers must be what is expected there.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn enter(target: u64) {
    naked_asm!(
        "push rbx
         push rbp
         push r12
         push r13
         push r14
         push r15
         sub rsp, 8
         mov gs:[{host_rsp}], rsp
         mov gs:[{jump}], rdi
         cmp dword ptr gs:[{vectors_wanted}], 0
         je 2f
         mov eax, {components}
         xor edx, edx
         xrstor64 gs:[{xsave}]
         mov dword ptr gs:[{vectors_loaded}], 1
         mov dword ptr gs:[{vectors_wanted}], 0
         2:",
        load_flags!(),
        load_registers!(),
        load_stack_and_go!(),
        host = const field!(host),
        host_rsp = const field!(host_rsp),
        flags = const field!(flags),
        jump = const field!(jump),
        vectors_wanted = const field!(vectors_wanted),
        vectors_loaded = const field!(vectors_loaded),
        xsave = const field!(xsave),
        components = const COMPONENTS,
    )
}

/// Where the signal handler lets an instruction that faulted go on, on the stack of [`enter`]'s
/// caller: the registers are in the fault record.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn fault() {
    naked_asm!(
        save_vectors!(),
        "mov dword ptr gs:[{reason}], {fault}",
        return_to_rust!(),
        reason = const field!(reason),
        fault = const Reason::Fault as u32,
        vectors_loaded = const field!(vectors_loaded),
        xsave = const field!(xsave),
        host_mxcsr = const field!(host_mxcsr),
        components = const COMPONENTS,
    )
}

/// Where translated code jumps when it wants something: asks [`crate::assist::assist`], and goes on
/// where it says, or leaves. The guest's vector registers are kept meanwhile, and Rust code has
/// an MXCSR of its own.
///
/// Upper halves of YMM registers that are in their initial state stay so: Intel's CPUs execute SSE
/// code several times slower while they are not, whatever they hold (Optimization Reference
/// Manual, "Mixing AVX Code with SSE Code").
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn assist() {
    naked_asm!(
        save_registers!(),
        "cld
         cmp dword ptr gs:[{vectors_loaded}], 0
         je 3f
         cmp dword ptr gs:[{tells_use}], 0
         je 6f
         mov ecx, 1
         xgetbv
         test eax, 4
         jnz 6f
         movups gs:[{ymm} + 0], xmm0
         movups gs:[{ymm} + 32], xmm1
         movups gs:[{ymm} + 64], xmm2
         movups gs:[{ymm} + 96], xmm3
         movups gs:[{ymm} + 128], xmm4
         movups gs:[{ymm} + 160], xmm5
         movups gs:[{ymm} + 192], xmm6
         movups gs:[{ymm} + 224], xmm7
         movups gs:[{ymm} + 256], xmm8
         movups gs:[{ymm} + 288], xmm9
         movups gs:[{ymm} + 320], xmm10
         movups gs:[{ymm} + 352], xmm11
         movups gs:[{ymm} + 384], xmm12
         movups gs:[{ymm} + 416], xmm13
         movups gs:[{ymm} + 448], xmm14
         movups gs:[{ymm} + 480], xmm15
         mov dword ptr gs:[{upper_halves}], 0
         jmp 7f
         6:
         vmovups gs:[{ymm} + 0], ymm0
         vmovups gs:[{ymm} + 32], ymm1
         vmovups gs:[{ymm} + 64], ymm2
         vmovups gs:[{ymm} + 96], ymm3
         vmovups gs:[{ymm} + 128], ymm4
         vmovups gs:[{ymm} + 160], ymm5
         vmovups gs:[{ymm} + 192], ymm6
         vmovups gs:[{ymm} + 224], ymm7
         vmovups gs:[{ymm} + 256], ymm8
         vmovups gs:[{ymm} + 288], ymm9
         vmovups gs:[{ymm} + 320], ymm10
         vmovups gs:[{ymm} + 352], ymm11
         vmovups gs:[{ymm} + 384], ymm12
         vmovups gs:[{ymm} + 416], ymm13
         vmovups gs:[{ymm} + 448], ymm14
         vmovups gs:[{ymm} + 480], ymm15
         mov dword ptr gs:[{upper_halves}], 1
         7:
         stmxcsr gs:[{mxcsr}]
         ldmxcsr gs:[{host_mxcsr}]
         3:
         mov rdi, gs:[{vcpu}]
         call {assist}
         cmp dword ptr gs:[{vectors_loaded}], 0
         je 4f
         cmp dword ptr gs:[{upper_halves}], 0
         jne 8f
         vzeroupper
         movups xmm0, gs:[{ymm} + 0]
         movups xmm1, gs:[{ymm} + 32]
         movups xmm2, gs:[{ymm} + 64]
         movups xmm3, gs:[{ymm} + 96]
         movups xmm4, gs:[{ymm} + 128]
         movups xmm5, gs:[{ymm} + 160]
         movups xmm6, gs:[{ymm} + 192]
         movups xmm7, gs:[{ymm} + 224]
         movups xmm8, gs:[{ymm} + 256]
         movups xmm9, gs:[{ymm} + 288]
         movups xmm10, gs:[{ymm} + 320]
         movups xmm11, gs:[{ymm} + 352]
         movups xmm12, gs:[{ymm} + 384]
         movups xmm13, gs:[{ymm} + 416]
         movups xmm14, gs:[{ymm} + 448]
         movups xmm15, gs:[{ymm} + 480]
         jmp 9f
         8:
         vmovups ymm0, gs:[{ymm} + 0]
         vmovups ymm1, gs:[{ymm} + 32]
         vmovups ymm2, gs:[{ymm} + 64]
         vmovups ymm3, gs:[{ymm} + 96]
         vmovups ymm4, gs:[{ymm} + 128]
         vmovups ymm5, gs:[{ymm} + 160]
         vmovups ymm6, gs:[{ymm} + 192]
         vmovups ymm7, gs:[{ymm} + 224]
         vmovups ymm8, gs:[{ymm} + 256]
         vmovups ymm9, gs:[{ymm} + 288]
         vmovups ymm10, gs:[{ymm} + 320]
         vmovups ymm11, gs:[{ymm} + 352]
         vmovups ymm12, gs:[{ymm} + 384]
         vmovups ymm13, gs:[{ymm} + 416]
         vmovups ymm14, gs:[{ymm} + 448]
         vmovups ymm15, gs:[{ymm} + 480]
         9:
         ldmxcsr gs:[{mxcsr}]
         4:
         test rax, rax
         jz 5f
         mov gs:[{jump}], rax",
        load_flags!(),
        load_registers!(),
        load_stack_and_go!(),
        "5:",
        save_vectors!(),
        return_to_rust!(),
        host = const field!(host),
        host_rsp = const field!(host_rsp),
        flags = const field!(flags),
        jump = const field!(jump),
        vcpu = const field!(vcpu),
        assist = sym crate::assist::assist,
        mxcsr = const field!(mxcsr),
        tells_use = const field!(tells_use),
        upper_halves = const field!(upper_halves),
        ymm = const field!(ymm),
        vectors_loaded = const field!(vectors_loaded),
        xsave = const field!(xsave),
        host_mxcsr = const field!(host_mxcsr),
        components = const COMPONENTS,
    )
}

/// Loads the guest's vector registers and goes on at the context's `jump`. Changes no register
/// and no flag.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn load_vectors() {
    naked_asm!(
        "mov gs:[{host} + 0], rax
         mov gs:[{host} + 16], rdx
         mov eax, {components}
         mov edx, 0
         xrstor64 gs:[{xsave}]
         mov dword ptr gs:[{vectors_loaded}], 1
         mov rax, gs:[{host} + 0]
         mov rdx, gs:[{host} + 16]
         jmp qword ptr gs:[{jump}]",
        host = const field!(host),
        jump = const field!(jump),
        vectors_loaded = const field!(vectors_loaded),
        xsave = const field!(xsave),
        components = const COMPONENTS,
    )
}

/// Points the thread's GS base at `context`.
pub(crate) fn set_gs(context: usize) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: changes the GS base of this thread, which x86-64 Linux user space leaves to
    // programs.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, context) };
    assert_eq!(result, 0, "a canonical GS base is accepted");
}
