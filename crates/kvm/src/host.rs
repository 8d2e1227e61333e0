//! KVM on this host: whether it is there, whether we may use it, and whether it can what the
//! engine needs.

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_EXT_CPUID,
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MP_STATE, KVM_CAP_READONLY_MEM, KVM_CAP_SET_GUEST_DEBUG,
    KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SREGS2, KVM_CAP_TSC_CONTROL,
    KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY, KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_VCPU_EVENTS,
    KVM_CAP_XCRS, KVM_CAP_XSAVE, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES,
};
use std::ffi::CString;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use x86::cpuid::{Answer, Feature, FeatureSet, Table};

/// The device node.
const DEVICE: &str = "/dev/kvm";

/// What the engine needs, by the names of linux/kvm.h, with the first Linux that has it.
const NEEDED: [(&str, u32, &str); 15] = [
    ("KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY, "2.6.25"),
    ("KVM_CAP_EXT_CPUID", KVM_CAP_EXT_CPUID, "2.6.26"),
    ("KVM_CAP_MP_STATE", KVM_CAP_MP_STATE, "2.6.26"),
    ("KVM_CAP_SET_GUEST_DEBUG", KVM_CAP_SET_GUEST_DEBUG, "2.6.30"),
    ("KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, "2.6.33"),
    ("KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, "2.6.33"),
    ("KVM_CAP_DEBUGREGS", KVM_CAP_DEBUGREGS, "2.6.35"),
    ("KVM_CAP_XSAVE", KVM_CAP_XSAVE, "2.6.36"),
    ("KVM_CAP_XCRS", KVM_CAP_XCRS, "2.6.36"),
    ("KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI, "3.5"),
    ("KVM_CAP_READONLY_MEM", KVM_CAP_READONLY_MEM, "3.7"),
    ("KVM_CAP_SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP, "4.5"),
    ("KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT, "4.11"),
    ("KVM_CAP_SREGS2", KVM_CAP_SREGS2, "5.14"),
    ("KVM_CAP_VCPU_ATTRIBUTES", KVM_CAP_VCPU_ATTRIBUTES, "5.16"),
];

/// Why KVM can't be used here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device node is not there.
    #[error(
        "there is no {0}: the host's CPU has no hardware virtualization, or its firmware or \
         kernel module (kvm_intel, kvm_amd) does not enable it; --engine translator needs none"
    )]
    NoDevice(String),
    /// The device node may not be opened.
    #[error(
        "no permission to use {device}: become a member of its group '{group}' (usermod -aG \
         {group} USER, then log in again), or use --engine translator"
    )]
    NoPermission {
        /// The device node.
        device: String,
        /// The name of its group.
        group: String,
    },
    /// Not even members of its group may open it.
    #[error(
        "no permission to use {device}, which is its owner's alone, not its group's ('{group}'): \
         have it opened to a group (chgrp kvm {device}; chmod 660 {device}), or use --engine \
         translator"
    )]
    OwnersOnly {
        /// The device node.
        device: String,
        /// The name of its group.
        group: String,
    },
    /// The device node can't be opened for another reason.
    #[error("can't open {0}: {1}")]
    Open(String, #[source] io::Error),
    /// Something else answers, or a KVM of another age.
    #[error("{device} speaks version {found} of KVM's interface, not {KVM_API_VERSION}")]
    Version {
        /// The device node.
        device: String,
        /// What it answered.
        found: i32,
    },
    /// The kernel is too old, or its KVM can less than others.
    #[error(
        "this host's KVM lacks {name}, which Linux {since} and newer have on most hosts: use \
         --engine translator"
    )]
    Lacks {
        /// The capability, as in linux/kvm.h.
        name: &'static str,
        /// The first Linux that has it.
        since: &'static str,
    },
}

/// Why the engine can't be made.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// KVM can't be used here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// More vCPUs than the host's KVM has.
    #[error("this host's KVM runs up to {most} CPUs in a machine, not {asked}: give fewer")]
    Cpus {
        /// How many were wanted.
        asked: usize,
        /// How many there can be.
        most: usize,
    },
    /// The TSC can't have the frequency that the machine wants.
    #[error(
        "this host's KVM can't give a guest a TSC of {asked} kHz, only the host's, {host} kHz: it \
         can't scale it"
    )]
    Tsc {
        /// What was wanted.
        asked: u64,
        /// The frequency of the host's.
        host: u64,
    },
    /// An ioctl that should not fail did.
    #[error("KVM refuses {0}: {1}")]
    Call(&'static str, #[source] io::Error),
}

impl NewError {
    /// For `map_err`: `what` was refused.
    pub(crate) fn call<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Call(what, error.into())
    }
}

/// The host's KVM, opened and found good.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: kvm_ioctls::Kvm,
}

impl Host {
    /// Opens the host's KVM.
    ///
    /// # Errors
    /// If it is not there, may not be used, or lacks something.
    pub fn open() -> Result<Self, HostError> {
        Self::open_at(Path::new(DEVICE))
    }

