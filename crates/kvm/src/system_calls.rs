//! The kernel's side of the seam: each call is one ioctl.
#![expect(
    unsafe_code,
    reason = "makes ioctls that kvm-ioctls has no functions for"
)]
// UNSAFETY: ioctls on file descriptors of KVM, with structures of the size that their numbers
// name, which live during the call.

use crate::calls::{Route, VcpuCalls, VmCalls, XsaveArea};
use crate::mailbox;
use crate::run_page::RunPage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KvmIrqRouting, Msrs,
    kvm_clock_data, kvm_debugregs, kvm_device_attr, kvm_guest_debug, kvm_irq_routing_entry,
    kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_entry, kvm_regs, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

const READ: u64 = 2;
const WRITE: u64 = 1;

/// The number of an ioctl of KVM (asm-generic/ioctl.h).
const fn number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | number
}

const KVM_RUN: u64 = number(0, 0x80, 0);
const KVM_INTERRUPT: u64 = number(WRITE, 0x86, size_of::<u32>());
const KVM_SET_SIGNAL_MASK: u64 = number(WRITE, 0x8b, size_of::<u32>());
const KVM_GET_SREGS2: u64 = number(READ, 0xcc, size_of::<kvm_sregs2>());
const KVM_SET_SREGS2: u64 = number(WRITE, 0xcd, size_of::<kvm_sregs2>());
const KVM_SET_DEVICE_ATTR: u64 = number(WRITE, 0xe1, size_of::<kvm_device_attr>());
const KVM_GET_DEVICE_ATTR: u64 = number(WRITE, 0xe2, size_of::<kvm_device_attr>());

/// `struct kvm_signal_mask` with the kernel's set of signals behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

fn done(result: libc::c_int) -> Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// A VM.
pub(crate) struct Vm(pub(crate) VmFd);

impl VmCalls for Vm {
    fn signal_msi(&self, address: u64, data: u32) -> Result<bool> {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..kvm_msi::default()
        };
        Ok(self.0.signal_msi(message)? > 0)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<()> {
        let entries = routes.iter().map(|route| {
            let mut entry = kvm_irq_routing_entry {
                gsi: route.gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..kvm_irq_routing_entry::default()
            };
            entry.u.msi.address_lo = route.address as u32;
            entry.u.msi.address_hi = (route.address >> 32) as u32;
            entry.u.msi.data = route.data;
            entry
        });
        let table = KvmIrqRouting::from_entries(&entries.collect::<Vec<_>>())
            .map_err(|_| Error::from_raw_os_error(libc::ENOSPC))?;
        Ok(self.0.set_gsi_routing(&table)?)
    }

    fn clock(&self) -> Result<u64> {
        Ok(self.0.get_clock()?.clock)
    }

    fn set_clock(&self, nanos: u64) -> Result<()> {
        let clock = kvm_clock_data {
            clock: nanos,
            ..kvm_clock_data::default()
        };
        Ok(self.0.set_clock(&clock)?)
    }
}

/// A vCPU.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    page: Arc<RunPage>,
}

impl Vcpu {
    /// The vCPU behind `fd`, whose page is `len` bytes long.
    ///
    /// # Errors
    /// If the page can't be mapped.
    pub(crate) fn new(fd: VcpuFd, len: usize) -> Result<Self> {
        // SAFETY: open as long as `fd`, which is.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let page = Arc::new(RunPage::new(Some(borrowed), len)?);
        Ok(Self { fd, page })
    }

    /// What has functions in kvm-ioctls.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// An ioctl with a pointer to `argument`.
    ///
    /// # Safety
    /// `request` is for a vCPU, and reads or writes no more than a `T` there.
    unsafe fn call<T>(&self, request: u64, argument: *mut T) -> Result<()> {
        // SAFETY: the caller's word.
        done(unsafe { libc::ioctl(self.fd.as_raw_fd(), request as _, argument) })
    }

    fn tsc_attribute(value: &mut u64) -> kvm_device_attr {
        kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: std::ptr::from_mut(value).expose_provenance() as u64,
            ..kvm_device_attr::default()
        }
    }

    /// Blocks the kick's signal for this thread, and lets the kernel unblock it in `KVM_RUN`; or
    /// undoes both.
    fn hold_signal(&self, held: bool) -> Result<()> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let how = if held {
            libc::SIG_BLOCK
        } else {
            libc::SIG_UNBLOCK
        };
        let mut mask = SignalMask {
            len: 8,
            set: [0; 8],
        };
        let mask = if held {
            &raw mut mask
        } else {
            std::ptr::null_mut()
        };
        // SAFETY: sets that live during the calls; without one the kernel forgets its own.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), mailbox::signal());
            libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
            self.call(KVM_SET_SIGNAL_MASK, mask)
        }
    }
}

impl VcpuCalls for Vcpu {
    fn page(&self) -> &Arc<RunPage> {
        &self.page
    }

