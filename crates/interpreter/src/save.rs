//! The vCPU's state to and from the form that all engines share.

use crate::cpu::{CodeSize, Cpu};
use crate::flags::Flags;
use crate::int::SLOTS;
use crate::mailbox::INTERRUPT;
use crate::model::{CR0_BITS, Model};
use crate::ops::VectorTable;
use crate::paging::{self, PHYSICAL_BITS};
use crate::shared::Shared;
use crate::tlb::{Tlb, View};
use crate::vcpu::Counters;
use lapic::Lapic;
use native::{Frame, VectorState};
use state::Invalid;
use std::sync::Arc;
use x86::paging::is_canonical;
use x86::{
    Activity, Cr0, Cr4, DescriptorTable, Dr7, Efer, Events, Exception, Rflags, Segment,
    SegmentRegister, VcpuState, Vector, Xcr0,
};

/// Bits of RFLAGS that can be set.
const RFLAGS_BITS: u64 = 0x003f_7fd7;

impl Cpu {
    /// vCPU `index` after power-on.
    pub(crate) fn new(
        setup: &engine::Setup,
        shared: Arc<Shared>,
        lapic: Lapic,
        index: usize,
    ) -> Self {
        let state = VcpuState::after_reset(index as u32);
        let mailbox = shared.mailboxes[index].clone();
        let mut cpu = Self {
            gpr: [0; SLOTS],
            rip: 0,
            flags: Flags::new(Rflags::FIXED),
            bases: [0; 8],
            segments: state.segments,
            ldtr: state.ldtr,
            tr: state.tr,
            gdtr: state.gdtr,
            idtr: state.idtr,
            cpl: 0,
            code_size: CodeSize::Bits16,
            stack_mask: 0xffff,
            cr0: state.cr0,
            cr2: 0,
            cr3: 0,
            cr4: state.cr4,
            pdpte: [0; 4],
            efer: state.efer,
            xcr0: state.xcr0,
            xss: 0,
            dr: [0; 4],
            dr6: state.dr6,
            dr7: state.dr7,
            syscall: state.syscall.clone(),
            pat: state.pat,
            mtrr: state.mtrr.clone(),
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            misc_enable: state.misc_enable,
            spec_ctrl: 0,
            paravirt: state.paravirt.clone(),
            fpu: Box::new(Frame::new()),
            vector: VectorTable::default(),
            lapic,
            apic_touched: true,
            eoi_offered: false,
            clock_page_stale: false,
            nmi_pending: false,
            nmi_blocked: false,
            sti_shadow: false,
            ss_shadow: false,
            activity: Activity::Running,
            exception: None,
            interrupt: None,
            skip_step_trap: false,
            debug_trap: 0,
            tlb: Tlb::new(),
            derived: crate::mode::Derived::default(),
            view: View::Supervisor,
            ram: setup.memory.ram().clone(),
            memory: setup.memory.clone(),
            shared,
            mailbox,
            platform: None,
            index,
            model: Model::new(&setup.cpuid[index]),
            stop: false,
            budget: 0,
            debug: crate::debug::Request::default(),
            trace: setup.tracer.as_ref().map_or_else(Default::default, |t| t.1),
            counters: Counters::default(),
            began: None,
            trial: None,
        };
        cpu.load_registers(&state);
        cpu.set_signature();
        cpu
    }

