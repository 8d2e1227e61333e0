//! Random programs.
//!
//! A program is a row of *units*, each from one of the families below. A program ends by
//! construction: all branches go forward, but for those of loops, whose counters nothing else
//! writes; what faults is skipped by the handlers; there is room for so many events in their log.
//! No unit leaves a flag behind that is undefined, since engines may differ in those.

mod address;
mod control;
mod faults;
mod forms;
mod modify;
mod stack;
mod strings;
mod system;
mod vector;
mod writer;

use crate::layout::{CALL_VECTOR, CODE_PAGES, END_VECTOR, Mode, PAGE};
use crate::program::{Piece, Program};
use crate::random::Random;
use crate::scene::Scene;
use writer::Writer;

/// What units are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Integer,
    Vector,
    VectorState,
    Strings,
    Stack,
    Branches,
    Loop,
    Function,
    Faults,
    Modify,
    System,
    /// SYSCALL in [`Mode::User64`], else nothing.
    SystemCalls,
}

impl Family {
    pub(crate) const ALL: [Self; 12] = [
        Self::Integer,
        Self::Vector,
        Self::VectorState,
        Self::Strings,
        Self::Stack,
        Self::Branches,
        Self::Loop,
        Self::Function,
        Self::Faults,
        Self::Modify,
        Self::System,
        Self::SystemCalls,
    ];

    /// How often there are units of this family, relative to others.
    fn weight(self) -> u64 {
        match self {
            Self::Integer => 30,
            Self::Vector => 14,
            Self::Branches => 9,
            Self::Loop | Self::Function | Self::Strings | Self::Stack => 6,
            Self::SystemCalls => 5,
            Self::Modify | Self::Faults | Self::System => 4,
            Self::VectorState => 2,
        }
    }
}

/// A program, and where in the code window it begins.
#[derive(Debug, Clone)]
pub(crate) struct Generated {
    pub(crate) program: Program,
    pub(crate) offset: u64,
}

/// A random program for `scene` of about `units` units of `families`.
pub(crate) fn generate(
    scene: &Scene,
    families: &[Family],
    units: u64,
    random: &mut Random,
) -> Generated {
    let mut writer = Writer::new(scene, random.clone());
    // Mostly across the end of a page.
    let offset = match random.below(3) {
        0 => random.below(64),
        _ => PAGE * (1 + random.below(CODE_PAGES - 2)) - random.below(40 * units / 8 + 8),
    };
    let total = families.iter().map(|family| family.weight()).sum();
    let pad = (offset < PAGE).then(|| writer.random.below(2 * units));
    for n in 0..units {
        writer.random_unit(families, total);
        if pad == Some(n) {
            writer.pad();
        }
    }
    writer.program.bytes(&[0xcd, END_VECTOR]);
    Generated {
        program: writer.program,
        offset,
    }
}

/// A loop of random units that runs `passes` times, in which few instructions fault.
pub(crate) fn generate_long(
    scene: &Scene,
    families: &[Family],
    passes: u64,
    random: &mut Random,
) -> Generated {
    let mut writer = Writer::new(scene, random.clone());
    writer.calm = true;
    let total = families.iter().map(|family| family.weight()).sum();
    writer.family = (families.to_vec(), total);
    let head = writer.program.label();
    writer.loop_of(head, passes, |writer| {
        for _ in 0..8 {
            writer.random_unit(families, total);
        }
    });
    writer.program.bytes(&[0xcd, END_VECTOR]);
    Generated {
        program: writer.program,
        offset: PAGE - 100,
    }
}

impl Writer<'_> {
    fn random_unit(&mut self, families: &[Family], total: u64) {
        let mut left = self.random.below(total);
        let family = families.iter().find(|family| {
            let weight = family.weight();
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        });
        let family = *family.expect("the weights add up");
        self.family = (families.to_vec(), total);
        match family {
            Family::Integer => self.integer(),
            Family::Vector => self.vector(),
            Family::VectorState => self.vector_state(),
            Family::Strings => self.string(),
            Family::Stack => self.stack_unit(),
            Family::Branches => self.branches(),
            Family::Loop => self.bounded_loop(),
            Family::Function => self.function(),
            Family::Faults => self.fault(),
            Family::Modify => self.modify(),
            Family::System => self.system(),
            Family::SystemCalls if self.mode() == Mode::User64 => self.system_call(),
            Family::SystemCalls => {}
        }
    }

    /// Goes on just before the end of a page.
    fn pad(&mut self) {
        let over = self.program.label();
        let place = PAGE - 1 - self.random.below(24);
        self.grouped(|writer| {
            writer.jump(over);
            writer.push(Piece::Pad(place as u16));
            writer.place(over);
        });
    }

    /// A few units inside of another one.
    fn inner_units(&mut self, most: u64) {
        let (families, total) = self.family.clone();
        self.depth += 1;
        for _ in 0..=self.random.below(most) {
            if self.depth > 3 {
                self.integer();
            } else {
                self.random_unit(&families, total);
            }
        }
        self.depth -= 1;
        self.family = (families, total);
    }

    /// An exception that returns to where it was.
    fn kernel_call(&mut self) {
        self.program_bytes(&[0xcd, CALL_VECTOR]);
    }
}
