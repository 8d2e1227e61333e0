#![no_main]

guided::target!("state");
