//! The PC's keyboard controller (IBM PS/2 Hardware Interface Technical Reference, October 1990,
//! "Keyboard and Auxiliary Device Controller"; Intel 8042), with a keyboard and a mouse plugged in.
//!
//! [`Controller`] is the chip behind ports 0x60 and 0x64; `keyboard` and `mouse` are the two
//! devices on its serial links, each with a bounded queue of bytes to send. The links are
//! infinitely fast: a byte is in the output buffer as soon as that is empty and the link is
//! enabled, so nothing ever times out.

mod keyboard;
mod mouse;

pub use keyboard::Key;
pub use mouse::Buttons;

use crate::{PowerControl, bytewise};
use device::{Device, InterruptLine, PortIo, Width};
use keyboard::{Keyboard, KeyboardState};
use mouse::{Mouse, MouseState};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};
use std::sync::Arc;

/// Where data is read and written.
pub const DATA_PORT: u16 = 0x60;
/// Where the status is read and commands are written.
pub const COMMAND_PORT: u16 = 0x64;

/// Status register.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    /// The last write was a command.
    pub(super) const COMMAND: u8 = 1 << 3;
    /// The keyboard lock is open.
    pub(super) const UNLOCKED: u8 = 1 << 4;
    pub(super) const AUX_FULL: u8 = 1 << 5;
}

/// Controller command byte.
mod command_byte {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const AUX_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub(super) const AUX_DISABLED: u8 = 1 << 5;
    pub(super) const TRANSLATE: u8 = 1 << 6;
}

/// Output port.
mod output_port {
    /// Low resets the machine.
    pub(super) const NO_RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 4;
    pub(super) const AUX_INTERRUPT: u8 = 1 << 5;
    /// Clock and data lines of the links, idle.
    pub(super) const LINES: u8 = 0xc0;
}

use command_byte::*;

/// Where the byte in the output buffer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    /// The controller or the keyboard.
    Keyboard,
    /// The mouse.
    Aux,
}

/// What the next write to the data port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    /// The keyboard.
    Nothing,
    /// The controller's RAM, at this place.
    Ram(u8),
    OutputPort,
    KeyboardOutput,
    AuxOutput,
    AuxDevice,
}

/// The wires of a [`Controller`].
pub struct ControllerWires {
    /// The keyboard's interrupt.
    pub keyboard: InterruptLine,
    /// The auxiliary device's interrupt.
    pub aux: InterruptLine,
    /// High lets address line 20 through; high after reset.
    pub a20: InterruptLine,
    /// Takes the reset pulse.
    pub power: Arc<dyn PowerControl>,
}

/// The keyboard controller with its keyboard and mouse.
pub struct Controller {
    wires: ControllerWires,
    /// RAM; byte 0 is the command byte.
    ram: [u8; 32],
    output: Option<(u8, Source)>,
    last_output: u8,
    /// An answer of the controller itself that waits for the output buffer.
    answer: Option<(u8, Source)>,
    expects: Expects,
    last_write_was_command: bool,
    a20: bool,
    /// The translation saw a break prefix.
    break_prefix: bool,
    keyboard: Keyboard,
    mouse: Mouse,
    interrupts: (bool, bool),
}

impl Controller {
    /// A controller after power-on.
    pub fn new(wires: ControllerWires) -> Self {
        let controller = Self {
            wires,
            ram: initial_ram(),
            output: None,
            last_output: 0,
            answer: None,
            expects: Expects::Nothing,
            last_write_was_command: false,
            a20: true,
            break_prefix: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            interrupts: (false, false),
        };
        controller.wires.a20.set(true);
        controller
    }

    /// A key went down (again, when it repeats) or up. What the guest does not fetch is dropped
    /// beyond the keyboard's own buffer, as on a real one.
    pub fn key(&mut self, key: Key, pressed: bool) {
        self.keyboard.key(key, pressed);
        self.settle();
    }

    /// The mouse moved by (`dx`, `dy`), right and up positive, and its wheel by `dz` (towards the
    /// user positive), while `buttons` are down.
    pub fn mouse(&mut self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        self.mouse.moved(dx, dy, dz, buttons);
        self.settle();
    }

