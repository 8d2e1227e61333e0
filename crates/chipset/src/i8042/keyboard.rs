//! A PS/2 keyboard (IBM PS/2 Hardware Interface Technical Reference, "Keyboards"): scan code set 2
//! on the wire, set 1 on demand, 16 bytes of buffer.

use serde::{Deserialize, Serialize};
use state::Invalid;
use std::collections::VecDeque;

/// Prefix of a released key's code in scan code set 2.
pub(super) const BREAK: u8 = 0xf0;
/// Prefix of the keys that the first PC did not have.
const EXTENDED: u8 = 0xe0;
/// Sent in place of what the buffer had no room for (set 2).
const OVERRUN: u8 = 0x00;
/// Bytes of key codes that are kept.
const KEY_BYTES_MAX: usize = 16;
/// Bytes of answers that are kept beyond them; no command has a longer one.
const ANSWER_BYTES_MAX: usize = 4;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const IDENTITY: [u8; 2] = [0xab, 0x83];

/// A key, by its code in scan code set 1: `0x01..=0x7f`, or `0xe0XX` for an extended key, or
/// [`Key::PAUSE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub u16);

impl Key {
    /// Pause, whose code is a sequence of its own.
    pub const PAUSE: Self = Self(0xe11d);
    /// Print Screen, which simulates a shift key.
    pub const PRINT_SCREEN: Self = Self(0xe037);
}

/// The 8042's translation of set 2 into set 1, for codes below 0x80.
const TRANSLATION: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// What the controller makes of a byte from the keyboard.
pub(super) fn translate(byte: u8) -> u8 {
    match byte {
        0..=0x7f => TRANSLATION[usize::from(byte)],
        // F7, and Print Screen with Alt.
        0x83 => 0x41,
        0x84 => 0x54,
        _ => byte,
    }
}

/// The set 2 code that [`translate`] makes `code` of.
fn set2(code: u8) -> Option<u8> {
    // These two have a second, unused code below 0x80.
    match code {
        0x41 => Some(0x83),
        0x54 => Some(0x84),
        _ => (0..0x80).find(|c| TRANSLATION[usize::from(*c)] == code),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Set {
    One,
    Two,
}

/// The command whose parameter comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Awaits {
    Command,
    Leds,
    Set,
    Rate,
}

#[derive(Debug)]
pub(super) struct Keyboard {
    answers: VecDeque<u8>,
    keys: VecDeque<u8>,
    scanning: bool,
    set: Set,
    awaits: Awaits,
    leds: u8,
    rate: u8,
    last_sent: u8,
}

/// The saved state of a keyboard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeyboardState {
    answers: Vec<u8>,
    keys: Vec<u8>,
    scanning: bool,
    set: Set,
    awaits: Awaits,
    leds: u8,
    rate: u8,
    last_sent: u8,
}

impl Keyboard {
    /// A keyboard that passed its self test while nobody listened.
    pub(super) fn new() -> Self {
        Self {
            answers: VecDeque::new(),
            keys: VecDeque::new(),
            scanning: true,
            set: Set::Two,
            awaits: Awaits::Command,
            leds: 0,
            // 10.9 characters a second after 500 ms.
            rate: 0x2b,
            last_sent: 0,
        }
    }

