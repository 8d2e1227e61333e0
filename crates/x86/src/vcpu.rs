//! The whole architectural state of one vCPU, in the form that all engines share.

use crate::{Cr0, Cr4, DescriptorTable, Efer, Exception, Mxcsr, Rflags, Segment, Selector, Xcr0};
use serde::{Deserialize, Serialize};
use state::Saved;

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activity {
    /// Executes instructions.
    #[default]
    Running,
    /// Waits for an interrupt after HLT.
    Halted,
    /// Waits for a start-up IPI.
    WaitForSipi,
    /// Shut down after a triple fault.
    Shutdown,
}

/// x87, MMX, SSE and AVX registers (SDM vol. 1, 8.1, 10.2, 14.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// x87 control word.
    pub control: u16,
    /// x87 status word, with TOP.
    pub status: u16,
    /// Full x87 tag word, two bits for each physical register.
    pub tags: u16,
    /// Opcode of the last x87 instruction, 11 bits.
    pub opcode: u16,
    /// Address of the last x87 instruction, and its selector.
    pub instruction: (u64, u16),
    /// Address of the last x87 operand, and its selector.
    pub operand: (u64, u16),
    /// ST(0) to ST(7), 80 bits each.
    pub st: [[u8; 10]; 8],
    /// MXCSR.
    pub mxcsr: Mxcsr,
    /// YMM0 to YMM15; XMM are the lower halves.
    pub ymm: [[u64; 4]; 16],
}

impl Default for FpuState {
    /// As after reset (SDM vol. 3, table 10-1).
    fn default() -> Self {
        Self {
            control: 0x40,
            status: 0,
            tags: 0x5555,
            opcode: 0,
            instruction: (0, 0),
            operand: (0, 0),
            st: [[0; 10]; 8],
            mxcsr: Mxcsr::MASKS,
            ymm: [[0; 4]; 16],
        }
    }
}

/// MSRs of SYSCALL, SYSENTER and SWAPGS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyscallMsrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
}

/// Memory type range registers: kept for the guest, without effect.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MtrrState {
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    /// Fixed ranges: 64K, two 16K, eight 4K.
    pub fixed: [u64; 11],
    /// Variable ranges: base and mask.
    pub variable: [(u64, u64); 8],
}

/// The paravirtual MSRs of KVM's interface (Documentation/virt/kvm/x86/msr.rst).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParavirtState {
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub wall_clock: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub system_time: u64,
    /// MSR_KVM_ASYNC_PF_EN.
    pub async_pf: u64,
    /// MSR_KVM_STEAL_TIME.
    pub steal_time: u64,
    /// MSR_KVM_PV_EOI_EN.
    pub pv_eoi: u64,
}

/// What is on its way to the vCPU, or holds events off.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Events {
    /// An exception that was raised but not delivered.
    pub exception: Option<Exception>,
    /// The vector of an interrupt that the PIC has given and that was not delivered. (One of the
    /// local APIC is still in its registers.)
    pub interrupt: Option<u8>,
    /// An NMI that was not delivered.
    pub nmi_pending: bool,
    /// NMIs are held off until IRET.
    pub nmi_blocked: bool,
    /// STI was executed just before: interrupts are held off for one instruction.
    pub sti_shadow: bool,
    /// SS was loaded just before: interrupts and debug traps are held off for one instruction.
    pub ss_shadow: bool,
    /// The level of the PIC's INTR line.
    pub external_interrupt: bool,
    /// A start-up IPI's vector, not yet taken.
    pub sipi: Option<u8>,
    /// An INIT, not yet taken.
    pub init: bool,
}

/// The local APIC (SDM vol. 3, chapter 11), as registers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ApicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// APIC ID, 32 bits.
    pub id: u32,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination (xAPIC form).
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// In-service bits.
    pub isr: [u32; 8],
    /// Trigger-mode bits.
    pub tmr: [u32; 8],
    /// Interrupt-request bits.
    pub irr: [u32; 8],
    /// Error status.
    pub esr: u32,
    /// Errors since ESR was last written.
    pub esr_pending: u32,
    /// Interrupt command.
    pub icr: u64,
    /// LVT: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Divide configuration.
    pub divide: u32,
    /// Initial count.
    pub initial_count: u32,
    /// Machine time at which the count was (or will next be) reloaded or the deadline is.
    pub timer_deadline: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

