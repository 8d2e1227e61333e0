//! The layers of the workspace (ARCHITECTURE.md), and the check that dependencies keep to them.
//!
//! Two rules, for every in-tree dependency, those of tests included:
//!
//! 1. It goes strictly down a layer.
//! 2. Below `machine`, the side of the devices and the side of the engines know nothing of each
//!    other: a device cannot name a vCPU, and an engine cannot name a device.

use crate::workspace::{self, Crate};
use anyhow::{Result, bail};

/// Which half of a machine a crate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// What both sides build on: may depend on neither.
    Ground,
    /// Devices and their buses.
    Device,
    /// CPUs, and what runs them.
    Engine,
    /// Where the sides meet, and everything above.
    Whole,
}

impl Side {
    /// Whether a crate of this side may depend on one of side `other`.
    fn may_name(self, other: Self) -> bool {
        self == Self::Whole || other == Self::Ground || other == self
    }
}

/// Every crate's place. A new crate gets a line here, a crate that goes takes its line along.
const PLACES: [(&str, u8, Side); 21] = [
    ("clock", 0, Side::Ground),
    ("memory", 0, Side::Ground),
    ("state", 0, Side::Ground),
    ("x86", 1, Side::Ground),
    ("config", 2, Side::Ground),
    ("device", 2, Side::Device),
    ("engine", 2, Side::Engine),
    ("lapic", 2, Side::Engine),
    ("native", 2, Side::Engine),
    ("boot", 3, Side::Ground),
    ("chipset", 3, Side::Device),
    ("interpreter", 3, Side::Engine),
    ("pci", 3, Side::Device),
    ("kvm", 4, Side::Engine),
    ("translator", 4, Side::Engine),
    ("virtio", 4, Side::Device),
    ("machine", 5, Side::Whole),
    ("image", 6, Side::Whole),
    ("cli", 8, Side::Whole),
    ("fuzz", 8, Side::Whole),
    ("xtask", 9, Side::Whole),
];

/// Checks the workspace.
pub(crate) fn run() -> Result<()> {
    let crates = workspace::crates()?;
    let wrong = violations(&crates);
    if !wrong.is_empty() {
        bail!(
            "layers (see xtask/src/layers.rs):\n  {}",
            wrong.join("\n  ")
        );
    }
    println!("{} crates keep to their layers", crates.len());
    Ok(())
}

/// What is wrong with the layers of `crates`, a line for each.
fn violations(crates: &[Crate]) -> Vec<String> {
    let mut wrong = Vec::new();
    for member in crates {
        let Some((layer, side)) = place(&member.name) else {
            wrong.push(format!("{} has no layer", member.name));
            continue;
        };
        for name in &member.depends_on {
            // One without a place is reported as a crate, or is no member.
            let Some((below, other)) = place(name) else {
                continue;
            };
            if below >= layer {
                let from = &member.name;
                wrong.push(format!(
                    "{from} (layer {layer}) depends on {name} (layer {below})"
                ));
            }
            if !side.may_name(other) {
                let from = &member.name;
                wrong.push(format!(
                    "{from} ({side:?} side) depends on {name} ({other:?} side)"
                ));
            }
        }
    }
    for (name, ..) in PLACES {
        if !crates.iter().any(|member| member.name == name) {
            wrong.push(format!(
                "{name} has a layer, but is no crate of the workspace"
            ));
        }
    }
    wrong
}

fn place(name: &str) -> Option<(u8, Side)> {
    PLACES
        .iter()
        .find(|place| place.0 == name)
        .map(|(_, layer, side)| (*layer, *side))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace in which no crate depends on another one, but for `name`.
    fn workspace(name: &str, depends_on: &[&str]) -> Vec<Crate> {
        let member = |other: &str| Crate {
            name: other.to_owned(),
            directory: Default::default(),
            depends_on: match other == name {
                true => depends_on.iter().map(|d| (*d).to_owned()).collect(),
                false => Vec::new(),
            },
        };
        PLACES.iter().map(|(name, ..)| member(name)).collect()
    }

    #[test]
    fn the_workspace_keeps_to_its_layers() {
        let wrong = violations(&workspace::crates().unwrap());
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn dependencies_go_down() {
        assert!(violations(&workspace("virtio", &["pci", "device", "memory"])).is_empty());
        for (name, depends_on) in [("pci", "virtio"), ("chipset", "pci"), ("pci", "pci")] {
            assert_eq!(
                violations(&workspace(name, &[depends_on])).len(),
                1,
                "{name}"
            );
        }
    }

    #[test]
    fn devices_and_engines_meet_in_machine_only() {
        assert_eq!(violations(&workspace("virtio", &["engine"])).len(), 1);
        assert_eq!(violations(&workspace("interpreter", &["device"])).len(), 1);
        assert_eq!(violations(&workspace("boot", &["device"])).len(), 1);
        assert!(violations(&workspace("machine", &["device", "engine"])).is_empty());
    }

    #[test]
    fn the_table_has_every_crate_and_no_other() {
        let mut crates = workspace("", &[]);
        crates[0].name = "new".to_owned();
        let gone = PLACES[0].0;
        assert_eq!(
            violations(&crates),
            [
                "new has no layer".to_owned(),
                format!("{gone} has a layer, but is no crate of the workspace")
            ]
        );
    }
}
