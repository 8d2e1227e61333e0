//! What the vCPUs of a machine share: mailboxes, and the protocol that keeps decoded code true.
//!
//! A page from which a vCPU has decoded code is *watched*: nobody may hold a TLB entry that lets
//! him write it unseen. Its first decoder marks it and then makes every vCPU that may hold such an
//! entry drop it, and waits until they have, before it reads the code bytes. A write to a watched
//! page is seen by its writer, who ends the watch and tells every vCPU to drop its blocks there.
//! They do so at the end of the block they are in: code modified by another processor needs a
//! serializing instruction to be seen (SDM vol. 3, 10.1.3), and each takes at least a block.

use crate::mailbox::{FORGET_WRITES, INTERRUPT, Mailbox};
use lapic::Inbox;
use memory::{GuestMemory, WriteObserver};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Shared by all vCPUs of one machine.
pub(crate) struct Shared {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) clock: clock::Clock,
    pub(crate) tsc_khz: u64,
    pub(crate) mailboxes: Box<[Arc<Mailbox>]>,
    /// The mailboxes' inboxes.
    pub(crate) inboxes: Box<[Arc<Inbox>]>,
    pub(crate) tracer: Option<Arc<dyn engine::Tracer>>,
    /// Held during a locked access that one host instruction can't make: across pages, or to a
    /// device.
    pub(crate) bus_lock: Mutex<()>,
    /// Held while a page becomes watched: who finds it watched knows that nobody writes it unseen
    /// any more.
    watching: Mutex<()>,
    pub(crate) native: &'static native::Native,
    /// For each page of memory: which vCPUs (number modulo 8, one bit each) may write it through
    /// their TLB. In chunks that are made when first needed, since memory may be huge and sparse.
    writers: Box<[OnceLock<Box<[AtomicU8; CHUNK]>>]>,
}

/// Pages in a chunk of [`Shared::writers`].
const CHUNK: usize = 4096;

