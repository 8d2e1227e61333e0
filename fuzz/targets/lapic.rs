#![no_main]

guided::target!("lapic");
