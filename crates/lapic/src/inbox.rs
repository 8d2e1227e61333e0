//! What others put where a vCPU finds it.

use crate::message::{Delivery, Destination, Message};
use crate::spec::{DFR_ONES, VECTOR_MIN, base, esr, svr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use x86::ApicState;

/// The shared side of one local APIC: a lock-free mailbox, and what senders must know of the
/// owner to find it.
///
/// A sender stores its item, then raises `news`; the owner lowers `news`, then takes the items.
/// So an item is either taken or announced again, never lost, and a sender that finds `news`
/// raised knows that someone has woken the owner already.
#[derive(Debug)]
pub struct Inbox {
    /// APIC ID. It never changes.
    id: u32,
    news: AtomicBool,
    irr: [AtomicU32; 8],
    /// Trigger mode of each vector in `irr`.
    tmr: [AtomicU32; 8],
    /// [`Requests`] as bits.
    requests: AtomicU32,
    /// Error status bits.
    errors: AtomicU32,
    /// Level of LINT0.
    external: AtomicBool,
    /// LINT0 has risen.
    external_edge: AtomicBool,
    /// How the owner takes messages, as `mode` bits.
    mode: AtomicU32,
    /// Logical destination and destination format, as of the owner's registers.
    ldr: AtomicU32,
    dfr: AtomicU32,
    /// Task priority, for the lowest-priority arbitration.
    tpr: AtomicU32,
}

mod mode {
    /// IA32_APIC_BASE enables the APIC.
    pub(super) const PRESENT: u32 = 1;
    /// SVR enables it.
    pub(super) const ENABLED: u32 = 2;
    pub(super) const X2APIC: u32 = 4;
}

mod request {
    pub(super) const NMI: u32 = 1;
    pub(super) const INIT: u32 = 2;
    pub(super) const START_UP: u32 = 4;
    pub(super) const VECTOR_SHIFT: u32 = 8;
}

/// What came in besides interrupts. INIT comes before a start-up IPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requests {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// INIT.
    pub init: bool,
    /// A start-up IPI with its vector, sent after the INIT if there is one.
    pub start_up: Option<u8>,
}