    fn flag(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    /// Fills the output buffer if it is empty and drives the interrupts.
    fn settle(&mut self) {
        if self.output.is_none() {
            self.output = self.next_output();
        }
        let keyboard = matches!(self.output, Some((_, Source::Keyboard)));
        let aux = matches!(self.output, Some((_, Source::Aux)));
        self.drive((
            keyboard && self.flag(KEYBOARD_INTERRUPT),
            aux && self.flag(AUX_INTERRUPT),
        ));
    }

    fn drive(&mut self, interrupts: (bool, bool)) {
        if interrupts.0 != self.interrupts.0 {
            self.wires.keyboard.set(interrupts.0);
        }
        if interrupts.1 != self.interrupts.1 {
            self.wires.aux.set(interrupts.1);
        }
        self.interrupts = interrupts;
    }

    fn next_output(&mut self) -> Option<(u8, Source)> {
        if let Some(answer) = self.answer.take() {
            return Some(answer);
        }
        if !self.flag(KEYBOARD_DISABLED) {
            while let Some(byte) = self.keyboard.send() {
                if let Some(byte) = self.translated(byte) {
                    return Some((byte, Source::Keyboard));
                }
            }
        }
        if !self.flag(AUX_DISABLED) {
            return self.mouse.send().map(|byte| (byte, Source::Aux));
        }
        None
    }

    /// What the controller makes of a byte of the keyboard: nothing of a break prefix, which
    /// becomes the top bit of the byte after it.
    fn translated(&mut self, byte: u8) -> Option<u8> {
        if !self.flag(TRANSLATE) {
            return Some(byte);
        }
        if byte == keyboard::BREAK {
            self.break_prefix = true;
            return None;
        }
        let release = if std::mem::take(&mut self.break_prefix) {
            0x80
        } else {
            0
        };
        Some(keyboard::translate(byte) | release)
    }

    fn status(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some((_, Source::Keyboard)) => status::OUTPUT_FULL,
            Some((_, Source::Aux)) => status::OUTPUT_FULL | status::AUX_FULL,
        };
        let system = if self.flag(SYSTEM) { status::SYSTEM } else { 0 };
        let command = if self.last_write_was_command {
            status::COMMAND
        } else {
            0
        };
        full | system | command | status::UNLOCKED
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last_output = byte;
            // The buffer is empty for a moment, so that the next byte is an edge of its own.
            self.drive((false, false));
        }
        let byte = self.last_output;
        self.settle();
        byte
    }

    fn write_data(&mut self, value: u8) {
        self.last_write_was_command = false;
        match std::mem::replace(&mut self.expects, Expects::Nothing) {
            Expects::Nothing => {
                // A byte for the keyboard enables its link.
                self.ram[0] &= !KEYBOARD_DISABLED;
                self.keyboard.command(value);
            }
            Expects::Ram(at) => self.ram[usize::from(at & 0x1f)] = value,
            Expects::OutputPort => self.set_output_port(value),
            Expects::KeyboardOutput => self.replace_output(value, Source::Keyboard),
            Expects::AuxOutput => self.replace_output(value, Source::Aux),
            Expects::AuxDevice => {
                self.ram[0] &= !AUX_DISABLED;
                self.mouse.command(value);
            }
        }
        self.settle();
    }

    /// The controller's own bytes go ahead of what the devices sent, without losing that.
    fn replace_output(&mut self, value: u8, source: Source) {
        if self.output.is_none() {
            self.output = Some((value, source));
        } else {
            self.answer = Some((value, source));
        }
    }

    fn answer(&mut self, value: u8) {
        self.replace_output(value, Source::Keyboard);
    }

    fn output_port(&self) -> u8 {
        let mut port = output_port::LINES | output_port::NO_RESET;
        for (on, bit) in [
            (self.a20, output_port::A20),
            (self.interrupts.0, output_port::KEYBOARD_INTERRUPT),
            (self.interrupts.1, output_port::AUX_INTERRUPT),
        ] {
            port |= if on { bit } else { 0 };
        }
        port
    }

    fn set_output_port(&mut self, value: u8) {
        self.a20 = value & output_port::A20 != 0;
        self.wires.a20.set(self.a20);
        if value & output_port::NO_RESET == 0 {
            self.wires.power.reset();
        }
    }

    fn write_command(&mut self, command: u8) {
        self.last_write_was_command = true;
        self.expects = Expects::Nothing;
        match command {
            0x20..=0x3f => self.answer(self.ram[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.expects = Expects::Ram(command & 0x1f),
            // Is a password installed? No.
            0xa4 => self.answer(0xf1),
            0xa7 => self.ram[0] |= AUX_DISABLED,
            0xa8 => self.ram[0] &= !AUX_DISABLED,
            // Link tests: no error.
            0xa9 | 0xab => self.answer(0),
            0xaa => self.self_test(),
            0xad => self.ram[0] |= KEYBOARD_DISABLED,
            0xae => self.ram[0] &= !KEYBOARD_DISABLED,
            // Input port: keyboard not locked, a colour display.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port()),
            0xd1 => self.expects = Expects::OutputPort,
            0xd2 => self.expects = Expects::KeyboardOutput,
            0xd3 => self.expects = Expects::AuxOutput,
            0xd4 => self.expects = Expects::AuxDevice,
            // Test inputs: the clock lines, which a disabled link holds low.
            0xe0 => {
                let keyboard = u8::from(!self.flag(KEYBOARD_DISABLED));
                let aux = u8::from(!self.flag(AUX_DISABLED)) << 1;
                self.answer(keyboard | aux);
            }
            // Pulse the output bits that are 0 in the command; only reset is a pulse's business.
            0xf0..=0xff if command & output_port::NO_RESET == 0 => self.wires.power.reset(),
            _ => {}
        }
        self.settle();
    }

    /// Forgets what was under way, disables both links and says that all is well.
    fn self_test(&mut self) {
        self.output = None;
        self.drive((false, false));
        self.break_prefix = false;
        self.ram[0] = SYSTEM | KEYBOARD_DISABLED | AUX_DISABLED | self.ram[0] & TRANSLATE;
        self.answer = None;
        self.answer(0x55);
    }
}

/// What a BIOS would leave behind: both links usable, translation on, no interrupts. A machine
/// that starts a kernel without firmware needs no other set-up.
fn initial_ram() -> [u8; 32] {
    let mut ram = [0; 32];
    ram[0] = SYSTEM | TRANSLATE;
    ram
}

impl PortIo for Controller {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        bytewise::read(port, width, |port| match port {
            DATA_PORT => self.read_data(),
            COMMAND_PORT => self.status(),
            _ => 0xff,
        })
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| match port {
            DATA_PORT => self.write_data(value),
            COMMAND_PORT => self.write_command(value),
            _ => {}
        });
    }
}

