//! SYSCALL and SYSRET between 64-bit code, without Rust code.
//!
//! They are reached as blocks are entered ([`LANDING`]), and enter one: RCX, R14 and R15 are
//! spilled, and free for use.
//!
//! Only what translated code works with is changed at once: registers, flags, the selectors that
//! code can read, and the mode, by going on at a block for the other one. CPL, CS and SS are in
//! the interpreter; they follow when Rust code next looks, for which [`Crossing::crossed`] tells
//! what they missed.
//!
//! Left to the interpreter is what does not meet the conditions in [`Crossing`].
#![expect(unsafe_code, reason = "switches between modes in translated code")]
// UNSAFETY: naked functions. They touch the context, which GS points to while a vCPU runs, and
// go on where a jump cache says or at a gate.

use crate::asm::RCX;
use crate::block::NO_SITE;
use crate::context::{JumpEntry, field, jump_fields, spill_slot};
use crate::gate::{self, Reason};
use crate::mode::{LANDING, Mode};
use crate::vcpu::TranslatorVcpu;
use std::arch::naked_asm;
use x86::Rflags;
use x86::paging::is_canonical;

/// What SYSCALL and SYSRET need: a part of the
/// [`Context`](crate::context::Context). All-zero is a valid value.
#[repr(C)]
pub(crate) struct Crossing {
    /// What the interpreter's CPL, CS, SS and flags have missed: nothing, [`TO_KERNEL`] or
    /// [`TO_USER`].
    pub(crate) crossed: u32,
    /// System calls that were made, modulo 2^32.
    pub(crate) made: u32,
    /// If not 0, the interpreter executes SYSCALL: it raises something, goes to an address that is
    /// not canonical, or leaves IF or AC set.
    syscall_refused: u32,
    /// If not 0, the interpreter executes SYSRET.
    sysret_refused: u32,
    /// RAX during a crossing.
    rax: u64,
    /// Where SYSCALL goes.
    entry: u64,
    /// Selects the bits of RFLAGS that it leaves alone.
    kept: u64,
    /// The selectors of CS and SS after SYSCALL and SYSRET, as the context has them.
    kernel_selectors: [u32; 2],
    user_selectors: [u32; 2],
    /// Displacement from GS of the jump cache for what SYSCALL goes to.
    kernel_jumps: u64,
    /// Host addresses of the places where the second jump caches are asked for the context's
    /// `pc`.
    kernel_miss: u64,
    user_miss: u64,
    /// Selects the bits that make a return address none of the lower half.
    pub(crate) upper_half: u64,
    /// Selects the flags in R11 that change how code runs, or are seldom set.
    rare_flags: u64,
}

/// SYSCALL was executed last.
const TO_KERNEL: u32 = 1;
/// SYSRET was.
const TO_USER: u32 = 2;

/// CS and SS in the context.
const CS_SS: i32 = field!(selectors) + 4;

/// The jump cache for 64-bit code at CPL 3.
const USER_JUMPS: (i32, i32) = jump_fields(Mode::USER.slot());

/// Jump cache entries are of 2 to the power of this bytes.
const ENTRY_SHIFT: u32 = size_of::<JumpEntry>().trailing_zeros();
const _: () = assert!(size_of::<JumpEntry>().is_power_of_two());

/// Flags that SYSRET loads from R11 and that translated code does without: all but the arithmetic
/// ones and IF (SDM vol. 2, SYSRET). RF and VM become 0, bit 1 is always set.
const RARE_FLAGS: u64 = 0x003c_7fd7 & !(STATUS | INTERRUPT | Rflags::FIXED.bits());
const STATUS: u64 = Rflags::STATUS.bits();
const INTERRUPT: u64 = Rflags::IF.bits();

impl Crossing {
    /// Sets what stays. Where SYSRET goes, `user_miss` asks the second jump cache.
    pub(crate) fn set_up(&mut self, user_miss: u64) {
        self.user_miss = user_miss;
        self.upper_half = !0 << 47;
        self.rare_flags = RARE_FLAGS;
    }
}