impl Requests {
    fn from_bits(bits: u32) -> Self {
        Self {
            nmi: bits & request::NMI != 0,
            init: bits & request::INIT != 0,
            start_up: (bits & request::START_UP != 0)
                .then_some((bits >> request::VECTOR_SHIFT) as u8),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Inbox {
    /// The inbox of the local APIC with `id`, in the state after power-on.
    pub(crate) fn new(id: u32) -> Arc<Self> {
        Arc::new(Self {
            id,
            news: AtomicBool::new(false),
            irr: Default::default(),
            tmr: Default::default(),
            requests: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            external: AtomicBool::new(false),
            external_edge: AtomicBool::new(false),
            mode: AtomicU32::new(0),
            ldr: AtomicU32::new(0),
            dfr: AtomicU32::new(0),
            tpr: AtomicU32::new(0),
        })
    }

    /// APIC ID of the owner.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether something came in since [`crate::Lapic::take_inbox`]: one load, for the run loop.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    fn announce(&self) -> bool {
        !self.news.swap(true, Ordering::AcqRel)
    }

    /// An interrupt with `vector`. Returns whether the owner must be woken.
    pub fn post(&self, vector: u8, level: bool) -> bool {
        if vector < VECTOR_MIN {
            self.errors
                .fetch_or(esr::RECEIVE_ILLEGAL_VECTOR, Ordering::Release);
            return self.announce();
        }
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        if level {
            self.tmr[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.tmr[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.irr[word].fetch_or(bit, Ordering::Release);
        self.announce()
    }

    /// A non-maskable interrupt. Returns whether the owner must be woken.
    pub fn post_nmi(&self) -> bool {
        self.requests.fetch_or(request::NMI, Ordering::Release);
        self.announce()
    }

    /// INIT; a start-up IPI before it is void. Returns whether the owner must be woken.
    pub fn post_init(&self) -> bool {
        self.change_requests(|bits| bits & request::NMI | request::INIT);
        self.announce()
    }

    /// A start-up IPI. Returns whether the owner must be woken.
    pub fn post_start_up(&self, vector: u8) -> bool {
        let vector = u32::from(vector) << request::VECTOR_SHIFT;
        self.change_requests(|bits| bits & 0xff | request::START_UP | vector);
        self.announce()
    }

    fn change_requests(&self, change: impl Fn(u32) -> u32) {
        // The closure always returns a value, so the update can't fail.
        let _ = self
            .requests
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                Some(change(bits))
            });
    }

    /// Drives LINT0, to which the PIC is wired. Returns whether the owner must be woken.
    pub fn set_external(&self, high: bool) -> bool {
        let before = self.external.swap(high, Ordering::AcqRel);
        if !high || before {
            return false;
        }
        self.external_edge.store(true, Ordering::Release);
        self.announce()
    }

    /// The level of LINT0.
    #[inline]
    pub fn external(&self) -> bool {
        self.external.load(Ordering::Acquire)
    }

    /// Takes `message` in, which is for this local APIC. Returns whether the owner must be woken.
    pub fn deliver(&self, message: &Message) -> bool {
        let mode = self.mode.load(Ordering::Acquire);
        if mode & mode::PRESENT == 0 {
            return false;
        }
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                // Software-disabled, it takes no interrupts (SDM vol. 3, 11.4.7.2).
                mode & mode::ENABLED != 0 && self.post(message.vector, message.level)
            }
            Delivery::Nmi => self.post_nmi(),
            Delivery::Init => self.post_init(),
            Delivery::StartUp => self.post_start_up(message.vector),
            // There is no SMM; and the PIC's line is LINT0, not a message.
            Delivery::Smi | Delivery::External => false,
        }
    }

    /// Whether `destination` names this local APIC ([`Destination::Others`] names all).
    pub(crate) fn matches(&self, destination: Destination) -> bool {
        let mode = self.mode.load(Ordering::Acquire);
        if mode & mode::PRESENT == 0 {
            return false;
        }
        match destination {
            Destination::All | Destination::Others => true,
            Destination::Physical(id) => id == self.id,
            Destination::Logical(set) if mode & mode::X2APIC != 0 => {
                let own = logical_x2apic_id(self.id);
                own >> 16 == set >> 16 && own & set & 0xffff != 0
            }
            Destination::Logical(set) => self.matches_logical_xapic(set),
        }
    }

    /// Flat and cluster model (11.6.2.2).
    fn matches_logical_xapic(&self, set: u32) -> bool {
        let own = self.ldr.load(Ordering::Acquire) >> 24;
        match self.dfr.load(Ordering::Acquire) >> 28 {
            0xf => own & set & 0xff != 0,
            0x0 => own >> 4 == set >> 4 && own & set & 0xf != 0,
            _ => false,
        }
    }

    /// Whether the owner takes interrupts.
    pub(crate) fn is_enabled(&self) -> bool {
        self.mode.load(Ordering::Acquire) & mode::ENABLED != 0
    }

    /// Task-priority class of the owner.
    pub(crate) fn priority_class(&self) -> u32 {
        self.tpr.load(Ordering::Relaxed) >> 4
    }

    /// Tells senders what the owner's registers are now.
    pub(crate) fn publish(&self, registers: &ApicState) {
        let mut bits = 0;
        if registers.base & base::ENABLE != 0 {
            bits |= mode::PRESENT;
            if registers.svr & svr::ENABLE != 0 {
                bits |= mode::ENABLED;
            }
            if registers.base & base::X2APIC != 0 {
                bits |= mode::X2APIC;
            }
        }
        self.ldr.store(registers.ldr, Ordering::Release);
        self.dfr.store(registers.dfr | DFR_ONES, Ordering::Release);
        self.publish_priority(registers.tpr);
        self.mode.store(bits, Ordering::Release);
    }

    #[inline]
    pub(crate) fn publish_priority(&self, tpr: u8) {
        self.tpr.store(tpr.into(), Ordering::Relaxed);
    }

    /// Lowers the flag that [`Inbox::has_news`] shows; whatever is taken afterwards was announced
    /// before or will be again.
    pub(crate) fn take_news(&self) -> bool {
        self.has_news() && self.news.swap(false, Ordering::AcqRel)
    }

    /// Takes the interrupts of one word out: requests, and which of them are level-triggered.
    pub(crate) fn take_interrupts(&self, word: usize) -> (u32, u32) {
        // Look first: most words are empty, and a load does not take the cache line away.
        if self.irr[word].load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        let irr = self.irr[word].swap(0, Ordering::Acquire);
        (irr, irr & self.tmr[word].load(Ordering::Relaxed))
    }

    /// The interrupts of one word, left in place.
    pub(crate) fn interrupts(&self, word: usize) -> (u32, u32) {
        let irr = self.irr[word].load(Ordering::Acquire);
        (irr, irr & self.tmr[word].load(Ordering::Relaxed))
    }

    pub(crate) fn take_requests(&self) -> Requests {
        Requests::from_bits(self.requests.swap(0, Ordering::AcqRel))
    }

    /// The requests that wait, left in place: part of a vCPU's state that is saved.
    pub fn requests(&self) -> Requests {
        Requests::from_bits(self.requests.load(Ordering::Acquire))
    }

    pub(crate) fn take_errors(&self) -> u32 {
        self.errors.swap(0, Ordering::AcqRel)
    }

    pub(crate) fn errors(&self) -> u32 {
        self.errors.load(Ordering::Acquire)
    }

    pub(crate) fn take_external_edge(&self) -> bool {
        self.external_edge.swap(false, Ordering::AcqRel)
    }

    /// Drops every interrupt and error that waits.
    pub(crate) fn clear_interrupts(&self) {
        for word in &self.irr {
            word.store(0, Ordering::Release);
        }
        self.errors.store(0, Ordering::Release);
    }
}

/// The logical ID that follows from an x2APIC ID (SDM vol. 3, 11.12.10.2).
pub(crate) fn logical_x2apic_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}
