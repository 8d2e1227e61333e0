//! The engine: a VM, its memory, and messages to its vCPUs.

use crate::calls::{VcpuCalls, VmCalls};
use crate::host::{Host, NewError};
use crate::load::Identity;
use crate::mailbox::{self, KICK, Mailbox, NMI};
use crate::routes::{ROUTES, Routes};
use crate::system_calls;
use crate::time::{GuestTime, Timed};
use crate::vcpu::KvmVcpu;
use engine::{Engine, Setup, Vcpu};
use kvm_bindings::{
    CpuId, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_SPLIT_IRQCHIP, KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_GUESTDBG_BLOCKIRQ, KVM_MEM_READONLY, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use lapic::{Delivery, Message};
use memory::{GuestMemory, Kind};
use std::io;
use std::sync::Arc;
use x86::VcpuState;
use x86::cpuid::Table;

/// Three pages below 4 GiB that are the kernel's on Intel CPUs without unrestricted guests, and one
/// more for an identity map (api.rst, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR). The machine
/// has nothing between its local APICs and 4 GiB.
const TSS: u64 = 0xfeff_d000;
const IDENTITY_MAP: u64 = 0xfeff_c000;

/// A vCPU, as the others see it.
pub(crate) struct Part {
    pub(crate) calls: Arc<dyn VcpuCalls>,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// What the vCPUs of a machine share.
pub(crate) struct Shared {
    pub(crate) vm: Arc<dyn VmCalls>,
    pub(crate) vcpus: Vec<Part>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) time: GuestTime,
    /// Whether single steps can hold interrupts off.
    pub(crate) blocks_interrupts: bool,
    routes: Routes,
}

impl Shared {
    /// The engine's side of `vm`, whose vCPUs are behind `calls`.
    pub(crate) fn new(
        setup: &Setup,
        vm: Arc<dyn VmCalls>,
        calls: Vec<Arc<dyn VcpuCalls>>,
        blocks_interrupts: bool,
    ) -> Arc<Self> {
        let timed = (0..).zip(&calls).map(|(id, calls)| {
            let fresh = VcpuState::after_reset(id);
            Timed::new(calls.clone(), fresh.tsc_offset, &fresh.apic)
        });
        let timed = timed.collect();
        let vcpus = calls.into_iter().map(|calls| Part {
            mailbox: Arc::new(Mailbox::new(calls.page().clone())),
            calls,
        });
        Arc::new(Self {
            time: GuestTime::new(setup.clock.clone(), setup.tsc_khz, vm.clone(), timed),
            vcpus: vcpus.collect(),
            vm,
            memory: setup.memory.clone(),
            blocks_interrupts,
            routes: Routes::new(),
        })
    }

    /// The end of level-triggered interrupts with `vector`, which messages to `address` ask for, is
    /// to be told.
    pub(crate) fn expect_end(&self, vector: u8, address: u64) -> io::Result<()> {
        self.routes.expect(&*self.vm, vector, address)
    }

    fn send_message(&self, address: u64, data: u32) {
        /// What an address has besides its base: destination and its mode. The extension to 15 bits
        /// is not offered (CPUID 4000_0001H, EAX bit 15).
        const DESTINATION: u64 = 0xf_f00c;
        // Others are lost, as they are under every engine.
        let Some(message) = Message::from_msi(address, data) else {
            return;
        };
        let is_lost = matches!(message.delivery, Delivery::Smi | Delivery::External);
        if is_lost || address & 0xff0 != 0 {
            return;
        }
        let address = 0xfee0_0000 | address & DESTINATION;
        self.time.gate().pass(|| {
            if message.level && self.expect_end(message.vector, address).is_err() {
                // Without its end the line would be dead after the first interrupt; it is after
                // none, which shows at once.
                return;
            }
            // Nobody takes it: that is the guest's affair.
            let _ = self.vm.signal_msi(address, data);
        });
    }
}

/// The vCPUs of one machine, by index.
type Vcpus = Vec<Box<dyn Vcpu>>;

/// KVM, for one machine.
pub struct Kvm {
    shared: Arc<Shared>,
}

impl Kvm {
    /// An engine and its vCPUs, in their state after power-on.
    ///
    /// # Errors
    /// If the host has no KVM that the engine can use, or KVM can't make this machine.
    pub fn create(setup: &Setup) -> Result<(Arc<Self>, Vcpus), NewError> {
        let host = Host::open()?;
        let asked = setup.cpuid.len();
        let most = host.kvm.get_max_vcpus();
        if asked > most {
            return Err(NewError::Cpus { asked, most });
        }
        mailbox::install_handler().map_err(NewError::call("a signal's handler"))?;
        let vm = host.kvm.create_vm().map_err(NewError::call("a VM"))?;
        set_up(&vm, &setup.memory)?;
        let page = host
            .kvm
            .get_vcpu_mmap_size()
            .map_err(NewError::call("the size of a vCPU's page"))?;
        let vcpus = (0..).zip(&setup.cpuid).map(|(id, table)| {
            let vcpu = create_vcpu(&vm, id, page, setup, table)?;
            Ok(Arc::new(vcpu) as Arc<dyn VcpuCalls>)
        });
        let vcpus = vcpus.collect::<Result<Vec<_>, NewError>>()?;
        let debug = host
            .kvm
            .check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
        let blocks_interrupts = debug as u32 & KVM_GUESTDBG_BLOCKIRQ != 0;
        let shared = Shared::new(
            setup,
            Arc::new(system_calls::Vm(vm)),
            vcpus,
            blocks_interrupts,
        );
        let vcpus = power_on(&shared, &setup.cpuid)?;
        Ok((Arc::new(Self { shared }), vcpus))
    }

    /// As [`Kvm::create`], with a kernel of the tests'.
    #[cfg(test)]
    pub(crate) fn with(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// The vCPUs in their state after power-on.
fn power_on(shared: &Arc<Shared>, cpuid: &[Table]) -> Result<Vcpus, NewError> {
    let vcpus = cpuid.iter().enumerate().map(|(index, table)| {
        let signature = table.get(1, 0).eax;
        let id = index as u32;
        let mut vcpu = KvmVcpu::new(shared.clone(), index, Identity { id, signature });
        let mut state = VcpuState::after_reset(id);
        state.gpr[2] = signature.into();
        vcpu.set_state(&state).map_err(|error| {
            NewError::Call("the state after power-on", io::Error::other(error.0))
        })?;
        Ok(Box::new(vcpu) as Box<dyn Vcpu>)
    });
    vcpus.collect()
}

/// The parts of a VM that come before its vCPUs.
fn set_up(vm: &VmFd, memory: &GuestMemory) -> Result<(), NewError> {
    vm.set_identity_map_address(IDENTITY_MAP)
        .map_err(NewError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS as usize)
        .map_err(NewError::call("KVM_SET_TSS_ADDR"))?;
    // Local APICs in the kernel, everything else here. So many lines of I/O APICs have routes.
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..kvm_enable_cap::default()
    };
    split.args[0] = ROUTES.into();
    vm.enable_cap(&split)
        .map_err(NewError::call("KVM_CAP_SPLIT_IRQCHIP"))?;
    for (slot, region) in (0..).zip(memory.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: match region.kind {
                Kind::Ram => 0,
                Kind::Rom => KVM_MEM_READONLY,
            },
            guest_phys_addr: region.gpa,
            memory_size: region.len as u64,
            userspace_addr: (memory.ram().address() + region.offset) as u64,
        };
        set_memory(vm, region).map_err(NewError::call("the guest's memory"))?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "shares guest memory with the kernel")]
fn set_memory(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // UNSAFETY: the guest reads and writes host memory from now on.
    // SAFETY: guest memory's own mapping, of which nobody has Rust references. `Shared` keeps it
    // for as long as there are vCPUs, and without them nothing is accessed.
    unsafe { vm.set_user_memory_region(region) }
}

fn create_vcpu(
    vm: &VmFd,
    id: u64,
    page: usize,
    setup: &Setup,
    table: &Table,
) -> Result<system_calls::Vcpu, NewError> {
    let fd = vm.create_vcpu(id).map_err(NewError::call("a vCPU"))?;
    let vcpu = system_calls::Vcpu::new(fd, page).map_err(NewError::call("a vCPU's page"))?;
    set_tsc_frequency(&vcpu, setup.tsc_khz)?;
    let entries: Vec<_> = table.leaves().iter().map(cpuid_entry).collect();
    let cpuid = CpuId::from_entries(&entries).map_err(|_| {
        NewError::Call(
            "so many leaves of CPUID",
            io::ErrorKind::InvalidInput.into(),
        )
    })?;
    vcpu.fd()
        .set_cpuid2(&cpuid)
        .map_err(NewError::call("KVM_SET_CPUID2"))?;
    Ok(vcpu)
}

fn set_tsc_frequency(vcpu: &system_calls::Vcpu, khz: u64) -> Result<(), NewError> {
    let host = vcpu
        .fd()
        .get_tsc_khz()
        .map_err(NewError::call("the TSC's frequency"))?;
    if u64::from(host) == khz {
        return Ok(());
    }
    let set = u32::try_from(khz)
        .ok()
        .map(|khz| vcpu.fd().set_tsc_khz(khz).is_ok());
    match set {
        Some(true) => Ok(()),
        _ => Err(NewError::Tsc {
            asked: khz,
            host: host.into(),
        }),
    }
}

fn cpuid_entry(leaf: &x86::cpuid::Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.leaf,
        index: leaf.subleaf.unwrap_or(0),
        flags: leaf.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: leaf.answer.eax,
        ebx: leaf.answer.ebx,
        ecx: leaf.answer.ecx,
        edx: leaf.answer.edx,
        ..kvm_cpuid_entry2::default()
    }
}

impl Engine for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn send_message(&self, address: u64, data: u32) {
        self.shared.send_message(address, data);
    }

    fn set_external_interrupt(&self, high: bool) {
        // LINT0 of the boot processor.
        if let Some(first) = self.shared.vcpus.first() {
            first.mailbox.set_external(high);
        }
    }

    fn send_nmi(&self, index: usize) {
        self.shared.vcpus[index].mailbox.post(NMI);
    }

    fn kick(&self, index: usize) {
        self.shared.vcpus[index].mailbox.post(KICK);
    }
}

#[cfg(test)]
mod tests;
