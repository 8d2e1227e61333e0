#![no_main]

guided::target!("chipset_i8042");
