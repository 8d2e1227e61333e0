#![no_main]

guided::target!("virtio_console");