    /// The next byte on the wire.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.answers.pop_front().or_else(|| self.keys.pop_front())?;
        if byte != RESEND {
            self.last_sent = byte;
        }
        Some(byte)
    }

    pub(super) fn key(&mut self, key: Key, pressed: bool) {
        if !self.scanning {
            return;
        }
        let Some(codes) = self.codes(key, pressed) else {
            return;
        };
        if self.keys.len() + codes.len() <= KEY_BYTES_MAX {
            self.keys.extend(codes);
        } else if self.keys.back() != Some(&OVERRUN) && self.keys.len() < KEY_BYTES_MAX + 1 {
            self.keys.push_back(OVERRUN);
        }
    }

    /// The bytes for a key in the current set; `None` if there is no such key.
    fn codes(&self, key: Key, pressed: bool) -> Option<Vec<u8>> {
        if key == Key::PAUSE {
            // Its release has no code.
            return pressed.then(|| match self.set {
                Set::One => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
                Set::Two => vec![0xe1, 0x14, 0x77, 0xe1, BREAK, 0x14, BREAK, 0x77],
            });
        }
        let [prefix, code] = key.0.to_be_bytes();
        if !matches!(prefix, 0 | EXTENDED) || !(1..0x80).contains(&code) {
            return None;
        }
        let extended = prefix == EXTENDED;
        if key != Key::PRINT_SCREEN {
            return self.code(extended, code, pressed);
        }
        // A left shift that is not there goes down before it and up after it.
        let shift = self.code(true, 0x2a, pressed)?;
        let key = self.code(true, 0x37, pressed)?;
        Some(if pressed { [shift, key] } else { [key, shift] }.concat())
    }

    fn code(&self, extended: bool, code: u8, pressed: bool) -> Option<Vec<u8>> {
        let mut codes = Vec::with_capacity(3);
        if extended {
            codes.push(EXTENDED);
        }
        match self.set {
            Set::One => codes.push(code | if pressed { 0 } else { 0x80 }),
            Set::Two => {
                if !pressed {
                    codes.push(BREAK);
                }
                codes.push(set2(code)?);
            }
        }
        Some(codes)
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        // A new command ends the answer to the one before.
        self.answers.clear();
        match std::mem::replace(&mut self.awaits, Awaits::Command) {
            // Parameters are below 0x80; what is above is a command instead.
            Awaits::Leds if byte < 0x80 => self.leds = byte & 7,
            Awaits::Rate if byte < 0x80 => self.rate = byte,
            Awaits::Set if byte < 0x80 => return self.select_set(byte),
            _ => return self.simple_command(byte),
        }
        self.answers.push_back(ACK);
    }

    fn select_set(&mut self, byte: u8) {
        match byte {
            0 => self
                .answers
                .extend([ACK, if self.set == Set::One { 1 } else { 2 }]),
            1 => self.set = Set::One,
            2 => self.set = Set::Two,
            _ => {
                self.answers.push_back(RESEND);
                return;
            }
        }
        if byte != 0 {
            self.keys.clear();
            self.answers.push_back(ACK);
        }
    }

    fn simple_command(&mut self, byte: u8) {
        match byte {
            0xed => self.awaits = Awaits::Leds,
            0xee => return self.answers.push_back(0xee),
            0xf0 => self.awaits = Awaits::Set,
            0xf2 => return self.answers.extend([ACK, IDENTITY[0], IDENTITY[1]]),
            0xf3 => self.awaits = Awaits::Rate,
            0xf4 => {
                self.keys.clear();
                self.scanning = true;
            }
            0xf5 => self.defaults(false),
            0xf6 => self.defaults(true),
            // Key types, which only set 3 has.
            0xf7..=0xfa => {}
            0xfe => return self.answers.push_back(self.last_sent),
            0xff => {
                self.defaults(true);
                return self.answers.extend([ACK, SELF_TEST_PASSED]);
            }
            _ => return self.answers.push_back(RESEND),
        }
        self.answers.push_back(ACK);
    }

    fn defaults(&mut self, scanning: bool) {
        let last_sent = self.last_sent;
        let leds = self.leds;
        *self = Self::new();
        self.last_sent = last_sent;
        self.leds = leds;
        self.scanning = scanning;
    }

    pub(super) fn save(&self) -> KeyboardState {
        let Self {
            answers,
            keys,
            scanning,
            set,
            awaits,
            leds,
            rate,
            last_sent,
        } = self;
        KeyboardState {
            answers: answers.iter().copied().collect(),
            keys: keys.iter().copied().collect(),
            scanning: *scanning,
            set: *set,
            awaits: *awaits,
            leds: *leds,
            rate: *rate,
            last_sent: *last_sent,
        }
    }

    pub(super) fn restored(state: KeyboardState) -> Result<Self, Invalid> {
        let KeyboardState {
            answers,
            keys,
            scanning,
            set,
            awaits,
            leds,
            rate,
            last_sent,
        } = state;
        if answers.len() > ANSWER_BYTES_MAX || keys.len() > KEY_BYTES_MAX + 1 {
            return Err(Invalid::new(
                "the keyboard has more to send than it can keep",
            ));
        }
        Ok(Self {
            answers: answers.into(),
            keys: keys.into(),
            scanning,
            set,
            awaits,
            leds,
            rate,
            last_sent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_102_key_keyboard_survives_the_translation() {
        let plain = (0x01..=0x53).chain([0x56, 0x57, 0x58]);
        for code in plain {
            let byte = set2(code).unwrap_or_else(|| panic!("{code:#x} has no set 2 code"));
            assert_eq!(translate(byte), code);
        }
    }

    #[test]
    fn known_codes() {
        // A, Enter, F7, F12.
        for (set1, expected) in [(0x1e, 0x1c), (0x1c, 0x5a), (0x41, 0x83), (0x58, 0x07)] {
            assert_eq!(set2(set1), Some(expected));
        }
    }
}
