#![no_main]

guided::target!("pci");