    fn open_at(device: &Path) -> Result<Self, HostError> {
        let name = || device.display().to_string();
        let path = CString::new(device.as_os_str().as_encoded_bytes()).expect("no NUL in it");
        let kvm = match kvm_ioctls::Kvm::open_with_cloexec_at(path, true) {
            Ok(descriptor) => owned(descriptor),
            Err(error) => {
                let error = io::Error::from(error);
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => HostError::NoDevice(name()),
                    io::ErrorKind::PermissionDenied => no_permission(device),
                    _ if error.raw_os_error() == Some(libc::ENXIO)
                        || error.raw_os_error() == Some(libc::ENODEV) =>
                    {
                        HostError::NoDevice(name())
                    }
                    _ => HostError::Open(name(), error),
                });
            }
        };
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(HostError::Version {
                device: name(),
                found,
            });
        }
        missing(|capability| kvm.check_extension_raw(capability.into()) > 0)?;
        Ok(Self { kvm })
    }

    /// The features of CPUs that the host can give its guests, and whose registers are part of a
    /// saved state: those of AVX-512 are not.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn features(&self) -> Result<FeatureSet, HostError> {
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| HostError::Open(DEVICE.to_owned(), error.into()))?;
        let mut table = Table::new();
        for entry in supported.as_slice() {
            let answer = Answer {
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
            };
            match entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX {
                0 => table.set(entry.function, answer),
                _ => table.set_subleaf(entry.function, entry.index, answer),
            }
        }
        // The kernel does not show what its local APIC can (api.rst, KVM_GET_SUPPORTED_CPUID).
        let has_deadline = self
            .kvm
            .check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into())
            > 0;
        let apic: &[_] = match has_deadline {
            true => &[Feature::X2Apic, Feature::TscDeadline],
            false => &[Feature::X2Apic],
        };
        let avx512 = FeatureSet::of(&[Feature::Avx512f]);
        let without_state = avx512.union(avx512.with_dependents());
        let features = FeatureSet::of_table(&table).union(FeatureSet::of(apic));
        Ok(features.without(without_state))
    }

    /// The frequency of the TSC, in kHz, that a guest can have: `wanted` where the host can scale
    /// its own, else the host's.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn tsc_khz(&self, wanted: u64) -> Result<u64, NewError> {
        if self.kvm.check_extension_raw(KVM_CAP_TSC_CONTROL.into()) > 0 {
            return Ok(wanted);
        }
        let vm = self.kvm.create_vm().map_err(NewError::call("a VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(NewError::call("a vCPU"))?;
        let khz = vcpu
            .get_tsc_khz()
            .map_err(NewError::call("the TSC's frequency"))?;
        Ok(khz.into())
    }
}

/// The first capability of [`NEEDED`] that `has` does not know.
fn missing(has: impl Fn(u32) -> bool) -> Result<(), HostError> {
    match NEEDED.iter().find(|(_, capability, _)| !has(*capability)) {
        None => Ok(()),
        Some((name, _, since)) => Err(HostError::Lacks { name, since }),
    }
}

#[expect(unsafe_code, reason = "a raw descriptor becomes an owned one")]
fn owned(descriptor: std::os::fd::RawFd) -> kvm_ioctls::Kvm {
    // UNSAFETY: `kvm-ioctls` opens a path only as a raw descriptor.
    // SAFETY: just opened, and nobody else's.
    unsafe { kvm_ioctls::Kvm::from_raw_fd(descriptor) }
}

/// Who may open `device`, as far as that can be told.
fn no_permission(device: &Path) -> HostError {
    let metadata = std::fs::metadata(device);
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let (id, mode) = metadata.map_or((0, 0), |m| (m.gid(), m.mode()));
    let group = group_name(&groups, id);
    let device = device.display().to_string();
    // Read and write for the group.
    if mode & 0o060 == 0o060 {
        HostError::NoPermission { device, group }
    } else {
        HostError::OwnersOnly { device, group }
    }
}

/// The name of group `id` in the text of group(5), or the number itself.
fn group_name(groups: &str, id: u32) -> String {
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_or_is_none_is_named() {
        let error = Host::open_at(Path::new("/dev/no-such-kvm")).unwrap_err();
        assert!(matches!(error, HostError::NoDevice(_)));
        assert!(error.to_string().contains("/dev/no-such-kvm"), "{error}");
        // It opens, but does not know the ioctl.
        let error = Host::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, HostError::Version { .. }), "{error}");
    }

    #[test]
    fn who_may_open_a_device_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let device = std::env::temp_dir().join(format!("kvm-{}", std::process::id()));
        std::fs::write(&device, []).unwrap();
        for (mode, mend) in [(0o660, "usermod -aG"), (0o600, "chmod 660")] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&device, permissions).unwrap();
            let text = no_permission(&device).to_string();
            assert!(text.contains(mend) && text.lines().count() == 1, "{text}");
        }
        std::fs::remove_file(&device).unwrap();
    }

    #[test]
    fn the_group_of_a_device_has_a_name() {
        let groups = "root:x:0:\nkvm:x:104:alice,bob\nbroken\n";
        assert_eq!(group_name(groups, 104), "kvm");
        assert_eq!(group_name(groups, 7), "7");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing(|_| true).is_ok());
        for (name, capability, _) in NEEDED {
            let error = missing(|asked| asked != capability).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
