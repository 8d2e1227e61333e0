#![no_main]

guided::target!("chipset_pic");
