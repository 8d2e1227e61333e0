#![no_main]

guided::target!("guest_code");
