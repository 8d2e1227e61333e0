//! Which ends of interrupts leave the kernel.
//!
//! An I/O APIC waits for the end of a level-triggered interrupt. With split irqchip the kernel tells
//! it ([`crate::run_page::RunExit::EndOfInterrupt`]) for vectors that have a route with a
//! level-triggered message (api.rst, KVM_CAP_SPLIT_IRQCHIP). A route is added when the first such
//! message of a vector is sent, and stays. The kernel looks at destinations, too, so that a vCPU
//! that uses the vector for something else is not slowed down; if messages of one vector go to
//! several places, the route goes to all vCPUs.

use crate::calls::{Route, VmCalls};
use std::io::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many routes there may be: one for each vector. The kernel keeps as many for I/O APICs.
pub(crate) const ROUTES: u32 = 256;

/// The physical destination of all local APICs.
pub(crate) const TO_ALL: u64 = 0xfee0_0000 | 0xff << 12;
/// A message's data: level-triggered, asserted.
const LEVEL: u32 = 3 << 14;
const DELIVERY: u32 = 7 << 8;

/// The routes of a machine.
pub(crate) struct Routes {
    /// By vector: where its level-triggered messages go, or 0.
    addresses: [AtomicU64; ROUTES as usize],
    /// Held while the kernel is told.
    telling: Mutex<()>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self {
            addresses: [const { AtomicU64::new(0) }; ROUTES as usize],
            telling: Mutex::new(()),
        }
    }

    /// A level-triggered message with `vector` is about to be sent to `address`: makes sure that its
    /// end is told. One load, but for the first.
    pub(crate) fn expect(&self, vm: &dyn VmCalls, vector: u8, address: u64) -> Result<()> {
        let known = self.addresses[usize::from(vector)].load(Ordering::Acquire);
        if known == address || known == TO_ALL {
            return Ok(());
        }
        self.add(vm, vector, address)
    }

    #[cold]
    fn add(&self, vm: &dyn VmCalls, vector: u8, address: u64) -> Result<()> {
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &self.addresses[usize::from(vector)];
        let address = match known.load(Ordering::Acquire) {
            0 => address,
            same if same == address => return Ok(()),
            _ => TO_ALL,
        };
        let entries = (0..ROUTES).zip(&self.addresses);
        let routes: Vec<_> = entries
            .filter_map(|(gsi, known)| {
                let there = known.load(Ordering::Acquire);
                let address = if gsi == vector.into() { address } else { there };
                (address != 0).then_some(Route {
                    gsi,
                    address,
                    data: LEVEL | gsi & !DELIVERY,
                })
            })
            .collect();
        vm.set_routes(&routes)?;
        known.store(address, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::VmRecorder;

    #[test]
    fn the_kernel_is_told_of_a_vector_once() {
        let vm = VmRecorder::new();
        let routes = Routes::new();
        for _ in 0..3 {
            routes.expect(&vm, 0x31, 0xfee0_1000).unwrap();
        }
        assert_eq!(vm.take_log(), ["routes 0x31 to 0xfee01000"]);
        routes.expect(&vm, 0x42, 0xfee0_0000).unwrap();
        assert_eq!(
            vm.take_log(),
            ["routes 0x31 to 0xfee01000, 0x42 to 0xfee00000"]
        );
    }

    #[test]
    fn a_vector_with_two_destinations_is_told_by_all() {
        let vm = VmRecorder::new();
        let routes = Routes::new();
        for address in [0xfee0_1000, 0xfee0_2000, 0xfee0_1000, 0xfee0_3000] {
            routes.expect(&vm, 0x31, address).unwrap();
        }
        assert_eq!(
            vm.take_log(),
            ["routes 0x31 to 0xfee01000", "routes 0x31 to 0xfeeff000"]
        );
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_again() {
        let vm = VmRecorder::new();
        let routes = Routes::new();
        vm.refuse_next();
        assert!(routes.expect(&vm, 0x31, 0xfee0_1000).is_err());
        vm.take_log();
        routes.expect(&vm, 0x31, 0xfee0_1000).unwrap();
        assert_eq!(vm.take_log(), ["routes 0x31 to 0xfee01000"]);
    }
}
