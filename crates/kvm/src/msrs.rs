//! Model-specific registers that are a vCPU's state, one by one: no KVM knows all of them.

use crate::calls::VcpuCalls;
use state::Invalid;
use x86::{VcpuState, msr};

/// IA32_SPEC_CTRL and others that not every host's KVM has are at these values where it has not.
struct Field<'a> {
    number: u32,
    name: &'static str,
    value: Value<'a>,
}

enum Value<'a> {
    Wide(&'a mut u64),
    Narrow(&'a mut u32),
}

impl Value<'_> {
    fn get(&self) -> u64 {
        match self {
            Self::Wide(value) => **value,
            Self::Narrow(value) => (**value).into(),
        }
    }

    fn set(&mut self, to: u64) {
        match self {
            Self::Wide(value) => **value = to,
            Self::Narrow(value) => **value = to as u32,
        }
    }
}

/// All of them, but for those of time and of the local APIC, and EFER and segment bases, which are
/// special registers to the kernel.
fn fields(state: &mut VcpuState) -> Vec<Field<'_>> {
    let x86::SyscallMsrs {
        star,
        lstar,
        cstar,
        fmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
    } = &mut state.syscall;
    let x86::ParavirtState {
        // The kernel writes the wall clock when the MSR is written, so it is kept here.
        wall_clock: _,
        system_time,
        async_pf,
        steal_time,
        pv_eoi,
    } = &mut state.paravirt;
    let wide = |number, name, value| Field {
        number,
        name,
        value: Value::Wide(value),
    };
    let mut all = vec![
        wide(msr::IA32_STAR, "IA32_STAR", star),
        wide(msr::IA32_LSTAR, "IA32_LSTAR", lstar),
        wide(msr::IA32_CSTAR, "IA32_CSTAR", cstar),
        wide(msr::IA32_FMASK, "IA32_FMASK", fmask),
        wide(
            msr::IA32_KERNEL_GS_BASE,
            "IA32_KERNEL_GS_BASE",
            kernel_gs_base,
        ),
        wide(msr::IA32_SYSENTER_CS, "IA32_SYSENTER_CS", sysenter_cs),
        wide(msr::IA32_SYSENTER_ESP, "IA32_SYSENTER_ESP", sysenter_esp),
        wide(msr::IA32_SYSENTER_EIP, "IA32_SYSENTER_EIP", sysenter_eip),
        wide(msr::IA32_PAT, "IA32_PAT", &mut state.pat),
        wide(
            msr::IA32_MISC_ENABLE,
            "IA32_MISC_ENABLE",
            &mut state.misc_enable,
        ),
        wide(msr::IA32_SPEC_CTRL, "IA32_SPEC_CTRL", &mut state.spec_ctrl),
        wide(msr::IA32_XSS, "IA32_XSS", &mut state.xss),
        wide(
            msr::IA32_TSC_ADJUST,
            "IA32_TSC_ADJUST",
            &mut state.tsc_adjust,
        ),
        Field {
            number: msr::IA32_TSC_AUX,
            name: "IA32_TSC_AUX",
            value: Value::Narrow(&mut state.tsc_aux),
        },
        wide(msr::KVM_SYSTEM_TIME, "MSR_KVM_SYSTEM_TIME_NEW", system_time),
        wide(msr::KVM_ASYNC_PF_EN, "MSR_KVM_ASYNC_PF_EN", async_pf),
        wide(msr::KVM_STEAL_TIME, "MSR_KVM_STEAL_TIME", steal_time),
        wide(msr::KVM_PV_EOI_EN, "MSR_KVM_PV_EOI_EN", pv_eoi),
        wide(
            msr::IA32_MTRR_DEF_TYPE,
            "IA32_MTRR_DEF_TYPE",
            &mut state.mtrr.default_type,
        ),
    ];
    let fixed = [msr::IA32_MTRR_FIX64K_00000]
        .into_iter()
        .chain(msr::IA32_MTRR_FIX16K_80000..=msr::IA32_MTRR_FIX16K_A0000)
        .chain(msr::IA32_MTRR_FIX4K_C0000..=msr::IA32_MTRR_FIX4K_F8000);
    all.extend(
        fixed
            .zip(&mut state.mtrr.fixed)
            .map(|(number, value)| wide(number, "a fixed-range MTRR", value)),
    );
    let variable = state.mtrr.variable.iter_mut();
    let numbers = (msr::IA32_MTRR_PHYSBASE0..).step_by(2);
    for (number, (base, mask)) in numbers.zip(variable) {
        all.push(wide(number, "a variable-range MTRR's base", base));
        all.push(wide(number + 1, "a variable-range MTRR's mask", mask));
    }
    all
}

/// Reads those that the kernel has. `state` keeps its values of the others.
pub(crate) fn save(calls: &dyn VcpuCalls, state: &mut VcpuState) {
    for mut field in fields(state) {
        if let Ok(value) = calls.msr(field.number) {
            field.value.set(value);
        }
    }
}

/// Writes those that are different.
///
/// # Errors
/// The first that the kernel does not take. Its value is told; so is that it has none.
pub(crate) fn load(calls: &dyn VcpuCalls, state: &VcpuState) -> Result<(), Invalid> {
    let mut state = state.clone();
    let fresh = fields_of_reset();
    for (field, initial) in fields(&mut state).into_iter().zip(fresh) {
        let wanted = field.value.get();
        let has = calls.msr(field.number);
        if has.as_ref().is_ok_and(|value| *value == wanted) {
            continue;
        }
        let written = calls.set_msr(field.number, wanted);
        // One that the kernel does not have, and whose value nobody has changed, is not missed.
        if written.is_err() && !(has.is_err() && wanted == initial) {
            return Err(Invalid::new(format!(
                "this host's KVM takes no {} of {wanted:#x}",
                field.name
            )));
        }
    }
    Ok(())
}

/// The values after power-on, in the order of [`fields`].
fn fields_of_reset() -> Vec<u64> {
    let mut state = VcpuState::after_reset(0);
    fields(&mut state).iter().map(|f| f.value.get()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recorder;

    #[test]
    fn each_msr_is_read_and_written_apart() {
        let kernel = Recorder::new();
        let mut state = VcpuState::after_reset(0);
        for (n, mut field) in (1u64..).zip(fields(&mut state)) {
            field.value.set(n);
            kernel.put_msr(field.number, 0);
        }
        load(&kernel, &state).unwrap();
        let mut copy = VcpuState::after_reset(0);
        save(&kernel, &mut copy);
        assert_eq!(copy, state);
        // What is there already is not written again.
        kernel.take_log();
        load(&kernel, &state).unwrap();
        assert!(
            kernel
                .take_log()
                .iter()
                .all(|call| !call.starts_with("set"))
        );
    }

    #[test]
    fn an_msr_that_the_kernel_lacks_is_an_error_only_if_it_is_used() {
        let kernel = Recorder::new();
        let mut state = VcpuState::after_reset(0);
        for field in fields(&mut state) {
            kernel.put_msr(field.number, 0);
        }
        kernel.drop_msr(msr::IA32_SPEC_CTRL);
        load(&kernel, &state).unwrap();
        state.spec_ctrl = 1;
        let error = load(&kernel, &state).unwrap_err();
        assert!(
            error.to_string().contains("IA32_SPEC_CTRL of 0x1"),
            "{error}"
        );
        save(&kernel, &mut state);
        assert_eq!(state.spec_ctrl, 1, "it is kept");
    }
}
