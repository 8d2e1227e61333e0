//! The way to gdb: a TCP or Unix socket, read by a thread of its own.
//!
//! The thread takes one caller after the other. What it hears goes into a short queue, and
//! [`Event::Debugger`] tells the machine's owner to look there. The message is always queued
//! before the event is sent, so an owner that looks after each event misses nothing.

use crate::control::Event;
use gdbstub::conn::Connection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that may wait; then the reader waits.
const QUEUE_MAX: usize = 16;
/// Bytes that are read at once.
const CHUNK: usize = 4096;
/// After this time without taking what it is sent, a debugger is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the reader heard.
pub(super) enum Message {
    Connected(Stream),
    Bytes(Vec<u8>),
    Closed,
}

/// A connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Prepares it for small packets to a reader that may be hostile.
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))
            }
            Self::Unix(stream) => stream.set_write_timeout(Some(WRITE_TIMEOUT)),
        }
    }

    fn shut_down(&self) {
        // It may be gone already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => Write::write_all(stream, bytes),
            Self::Unix(stream) => Write::write_all(stream, bytes),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept()?.0),
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
        })
    }
}

/// Where debuggers call.
pub(super) struct Port {
    pub(super) messages: Receiver<Message>,
    pub(super) events: Sender<Event>,
    /// As gdb's `target remote` takes it.
    pub(super) address: String,
    /// A socket file of ours, removed at the end.
    file: Option<PathBuf>,
}

impl Port {
    /// Listens at `:PORT` (on the loopback interface), `HOST:PORT` or the path of a new Unix
    /// socket, which is what has a slash or no port.
    pub(super) fn open(address: &str, events: Sender<Event>) -> io::Result<Self> {
        let (listener, address, file) = match host_and_port(address) {
            Some((host, port)) => {
                let listener = match host {
                    "" => TcpListener::bind((Ipv4Addr::LOCALHOST, port))?,
                    _ => TcpListener::bind(address)?,
                };
                let at = listener.local_addr()?.to_string();
                (Listener::Tcp(listener), at, None)
            }
            None => {
                let path = Path::new(address);
                let listener = UnixListener::bind(path)?;
                let port = (
                    Listener::Unix(listener),
                    address.to_owned(),
                    Some(path.to_owned()),
                );
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                port
            }
        };
        let (sender, messages) = sync_channel(QUEUE_MAX);
        let reader = Reader {
            sender,
            events: events.clone(),
        };
        std::thread::Builder::new()
            .name("gdb".to_owned())
            .spawn(move || while reader.hear(&listener).is_some() {})?;
        Ok(Self {
            messages,
            events,
            address,
            file,
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    if host.contains('/') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

struct Reader {
    sender: SyncSender<Message>,
    events: Sender<Event>,
}

impl Reader {
    /// Takes the next caller and hears all it says. `None` when nobody listens to us any more.
    fn hear(&self, listener: &Listener) -> Option<()> {
        let caller = listener.accept().and_then(|stream| {
            stream.prepare()?;
            Ok((stream.try_clone()?, stream))
        });
        let Ok((writer, mut stream)) = caller else {
            // Out of descriptors, or the caller has hung up: try again, but don't spin.
            std::thread::sleep(Duration::from_millis(100));
            return Some(());
        };
        self.tell(Message::Connected(writer))?;
        let mut buffer = [0; CHUNK];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.tell(Message::Bytes(buffer[..count].to_vec()))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.tell(Message::Closed)
    }

    fn tell(&self, message: Message) -> Option<()> {
        self.sender.send(message).ok()?;
        self.events.send(Event::Debugger).ok()
    }
}

/// The writing half, as the protocol needs it. Packets are sent whole, at each flush.
pub(super) struct Wire {
    stream: Stream,
    packet: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            packet: Vec::new(),
        }
    }

    /// Shows `text` on gdb's console. Allowed only while gdb waits for the guest to stop
    /// ("Debugging with GDB", "Stop Reply Packets", `O`).
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        let mut body = "O".to_owned();
        for byte in text.bytes() {
            body += &format!("{byte:02x}");
        }
        let sum = body.bytes().fold(0u8, u8::wrapping_add);
        self.write_all(format!("${body}#{sum:02x}").as_bytes())?;
        self.flush()
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.packet.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.packet.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let packet = std::mem::take(&mut self.packet);
        self.stream.write_all(&packet)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // What is still to be sent matters to nobody. The reader hears the end.
        let _ = self.flush();
        self.stream.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(host_and_port(":1234"), Some(("", 1234)));
        assert_eq!(host_and_port("localhost:1"), Some(("localhost", 1)));
        assert_eq!(host_and_port("[::1]:1234"), Some(("[::1]", 1234)));
        for path in ["/run/gdb:1", "gdb.sock", "./a:b", "x:65536", ":"] {
            assert_eq!(host_and_port(path), None, "{path}");
        }
    }
}
