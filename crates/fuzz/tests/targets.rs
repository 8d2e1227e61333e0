//! Every target for a moment, with the same inputs on every run.

use fuzz::{Campaign, TARGETS};
use std::time::Duration;

const SEED: u64 = 1;
const TIME: Duration = Duration::from_secs(2);

fn run(name: &str) {
    let target = fuzz::target(name).expect("a target of this name");
    let campaign = Campaign {
        target,
        seed: SEED,
        time: TIME,
        current: None,
    };
    assert!(campaign.run() > 0);
}

/// The package for libFuzzer has a program for each target.
#[test]
fn no_guided_target_is_forgotten() {
    let manifest = include_str!("../../../fuzz/Cargo.toml");
    for target in TARGETS {
        let bin = format!("name = \"{0}\"\npath = \"targets/{0}.rs\"", target.name);
        assert!(manifest.contains(&bin), "{}", target.name);
    }
}

/// One test for each target, so that they run in parallel and fail apart.
macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn no_target_is_forgotten() {
            let mut here = vec![$(stringify!($name)),*];
            let mut there: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            here.sort_unstable();
            there.sort_unstable();
            assert_eq!(here, there);
        }
    };
}

targets!(
    kernel,
    state,
    chipset_acpi_pm,
    chipset_hpet,
    chipset_i8042,
    chipset_ioapic,
    chipset_pic,
    chipset_pit,
    chipset_ports,
    chipset_rtc,
    chipset_uart,
    guest_code,
    lapic,
    pci,
    virtio_console,
    virtio_rng,
);
