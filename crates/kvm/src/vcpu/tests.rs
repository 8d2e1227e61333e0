//! The loop over exits, against a kernel that records.

use super::*;
use crate::testing::{Board, Recorder, VmRecorder};
use crate::vm::Kvm;
use clock::Clock;
use engine::{Engine, Setup, Vcpu};
use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
};
use memory::{GuestMemory, Kind, RegionSpec};
use x86::cpuid::Table;
use x86::msr;

struct Scene {
    engine: Kvm,
    vcpu: KvmVcpu,
    kernel: Arc<Recorder>,
    vm: Arc<VmRecorder>,
    board: Arc<Board>,
}

/// One vCPU, 64 KiB of RAM and 64 KiB of ROM behind it.
fn scene() -> Scene {
    crate::mailbox::install_handler().unwrap();
    let region = |gpa, kind| RegionSpec {
        gpa,
        len: 0x1_0000,
        kind,
    };
    let regions = [region(0, Kind::Ram), region(0x1_0000, Kind::Rom)];
    let setup = Setup {
        memory: GuestMemory::new(&regions).unwrap(),
        clock: Clock::manual(),
        cpuid: vec![Table::new()],
        tsc_khz: 1_000_000,
        tracer: None,
    };
    let kernel = Arc::new(Recorder::new());
    kernel.put_msr(msr::IA32_TSC, 0);
    let vm = Arc::new(VmRecorder::new());
    let calls: Arc<dyn crate::calls::VcpuCalls> = kernel.clone();
    let shared = Shared::new(&setup, vm.clone(), vec![calls], true);
    let identity = Identity {
        id: 0,
        signature: 0x0f61,
    };
    Scene {
        engine: Kvm::with(shared.clone()),
        vcpu: KvmVcpu::new(shared, 0, identity),
        kernel,
        vm,
        board: Arc::new(Board::new()),
    }
}

impl Scene {
    fn run(&mut self) -> Exit {
        let board: Arc<dyn Platform> = self.board.clone();
        self.vcpu.run(&board)
    }

    /// What the kernel was asked, but for what state is.
    fn log(&self) -> Vec<String> {
        let log = self.kernel.take_log().into_iter();
        log.filter(|call| !call.starts_with("get") && !call.starts_with("set"))
            .collect()
    }

    /// The guest writes to a port.
    fn then_out(&self) {
        self.kernel.then(|page| {
            page.put_exit(KVM_EXIT_IO, |run| {
                let io = &mut run.__bindgen_anon_1;
                io.io.direction = KVM_EXIT_IO_OUT as u8;
                io.io.size = 1;
                io.io.port = 0x80;
                io.io.count = 1;
                io.io.data_offset = 4096;
            });
            Ok(())
        });
    }

    /// Somebody kicks while the guest runs.
    fn then_kick(&self) {
        let mailbox = self.vcpu.mailbox.clone();
        self.kernel.then(move |page| {
            mailbox.post(KICK);
            page.put_exit(KVM_EXIT_INTR, |_| {});
            Err(io::Error::from_raw_os_error(libc::EINTR))
        });
    }

    fn then_exit(&self, reason: u32, fill: fn(&mut kvm_bindings::kvm_run)) {
        self.kernel.then(move |page| {
            page.put_exit(reason, fill);
            Ok(())
        });
    }
}

#[test]
fn an_access_is_made_and_the_guest_goes_on() {
    let mut scene = scene();
    scene.then_out();
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    assert_eq!(scene.board.take_log(), ["port 0x80.1 = 0x0"]);
    assert_eq!(scene.log(), ["run", "run"]);
}

#[test]
fn an_instruction_is_completed_before_its_owner_sees_the_vcpu() {
    let mut scene = scene();
    let mailbox = scene.vcpu.mailbox.clone();
    // The device that the guest writes to has the machine paused.
    scene.kernel.then(move |page| {
        mailbox.post(KICK);
        page.put_exit(KVM_EXIT_MMIO, |run| {
            run.__bindgen_anon_1.mmio.phys_addr = 0xfed0_0000;
            run.__bindgen_anon_1.mmio.len = 4;
        });
        Ok(())
    });
    assert_eq!(scene.run(), Exit::Kicked);
    assert_eq!(scene.board.take_log(), ["memory 0xfed00000.4"]);
    assert_eq!(scene.log(), ["run", "complete"]);
    assert!(!scene.kernel.page.wants_immediate_exit());
}

#[test]
fn a_kick_before_the_run_ends_it_before_the_guest_is_entered() {
    let mut scene = scene();
    scene.engine.kick(0);
    scene.engine.kick(0);
    assert_eq!(scene.run(), Exit::Kicked);
    assert!(scene.log().is_empty());
    // Kicks do not add up.
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
}

#[test]
fn a_flag_that_is_late_does_not_keep_the_guest_out() {
    let mut scene = scene();
    scene.kernel.page.set_immediate_exit(true);
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    assert_eq!(scene.log(), ["complete", "run"]);
}

#[test]
fn the_pics_interrupt_is_given_when_the_window_opens() {
    let mut scene = scene();
    scene.engine.set_external_interrupt(true);
    let page = scene.kernel.page.clone();
    scene.then_exit(KVM_EXIT_IRQ_WINDOW_OPEN, |run| {
        run.ready_for_interrupt_injection = 1;
    });
    scene.then_out();
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    assert_eq!(scene.log(), ["run", "interrupt 0x8", "run", "run"]);
    assert_eq!(scene.board.acknowledged(), 1);
    assert!(page.wants_window(), "the line is still high");
}

