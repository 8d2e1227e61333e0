//! The PC's chips: PIC, PIT, IOAPIC, HPET, RTC, ACPI power management, UART, i8042.
//!
//! One module per chip. Each is handed its wires when it is made and knows neither an interrupt
//! number nor a vCPU; what connects to what is decided where the board is put together.
#![forbid(unsafe_code)]

pub mod acpi_pm;
mod bytewise;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod pic;
pub mod pit;
pub mod ports;
mod power;
pub mod rtc;
#[cfg(test)]
mod testing;
pub mod uart;

pub use acpi_pm::AcpiPm;
pub use hpet::{Hpet, HpetWires};
pub use ioapic::IoApic;
pub use pic::Pic;
pub use pit::Pit;
pub use power::{PowerControl, PowerRequest};
pub use rtc::{MemorySizes, Rtc};
pub use uart::{Uart, UartWires};
