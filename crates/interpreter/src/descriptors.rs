//! Descriptor tables: finding descriptors, and what is written back to them.

use crate::cpu::{Cpu, Result};
use x86::{Descriptor, Exception, Segment, SegmentRegister, Selector, Vector};

/// A descriptor and where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located {
    pub(crate) selector: Selector,
    pub(crate) descriptor: Descriptor,
    /// Linear address.
    linear: u64,
}

/// Byte of a descriptor that holds its type.
const TYPE_BYTE: u64 = 5;
const ACCESSED: u8 = 1;
/// Tells a busy TSS from an available one.
const BUSY: u8 = 2;
const ACCESSED_BIT: u64 = 1 << 40;

impl Cpu {
    /// Raises `vector` with `selector` as its error code. While an event is delivered, EXT is
    /// added to it there.
    #[cold]
    pub(crate) fn refuse<T>(&mut self, vector: Vector, selector: Selector) -> Result<T> {
        self.raise(Exception::with_code(vector, selector.error_code()))
    }

    /// The linear address of `bytes` bytes at `selector`'s place in its table; `None` beyond its
    /// limit.
    fn descriptor_linear(&self, selector: Selector, bytes: u64) -> Option<u64> {
        let (base, limit) = if !selector.is_local() {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.unusable {
            return None;
        } else {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        };
        let offset = u64::from(selector.offset());
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The descriptor of `selector`; `None` beyond its table's limit.
    ///
    /// # Errors
    /// A page fault on the table.
    pub(crate) fn find_descriptor(&mut self, selector: Selector) -> Result<Option<Located>> {
        let Some(linear) = self.descriptor_linear(selector, 8) else {
            return Ok(None);
        };
        let descriptor = Descriptor(self.load_system(linear)?);
        Ok(Some(Located {
            selector,
            descriptor,
            linear,
        }))
    }

    /// The descriptor of `selector`.
    ///
    /// # Errors
    /// `vector` with the selector as error code beyond the table's limit.
    pub(crate) fn descriptor(&mut self, selector: Selector, vector: Vector) -> Result<Located> {
        match self.find_descriptor(selector)? {
            Some(located) => Ok(located),
            None => self.refuse(vector, selector),
        }
    }

    /// The second half of a 16-byte system descriptor.
    ///
    /// # Errors
    /// `vector` beyond the table's limit, or where the type of the second half is not 0.
    pub(crate) fn upper_half(&mut self, located: &Located, vector: Vector) -> Result<u64> {
        if self.descriptor_linear(located.selector, 16).is_none() {
            return self.refuse(vector, located.selector);
        }
        let upper: u64 = self.load_system(located.linear.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return self.refuse(vector, located.selector);
        }
        Ok(upper)
    }

    /// Sets a segment descriptor's accessed bit, if it is not set.
    pub(crate) fn mark_accessed(&mut self, located: &mut Located) -> Result {
        if located.descriptor.0 & ACCESSED_BIT == 0 {
            let byte = self.place_system(located.linear.wrapping_add(TYPE_BYTE), 1)?;
            self.update::<u8>(byte, true, |kind| kind | ACCESSED);
            located.descriptor.0 |= ACCESSED_BIT;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of a TSS descriptor.
    pub(crate) fn set_busy(&mut self, located: &Located, busy: bool) -> Result {
        let byte = self.place_system(located.linear.wrapping_add(TYPE_BYTE), 1)?;
        self.update::<u8>(
            byte,
            true,
            |kind| {
                if busy { kind | BUSY } else { kind & !BUSY }
            },
        );
        Ok(())
    }

    /// A stack segment for code of privilege `cpl` (SDM vol. 3, 7.12.1): `vector` if it is not
    /// one, #SS if it is not present.
    pub(crate) fn stack_segment_for(
        &mut self,
        selector: Selector,
        cpl: u8,
        vector: Vector,
    ) -> Result<Segment> {
        if selector.is_null() {
            return self.refuse(vector, selector);
        }
        let mut located = self.descriptor(selector, vector)?;
        let descriptor = located.descriptor;
        if selector.rpl() != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return self.refuse(vector, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::StackFault, selector);
        }
        self.mark_accessed(&mut located)?;
        Ok(located.segment())
    }

    /// Loads CS, which was checked; CPL becomes `cpl`. Any other register that comes with it is
    /// loaded before.
    pub(crate) fn set_code_segment(&mut self, mut segment: Segment, cpl: u8) {
        segment.selector = segment.selector.with_rpl(cpl);
        self.segments[SegmentRegister::Cs as usize] = segment;
        self.cpl = cpl;
        self.segments_changed();
    }

    /// Whether `offset` may be RIP in the code segment `segment`: inside its limit, or canonical.
    pub(crate) fn may_run_at(&self, segment: &Segment, offset: u64) -> bool {
        if self.long_mode() && segment.is_long() {
            self.canonical(offset)
        } else {
            offset <= u64::from(segment.limit)
        }
    }

    /// After a return to `cpl`: data segments that it may not use become null (SDM vol. 3,
    /// 6.8.6).
    pub(crate) fn drop_privileged_segments(&mut self, cpl: u8) {
        use SegmentRegister as S;
        for register in [S::Es, S::Ds, S::Fs, S::Gs] {
            let segment = &mut self.segments[register as usize];
            let conforming = segment.is_code() && segment.kind() & 4 != 0;
            if !segment.unusable && segment.dpl() < cpl && !conforming {
                let base = segment.base;
                *segment = null_segment(Selector(0), cpl);
                // FS and GS keep their bases where bases outlive a null selector.
                if self.efer.contains(x86::Efer::LMA) && register as usize >= 4 {
                    segment.base = base;
                }
            }
        }
    }
}

impl Located {
    /// A code or data segment register loaded from it.
    pub(crate) fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.descriptor)
    }
}

/// A segment register loaded with a null selector at privilege `cpl`. The privilege matters for
/// SS, from which CPL is known.
pub(crate) fn null_segment(selector: Selector, cpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        access: u16::from(cpl) << 5,
        unusable: true,
    }
}
