//! Where the guest's consoles are on the host.

use crate::args::ConsoleAt;
use crate::ending::{Ending, Stdout};
use crate::keys::{Keys, Typed};
use anyhow::{Context, Result};
use machine::{ConsoleInput, Event};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write, stdin};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// The last of what a console printed: a guest may print for ever.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<VecDeque<u8>>>);

impl Log {
    const BYTES_MAX: usize = 64 << 10;

    /// The text so far.
    pub(crate) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes.iter().copied().collect::<Vec<_>>()).into_owned()
    }

    /// Forgets it: the guest starts anew.
    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// A writer that also writes to `also`.
    pub(crate) fn tee(&self, also: Option<Box<dyn Write + Send>>) -> Box<dyn Write + Send> {
        Box::new(Tee {
            log: self.clone(),
            also,
        })
    }

    /// The line in which a Linux kernel says why it panicked, if it did.
    pub(crate) fn panic(&self) -> Option<String> {
        let text = self.text();
        let at = text.rfind("Kernel panic - not syncing")?;
        Some(
            text[at..]
                .lines()
                .next()
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
        )
    }
}

struct Tee {
    log: Log,
    also: Option<Box<dyn Write + Send>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        {
            let mut log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
            log.extend(bytes);
            let excess = log.len().saturating_sub(Log::BYTES_MAX);
            log.drain(..excess);
        }
        match &mut self.also {
            Some(also) => also.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.also.as_mut().map_or(Ok(()), |also| also.flush())
    }
}

/// A console's two directions on the host.
pub(crate) struct Ends {
    pub(crate) output: Option<Box<dyn Write + Send>>,
    pub(crate) input: Source,
    /// Kept until the end.
    pub(crate) socket: Option<SocketFile>,
}

/// A socket's name in the file system, which goes when this is dropped.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where a console's input comes from.
pub(crate) enum Source {
    /// Standard input, with or without escapes.
    Stdin,
    /// A file that is read to its end.
    File(File),
    /// Whoever connects, one at a time.
    Socket(UnixListener, Peer),
    Nowhere,
}

/// The one who is connected, if there is one.
type Peer = Arc<Mutex<Option<Arc<UnixStream>>>>;

impl Ends {
    /// Opens the console that the user asked for.
    pub(crate) fn open(at: &ConsoleAt, ending: &Ending) -> Result<Self> {
        match at {
            ConsoleAt::Stdio => Ok(Self {
                output: Some(Box::new(Stdout(ending.clone()))),
                input: Source::Stdin,
                socket: None,
            }),
            ConsoleAt::None => Ok(Self {
                output: None,
                input: Source::Nowhere,
                socket: None,
            }),
            ConsoleAt::Pty => Self::pty().context("can't open a pseudo-terminal"),
            ConsoleAt::Socket(path) => {
                let listener = UnixListener::bind(path).with_context(|| {
                    format!(
                        "can't listen at {}: remove it if it is a rest",
                        path.display()
                    )
                })?;
                let peer = Peer::default();
                let output = Box::new(SocketOutput {
                    peer: peer.clone(),
                    ending: ending.clone(),
                });
                Ok(Self {
                    output: Some(output),
                    input: Source::Socket(listener, peer),
                    socket: Some(SocketFile(path.clone())),
                })
            }
        }
    }

    fn pty() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        // Held open, so that output is kept while nobody is connected.
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_string_lossy().as_ref())?;
        let mut raw = rustix::termios::tcgetattr(&slave)?;
        raw.make_raw();
        rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw)?;
        eprintln!("doppel: the console is at {}", name.to_string_lossy());
        let master = File::from(master);
        // A terminal that nobody reads must not stop the guest.
        rustix::io::ioctl_fionbio(&master, false)?;
        let output = PtyOutput {
            master: master.try_clone()?,
            _slave: slave,
        };
        Ok(Self {
            output: Some(Box::new(output)),
            input: Source::File(master),
            socket: None,
        })
    }
}

struct PtyOutput {
    master: File,
    _slave: File,
}

impl Write for PtyOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut ready = [PollFd::new(&self.master, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut ready, Some(&now)) {
            Ok(1) => self.master.write(bytes),
            // Nobody reads and the buffer is full: lost, as on an unconnected line.
            _ => Ok(bytes.len()),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct SocketOutput {
    peer: Peer,
    ending: Ending,
}

impl Write for SocketOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = peer.clone() else {
            return Ok(bytes.len());
        };
        // Who has hung up can be written to no more; it is taken away where it is read.
        drop(peer);
        Ok(self.ending.write(&*stream, bytes).unwrap_or(bytes.len()))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that brings `source` to the guest.
///
/// `escapes`: whether Ctrl-a is the monitor's, as on a terminal.
pub(crate) fn feed(
    source: Source,
    input: ConsoleInput,
    events: Sender<Event>,
    ending: Ending,
    escapes: bool,
) {
    let name = "console".to_owned();
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || match source {
            Source::Stdin if escapes => type_in(&input, &events, &ending),
            Source::Stdin => copy(&mut stdin(), &input),
            Source::File(mut file) => copy(&mut file, &input),
            Source::Socket(listener, peer) => serve(&listener, &peer, &input),
            Source::Nowhere => {}
        });
    // Without the thread there is just no input.
    drop(thread);
}

fn copy(from: &mut dyn Read, input: &ConsoleInput) {
    let mut buffer = [0; 4096];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 || !input.send(&buffer[..len]) {
            break;
        }
    }
}

fn serve(listener: &UnixListener, peer: &Peer, input: &ConsoleInput) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let stream = Arc::new(stream);
        *peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.clone());
        copy(&mut &*stream, input);
        *peer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Copies what is typed on the terminal, with escapes.
fn type_in(input: &ConsoleInput, events: &Sender<Event>, ending: &Ending) {
    let mut keys = Keys::default();
    let mut monitor: Option<crate::monitor::LineEditor> = None;
    let mut buffer = [0; 4096];
    while let Ok(len) = stdin().read(&mut buffer) {
        if len == 0 {
            break;
        }
        for typed in keys.sort(&buffer[..len]) {
            match typed {
                Typed::End => ending.quit(),
                Typed::Monitor if monitor.is_some() => {
                    monitor = None;
                    crate::monitor::leave();
                }
                Typed::Monitor => monitor = Some(crate::monitor::LineEditor::start()),
                Typed::Input(bytes) => match &mut monitor {
                    Some(editor) => {
                        for line in editor.push(&bytes) {
                            let _ = events.send(Event::Request(line));
                        }
                    }
                    None => {
                        if !input.send(&bytes) {
                            return;
                        }
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_name_goes_with_the_console() {
        let directory = tempfile::tempdir().unwrap();
        let at = ConsoleAt::Socket(directory.path().join("console"));
        let ending = Ending::new().unwrap();
        for _ in 0..2 {
            let console = Ends::open(&at, &ending).unwrap();
            assert!(Ends::open(&at, &ending).is_err(), "it is taken");
            drop(console);
        }
    }
}
