//! The PC's chips: PIC, PIT, IOAPIC, HPET, RTC, ACPI power management, UART, i8042
