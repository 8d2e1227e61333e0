//! A PS/2 mouse (IBM PS/2 Hardware Interface Technical Reference, "Auxiliary Device"), with the
//! wheel and the two extra buttons that Microsoft's IntelliMouse protocols add once they are
//! unlocked by a sequence of sample rates.

use serde::{Deserialize, Serialize};
use state::Invalid;
use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// Bytes of packets that are kept for a host that does not fetch them.
const PACKET_BYTES_MAX: usize = 16 * 4;
/// No answer is longer: an acknowledgement and a packet.
const ANSWER_BYTES_MAX: usize = 5;

/// Buttons that are down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buttons {
    /// The left one.
    pub left: bool,
    /// The right one.
    pub right: bool,
    /// The middle one, or the wheel.
    pub middle: bool,
    /// The fourth.
    pub back: bool,
    /// The fifth.
    pub forward: bool,
}

impl Buttons {
    fn basic(self) -> u8 {
        u8::from(self.left) | u8::from(self.right) << 1 | u8::from(self.middle) << 2
    }
}

/// The protocol, by the device id that it answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Protocol {
    Standard = 0,
    Wheel = 3,
    FiveButtons = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Awaits {
    Command,
    Resolution,
    Rate,
}

#[derive(Debug)]
pub(super) struct Mouse {
    answers: VecDeque<u8>,
    packets: VecDeque<u8>,
    protocol: Protocol,
    awaits: Awaits,
    /// Sends nothing but what it is told, until told to stop.
    wrap: bool,
    /// Sends packets on request only.
    remote: bool,
    reporting: bool,
    double: bool,
    resolution: u8,
    /// The last three sample rates, newest last.
    rates: [u8; 3],
    /// Movement not yet sent.
    dx: i32,
    dy: i32,
    dz: i32,
    buttons: Buttons,
    last_sent: u8,
}

