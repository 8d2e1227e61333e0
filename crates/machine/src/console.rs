//! Input of consoles: from a host thread to a device that takes little at a time.

use chipset::Uart;
use device::{Shared, lock};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A device that takes input bytes.
pub(crate) trait Receive: Send {
    /// Takes some of `bytes`; returns how many.
    fn receive(&mut self, bytes: &[u8]) -> usize;
}

impl Receive for Uart {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        Uart::receive(self, bytes)
    }
}

/// "There is room again", from a device to the thread that feeds it.
#[derive(Debug, Default)]
pub(crate) struct Room {
    state: Mutex<RoomState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct RoomState {
    /// The device said that it has room since the last attempt.
    open: bool,
    closed: bool,
}

impl Room {
    /// What the device calls. Takes no lock that is held while a device is called.
    pub(crate) fn callback(self: &Arc<Self>) -> Arc<dyn Fn() + Send + Sync> {
        let room = self.clone();
        Arc::new(move || {
            room.lock().open = true;
            room.changed.notify_all();
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RoomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room. Returns `false` if nobody will ever take input again.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        while !state.open && !state.closed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.open = false;
        !state.closed
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The input side of one console, for a thread of the host. Clones feed the same console.
#[derive(Clone)]
pub struct ConsoleInput {
    device: Shared<dyn Receive>,
    room: Arc<Room>,
}

impl ConsoleInput {
    pub(crate) fn new(device: Shared<dyn Receive>, room: Arc<Room>) -> Self {
        Self { device, room }
    }

    /// Hands `bytes` to the guest, all of them, as fast as it takes them. Returns `false` if the
    /// console was closed before.
    pub fn send(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        loop {
            let taken = lock(&self.device).receive(rest);
            rest = &rest[taken..];
            if rest.is_empty() {
                return true;
            }
            if !self.room.wait() {
                return false;
            }
        }
    }

    /// Lets a [`ConsoleInput::send`] that waits return.
    pub fn close(&self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slow {
        seen: Vec<u8>,
        room: Arc<dyn Fn() + Send + Sync>,
    }

    impl Receive for Slow {
        fn receive(&mut self, bytes: &[u8]) -> usize {
            let taken = bytes.len().min(3);
            self.seen.extend_from_slice(&bytes[..taken]);
            (self.room)();
            taken
        }
    }

    #[test]
    fn nothing_is_lost_on_the_way_to_a_slow_device() {
        let room = Arc::new(Room::default());
        let slow = device::shared(Slow {
            seen: Vec::new(),
            room: room.callback(),
        });
        let input = ConsoleInput::new(slow.clone(), room);
        let text: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        assert!(input.send(&text));
        assert_eq!(lock(&slow).seen, text);
    }

    #[test]
    fn a_closed_console_takes_no_more() {
        struct Full;
        impl Receive for Full {
            fn receive(&mut self, _: &[u8]) -> usize {
                0
            }
        }
        let input = ConsoleInput::new(device::shared(Full), Arc::default());
        let other = input.clone();
        let thread = std::thread::spawn(move || other.send(b"x"));
        input.close();
        assert!(!thread.join().unwrap());
    }
}
