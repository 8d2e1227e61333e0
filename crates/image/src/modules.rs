//! Kernel modules: which to take, what they need, and the index that modprobe reads.
//!
//! Source: modules.dep(5), and the `.modinfo` section of a module: strings `KEY=VALUE`, each with
//! a NUL at its end. A kernel package has no `modules.dep`; it is made on installation.

use crate::deb;
use crate::error::Error;
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Modules that a guest on our machine may want. Those that are built in, or not there, are left
/// out.
const WANTED: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_rng"];

/// What the wanted ones are known to need: a hint that saves a second look into the package.
const LIKELY: [&str; 4] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
];

/// The longest module, unpacked.
const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Rounds of looking for modules that others need.
const ROUNDS_MAX: usize = 8;

/// A module, unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its path below `lib/modules/RELEASE`, without a compressor's suffix.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    depends: Vec<String>,
}

/// Modules by name, with everything that they need.
#[derive(Debug, Default)]
pub(crate) struct Modules(BTreeMap<String, Module>);

impl Modules {
    /// Takes the wanted modules out of the kernel package `deb`.
    pub(crate) fn read(deb: &Path) -> Result<Self, Error> {
        let mut modules = BTreeMap::new();
        let mut missing: Vec<String> = WANTED
            .iter()
            .chain(&LIKELY)
            .map(|&name| name.to_owned())
            .collect();
        for _ in 0..ROUNDS_MAX {
            let found = deb::read_files(deb, |path| {
                module_name(path).is_some_and(|name| missing.contains(&name))
            })?;
            let before = modules.len();
            for (path, content) in found {
                let module = Module::new(&path, content).map_err(|reason| Error::Package {
                    file: deb.to_owned(),
                    reason: format!("{}: {reason}", path.display()),
                })?;
                modules.extend(module_name(&path).map(|name| (name, module)));
            }
            missing = modules
                .values()
                .flat_map(|module: &Module| &module.depends)
                .filter(|name| !modules.contains_key(*name))
                .cloned()
                .collect();
            if missing.is_empty() || modules.len() == before {
                break;
            }
        }
        match missing.first() {
            Some(name) => Err(Error::Package {
                file: deb.to_owned(),
                reason: format!("it lacks the module {name}, which others need"),
            }),
            None => Ok(Self(modules)),
        }
    }

    /// The modules.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }

    /// The index that modprobe reads: each module with all it needs, the last to be loaded first.
    pub(crate) fn index(&self) -> String {
        let mut index = String::new();
        for module in self.iter() {
            let mut needed = Vec::new();
            self.add_needed(module, &mut needed);
            index.push_str(&module.path);
            index.push(':');
            for path in needed.iter().rev() {
                index.push(' ');
                index.push_str(path);
            }
            index.push('\n');
        }
        index
    }

    /// Adds what `module` needs, in the order of loading. A cycle ends at what it began with.
    fn add_needed<'a>(&'a self, module: &'a Module, needed: &mut Vec<&'a str>) {
        for next in module.depends.iter().filter_map(|name| self.0.get(name)) {
            if next.path != module.path && !needed.contains(&next.path.as_str()) {
                // Reserve the place against cycles, then move it behind what it needs.
                needed.push(&next.path);
                self.add_needed(next, needed);
                needed.retain(|path| *path != next.path);
                needed.push(&next.path);
            }
        }
    }
}

/// The name of the module in the file `path`, as the kernel spells it.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let file = file
        .strip_suffix(".xz")
        .or_else(|| file.strip_suffix(".zst"))
        .unwrap_or(file);
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
}

impl Module {
    fn new(path: &Path, content: Vec<u8>) -> Result<Self, String> {
        let content = unpack(path, content).map_err(|error| error.to_string())?;
        let depends = depends(&content).ok_or("it is not a kernel module")?;
        let path = below_release(path).ok_or("it is not where modules belong")?;
        let path = path.to_str().ok_or("its path is no text")?;
        let path = path
            .trim_end_matches(".xz")
            .trim_end_matches(".zst")
            .to_owned();
        Ok(Self {
            path,
            content,
            depends,
        })
    }
}

/// The part of `path` below `[usr/]lib/modules/RELEASE`.
fn below_release(path: &Path) -> Option<PathBuf> {
    let path = path
        .strip_prefix("usr")
        .unwrap_or(path)
        .strip_prefix("lib/modules")
        .ok()?;
    Some(path.components().skip(1).collect())
}

fn unpack(path: &Path, content: Vec<u8>) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut unpacked = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => deb::xz(&content[..])?
            .take(MODULE_BYTES_MAX)
            .read_to_end(&mut unpacked)?,
        Some("zst") => zstd::Decoder::new(&content[..])?
            .take(MODULE_BYTES_MAX)
            .read_to_end(&mut unpacked)?,
        _ => return Ok(content),
    };
    Ok(unpacked)
}

/// The names that a module's `depends` lists; `None` if it is no module.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let file = object::File::parse(module).ok()?;
    let information = file.section_by_name(".modinfo")?.data().ok()?;
    let value = information
        .split(|&byte| byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="))
        .unwrap_or_default();
    let names = str::from_utf8(value)
        .ok()?
        .split(',')
        .filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str]) -> (String, Module) {
        let name = module_name(Path::new(path)).unwrap();
        let depends = depends.iter().map(|&name| name.to_owned()).collect();
        (
            name,
            Module {
                path: path.to_owned(),
                content: Vec::new(),
                depends,
            },
        )
    }

    #[test]
    fn the_index_lists_all_that_is_needed_the_last_to_load_first() {
        let modules = Modules(BTreeMap::from([
            module("a.ko", &["b", "c"]),
            module("b.ko", &["d"]),
            module("c.ko", &["d"]),
            module("d.ko", &[]),
        ]));
        assert_eq!(
            modules.index(),
            "a.ko: c.ko b.ko d.ko\nb.ko: d.ko\nc.ko: d.ko\nd.ko:\n"
        );
    }

    #[test]
    fn a_cycle_ends() {
        let modules = Modules(BTreeMap::from([
            module("a.ko", &["b"]),
            module("b.ko", &["a"]),
        ]));
        assert!(modules.index().starts_with("a.ko: "));
    }

    #[test]
    fn names_and_paths() {
        let path = Path::new("usr/lib/modules/6.1/kernel/drivers/virtio-rng.ko.xz");
        assert_eq!(module_name(path).unwrap(), "virtio_rng");
        assert_eq!(
            below_release(path).unwrap(),
            Path::new("kernel/drivers/virtio-rng.ko.xz")
        );
        assert_eq!(module_name(Path::new("a/modules.order")), None);
        assert_eq!(below_release(Path::new("boot/vmlinuz")), None);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        for content in [&b""[..], b"\x7fELF", &[0x7f; 4096]] {
            assert_eq!(depends(content), None);
        }
    }
}
