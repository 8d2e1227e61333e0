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

/// How many routes there may be: one for each vector that there is. The kernel keeps as many for I/O
/// APICs; it counts them in a byte, so that 256 would be none.
pub(crate) const ROUTES: u32 = 256 - FIRST_VECTOR;
/// The least vector of an interrupt (SDM vol. 3, 11.5.2).
const FIRST_VECTOR: u32 = 16;

/// The physical destination of all local APICs.
pub(crate) const TO_ALL: u64 = 0xfee0_0000 | 0xff << 12;
/// A message's data: level-triggered, asserted.
const LEVEL: u32 = 3 << 14;

/// The routes of a machine.
pub(crate) struct Routes {
    /// By vector, from [`FIRST_VECTOR`] on: where its level-triggered messages go, or 0.
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
        let Some(known) = self.of(vector) else {
            // No local APIC takes it.
            return Ok(());
        };
        let known = known.load(Ordering::Acquire);
        if known == address || known == TO_ALL {
            return Ok(());
        }
        self.add(vm, vector, address)
    }

    /// Where messages with `vector` go; `None` if there is no such interrupt.
    fn of(&self, vector: u8) -> Option<&AtomicU64> {
        let gsi = u32::from(vector).checked_sub(FIRST_VECTOR)?;
        self.addresses.get(gsi as usize)
    }

    #[cold]
    fn add(&self, vm: &dyn VmCalls, vector: u8, address: u64) -> Result<()> {
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = self.of(vector) else {
            return Ok(());
        };
        let address = match known.load(Ordering::Acquire) {
            0 => address,
            same if same == address => return Ok(()),
            _ => TO_ALL,
        };
        let entries = (0..ROUTES).zip(&self.addresses);
        let routes: Vec<_> = entries
            .filter_map(|(gsi, known)| {
                let there = known.load(Ordering::Acquire);
                let routed = gsi + FIRST_VECTOR;
                let address = if routed == vector.into() {
                    address
                } else {
                    there
                };
                (address != 0).then_some(Route {
                    gsi,
                    address,
                    data: LEVEL | routed,
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
    fn the_kernels_count_of_routes_has_a_byte() {
        assert!(u8::try_from(ROUTES).is_ok());
        let vm = VmRecorder::new();
        let routes = Routes::new();
        routes.expect(&vm, 255, 0xfee0_1000).unwrap();
        routes.expect(&vm, 16, 0xfee0_1000).unwrap();
        routes.expect(&vm, 15, 0xfee0_1000).unwrap();
        assert_eq!(vm.take_log().len(), 2, "15 is an exception's");
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