/// The saved state of a mouse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MouseState {
    answers: Vec<u8>,
    packets: Vec<u8>,
    protocol: Protocol,
    awaits: Awaits,
    wrap: bool,
    remote: bool,
    reporting: bool,
    double: bool,
    resolution: u8,
    rates: [u8; 3],
    dx: i32,
    dy: i32,
    dz: i32,
    buttons: Buttons,
    last_sent: u8,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            answers: VecDeque::new(),
            packets: VecDeque::new(),
            protocol: Protocol::Standard,
            awaits: Awaits::Command,
            wrap: false,
            remote: false,
            reporting: false,
            double: false,
            resolution: 2,
            rates: [0, 0, 100],
            dx: 0,
            dy: 0,
            dz: 0,
            buttons: Buttons::default(),
            last_sent: 0,
        }
    }

    /// The next byte on the wire.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self
            .answers
            .pop_front()
            .or_else(|| self.packets.pop_front())?;
        self.last_sent = byte;
        // Movement that had to wait goes out once the host has caught up.
        if self.packets.is_empty() && self.streaming() && (self.dx, self.dy, self.dz) != (0, 0, 0) {
            let packet = self.packet();
            self.packets.extend(packet);
        }
        Some(byte)
    }

    fn streaming(&self) -> bool {
        self.reporting && !self.remote && !self.wrap
    }

    pub(super) fn moved(&mut self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        if self.wrap || !(self.reporting || self.remote) {
            self.buttons = buttons;
            return;
        }
        self.dx = self.dx.saturating_add(dx);
        self.dy = self.dy.saturating_add(dy);
        self.dz = self.dz.saturating_add(dz);
        let changed = self.buttons != buttons || (self.dx, self.dy, self.dz) != (0, 0, 0);
        self.buttons = buttons;
        if changed && self.streaming() && self.packets.len() + 4 <= PACKET_BYTES_MAX {
            let packet = self.packet();
            self.packets.extend(packet);
        }
    }

    /// Takes what one packet can tell out of the pending movement.
    fn packet(&mut self) -> Vec<u8> {
        let dx = take(&mut self.dx, 255);
        let dy = take(&mut self.dy, 255);
        let signs = u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        let mut packet = vec![0x08 | signs | self.buttons.basic(), dx as u8, dy as u8];
        match self.protocol {
            Protocol::Standard => self.dz = 0,
            Protocol::Wheel => packet.push(take(&mut self.dz, 7) as u8),
            Protocol::FiveButtons => {
                let more = u8::from(self.buttons.back) | u8::from(self.buttons.forward) << 1;
                packet.push(take(&mut self.dz, 7) as u8 & 0x0f | more << 4);
            }
        }
        packet
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        self.answers.clear();
        if self.wrap && !matches!(byte, 0xec | 0xff) {
            return self.answers.push_back(byte);
        }
        match std::mem::replace(&mut self.awaits, Awaits::Command) {
            Awaits::Resolution if byte < 4 => self.resolution = byte,
            Awaits::Rate if matches!(byte, 10 | 20 | 40 | 60 | 80 | 100 | 200) => {
                self.rates = [self.rates[1], self.rates[2], byte];
            }
            _ => return self.simple_command(byte),
        }
        self.answers.push_back(ACK);
    }

    fn simple_command(&mut self, byte: u8) {
        let answer: Vec<u8> = match byte {
            0xe6 | 0xe7 => {
                self.double = byte == 0xe7;
                vec![]
            }
            0xe8 => {
                self.awaits = Awaits::Resolution;
                vec![]
            }
            0xe9 => vec![self.status(), self.resolution, self.rates[2]],
            0xea => {
                self.remote = false;
                self.drop_movement();
                vec![]
            }
            0xeb => self.packet(),
            0xec => {
                self.wrap = false;
                vec![]
            }
            0xee => {
                self.wrap = true;
                vec![]
            }
            0xf0 => {
                self.remote = true;
                self.drop_movement();
                vec![]
            }
            0xf2 => vec![self.identify()],
            0xf3 => {
                self.awaits = Awaits::Rate;
                vec![]
            }
            0xf4 | 0xf5 => {
                self.reporting = byte == 0xf4;
                self.drop_movement();
                vec![]
            }
            0xf6 => {
                let protocol = self.protocol;
                self.defaults();
                self.protocol = protocol;
                vec![]
            }
            0xfe => return self.answers.push_back(self.last_sent),
            0xff => {
                self.defaults();
                vec![0xaa, 0]
            }
            _ => return self.answers.push_back(RESEND),
        };
        self.answers.push_back(ACK);
        self.answers.extend(answer);
    }

    fn defaults(&mut self) {
        let (buttons, last_sent) = (self.buttons, self.last_sent);
        *self = Self::new();
        self.buttons = buttons;
        self.last_sent = last_sent;
    }

    fn drop_movement(&mut self) {
        self.packets.clear();
        (self.dx, self.dy, self.dz) = (0, 0, 0);
    }

    fn status(&self) -> u8 {
        let Buttons {
            left,
            right,
            middle,
            back: _,
            forward: _,
        } = self.buttons;
        u8::from(right)
            | u8::from(middle) << 1
            | u8::from(left) << 2
            | u8::from(self.double) << 4
            | u8::from(self.reporting) << 5
            | u8::from(self.remote) << 6
    }

    /// Answers with the id, after the sequences of rates that unlock the other protocols.
    fn identify(&mut self) -> u8 {
        match self.rates {
            [200, 100, 80] => self.protocol = Protocol::Wheel,
            [200, 200, 80] => self.protocol = Protocol::FiveButtons,
            _ => {}
        }
        self.protocol as u8
    }

    pub(super) fn save(&self) -> MouseState {
        let Self {
            answers,
            packets,
            protocol,
            awaits,
            wrap,
            remote,
            reporting,
            double,
            resolution,
            rates,
            dx,
            dy,
            dz,
            buttons,
            last_sent,
        } = self;
        MouseState {
            answers: answers.iter().copied().collect(),
            packets: packets.iter().copied().collect(),
            protocol: *protocol,
            awaits: *awaits,
            wrap: *wrap,
            remote: *remote,
            reporting: *reporting,
            double: *double,
            resolution: *resolution,
            rates: *rates,
            dx: *dx,
            dy: *dy,
            dz: *dz,
            buttons: *buttons,
            last_sent: *last_sent,
        }
    }

    pub(super) fn restored(state: MouseState) -> Result<Self, Invalid> {
        let MouseState {
            answers,
            packets,
            protocol,
            awaits,
            wrap,
            remote,
            reporting,
            double,
            resolution,
            rates,
            dx,
            dy,
            dz,
            buttons,
            last_sent,
        } = state;
        if answers.len() > ANSWER_BYTES_MAX || packets.len() > PACKET_BYTES_MAX || resolution > 3 {
            return Err(Invalid::new("not a state of a PS/2 mouse"));
        }
        Ok(Self {
            answers: answers.into(),
            packets: packets.into(),
            protocol,
            awaits,
            wrap,
            remote,
            reporting,
            double,
            resolution,
            rates,
            dx,
            dy,
            dz,
            buttons,
            last_sent,
        })
    }
}

/// Takes up to `limit` in either direction out of `pending`.
fn take(pending: &mut i32, limit: i32) -> i32 {
    let part = (*pending).clamp(-limit, limit);
    *pending -= part;
    part
}
