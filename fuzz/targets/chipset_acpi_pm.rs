#![no_main]

guided::target!("chipset_acpi_pm");
