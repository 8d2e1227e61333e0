//! The end of a run, as those learn of it who may be waiting for something else.
//!
//! While a console's reader takes nothing, the guest's processor waits in the console's write, as
//! on a line with flow control. The machine can't be paused then: so the word that it is to end
//! reaches that write by itself.

use machine::Event;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use signal_hook::consts::SIGPIPE;
use std::io::{Result, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

/// Whether the machine is to end, whatever the guest does. Clones say the same.
#[derive(Clone)]
pub(crate) struct Ending(Arc<Inner>);

struct Inner {
    /// Readable once outputs are no longer worth waiting for.
    declared: OwnedFd,
    /// The signal that was the reason, or 0.
    signal: AtomicI32,
    owner: OnceLock<Sender<Event>>,
}

impl Ending {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            declared: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            signal: AtomicI32::new(0),
            owner: OnceLock::new(),
        })))
    }

    /// Whom to tell: the owner of the machine.
    pub(crate) fn tell(&self, owner: Sender<Event>) {
        // A second owner there is not.
        let _ = self.0.owner.set(owner);
    }

    /// The user wants it.
    pub(crate) fn quit(&self) {
        self.release();
        if let Some(owner) = self.0.owner.get() {
            // The owner may be gone already.
            let _ = owner.send(Event::Quit);
        }
    }

    /// `signal` came; the first one is the reason.
    pub(crate) fn signalled(&self, signal: i32) {
        let _ = self
            .0
            .signal
            .compare_exchange(0, signal, Ordering::AcqRel, Ordering::Relaxed);
        self.quit();
    }

    /// The signal that was the reason, if one was.
    pub(crate) fn signal(&self) -> Option<u8> {
        match self.0.signal.load(Ordering::Acquire) {
            0 => None,
            signal => Some(signal as u8),
        }
    }

    /// Lets outputs that wait for their readers return, from now on at once.
    pub(crate) fn release(&self) {
        // It can't be full: nobody reads it, and it is written a handful of times.
        let _ = rustix::io::write(&self.0.declared, &1u64.to_ne_bytes());
    }

    /// Writes some of `bytes` to `to` as soon as it takes any. What it has not taken when the end
    /// comes is lost.
    pub(crate) fn write(&self, to: impl AsFd, bytes: &[u8]) -> Result<usize> {
        // A pipe that is ready takes as much without blocking (pipe(7), PIPE_BUF).
        let some = &bytes[..bytes.len().min(rustix::pipe::PIPE_BUF)];
        loop {
            let mut ready = [
                PollFd::new(&to, PollFlags::OUT),
                PollFd::new(&self.0.declared, PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if ready[0].revents().is_empty() {
                return Ok(bytes.len());
            }
            match rustix::io::write(&to, some) {
                // Others may fill it in between, or have made it non-blocking.
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// Standard output, unbuffered. When its reader goes, so does the machine.
pub(crate) struct Stdout(pub(crate) Ending);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.0.write(std::io::stdout(), bytes);
        if let Err(error) = &written
            && error.kind() == std::io::ErrorKind::BrokenPipe
        {
            self.0.signalled(SIGPIPE);
        }
        written
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Standard error.
pub(crate) struct Stderr(pub(crate) Ending);

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.write(std::io::stderr(), bytes)
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;

    #[test]
    fn an_output_that_waits_returns_when_the_end_comes() {
        let ending = Ending::new().unwrap();
        let (_reader, writer) = pipe().unwrap();
        let output = std::thread::spawn({
            let ending = ending.clone();
            move || {
                for _ in 0..1000 {
                    ending.write(&writer, &[0; 4096]).unwrap();
                }
            }
        });
        ending.signalled(15);
        ending.signalled(2);
        output.join().unwrap();
        assert_eq!(ending.signal(), Some(15));
    }

    #[test]
    fn nothing_is_lost_before() {
        use std::io::Read;
        let ending = Ending::new().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let text: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let expected = text.clone();
        let output = std::thread::spawn(move || {
            let mut rest = &text[..];
            while !rest.is_empty() {
                rest = &rest[ending.write(&writer, rest).unwrap()..];
            }
        });
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        output.join().unwrap();
        assert_eq!(seen, expected);
    }

    #[test]
    fn who_writes_to_nobody_is_told() {
        let ending = Ending::new().unwrap();
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let error = ending.write(&writer, b"x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}