impl Shared {
    pub(crate) fn new(
        setup: &engine::Setup,
        native: &'static native::Native,
        mailboxes: Box<[Arc<Mailbox>]>,
    ) -> Self {
        let pages = setup.memory.ram().len() >> memory::PAGE_SHIFT;
        Self {
            memory: setup.memory.clone(),
            clock: setup.clock.clone(),
            tsc_khz: setup.tsc_khz,
            inboxes: mailboxes.iter().map(|m| m.inbox.clone()).collect(),
            mailboxes,
            tracer: setup.tracer.as_ref().map(|(tracer, _)| tracer.clone()),
            bus_lock: Mutex::default(),
            watching: Mutex::default(),
            native,
            writers: (0..pages.div_ceil(CHUNK))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    #[inline]
    fn writers(&self, page: usize) -> &AtomicU8 {
        let chunk = &self.writers[page / CHUNK];
        &chunk.get_or_init(|| Box::new([const { AtomicU8::new(0) }; CHUNK]))[page % CHUNK]
    }

    /// vCPU `index` is about to get the right to write `page` unseen. Returns whether it may.
    ///
    /// The right must be in its TLB before it looks into its mailbox again.
    #[inline]
    pub(crate) fn claim_write(&self, index: usize, page: usize) -> bool {
        let writers = self.writers(page);
        let bit = writer_bit(index);
        // A claim that is there already needs no fence. Either [`Shared::watch_code`] takes it
        // later than it is loaded here: then it makes this vCPU forget its writes, the one that
        // is about to be permitted too, whatever is read of the watch. Or the claim was made
        // after the last watcher took them all: then the load, which acquires what that watcher's
        // swap and all claims since have released, comes after the watch began.
        if writers.load(Ordering::Acquire) & bit == 0 {
            self.make_claim(writers, bit);
        }
        !self.memory.watch().is_watched(page)
    }

    #[cold]
    fn make_claim(&self, writers: &AtomicU8, bit: u8) {
        writers.fetch_or(bit, Ordering::SeqCst);
        // The claim comes before the look at the watch: a vCPU that starts to watch the page now
        // sees the one, or is seen by the other.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// vCPU `index` is about to decode code from `page`. On return, nobody writes it unseen.
    /// Returns whether the caller's own TLB must forget its writes.
    ///
    /// Two vCPUs may wait for each other here, so meanwhile each counts as standing still. The
    /// caller has to stand up again.
    pub(crate) fn watch_code(&self, index: usize, page: usize) -> bool {
        self.mailboxes[index].set_running(false);
        let _turn = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.memory.watch().watch(page) {
            return false;
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        let writers = self.writers(page).swap(0, Ordering::SeqCst);
        if writers & !writer_bit(index) != 0 || self.mailboxes.len() > 8 {
            self.revoke_writes(index, writers);
        }
        writers & writer_bit(index) != 0
    }

    /// Makes the other vCPUs in `writers` forget what they may write, and waits for those that
    /// are running.
    fn revoke_writes(&self, index: usize, writers: u8) {
        let others = || {
            let all = self.mailboxes.iter().enumerate();
            all.filter(move |(i, _)| *i != index && writers & writer_bit(*i) != 0)
        };
        for (_, mailbox) in others() {
            mailbox.post(FORGET_WRITES);
        }
        for (_, mailbox) in others() {
            while mailbox.is_running() && mailbox.has(FORGET_WRITES) {
                std::thread::yield_now();
            }
        }
    }

    /// Sends an interrupt to vCPU `index`'s APIC: its inbox was filled.
    pub(crate) fn notify(&self, index: usize) {
        self.mailboxes[index].post(INTERRUPT);
    }
}

fn writer_bit(index: usize) -> u8 {
    1 << (index % 8)
}

impl WriteObserver for Shared {
    fn page_written(&self, page: usize) {
        // Unwatched first: a vCPU that decodes the new bytes from now on watches the page anew.
        self.memory.watch().unwatch(page);
        for mailbox in &self.mailboxes {
            mailbox.post_page(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    const PAGE: usize = 3;

    fn shared(vcpus: u32) -> Shared {
        let region = memory::RegionSpec {
            gpa: 0,
            len: 0x10000,
            kind: memory::Kind::Ram,
        };
        let setup = engine::Setup {
            memory: GuestMemory::new(&[region]).unwrap(),
            clock: clock::Clock::manual(),
            cpuid: vec![x86::cpuid::Table::new(); vcpus as usize],
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let mailboxes = (0..vcpus)
            .map(|id| lapic::Lapic::new(id, crate::paging::PHYSICAL_BITS))
            .map(|lapic| Arc::new(Mailbox::new(lapic.inbox().clone())))
            .collect();
        Shared::new(&setup, native::Native::shared().unwrap(), mailboxes)
    }

    #[test]
    fn nobody_decodes_a_page_while_another_may_write_it_unseen() {
        let shared = shared(3);
        let writer = &shared.mailboxes[0];
        writer.set_running(true);
        assert!(shared.claim_write(0, PAGE));
        let done = [AtomicBool::new(false), AtomicBool::new(false)];
        std::thread::scope(|scope| {
            for (index, done) in (1..).zip(&done) {
                let shared = &shared;
                scope.spawn(move || {
                    assert!(!shared.watch_code(index, PAGE));
                    done.store(true, Ordering::SeqCst);
                });
                while !writer.has(FORGET_WRITES) {
                    std::thread::yield_now();
                }
            }
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            let early = done.iter().any(|done| done.load(Ordering::SeqCst));
            writer.take();
            assert!(!early);
        });
        assert!(!shared.claim_write(0, PAGE), "it is watched");
    }

    #[test]
    fn a_claim_that_stands_is_revoked_as_a_new_one_is() {
        let shared = shared(2);
        let writer = &shared.mailboxes[0];
        let (word, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        writer.set_running(true);
        std::thread::scope(|scope| {
            // Claims again and again between its looks into the mailbox, so that the bit is set
            // already nearly always, and writes as long as it may.
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    writer.take();
                    for _ in 0..10 {
                        if shared.claim_write(0, PAGE) {
                            word.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
                writer.set_running(false);
            });
            let mut read = 0;
            let mut was_written = false;
            for _ in 0..2000 {
                // It writes while it may.
                while word.load(Ordering::SeqCst) == read {
                    std::thread::yield_now();
                }
                shared.watch_code(1, PAGE);
                read = word.load(Ordering::SeqCst);
                for _ in 0..10 {
                    std::hint::spin_loop();
                    was_written |= word.load(Ordering::SeqCst) != read;
                }
                shared.page_written(PAGE);
            }
            ended.store(true, Ordering::SeqCst);
            assert!(!was_written, "while it was watched");
        });
    }

    #[test]
    fn vcpus_that_share_a_bit_are_both_asked_to_forget() {
        let shared = shared(10);
        assert!(shared.claim_write(9, PAGE));
        assert!(shared.watch_code(1, PAGE), "1 and 9 have one bit");
        assert!(shared.mailboxes[9].has(FORGET_WRITES));
        assert!(!shared.mailboxes[0].has(FORGET_WRITES));
    }

    #[test]
    fn vcpus_that_decode_what_the_other_writes_do_not_wait_for_ever() {
        let shared = shared(2);
        std::thread::scope(|scope| {
            for index in 0..2 {
                let shared = &shared;
                scope.spawn(move || {
                    let mailbox = &shared.mailboxes[index];
                    for _ in 0..20_000 {
                        mailbox.set_running(true);
                        mailbox.take();
                        shared.claim_write(index, index);
                        shared.watch_code(index, 1 - index);
                        shared.page_written(1 - index);
                    }
                    mailbox.set_running(false);
                });
            }
        });
    }
}