impl TranslatorVcpu {
    /// Lets the interpreter catch up with the crossings that translated code has made.
    #[inline]
    pub(crate) fn take_crossing(&mut self) {
        let context = &mut *self.context;
        let crossed = std::mem::take(&mut context.crossing.crossed);
        if crossed != 0 {
            let window = u64::from(context.interrupt_flag | context.access_flag);
            let flags = context.other_flags | window;
            self.core.cross(crossed == TO_USER, flags);
        }
    }

    /// Gives translated code what it needs for crossings from here on.
    pub(crate) fn give_crossing(&mut self) {
        let now = self.core.crossings();
        let smap = self.core.mode().smap;
        let kernel = Mode::kernel64(smap).slot();
        let crossing = &mut self.context.crossing;
        let clears = INTERRUPT | Rflags::AC.bits();
        let is_plain = now.enabled && now.cleared & clears == clears && is_canonical(now.entry, 48);
        crossing.syscall_refused = (!is_plain).into();
        crossing.sysret_refused = (!now.enabled).into();
        crossing.entry = now.entry;
        crossing.kept = !now.cleared;
        crossing.kernel_selectors = now.kernel.map(u32::from);
        crossing.user_selectors = now.user.map(u32::from);
        crossing.kernel_jumps = jump_fields(kernel).0 as u64;
        let miss = self.store.gates.indirect[kernel];
        crossing.kernel_miss = self.store.memory.address(miss) as u64;
    }
}

/// Goes on at the block in R14, at label 3, or at label 4 where its jump cache does not have it.
/// RAX has the arithmetic flags; it was saved.
macro_rules! go_on {
    () => {
        "3:
         mov ecx, eax
         shr ecx, 11
         and ecx, 1
         add cl, 0x7f
         mov ah, al
         sahf
         mov rax, gs:[{rax}]
         jmp r14
         4:
         mov dword ptr gs:[{argument}], {no_site}
         mov r14, gs:[{miss}]
         jmp 3b"
    };
}

/// Leaves the instruction to the interpreter, which wants all registers.
macro_rules! refuse {
    () => {
        "mov rcx, gs:[{spilled_rcx}]
         mov r14, gs:[{spilled_r14}]
         mov r15, gs:[{spilled_r15}]
         mov dword ptr gs:[{reason}], {callout}
         jmp {assist}"
    };
}

const _: () = assert!(
    LANDING == 1 << RCX | 1 << 14 | 1 << 15,
    "what `refuse` loads"
);

