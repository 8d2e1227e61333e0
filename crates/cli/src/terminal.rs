//! The host's terminal: raw mode and size.

use image::Size;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stdin, stdout};

/// Puts the terminal on standard input into raw mode, until dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` if standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether both ends of the terminal are there.
pub(crate) fn is_interactive() -> bool {
    isatty(stdin()) && isatty(stdout())
}

/// The terminal's size.
pub(crate) fn size() -> Option<Size> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal as the guest is told of it.
pub(crate) fn describe() -> image::Terminal {
    image::Terminal {
        kind: std::env::var_os("TERM"),
        size: size(),
    }
}