    /// The architectural state.
    pub(crate) fn save(&self) -> VcpuState {
        let requests = self.mailbox.inbox.requests();
        // A trap that waits for the instruction boundary, in the form for exceptions.
        let trap = (self.debug_trap != 0).then_some(Exception {
            vector: Vector::Debug,
            error_code: 0,
            payload: self.debug_trap,
        });
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        VcpuState {
            gpr,
            rip: self.rip,
            rflags: self.flags.get(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            pdpte: self.pdpte,
            xcr0: self.xcr0,
            xss: self.xss,
            efer: self.efer,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            fpu: (&self.fpu.state).into(),
            syscall: self.syscall.clone(),
            pat: self.pat,
            mtrr: self.mtrr.clone(),
            tsc_offset: self.tsc_offset,
            tsc_adjust: self.tsc_adjust,
            tsc_aux: self.tsc_aux,
            misc_enable: self.misc_enable,
            spec_ctrl: self.spec_ctrl,
            paravirt: self.paravirt.clone(),
            events: Events {
                exception: self.exception.or(trap),
                interrupt: self.interrupt,
                nmi_pending: self.nmi_pending || requests.nmi,
                nmi_blocked: self.nmi_blocked,
                sti_shadow: self.sti_shadow,
                ss_shadow: self.ss_shadow,
                external_interrupt: self.mailbox.inbox.external(),
                sipi: requests.start_up,
                init: requests.init,
            },
            apic: self.apic_state(),
            activity: self.activity,
        }
    }

    /// Takes `state` over, all or nothing.
    ///
    /// # Errors
    /// If no vCPU of this kind can be in this state.
    pub(crate) fn restore(&mut self, state: &VcpuState) -> Result<(), Invalid> {
        validate(state, &self.model)?;
        self.lapic.set_state(&state.apic)?;
        self.load_registers(state);
        self.restore_requests(&state.events);
        self.offer_restored_eoi();
        // The host's TSC frequency may be another one now.
        self.clock_page_stale = true;
        Ok(())
    }

    /// Puts back what waited in the inbox.
    fn restore_requests(&mut self, events: &Events) {
        // What waits there belongs to the state that is given up.
        let _ = self.lapic.take_inbox();
        let inbox = &self.mailbox.inbox;
        inbox.set_external(events.external_interrupt);
        if events.init {
            inbox.post_init();
        }
        if let Some(vector) = events.sipi {
            inbox.post_start_up(vector);
        }
        self.mailbox.post(INTERRUPT);
    }

    /// INIT (SDM vol. 3, 10.1.1): most registers as after reset; the local APIC too, but for its
    /// mode.
    pub(crate) fn init(&mut self) {
        let mut state = self.save();
        state.init();
        self.lapic.init();
        self.eoi_offered = false;
        self.load_registers(&state);
        self.set_signature();
    }

    /// The processor's signature in EDX, after reset and INIT (SDM vol. 3, 10.1.2).
    fn set_signature(&mut self) {
        self.gpr[2] = self.model.table.get(1, 0).eax.into();
    }

    /// Takes over everything in `state` but the local APIC and its inbox, and recomputes what is
    /// derived from it.
    fn load_registers(&mut self, state: &VcpuState) {
        let VcpuState {
            gpr,
            rip,
            rflags,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            pdpte,
            xcr0,
            xss,
            efer,
            dr,
            dr6,
            dr7,
            fpu,
            syscall,
            pat,
            mtrr,
            tsc_offset,
            tsc_adjust,
            tsc_aux,
            misc_enable,
            spec_ctrl,
            paravirt,
            events,
            apic: _,
            activity,
        } = state;
        self.gpr[..16].copy_from_slice(gpr);
        self.rip = *rip;
        self.flags.set(*rflags);
        self.segments = *segments;
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (*ldtr, *tr, *gdtr, *idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (*cr0, *cr2, *cr3, *cr4);
        (self.pdpte, self.efer) = (*pdpte, *efer);
        (self.xcr0, self.xss) = (*xcr0, *xss);
        (self.dr, self.dr6, self.dr7) = (*dr, *dr6, *dr7);
        self.fpu.state = VectorState::from(fpu);
        self.syscall = syscall.clone();
        self.pat = *pat;
        self.mtrr = mtrr.clone();
        (self.tsc_offset, self.tsc_adjust) = (*tsc_offset, *tsc_adjust);
        self.tsc_aux = *tsc_aux;
        (self.misc_enable, self.spec_ctrl) = (*misc_enable, *spec_ctrl);
        self.paravirt = paravirt.clone();
        self.activity = *activity;
        self.interrupt = events.interrupt;
        self.nmi_pending = events.nmi_pending;
        self.nmi_blocked = events.nmi_blocked;
        self.sti_shadow = events.sti_shadow;
        self.ss_shadow = events.ss_shadow;
        (self.exception, self.debug_trap) = match events.exception {
            Some(trap) if trap.vector == Vector::Debug => (None, trap.payload),
            exception => (exception, 0),
        };
        self.cpl = privilege(state);
        self.stop = false;
        self.tlb.flush();
        self.segments_changed();
        self.attend();
    }
}

/// CPL: that of SS; 0 in real mode, 3 in virtual-8086 mode.
fn privilege(state: &VcpuState) -> u8 {
    if !state.cr0.contains(Cr0::PE) {
        0
    } else if state.rflags.contains(Rflags::VM) {
        3
    } else {
        state.segments[SegmentRegister::Ss as usize].dpl()
    }
}

/// The first of `checks` that does not hold, as an error.
fn check(checks: &[(bool, &str)]) -> Result<(), Invalid> {
    match checks.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(Invalid::new(*what)),
        None => Ok(()),
    }
}

/// Refuses what no CPU of this model can be in.
fn validate(state: &VcpuState, model: &Model) -> Result<(), Invalid> {
    validate_control(state, model)?;
    validate_segments(state)?;
    validate_addresses(state)?;
    validate_extended(state, model)
}

fn validate_control(state: &VcpuState, model: &Model) -> Result<(), Invalid> {
    let VcpuState {
        cr0,
        cr4,
        efer,
        rflags,
        ..
    } = state;
    let long = efer.contains(Efer::LMA);
    let paging = cr0.contains(Cr0::PG);
    let has = |bits: Rflags| rflags.intersects(bits);
    let cr3_bits = if long {
        (1 << PHYSICAL_BITS) - 1
    } else {
        u64::from(u32::MAX)
    };
    let legacy_pae = paging && cr4.contains(Cr4::PAE) && !long;
    check(&[
        (CR0_BITS.contains(*cr0), "CR0 has reserved bits"),
        (cr0.contains(Cr0::ET), "CR0.ET is clear"),
        (!paging || cr0.contains(Cr0::PE), "CR0.PG without PE"),
        (
            !cr0.contains(Cr0::NW) || cr0.contains(Cr0::CD),
            "CR0.NW without CD",
        ),
        (model.cr4.contains(*cr4), "CR4 has reserved bits"),
        (model.efer.contains(*efer), "EFER has reserved bits"),
        (
            long == (paging && efer.contains(Efer::LME)),
            "EFER.LMA is not LME and CR0.PG",
        ),
        (!long || cr4.contains(Cr4::PAE), "long mode without PAE"),
        (
            long || !cr4.contains(Cr4::PCIDE),
            "CR4.PCIDE outside long mode",
        ),
        (state.cr3 & !cr3_bits == 0, "CR3 has reserved bits"),
        (
            !legacy_pae || state.pdpte.iter().all(|e| paging::is_valid_pdpte(*e)),
            "a PDPTE has reserved bits",
        ),
        (
            rflags.bits() & !RFLAGS_BITS == 0 && rflags.contains(Rflags::FIXED),
            "RFLAGS has reserved bits",
        ),
        (
            !has(Rflags::VM) || cr0.contains(Cr0::PE) && !long,
            "virtual-8086 mode outside protected mode",
        ),
    ])
}

fn validate_segments(state: &VcpuState) -> Result<(), Invalid> {
    let long = state.efer.contains(Efer::LMA);
    if state.rflags.contains(Rflags::VM) {
        let fits = |s: &Segment| {
            s.base == u64::from(s.selector.0) << 4
                && s.limit == 0xffff
                && s.access == 0xf3
                && !s.unusable
        };
        return check(&[(
            state.segments.iter().all(fits),
            "a segment is not one of virtual-8086 mode",
        )]);
    }
    let cs = &state.segments[SegmentRegister::Cs as usize];
    let ss = &state.segments[SegmentRegister::Ss as usize];
    let protected = state.cr0.contains(Cr0::PE);
    // Between MOV to CR0 and the far jump, CS is still that of real mode.
    let cs_privilege = if cs.is_code() && cs.kind() & 4 == 0 {
        cs.dpl() == ss.dpl()
    } else {
        cs.dpl() <= ss.dpl()
    };
    check(&[
        (!cs.unusable, "CS is unusable"),
        (!protected || cs_privilege, "CPL is not the privilege of CS"),
        (
            !(long && cs.is_long() && cs.is_big()),
            "CS is of 64 and of 32 bits",
        ),
        (
            !long || state.tr.unusable || state.tr.kind() == 11,
            "TR is no 64-bit TSS",
        ),
    ])
}

fn validate_addresses(state: &VcpuState) -> Result<(), Invalid> {
    let bits = if state.cr4.contains(Cr4::LA57) {
        57
    } else {
        48
    };
    let long = state.efer.contains(Efer::LMA);
    let fits = |address: u64| {
        if long {
            is_canonical(address, bits)
        } else {
            address >> 32 == 0
        }
    };
    let DescriptorTable { base: gdt, .. } = state.gdtr;
    let DescriptorTable { base: idt, .. } = state.idtr;
    let syscall = &state.syscall;
    let msrs = [
        syscall.lstar,
        syscall.cstar,
        syscall.kernel_gs_base,
        syscall.sysenter_esp,
        syscall.sysenter_eip,
    ];
    let cs = &state.segments[SegmentRegister::Cs as usize];
    let bases_fit = (0..6).all(|i| {
        // Outside long mode, FS and GS may keep what they were given there.
        let base = state.segments[i].base;
        if i < 4 {
            base >> 32 == 0
        } else {
            is_canonical(base, bits)
        }
    });
    check(&[
        (bases_fit, "a segment's base is not canonical"),
        (
            [gdt, idt, state.ldtr.base, state.tr.base]
                .into_iter()
                .all(fits),
            "a descriptor table's base is not canonical",
        ),
        (
            msrs.into_iter().all(|a| is_canonical(a, bits)),
            "an MSR holds an address that is not canonical",
        ),
        (
            long && cs.is_long() || state.rip >> 32 == 0,
            "RIP has more than 32 bits",
        ),
    ])
}

fn validate_extended(state: &VcpuState, model: &Model) -> Result<(), Invalid> {
    let xcr0 = state.xcr0;
    check(&[
        (
            model.xcr0.contains(xcr0)
                && xcr0.contains(Xcr0::X87)
                && (!xcr0.contains(Xcr0::AVX) || xcr0.contains(Xcr0::SSE)),
            "XCR0 is invalid",
        ),
        (state.xss == 0, "IA32_XSS has reserved bits"),
        (
            state.dr6 >> 32 == 0 && state.dr7 >> 32 == 0 && state.dr7 & Dr7::FIXED.bits() != 0,
            "a debug register has reserved bits",
        ),
        (
            paging::is_valid_pat(state.pat),
            "IA32_PAT has a reserved type",
        ),
        (
            state.fpu.mxcsr.bits() & !native::MXCSR_MASK == 0,
            "MXCSR has reserved bits",
        ),
        (
            state.fpu.opcode <= 0x7ff,
            "the x87 opcode has reserved bits",
        ),
        (
            state
                .events
                .exception
                .is_none_or(|e| e.vector != Vector::Nmi),
            "an NMI as an exception",
        ),
    ])
}
