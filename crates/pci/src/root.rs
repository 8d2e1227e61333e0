//! The root complex: bus 0 and what is on it.

use crate::bar::{Decoded, Decoder};
use crate::config::spec;
use crate::intx::Router;
use crate::{ConfigSpace, Wires};
use device::{Device, InterruptLine, Msi, Shared, Width, lock};
use serde::{Deserialize, Serialize};
use state::Saved;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A PCI function.
pub trait Function: Device {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to change it.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// A configuration read that does not cross 4 bytes. For functions whose registers have side
    /// effects.
    fn config_read(&mut self, offset: u16, width: Width) -> u32 {
        self.config().read(offset, width)
    }

    /// A configuration write that does not cross 4 bytes.
    fn config_write(&mut self, offset: u16, width: Width, value: u32) {
        self.config_mut().write(offset, width, value);
    }

    /// A read at `offset` of what base address register `bar` decodes, except for MSI-X
    /// structures. It lies in the range but may be unaligned. Bits above the width are ignored.
    fn bar_read(&mut self, bar: u8, offset: u64, width: Width) -> u64;

    /// A write likewise. Bits of `value` above the width are 0.
    fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64);
}

/// Where a function is on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    device: u8,
    function: u8,
}

impl Slot {
    /// Function 0 of `device` (below 32).
    pub const fn new(device: u8) -> Self {
        Self::with_function(device, 0)
    }

    /// `function` (below 8) of `device` (below 32).
    pub const fn with_function(device: u8, function: u8) -> Self {
        assert!(device < 32 && function < 8);
        Self { device, function }
    }

    /// From the device and function number of a configuration address.
    pub(crate) const fn from_number(number: u8) -> Self {
        Self::with_function(number >> 3, number & 7)
    }

    /// The number that [`Slot::from_number`] takes.
    pub(crate) const fn number(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The device, below 32.
    pub const fn device(self) -> u8 {
        self.device
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}.{}", self.device, self.function)
    }
}

/// Two functions for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PCI slot {0} is taken")]
pub struct SlotTaken(pub Slot);

/// A range of addresses and who answers there.
struct Route {
    slot: Slot,
    decoded: Decoded,
    function: Shared<dyn Function>,
}

/// Who answers at an address.
pub(crate) struct Target {
    function: Shared<dyn Function>,
    bar: u8,
    offset: u64,
}

impl Target {
    fn read(&self, width: Width) -> u64 {
        let mut function = lock(&self.function);
        match function.config().msix_read(self.bar, self.offset, width) {
            Some(value) => value,
            None => function.bar_read(self.bar, self.offset, width) & width.ones(),
        }
    }

    fn write(&self, width: Width, value: u64) {
        let mut function = lock(&self.function);
        let config = function.config_mut();
        if !config.msix_write(self.bar, self.offset, width, value) {
            function.bar_write(self.bar, self.offset, width, value);
        }
    }
}

/// The root complex of a machine with one bus.
pub struct Root {
    functions: RwLock<BTreeMap<Slot, Shared<dyn Function>>>,
    /// What the functions decode now. It is taken last and held only for a look or a change.
    routes: RwLock<Vec<Route>>,
    /// CONFIG_ADDRESS of the legacy ports.
    address: AtomicU32,
    router: Arc<Router>,
    msi: Msi,
}

impl Root {
    /// An empty bus whose interrupt pins end in `lines` (GSI 16 to 19).
    pub fn new(lines: [InterruptLine; 4], msi: Msi) -> Arc<Self> {
        Arc::new(Self {
            functions: RwLock::default(),
            routes: RwLock::default(),
            address: AtomicU32::new(0),
            router: Router::new(lines),
            msi,
        })
    }

    /// The interrupt wires of the function in `slot`, whose pin is always INTA#.
    pub fn wires(&self, slot: Slot) -> Wires {
        Wires {
            intx: self.router.pin(slot),
            msi: self.msi.clone(),
        }
    }

    /// Plugs `function` in.
    ///
    /// # Errors
    /// If there is one already.
    pub fn add(&self, slot: Slot, function: Shared<dyn Function>) -> Result<(), SlotTaken> {
        let decoded = lock(&function).config().decoded();
        {
            let mut functions = self
                .functions
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if functions.contains_key(&slot) {
                return Err(SlotTaken(slot));
            }
            functions.insert(slot, function.clone());
        }
        self.route(slot, &function, decoded);
        Ok(())
    }

