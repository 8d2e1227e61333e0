//! Exit statuses of `doppel run`.
//!
//! A guest command's own status comes through unchanged; those here are chosen where few programs
//! have theirs.

/// The guest switched itself off, or the user ended it.
pub(crate) const OK: u8 = 0;
/// What the user gave can't be used.
pub(crate) const USAGE: u8 = 2;
/// The guest's kernel panicked.
pub(crate) const PANIC: u8 = 120;
/// A vCPU shut down after a triple fault.
pub(crate) const TRIPLE_FAULT: u8 = 121;
/// The engine could not go on: our fault.
pub(crate) const ENGINE: u8 = 122;
/// `--timeout` has passed, as with timeout(1).
pub(crate) const TIMEOUT: u8 = 124;
/// Added to the number of the signal that ended `doppel`.
pub(crate) const SIGNAL: u8 = 128;

/// For the help.
pub(crate) const HELP: &str = "\
Exit status:
  of the command, where one is given; otherwise
  0    the guest switched itself off, or Ctrl-a x
  2    something given can't be used
  120  the guest's kernel panicked
  121  triple fault: the guest's CPU shut down
  122  the engine could not go on
  124  the time given with --timeout has passed
  128+N  signal N ended doppel; 141 is SIGPIPE: nobody reads its output any more

Keys on the console:
  Ctrl-a x  end the machine
  Ctrl-a c  monitor prompt
  Ctrl-a a  send Ctrl-a";