/// The whole architectural state of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// RAX to R15, by encoding.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: Rflags,
    /// ES, CS, SS, DS, FS, GS, by encoding.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// PAE page-directory-pointer entries, as loaded with CR3.
    pub pdpte: [u64; 4],
    /// XCR0.
    pub xcr0: Xcr0,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_EFER.
    pub efer: Efer,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// x87, MMX, SSE, AVX.
    pub fpu: FpuState,
    /// SYSCALL, SYSENTER, SWAPGS.
    pub syscall: SyscallMsrs,
    /// IA32_PAT.
    pub pat: u64,
    /// MTRRs.
    pub mtrr: MtrrState,
    /// IA32_TSC at machine time 0: the counter is this plus machine time in ticks.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// KVM's paravirtual MSRs.
    pub paravirt: ParavirtState,
    /// Pending and held-off events.
    pub events: Events,
    /// The local APIC.
    pub apic: ApicState,
    /// Running, halted, waiting, shut down.
    pub activity: Activity,
}

impl Saved for VcpuState {
    const KIND: &'static str = "x86-vcpu";
    const VERSION: u16 = 2;
}

impl VcpuState {
    /// The state after power-on (SDM vol. 3, table 10-1) of the vCPU with APIC ID `id`; the
    /// boot processor runs, others wait for a start-up IPI.
    pub fn after_reset(id: u32) -> Self {
        let data = Segment::real_mode(0, 0x93);
        let mut segments = [data; 6];
        segments[1] = Segment {
            base: 0xffff_0000,
            ..Segment::real_mode(0xf000, 0x9b)
        };
        let mut gpr = [0; 16];
        // Family 15, model 6, as in CPUID leaf 1.
        gpr[2] = 0x0f61;
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        let boot = id == 0;
        Self {
            gpr,
            rip: 0xfff0,
            rflags: Rflags::FIXED,
            segments,
            ldtr: Segment {
                limit: 0xffff,
                access: 0x82,
                ..Segment::default()
            },
            tr: Segment {
                limit: 0xffff,
                access: 0x8b,
                ..Segment::default()
            },
            gdtr: table,
            idtr: table,
            cr0: Cr0::CD | Cr0::NW | Cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            pdpte: [0; 4],
            xcr0: Xcr0::X87,
            xss: 0,
            efer: Efer::empty(),
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            fpu: FpuState::default(),
            syscall: SyscallMsrs::default(),
            pat: 0x0007_0406_0007_0406,
            mtrr: MtrrState::default(),
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            misc_enable: 1,
            spec_ctrl: 0,
            paravirt: ParavirtState::default(),
            events: Events::default(),
            apic: ApicState::after_reset(id),
            activity: if boot {
                Activity::Running
            } else {
                Activity::WaitForSipi
            },
        }
    }

    /// What INIT makes of the state (SDM vol. 3, 10.1.1 and table 10-1): like reset, but x87,
    /// vector registers, most MSRs, the TSC and the caches' bits in CR0 are kept.
    pub fn init(&mut self) {
        let id = self.apic.id;
        let fresh = Self::after_reset(id);
        let kept_cr0 = self.cr0 & (Cr0::CD | Cr0::NW);
        let apic = ApicState {
            base: self.apic.base,
            ..fresh.apic.clone()
        };
        *self = Self {
            cr0: kept_cr0 | Cr0::ET,
            xcr0: self.xcr0,
            xss: self.xss,
            fpu: self.fpu.clone(),
            syscall: self.syscall.clone(),
            pat: self.pat,
            mtrr: self.mtrr.clone(),
            tsc_offset: self.tsc_offset,
            tsc_adjust: self.tsc_adjust,
            tsc_aux: self.tsc_aux,
            misc_enable: self.misc_enable,
            spec_ctrl: self.spec_ctrl,
            paravirt: self.paravirt.clone(),
            apic,
            ..fresh
        };
    }

    /// What a start-up IPI with `vector` makes of a waiting vCPU (SDM vol. 3, 9.4.4).
    pub fn start_up(&mut self, vector: u8) {
        let cs = &mut self.segments[1];
        cs.selector = Selector(u16::from(vector) << 8);
        cs.base = u64::from(vector) << 12;
        self.rip = 0;
        self.activity = Activity::Running;
    }
}

impl ApicState {
    /// The state after power-on (SDM vol. 3, 11.4.7) with APIC ID `id`.
    pub fn after_reset(id: u32) -> Self {
        const ENABLED: u64 = 1 << 11;
        const BOOT_PROCESSOR: u64 = 1 << 8;
        const MASKED: u32 = 1 << 16;
        Self {
            base: 0xfee0_0000 | ENABLED | if id == 0 { BOOT_PROCESSOR } else { 0 },
            id,
            dfr: u32::MAX,
            svr: 0xff,
            lvt: [MASKED; 6],
            ..Self::default()
        }
    }
}