    /// All functions, by slot.
    pub(crate) fn functions(&self) -> Vec<(Slot, Shared<dyn Function>)> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions
            .iter()
            .map(|(slot, f)| (*slot, f.clone()))
            .collect()
    }

    fn function(&self, slot: Slot) -> Option<Shared<dyn Function>> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.get(&slot).cloned()
    }

    fn route(&self, slot: Slot, function: &Shared<dyn Function>, decoded: Vec<Decoded>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.retain(|route| route.slot != slot);
        routes.extend(decoded.into_iter().map(|decoded| Route {
            slot,
            decoded,
            function: function.clone(),
        }));
        // Who answers where ranges overlap must not depend on who moved last: a restored bus does
        // not know.
        routes.sort_by_key(|route| route.slot);
    }

    fn target(&self, decoder: Decoder, address: u64, width: Width) -> Option<Target> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        // Few routes, and ranges that overlap by a guest's mistake: the lowest slot answers.
        let route = routes.iter().find(|route| {
            let range = route.decoded;
            range.decoder == decoder
                && address >= range.base
                && address - range.base <= range.len - (width.bytes() as u64).min(range.len)
        })?;
        Some(Target {
            function: route.function.clone(),
            bar: route.decoded.bar,
            offset: address - route.decoded.base,
        })
    }

    /// Reads memory space; all ones where no function answers.
    pub fn memory_read(&self, address: u64, width: Width) -> u64 {
        let target = self.target(Decoder::Memory, address, width);
        target.map_or(width.ones(), |target| target.read(width))
    }

    /// Writes memory space; lost where no function answers.
    pub fn memory_write(&self, address: u64, width: Width, value: u64) {
        if let Some(target) = self.target(Decoder::Memory, address, width) {
            target.write(width, value & width.ones());
        }
    }

    /// Reads a port; all ones where no function answers.
    pub fn io_read(&self, port: u16, width: Width) -> u32 {
        let target = self.target(Decoder::Io, port.into(), width);
        target.map_or(width.ones(), |target| target.read(width)) as u32
    }

    /// Writes a port; lost where no function answers.
    pub fn io_write(&self, port: u16, width: Width, value: u32) {
        if let Some(target) = self.target(Decoder::Io, port.into(), width) {
            target.write(width, u64::from(value) & width.ones());
        }
    }

    /// Reads configuration space; all ones where there is no function, and for accesses across 4
    /// bytes, which can't be on the bus.
    pub fn config_read(&self, slot: Slot, offset: u16, width: Width) -> u32 {
        match self.function(slot) {
            Some(function) if within_dword(offset, width) => {
                lock(&function).config_read(offset, width) & width.ones() as u32
            }
            _ => width.ones() as u32,
        }
    }

    /// Writes configuration space.
    pub fn config_write(&self, slot: Slot, offset: u16, width: Width, value: u32) {
        let Some(function) = self.function(slot) else {
            return;
        };
        if !within_dword(offset, width) {
            return;
        }
        let mut held = lock(&function);
        held.config_write(offset, width, value & width.ones() as u32);
        if moves_ranges(offset) {
            // Under the function's lock, so that of two writes the later one routes last.
            let decoded = held.config().decoded();
            self.route(slot, &function, decoded);
        }
    }

    /// CONFIG_ADDRESS (PCI 3.0, 3.2.2.3.2).
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn set_address(&self, value: u32) {
        // Bits 30:24 and 1:0 are reserved.
        self.address.store(value & 0x80ff_fffc, Ordering::Relaxed);
    }

    /// Resets the root and every function.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        for (slot, function) in self.functions() {
            let mut held = lock(&function);
            held.reset();
            let decoded = held.config().decoded();
            self.route(slot, &function, decoded);
        }
    }

    /// Saves the root under `instance` and every function under `instance/slot`.
    pub fn save(&self, instance: &str, out: &mut state::Writer) {
        let Self {
            functions: _,
            // Derived from the functions.
            routes: _,
            router: _,
            address,
            msi: _,
        } = self;
        let address = address.load(Ordering::Relaxed);
        out.put(instance, &RootV1 { address });
        for (slot, function) in self.functions() {
            lock(&function).save(&format!("{instance}/{slot}"), out);
        }
    }

    /// Restores what [`Root::save`] saved, into a bus with the same functions.
    ///
    /// # Errors
    /// If the root's or a function's state is missing or can't be.
    pub fn restore(&self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error> {
        let RootV1 { address } = from.take(instance)?;
        self.set_address(address);
        for (slot, function) in self.functions() {
            let mut held = lock(&function);
            held.restore(&format!("{instance}/{slot}"), from)?;
            let decoded = held.config().decoded();
            self.route(slot, &function, decoded);
        }
        Ok(())
    }
}

/// The saved state of a [`Root`] itself.
#[derive(Debug, Serialize, Deserialize)]
struct RootV1 {
    address: u32,
}

impl Saved for RootV1 {
    const KIND: &'static str = "pci-root";
    const VERSION: u16 = 1;
}

fn within_dword(offset: u16, width: Width) -> bool {
    usize::from(offset % 4) + width.bytes() <= 4
}

/// Whether a write in the 4 bytes at `offset` can change what a function decodes.
fn moves_ranges(offset: u16) -> bool {
    let at = usize::from(offset) & !3;
    at == spec::COMMAND || (spec::BARS..spec::BARS + 24).contains(&at)
}

#[cfg(test)]
mod tests;
