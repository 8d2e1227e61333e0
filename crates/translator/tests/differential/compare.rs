//! What differs between two outcomes.

use crate::layout::*;
use crate::machine::{End, Outcome};
use crate::scene::Scene;
use crate::tables::ACCESSED;
use x86::{Rflags, VcpuState};

/// The most differences of one kind that are told.
const TOLD_MAX: usize = 6;

/// What differs between `ours` and `theirs`, a line for each; empty if nothing does.
pub(crate) fn differences(scene: &Scene, ours: &Outcome, theirs: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if ours.end != theirs.end {
        found.push(format!("end: {:?}, expected {:?}", ours.end, theirs.end));
    }
    states(&comparable(ours), &comparable(theirs), &mut found);
    log(&ours.lower, &theirs.lower, &mut found);
    memory(scene, 0, &ours.lower, &theirs.lower, &mut found);
    memory(
        scene,
        PROGRAM_MEMORY,
        &ours.upper,
        &theirs.upper,
        &mut found,
    );
    let accesses = ours.accesses.iter().zip(&theirs.accesses);
    let first = accesses.clone().position(|(a, b)| a != b);
    let first = first
        .or_else(|| (ours.accesses.len() != theirs.accesses.len()).then_some(accesses.count()));
    if let Some(n) = first {
        found.push(format!(
            "access {n} of {}, expected {}: {:x?}, expected {:x?}",
            ours.accesses.len(),
            theirs.accesses.len(),
            ours.accesses.get(n),
            theirs.accesses.get(n),
        ));
    }
    found
}

/// The state in which an outcome left the vCPU, without what engines may differ in: the pointers to
/// the last x87 instruction and its operand, which the translator does not have, and the arithmetic
/// flags of an instruction that could not be executed (see `Builder::forget_flags`).
fn comparable(outcome: &Outcome) -> VcpuState {
    let mut state = outcome.state.clone();
    (state.fpu.opcode, state.fpu.instruction, state.fpu.operand) = Default::default();
    if outcome.end == End::Shutdown {
        state.rflags.remove(Rflags::STATUS);
    }
    state
}

fn states(ours: &VcpuState, theirs: &VcpuState, found: &mut Vec<String>) {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (name, (a, b)) in NAMES.iter().zip(ours.gpr.iter().zip(&theirs.gpr)) {
        if a != b {
            found.push(format!("{name}: {a:#x}, expected {b:#x}"));
        }
    }
    for (n, (a, b)) in ours.fpu.ymm.iter().zip(&theirs.fpu.ymm).enumerate() {
        if a != b {
            found.push(format!("ymm{n}: {a:x?}, expected {b:x?}"));
        }
    }
    macro_rules! fields {
        ($($($field:ident).+),* $(,)?) => {
            $(if ours.$($field).+ != theirs.$($field).+ {
                found.push(format!(
                    "{}: {:x?}, expected {:x?}",
                    stringify!($($field).+), ours.$($field).+, theirs.$($field).+
                ));
            })*
        };
    }
    fields!(
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
        fpu.control,
        fpu.status,
        fpu.tags,
        fpu.st,
        fpu.mxcsr,
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
        apic,
        activity,
    );
    assert!(
        !found.is_empty() || ours == theirs,
        "every field of the state is compared"
    );
}

/// The first event that differs in the handlers' log.
fn log(ours: &[u8], theirs: &[u8], found: &mut Vec<String>) {
    let entries = (LOG..LOG_END).step_by(LOG_ENTRY as usize);
    let differs = |&at: &u64| {
        let range = at as usize..(at + LOG_ENTRY) as usize;
        ours[range.clone()] != theirs[range]
    };
    if let Some((n, at)) = entries.enumerate().find(|(_, at)| differs(at)) {
        let words = |memory: &[u8]| -> Vec<u64> {
            let entry = &memory[at as usize..(at + LOG_ENTRY) as usize];
            let words = entry.chunks_exact(8);
            words
                .map(|w| u64::from_le_bytes(w.try_into().expect("8 bytes")))
                .collect()
        };
        found.push(format!(
            "event {n} (vector, error code, rip, cs, rflags, rsp, ss, cr2): {:x?}, expected {:x?}",
            words(ours),
            words(theirs)
        ));
    }
}

fn memory(scene: &Scene, base: u64, ours: &[u8], theirs: &[u8], found: &mut Vec<String>) {
    if ours == theirs {
        return;
    }
    let hex = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let words = ours.chunks_exact(8).zip(theirs.chunks_exact(8));
    let differing = words.enumerate().filter(|(_, (a, b))| a != b);
    let differing = differing.map(|(n, (a, b))| (base + 8 * n as u64, (a, b)));
    let told = differing.filter(|&(gpa, (a, b))| !is_early_access(scene, gpa, hex(a), hex(b)));
    for (gpa, (a, b)) in told.take(TOLD_MAX) {
        found.push(format!(
            "memory at {gpa:#x}{}: {:#x}, expected {:#x}",
            scene.place(gpa),
            hex(a),
            hex(b)
        ));
    }
}

/// Whether all that differs in a word of the page tables is that ours has an accessed bit more. A
/// processor may set it early (SDM vol. 3, 4.8); never so the dirty bit.
fn is_early_access(scene: &Scene, gpa: u64, ours: u64, theirs: u64) -> bool {
    let accessed = if scene.mode.is_long() {
        ACCESSED
    } else {
        ACCESSED | ACCESSED << 32
    };
    (TABLES..SYSTEM_BYTES).contains(&gpa)
        && ours & theirs == theirs
        && (ours ^ theirs) & !accessed == 0
}
