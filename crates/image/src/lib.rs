//! Guests made from Debian's packages.
//!
//! [`debian`] fetches Debian's stock cloud kernel and a static busybox with the host's apt, in an
//! apt root of its own, and makes a kernel and an initrd of them, cached for the next run.
//! [`Session`] says what such a guest runs, and how its output, input and exit status pass.
//!
//! - `sources`, `apt`, `version`: which packages there are, and their download;
//! - `deb`, `modules`: what is taken out of them;
//! - `cpio`, `initramfs` (with `init.sh`, the guest's process 1): what is made of it;
//! - `store`: the cache;
//! - `guest`: all of that in order;
//! - `packages`: packages for other uses;
//! - `session`: the ports between guest and monitor.
#![forbid(unsafe_code)]

mod apt;
mod cpio;
mod deb;
mod error;
mod guest;
mod initramfs;
mod modules;
mod packages;
mod progress;
mod session;
mod sources;
mod store;
mod version;

pub use cpio::Archive;
pub use error::Error;
pub use guest::{Freshness, GuestSpec, KernelChoice, Options, debian};
pub use packages::{
    download_packages, download_sources, packages, packages_with_dependencies, unpack_package,
};
pub use progress::{Event, Progress, Silent, Stage};
pub use session::{
    Command, Control, ControlReader, Input, Session, Size, StdinEncoder, Streams, Terminal,
    resize_line,
};
pub use store::Guest;