/// SYSCALL in 64-bit code at CPL 3. The context has the return address in `target`, and in
/// `argument` the site of the instruction.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn syscall() {
    naked_asm!(
        "mov ecx, gs:[{refused}]
         jrcxz 2f",
        refuse!(),
        "2:
         mov gs:[{rax}], rax
         lahf
         seto al
         movzx ecx, al
         shl ecx, 11
         movzx eax, ah
         or eax, ecx
         mov rcx, gs:[{other_flags}]
         mov r11, rcx
         and rcx, gs:[{kept}]
         mov gs:[{other_flags}], rcx
         or r11, rax
         mov ecx, gs:[{interrupt_flag}]
         or r11, rcx
         mov ecx, gs:[{access_flag}]
         or r11, rcx
         and rax, gs:[{kept}]
         mov dword ptr gs:[{interrupt_flag}], 0
         mov dword ptr gs:[{access_flag}], 0
         mov rcx, gs:[{selectors}]
         mov gs:[{cs_ss}], rcx
         mov dword ptr gs:[{crossed}], {to_kernel}
         inc dword ptr gs:[{made}]
         mov rcx, gs:[{target}]
         mov gs:[{spilled_rcx}], rcx
         mov r15, gs:[{entry}]
         mov gs:[{pc}], r15
         pext r14, r15, gs:[{jump_mask}]
         shl r14, {entry_shift}
         add r14, gs:[{jumps}]
         add r15, gs:[r14 + {tag}]
         jne 4f
         mov r14, gs:[r14 + {host}]",
        go_on!(),
        refused = const field!(crossing.syscall_refused),
        spilled_rcx = const spill_slot(RCX),
        spilled_r14 = const spill_slot(14),
        spilled_r15 = const spill_slot(15),
        reason = const field!(reason),
        callout = const Reason::Callout as u32,
        assist = sym gate::assist,
        rax = const field!(crossing.rax),
        other_flags = const field!(other_flags),
        kept = const field!(crossing.kept),
        interrupt_flag = const field!(interrupt_flag),
        access_flag = const field!(access_flag),
        selectors = const field!(crossing.kernel_selectors),
        cs_ss = const CS_SS,
        crossed = const field!(crossing.crossed),
        to_kernel = const TO_KERNEL,
        made = const field!(crossing.made),
        target = const field!(target),
        entry = const field!(crossing.entry),
        pc = const field!(pc),
        jump_mask = const field!(jump_mask),
        entry_shift = const ENTRY_SHIFT,
        jumps = const field!(crossing.kernel_jumps),
        tag = const std::mem::offset_of!(JumpEntry, tag),
        host = const std::mem::offset_of!(JumpEntry, host),
        argument = const field!(argument),
        no_site = const NO_SITE as i32,
        miss = const field!(crossing.kernel_miss),
    )
}

/// SYSRET to 64-bit code. The context has in `argument` the site of the instruction.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn sysret() {
    naked_asm!(
        "mov r15, gs:[{spilled_rcx}]
         pext r14, r15, gs:[{upper_half}]
         pext rcx, r11, gs:[{rare_flags}]
         lea r14, [r14 + rcx]
         mov ecx, gs:[{refused}]
         lea r14, [r14 + rcx]
         mov ecx, gs:[{interrupt_waits}]
         lea rcx, [r14 + rcx]
         jrcxz 2f",
        refuse!(),
        "2:
         mov gs:[{rax}], rax
         mov eax, r11d
         and eax, {interrupt}
         mov gs:[{interrupt_flag}], eax
         mov eax, r11d
         mov dword ptr gs:[{access_flag}], 0
         mov qword ptr gs:[{other_flags}], {fixed}
         mov rcx, gs:[{selectors}]
         mov gs:[{cs_ss}], rcx
         mov dword ptr gs:[{crossed}], {to_user}
         mov gs:[{pc}], r15
         pext r14, r15, gs:[{jump_mask}]
         shl r14, {entry_shift}
         add r15, gs:[r14 + {tags}]
         jne 4f
         mov r14, gs:[r14 + {hosts}]",
        go_on!(),
        spilled_rcx = const spill_slot(RCX),
        spilled_r14 = const spill_slot(14),
        spilled_r15 = const spill_slot(15),
        upper_half = const field!(crossing.upper_half),
        rare_flags = const field!(crossing.rare_flags),
        refused = const field!(crossing.sysret_refused),
        interrupt_waits = const field!(interrupt_waits),
        reason = const field!(reason),
        callout = const Reason::Callout as u32,
        assist = sym gate::assist,
        rax = const field!(crossing.rax),
        interrupt = const INTERRUPT,
        interrupt_flag = const field!(interrupt_flag),
        access_flag = const field!(access_flag),
        other_flags = const field!(other_flags),
        fixed = const Rflags::FIXED.bits(),
        selectors = const field!(crossing.user_selectors),
        cs_ss = const CS_SS,
        crossed = const field!(crossing.crossed),
        to_user = const TO_USER,
        pc = const field!(pc),
        jump_mask = const field!(jump_mask),
        entry_shift = const ENTRY_SHIFT,
        tags = const USER_JUMPS.0,
        hosts = const USER_JUMPS.1,
        argument = const field!(argument),
        no_site = const NO_SITE as i32,
        miss = const field!(crossing.user_miss),
    )
}