    fn run(&self) -> Result<()> {
        self.page.prepare();
        // SAFETY: takes no argument. What it writes is the page and the guest's memory, neither
        // of which is a Rust object.
        done(unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN as _, 0) })
    }

    fn run_up_to_guest(&self) -> Result<()> {
        self.hold_signal(true)?;
        mailbox::send_signal(rustix::thread::gettid().as_raw_nonzero().get());
        self.page.set_immediate_exit(false);
        let result = self.run();
        // The signal is delivered now, to its handler.
        self.hold_signal(false)?;
        result
    }

    fn interrupt(&self, vector: u8) -> Result<()> {
        let mut vector = u32::from(vector);
        // SAFETY: `struct kvm_interrupt` is one 32-bit word.
        unsafe { self.call(KVM_INTERRUPT, &raw mut vector) }
    }

    fn nmi(&self) -> Result<()> {
        Ok(self.fd.nmi()?)
    }

    fn regs(&self) -> Result<kvm_regs> {
        Ok(self.fd.get_regs()?)
    }

    fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        Ok(self.fd.set_regs(regs)?)
    }

    fn sregs(&self) -> Result<kvm_sregs2> {
        let mut sregs = kvm_sregs2::default();
        // SAFETY: the structure that the number names.
        unsafe { self.call(KVM_GET_SREGS2, &raw mut sregs)? };
        Ok(sregs)
    }

    fn set_sregs(&self, sregs: &kvm_sregs2) -> Result<()> {
        let mut sregs = *sregs;
        // SAFETY: the structure that the number names.
        unsafe { self.call(KVM_SET_SREGS2, &raw mut sregs) }
    }

    fn xsave(&self) -> Result<XsaveArea> {
        Ok(self.fd.get_xsave()?.region)
    }

    fn set_xsave(&self, area: &XsaveArea) -> Result<()> {
        let xsave = kvm_xsave {
            region: *area,
            ..kvm_xsave::default()
        };
        // SAFETY: the area is longer than 4 KiB only for who has asked for dynamically enabled
        // features (`arch_prctl`), which the monitor does not.
        unsafe { self.fd.set_xsave(&xsave) }?;
        Ok(())
    }

    fn xcrs(&self) -> Result<kvm_xcrs> {
        Ok(self.fd.get_xcrs()?)
    }

    fn set_xcrs(&self, xcrs: &kvm_xcrs) -> Result<()> {
        Ok(self.fd.set_xcrs(xcrs)?)
    }

    fn debug_regs(&self) -> Result<kvm_debugregs> {
        Ok(self.fd.get_debug_regs()?)
    }

    fn set_debug_regs(&self, regs: &kvm_debugregs) -> Result<()> {
        Ok(self.fd.set_debug_regs(regs)?)
    }

    fn lapic(&self) -> Result<kvm_lapic_state> {
        Ok(self.fd.get_lapic()?)
    }

    fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<()> {
        Ok(self.fd.set_lapic(lapic)?)
    }

    fn events(&self) -> Result<kvm_vcpu_events> {
        Ok(self.fd.get_vcpu_events()?)
    }

    fn set_events(&self, events: &kvm_vcpu_events) -> Result<()> {
        Ok(self.fd.set_vcpu_events(events)?)
    }

    fn mp_state(&self) -> Result<u32> {
        Ok(self.fd.get_mp_state()?.mp_state)
    }

    fn set_mp_state(&self, state: u32) -> Result<()> {
        Ok(self.fd.set_mp_state(kvm_mp_state { mp_state: state })?)
    }

    fn msr(&self, number: u32) -> Result<u64> {
        let mut msrs = one_msr(number, 0)?;
        match self.fd.get_msrs(&mut msrs)? {
            1 => Ok(msrs.as_slice()[0].data),
            _ => Err(Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    fn set_msr(&self, number: u32, value: u64) -> Result<()> {
        match self.fd.set_msrs(&one_msr(number, value)?)? {
            1 => Ok(()),
            _ => Err(Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn tsc_offset(&self) -> Result<u64> {
        let mut offset = 0;
        let mut attribute = Self::tsc_attribute(&mut offset);
        // SAFETY: the structure that the number names, and in it the address of a 64-bit word.
        unsafe { self.call(KVM_GET_DEVICE_ATTR, &raw mut attribute)? };
        // SAFETY: just written by the kernel, which the compiler does not know.
        Ok(unsafe { (&raw const offset).read_volatile() })
    }

    fn set_tsc_offset(&self, mut offset: u64) -> Result<()> {
        let mut attribute = Self::tsc_attribute(&mut offset);
        // SAFETY: the structure that the number names, and in it the address of a 64-bit word.
        unsafe { self.call(KVM_SET_DEVICE_ATTR, &raw mut attribute) }
    }

    fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        Ok(self.fd.set_guest_debug(debug)?)
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>> {
        let translation = self.fd.translate_gva(linear)?;
        Ok((translation.valid != 0).then_some(translation.physical_address))
    }
}

fn one_msr(number: u32, value: u64) -> Result<Msrs> {
    let entry = kvm_msr_entry {
        index: number,
        data: value,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| Error::from_raw_os_error(libc::ENOMEM))
}
