//! Memory operands.

use super::writer::{SP, Writer};
use crate::layout::{PAGE, PROGRAM_MEMORY, PROGRAM_MEMORY_BYTES};
use crate::scene::Page;
use crate::tables::{PRESENT, USER, WRITABLE};
use iced_x86::{MemoryOperand, Register};

/// How an operand is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    /// Its size in bytes, at least 1.
    pub(super) bytes: u64,
    /// Alignment that it should mostly have.
    pub(super) alignment: u64,
    /// Whether a fault is welcome.
    pub(super) may_fault: bool,
}

impl Use {
    pub(super) fn of(bytes: u64) -> Self {
        Self {
            bytes,
            alignment: 1,
            may_fault: true,
        }
    }

    pub(super) fn safe(bytes: u64) -> Self {
        Self {
            may_fault: false,
            ..Self::of(bytes)
        }
    }

    pub(super) fn aligned(self, alignment: u64) -> Self {
        Self { alignment, ..self }
    }
}

impl Writer<'_> {
    /// A linear address for an operand: mostly usable; often unaligned or across pages.
    pub(super) fn target(&mut self, using: Use) -> u64 {
        let may_fault = using.may_fault && !self.calm;
        loop {
            if may_fault && self.random.percent(1) {
                return self.wild();
            }
            let address = self.window_address(using);
            let last = self.cut(address.wrapping_add(using.bytes - 1));
            let usable = self.is_usable(address) && self.is_usable(last);
            let lenient = may_fault && self.random.percent(7);
            if usable || lenient {
                return address;
            }
        }
    }

    /// An address that is nowhere near anything: mostly unmapped or non-canonical.
    fn wild(&mut self) -> u64 {
        let address = match self.random.below(4) {
            0 => 0x8000_0000_0000u64.wrapping_sub(self.random.below(16)),
            1 => 0xffff_7fff_ffff_fff0 + self.random.below(24),
            2 => 0u64.wrapping_sub(self.random.below(16)),
            _ => self.random.next() | 0x0100_0000_0000_0000,
        };
        self.cut(address)
    }

    pub(super) fn cut(&self, address: u64) -> u64 {
        if self.is_64bit() {
            address
        } else {
            address & 0xffff_ffff
        }
    }

    fn window_address(&mut self, using: Use) -> u64 {
        let windows = &self.scene.windows;
        if let Some(large) = self.scene.large
            && self.is_64bit()
            && self.random.percent(5)
        {
            return large + self.random.below(0x7_f000) / 16 * 16;
        }
        let window = &windows[self.random.below(windows.len() as u64) as usize];
        let (linear, count) = (window.linear, window.pages.len() as u64);
        let page = linear + PAGE * self.random.below(count);
        let within = match self.random.below(8) {
            0 => PAGE - self.random.below(using.bytes + 2).max(1),
            1 => PAGE - using.bytes.min(PAGE),
            2 => self.random.below(64),
            3..6 => self.random.below(PAGE / 64) * 64,
            _ => self.random.below(PAGE),
        };
        let address = page + within;
        if using.alignment > 1 && !self.random.percent(4) {
            address & !(using.alignment - 1)
        } else {
            address
        }
    }

    /// The page of a window that holds `address`.
    fn page(&self, address: u64) -> Option<&Page> {
        self.scene.windows.iter().find_map(|window| {
            let page = address.checked_sub(window.linear)? / PAGE;
            window.pages.get(page as usize)
        })
    }

    /// Whether `address` is not a device's.
    pub(super) fn is_memory(&self, address: u64) -> bool {
        let memory = PROGRAM_MEMORY..PROGRAM_MEMORY + PROGRAM_MEMORY_BYTES;
        self.page(address)
            .is_none_or(|page| memory.contains(&page.gpa))
    }

    /// Whether the program may read and write at `address` without a fault.
    fn is_usable(&self, address: u64) -> bool {
        let Some(page) = self.page(address) else {
            let large = self.scene.large.unwrap_or(u64::MAX);
            return !self.mode().is_user()
                && (large..large.saturating_add(0x8_0000)).contains(&address);
        };
        let own = if self.mode().is_user() {
            PRESENT | WRITABLE | USER
        } else {
            PRESENT | WRITABLE
        };
        page.flags & (PRESENT | WRITABLE | USER) == own
    }

    /// A memory operand; sets registers for it. `avoid` are not used in it.
    pub(super) fn operand(&mut self, using: Use, avoid: &[usize]) -> MemoryOperand {
        let target = self.target(using);
        self.operand_at(target, avoid)
    }

    /// A memory operand for the linear address `target`.
    pub(super) fn operand_at(&mut self, target: u64, avoid: &[usize]) -> MemoryOperand {
        let segment = self.segment();
        let base = match segment {
            Register::FS => self.scene.fs_base,
            Register::GS => self.scene.gs_base,
            _ => 0,
        };
        let effective = self.cut(target.wrapping_sub(base));
        match self.random.below(10) {
            0 if self.fits_displacement(effective) => MemoryOperand::new(
                Register::None,
                Register::None,
                1,
                effective as i64,
                self.program.bits / 8,
                false,
                segment,
            ),
            1 if self.is_64bit() && self.is_near_code(effective) => MemoryOperand::new(
                Register::RIP,
                Register::None,
                1,
                effective as i64,
                8,
                false,
                segment,
            ),
            2 if self.is_64bit() && effective >> 32 == 0 => self.narrow(effective, segment, avoid),
            3..6 => self.indexed(effective, segment, avoid),
            _ => self.based(effective, segment, avoid),
        }
    }

    /// FS or GS, sometimes.
    fn segment(&mut self) -> Register {
        match self.random.below(16) {
            0 => Register::FS,
            1 => Register::GS,
            _ => Register::None,
        }
    }

    fn fits_displacement(&self, address: u64) -> bool {
        !self.is_64bit() || i64::from(address as i32) as u64 == address
    }

    fn is_near_code(&self, address: u64) -> bool {
        let distance = address.wrapping_sub(self.mode().code()) as i64;
        distance.unsigned_abs() < 0x7fff_0000
    }

    fn displacement(&mut self) -> i64 {
        match self.random.below(5) {
            0 | 1 => 0,
            2 | 3 => i64::from(self.random.next() as i8),
            _ => i64::from(self.random.next() as i32 >> self.random.below(20)),
        }
    }

    /// `[base + displacement]`; by a register that is near already, if there is one.
    fn based(&mut self, effective: u64, segment: Register, avoid: &[usize]) -> MemoryOperand {
        let near = (0..self.count() as usize).find(|&number| {
            let Some(value) = self.known[number] else {
                return false;
            };
            let distance = effective.wrapping_sub(value) as i64;
            !avoid.contains(&number) && distance.unsigned_abs() < 0x2000
        });
        let base = match near {
            Some(number) if self.random.percent(70) => number,
            _ => {
                let number = self.free_but(avoid);
                let displacement = self.displacement();
                self.set(
                    number,
                    self.cut(effective.wrapping_sub(displacement as u64)),
                );
                number
            }
        };
        let value = self.known[base].expect("it was set");
        let displacement = self.signed(effective.wrapping_sub(value));
        let size = u32::from(displacement != 0);
        MemoryOperand::new(
            self.wide(base),
            Register::None,
            1,
            displacement,
            size,
            false,
            segment,
        )
    }

    /// A displacement as the encoder takes it.
    fn signed(&self, difference: u64) -> i64 {
        if self.is_64bit() {
            difference as i64
        } else {
            i64::from(difference as i32)
        }
    }

    /// `[base + index * scale + displacement]`, or without a base.
    fn indexed(&mut self, effective: u64, segment: Register, avoid: &[usize]) -> MemoryOperand {
        let scale = 1 << self.random.below(4);
        let index = self.free_but(avoid);
        let value = match self.known[index] {
            Some(value) if value < 0x1_0000 => value,
            _ => {
                let value = self.random.below(0x100) as i64 - 0x40;
                self.set(index, self.cut(value as u64));
                self.cut(value as u64)
            }
        };
        let rest = self.cut(effective.wrapping_sub(value.wrapping_mul(scale)));
        let (base, displacement) = if self.random.percent(15) && self.fits_displacement(rest) {
            (Register::None, self.signed(rest))
        } else {
            let mut others = avoid.to_vec();
            others.push(index);
            let number = self.free_but(&others);
            let displacement = self.displacement();
            self.set(number, self.cut(rest.wrapping_sub(displacement as u64)));
            (self.wide(number), displacement)
        };
        let size = u32::from(displacement != 0 || base == Register::None);
        let index = self.wide(index);
        MemoryOperand::new(
            base,
            index,
            scale as u32,
            displacement,
            if base == Register::None {
                self.program.bits / 8
            } else {
                size
            },
            false,
            segment,
        )
    }

    /// 32-bit addressing in 64-bit code: upper halves of registers do not count.
    fn narrow(&mut self, effective: u64, segment: Register, avoid: &[usize]) -> MemoryOperand {
        let displacement = i64::from(self.displacement() as i32);
        let number = self.free_but(avoid);
        let low = effective.wrapping_sub(displacement as u64) & 0xffff_ffff;
        let above = self.random.next() << 32;
        self.set(number, above | low);
        debug_assert_ne!(number, SP, "the stack pointer is never free");
        let base = Register::EAX + number as u32;
        let size = u32::from(displacement != 0);
        MemoryOperand::new(base, Register::None, 1, displacement, size, false, segment)
    }
}