#[test]
fn an_interrupt_that_was_given_is_made_visible_before_the_state_is_asked_for() {
    let mut scene = scene();
    scene.engine.set_external_interrupt(true);
    scene.then_exit(KVM_EXIT_IRQ_WINDOW_OPEN, |run| {
        run.ready_for_interrupt_injection = 1;
    });
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    let log = scene.log();
    assert_eq!(log[..3], ["run", "interrupt 0x8", "run"]);
    assert!(
        log[3..].iter().all(|call| call == "run up to guest"),
        "{log:?}"
    );
    assert!(log.len() > 3);
}

#[test]
fn ends_of_interrupts_and_nmis_find_their_way() {
    let mut scene = scene();
    scene.engine.send_nmi(0);
    assert!(
        scene.vcpu.state().events.nmi_pending,
        "it is part of the state"
    );
    scene.kernel.take_log();
    scene.then_exit(KVM_EXIT_IOAPIC_EOI, |run| {
        run.__bindgen_anon_1.eoi.vector = 0x31
    });
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    assert_eq!(scene.log(), ["nmi", "run", "run"]);
    assert_eq!(scene.board.take_log(), ["end of 0x31"]);
}

#[test]
fn writes_to_rom_are_lost() {
    let mut scene = scene();
    scene.then_exit(KVM_EXIT_MMIO, |run| {
        run.__bindgen_anon_1.mmio.phys_addr = 0x1_0010;
        run.__bindgen_anon_1.mmio.len = 4;
        run.__bindgen_anon_1.mmio.is_write = 1;
    });
    scene.then_kick();
    assert_eq!(scene.run(), Exit::Kicked);
    assert!(scene.board.take_log().is_empty());
}

#[test]
fn a_triple_fault_and_an_internal_error_are_the_owners() {
    let mut scene = scene();
    scene.then_exit(KVM_EXIT_INTERNAL_ERROR, |run| {
        run.__bindgen_anon_1.internal.suberror = kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
    });
    match scene.run() {
        Exit::Failed(text) => assert!(text.contains("--engine translator"), "{text}"),
        exit => panic!("{exit:?}"),
    }
    scene.then_exit(KVM_EXIT_SHUTDOWN, |_| {});
    assert!(matches!(scene.run(), Exit::Shutdown(_)));
    assert_eq!(scene.vcpu.state().activity, Activity::Shutdown);
    assert!(matches!(scene.run(), Exit::Shutdown(_)), "it stays so");
}

#[test]
fn a_run_that_the_kernel_refuses_is_told() {
    let mut scene = scene();
    scene
        .kernel
        .then(|_| Err(io::Error::from_raw_os_error(libc::EFAULT)));
    match scene.run() {
        Exit::Failed(text) => assert!(text.contains("Bad address"), "{text}"),
        exit => panic!("{exit:?}"),
    }
}

#[test]
fn messages_go_to_the_kernel_and_those_that_are_none_do_not() {
    let scene = scene();
    scene.engine.send_message(0xfee0_1000, 0x41);
    scene.engine.send_message(0xfee0_1000, 0xc031);
    scene.engine.send_message(0xfee0_1000, 0xc031);
    // An SMI, a deassertion, an address elsewhere, a destination of more than 8 bits.
    for (address, data) in [
        (0xfee0_0000, 0x200),
        (0xfee0_0000, 0x8031),
        (0xfec0_0000, 0x41),
        (0xfee0_0020, 0x41),
    ] {
        scene.engine.send_message(address, data);
    }
    assert_eq!(
        scene.vm.take_log(),
        [
            "message 0x41 to 0xfee01000",
            "routes 0x31 to 0xfee01000",
            "message 0xc031 to 0xfee01000",
            "message 0xc031 to 0xfee01000"
        ]
    );
}

#[test]
fn a_state_is_loaded_in_an_order_that_the_kernel_takes() {
    let mut scene = scene();
    let mut state = scene.vcpu.state();
    scene.kernel.take_log();
    state.gpr[3] = 7;
    state.apic.tmr[1] = 1;
    state.apic.isr[1] = 1;
    scene.vcpu.set_state(&state).unwrap();
    let log = scene.kernel.take_log();
    let at = |call: &str| log.iter().position(|c| c == call).expect(call);
    assert!(at("set sregs") < at("set lapic"), "its mode comes first");
    assert!(at("set mp state") < at("set events"));
    assert_eq!(log.last().unwrap(), "set events");
    assert_eq!(scene.vm.take_log(), ["routes 0x20 to 0xfee00000"]);
    let mut back = scene.vcpu.state();
    back.dr6 = state.dr6;
    assert_eq!(back, state);
}

#[test]
fn another_vcpus_state_is_refused() {
    let mut scene = scene();
    let other = VcpuState::after_reset(1);
    assert!(scene.vcpu.set_state(&other).is_err());
}

#[test]
fn the_time_is_set_once_for_each_resumption() {
    let mut scene = scene();
    for set in [true, false] {
        scene.engine.kick(0);
        assert_eq!(scene.run(), Exit::Kicked);
        let log = scene.kernel.take_log();
        assert_eq!(
            log.iter().any(|call| call == "set tsc offset"),
            set,
            "{log:?}"
        );
        assert_eq!(scene.vm.take_log().len(), set.into());
    }
}
