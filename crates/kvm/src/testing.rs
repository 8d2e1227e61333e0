//! A kernel and a board for tests: they answer what they were told to, and record what was asked.

use crate::calls::{Route, VcpuCalls, VmCalls, XsaveArea};
use crate::run_page::RunPage;
use engine::{Access, Platform, Space};
use kvm_bindings::{
    kvm_debugregs, kvm_guest_debug, kvm_lapic_state, kvm_regs, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs,
};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Lines that say what was asked.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// The kernel's side of a VM.
#[derive(Debug, Default)]
pub(crate) struct VmRecorder {
    log: Log,
    refuses: AtomicBool,
}

impl VmRecorder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        self.log.take()
    }

    /// Refuses the next call.
    pub(crate) fn refuse_next(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    fn call(&self, line: String) -> Result<()> {
        self.log.push(line);
        match self.refuses.swap(false, Ordering::Relaxed) {
            true => Err(Error::from_raw_os_error(libc::ENOMEM)),
            false => Ok(()),
        }
    }
}

impl VmCalls for VmRecorder {
    fn signal_msi(&self, address: u64, data: u32) -> Result<bool> {
        self.call(format!("message {data:#x} to {address:#x}"))?;
        Ok(true)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<()> {
        let shown = routes.iter().map(|route| {
            // Level-triggered, asserted.
            assert_eq!(route.data & !0xff, 0xc000);
            assert!(route.gsi < crate::routes::ROUTES);
            format!("{:#x} to {:#x}", route.data & 0xff, route.address)
        });
        let shown: Vec<_> = shown.collect();
        self.call(format!("routes {}", shown.join(", ")))
    }

    fn clock(&self) -> Result<u64> {
        Ok(0)
    }

    fn set_clock(&self, nanos: u64) -> Result<()> {
        self.call(format!("set clock {nanos}"))
    }
}

/// What the kernel keeps of a vCPU.
#[derive(Debug, Default)]
struct Kept {
    regs: kvm_regs,
    sregs: kvm_sregs2,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: u32,
    msrs: BTreeMap<u32, u64>,
    xsave: Option<Box<XsaveArea>>,
    tsc_offset: u64,
}

/// What `KVM_RUN` does, once.
pub(crate) type Script = Box<dyn FnOnce(&RunPage) -> Result<()> + Send>;

/// The kernel's side of a vCPU.
pub(crate) struct Recorder {
    log: Log,
    pub(crate) page: Arc<RunPage>,
    kept: Mutex<Kept>,
    script: Mutex<VecDeque<Script>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            log: Log::default(),
            page: Arc::new(RunPage::new(None, 8192).unwrap()),
            kept: Mutex::default(),
            script: Mutex::default(),
        }
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        self.log.take()
    }

    /// What the next `KVM_RUN` that has nothing else to do does.
    pub(crate) fn then(&self, run: impl FnOnce(&RunPage) -> Result<()> + Send + 'static) {
        self.script.lock().unwrap().push_back(Box::new(run));
    }

    pub(crate) fn put_msr(&self, number: u32, value: u64) {
        self.kept.lock().unwrap().msrs.insert(number, value);
    }

    pub(crate) fn drop_msr(&self, number: u32) {
        self.kept.lock().unwrap().msrs.remove(&number);
    }

    fn get<T>(&self, what: &str, get: impl FnOnce(&Kept) -> T) -> Result<T> {
        self.log.push(format!("get {what}"));
        Ok(get(&self.kept.lock().unwrap()))
    }

    fn set(&self, what: &str, set: impl FnOnce(&mut Kept)) -> Result<()> {
        self.log.push(format!("set {what}"));
        set(&mut self.kept.lock().unwrap());
        Ok(())
    }
}

impl VcpuCalls for Recorder {
    fn page(&self) -> &Arc<RunPage> {
        &self.page
    }

    fn run(&self) -> Result<()> {
        self.page.prepare();
        if self.page.wants_immediate_exit() {
            self.log.push("complete".to_owned());
            return Err(Error::from_raw_os_error(libc::EINTR));
        }
        self.log.push("run".to_owned());
        let next = self.script.lock().unwrap().pop_front();
        next.expect("the guest runs as often as the test says")(&self.page)
    }

    fn run_up_to_guest(&self) -> Result<()> {
        self.log.push("run up to guest".to_owned());
        self.page.put_exit(kvm_bindings::KVM_EXIT_INTR, |_| {});
        Err(Error::from_raw_os_error(libc::EINTR))
    }