/// The saved state of a [`Controller`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControllerV1 {
    ram: [u8; 32],
    output: Option<(u8, Source)>,
    last_output: u8,
    answer: Option<(u8, Source)>,
    expects: Expects,
    last_write_was_command: bool,
    a20: bool,
    break_prefix: bool,
    keyboard: KeyboardState,
    mouse: MouseState,
}

impl Saved for ControllerV1 {
    const KIND: &'static str = "i8042";
    const VERSION: u16 = 1;
}

impl Persist for Controller {
    type State = ControllerV1;

    fn save(&self) -> ControllerV1 {
        let Self {
            wires: _,
            ram,
            output,
            last_output,
            answer,
            expects,
            last_write_was_command,
            a20,
            break_prefix,
            keyboard,
            mouse,
            // Derived.
            interrupts: _,
        } = self;
        ControllerV1 {
            ram: *ram,
            output: *output,
            last_output: *last_output,
            answer: *answer,
            expects: *expects,
            last_write_was_command: *last_write_was_command,
            a20: *a20,
            break_prefix: *break_prefix,
            keyboard: keyboard.save(),
            mouse: mouse.save(),
        }
    }

    fn restore(&mut self, state: ControllerV1) -> Result<(), Invalid> {
        let ControllerV1 {
            ram,
            output,
            last_output,
            answer,
            expects,
            last_write_was_command,
            a20,
            break_prefix,
            keyboard,
            mouse,
        } = state;
        let keyboard = Keyboard::restored(keyboard)?;
        let mouse = Mouse::restored(mouse)?;
        self.ram = ram;
        self.output = output;
        self.last_output = last_output;
        self.answer = answer;
        self.expects = expects;
        self.last_write_was_command = last_write_was_command;
        self.a20 = a20;
        self.break_prefix = break_prefix;
        self.keyboard = keyboard;
        self.mouse = mouse;
        self.wires.a20.set(a20);
        self.drive((false, false));
        self.settle();
        Ok(())
    }
}

impl Device for Controller {
    fn reset(&mut self) {
        self.ram = initial_ram();
        self.output = None;
        self.last_output = 0;
        self.answer = None;
        self.expects = Expects::Nothing;
        self.last_write_was_command = false;
        self.a20 = true;
        self.break_prefix = false;
        self.keyboard = Keyboard::new();
        self.mouse = Mouse::new();
        self.wires.a20.set(true);
        self.settle();
    }

    device::saved_by_persist!();
}

#[cfg(test)]
mod tests;
