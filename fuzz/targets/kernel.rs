#![no_main]

guided::target!("kernel");