    fn interrupt(&self, vector: u8) -> Result<()> {
        self.log.push(format!("interrupt {vector:#x}"));
        Ok(())
    }

    fn nmi(&self) -> Result<()> {
        self.log.push("nmi".to_owned());
        Ok(())
    }

    fn regs(&self) -> Result<kvm_regs> {
        self.get("regs", |kept| kept.regs)
    }

    fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        self.set("regs", |kept| kept.regs = *regs)
    }

    fn sregs(&self) -> Result<kvm_sregs2> {
        self.get("sregs", |kept| kept.sregs)
    }

    fn set_sregs(&self, sregs: &kvm_sregs2) -> Result<()> {
        self.set("sregs", |kept| kept.sregs = *sregs)
    }

    fn xsave(&self) -> Result<XsaveArea> {
        self.get("xsave", |kept| {
            kept.xsave.as_deref().copied().unwrap_or([0; 1024])
        })
    }

    fn set_xsave(&self, area: &XsaveArea) -> Result<()> {
        self.set("xsave", |kept| kept.xsave = Some(Box::new(*area)))
    }

    fn xcrs(&self) -> Result<kvm_xcrs> {
        self.get("xcrs", |kept| kept.xcrs)
    }

    fn set_xcrs(&self, xcrs: &kvm_xcrs) -> Result<()> {
        self.set("xcrs", |kept| kept.xcrs = *xcrs)
    }

    fn debug_regs(&self) -> Result<kvm_debugregs> {
        self.get("debugregs", |kept| kept.debug_regs)
    }

    fn set_debug_regs(&self, regs: &kvm_debugregs) -> Result<()> {
        self.set("debugregs", |kept| kept.debug_regs = *regs)
    }

    fn lapic(&self) -> Result<kvm_lapic_state> {
        self.get("lapic", |kept| kept.lapic)
    }

    fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<()> {
        self.set("lapic", |kept| kept.lapic = *lapic)
    }

    fn events(&self) -> Result<kvm_vcpu_events> {
        self.get("events", |kept| kept.events)
    }

    fn set_events(&self, events: &kvm_vcpu_events) -> Result<()> {
        self.set("events", |kept| kept.events = *events)
    }

    fn mp_state(&self) -> Result<u32> {
        self.get("mp state", |kept| kept.mp_state)
    }

    fn set_mp_state(&self, state: u32) -> Result<()> {
        self.set("mp state", |kept| kept.mp_state = state)
    }

    fn msr(&self, number: u32) -> Result<u64> {
        let value = self.kept.lock().unwrap().msrs.get(&number).copied();
        value.ok_or_else(|| Error::from_raw_os_error(libc::ENOENT))
    }

    fn set_msr(&self, number: u32, value: u64) -> Result<()> {
        self.log.push(format!("set msr {number:#x}"));
        let mut kept = self.kept.lock().unwrap();
        let msr = kept.msrs.get_mut(&number);
        let msr = msr.ok_or_else(|| Error::from_raw_os_error(libc::EINVAL))?;
        *msr = value;
        Ok(())
    }

    fn tsc_offset(&self) -> Result<u64> {
        Ok(self.kept.lock().unwrap().tsc_offset)
    }

    fn set_tsc_offset(&self, offset: u64) -> Result<()> {
        self.set("tsc offset", |kept| kept.tsc_offset = offset)
    }

    fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        self.log.push(format!("debug {:#x}", debug.control));
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>> {
        Ok(Some(linear))
    }
}

/// Devices that record what is asked of them. Reads answer 1, 2, 3 and so on; the PIC has vector 8.
#[derive(Debug, Default)]
pub(crate) struct Board {
    log: Log,
    reads: AtomicU64,
    acknowledged: AtomicU64,
}

impl Board {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        self.log.take()
    }

    /// How often the PIC was asked.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

impl Platform for Board {
    fn access(&self, access: Access) -> u64 {
        let space = match access.space {
            Space::Port => "port",
            Space::Memory => "memory",
        };
        let mut line = format!("{space} {:#x}.{}", access.address, access.bytes);
        if let Some(value) = access.write {
            line += &format!(" = {value:#x}");
        }
        self.log.push(line);
        match access.write {
            Some(_) => 0,
            None => self.reads.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.log.push(format!("end of {vector:#x}"));
    }

    fn acknowledge_external(&self) -> u8 {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        8
    }
}
