//! Whether the host's KVM has guests run by the CPU: measured once, as it takes some milliseconds.

use crate::Error;
use kvm::Speed;
use std::sync::OnceLock;

static SPEED: OnceLock<Result<Speed, kvm::NewError>> = OnceLock::new();

/// How fast a guest runs under the host's KVM. It is measured at the first call.
///
/// # Errors
/// If the host has no KVM that can be used.
pub fn kvm_speed() -> Result<Speed, &'static kvm::NewError> {
    SPEED.get_or_init(kvm::speed).as_ref().copied()
}

/// Takes over what was measured before, since the host was booted. Has no effect once
/// [`kvm_speed`] knows.
pub fn assume_kvm_speed(speed: Speed) {
    // Whoever was first has the same.
    let _ = SPEED.set(Ok(speed));
}

/// Whether the host has a KVM that can be used, however fast it is.
pub fn has_kvm() -> bool {
    kvm::Host::open().is_ok()
}

/// Whether guests run on the CPU itself.
pub(crate) fn is_hardware() -> bool {
    kvm_speed().is_ok_and(Speed::is_hardware)
}

/// Why `auto` passes KVM over, if it does.
pub(crate) fn check() -> Result<(), Error> {
    match kvm_speed() {
        Ok(speed) if speed.is_hardware() => Ok(()),
        Ok(Speed { slowness }) => Err(Error::SlowKvm(slowness)),
        Err(problem) => Err(Error::NoKvm(problem)),
    }
}
