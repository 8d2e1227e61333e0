//! How a build tells what it does. Nothing in this crate prints.

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for another process that builds into the same cache.
    Waiting,
    /// Fetching the lists of packages.
    Lists,
    /// Fetching packages.
    Download,
    /// Taking files out of packages.
    Unpack,
    /// Writing the guest.
    Write,
}

/// One piece of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A stage begins.
    Stage(Stage),
    /// How far the stage is.
    Advance {
        /// Done so far, up to `total`.
        done: u64,
        /// The whole: bytes in [`Stage::Download`], thousandths in [`Stage::Lists`].
        total: u64,
    },
    /// Something that the user should know though it is no error: one line.
    Note(&'a str),
}

/// Takes the news of a build.
pub trait Progress {
    /// Called on the building thread; must not block for long.
    fn report(&mut self, event: Event<'_>);
}

/// Any closure will do.
impl<F: FnMut(Event<'_>)> Progress for F {
    fn report(&mut self, event: Event<'_>) {
        self(event);
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&mut self, _: Event<'_>) {}
}
