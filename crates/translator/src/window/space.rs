//! The guest address spaces that have a jail, and which of their pages are in it.

use super::heat::Heat;
use super::jail::{Broken, Jail};
use super::orders::Order;
use super::pages::{Page, Pages};
use super::stub::Stub;
use crate::block::Key;
use crate::context::{Bell, ContextBox, JAILS};
use crate::lookup::Lookup;
use crate::mode::Mode;
use crate::store::{PAGE, Store};
use crate::translator::Options;
use interpreter::{Changes, DataPage};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Most pages that a jail may have. How many mappings they take is the host's to limit
/// (`vm.max_map_count`): a jail in which one fails is given up.
const PAGES_MAX: usize = 1 << 20;
/// Jails that may break before there are no more.
const BROKEN_MAX: u32 = 8;

/// What windows count.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) opened: u64,
    pub(crate) jails: u64,
    pub(crate) runs: u64,
    pub(crate) stops: u64,
    /// Of which somebody interrupted them: between two instructions, and in vain, in the middle of
    /// one.
    pub(crate) interrupted: u64,
    pub(crate) amiss: u64,
    pub(crate) fills: u64,
    pub(crate) mapped: u64,
    pub(crate) unmapped: u64,
    pub(crate) broken: u64,
    /// How long windows ran, and how much of that their code did.
    pub(crate) time: Duration,
    pub(crate) inside: Duration,
}

/// A guest address space with a jail.
pub(crate) struct Space {
    pub(super) cr3: u64,
    /// What the jail runs and works with: exchanged with the vCPU's own while it runs there.
    pub(super) context: ContextBox,
    pub(super) store: Store,
    pub(super) lookup: Lookup,
    pub(super) units: Mode,
    pub(super) jail: Jail,
    /// The pages that are in the jail, by their linear address.
    pub(super) pages: Pages,
    /// What changed while another was active.
    pub(super) pending: Changes,
    /// Addresses that are the jail's own.
    own: [Range<usize>; 3],
    last_used: u64,
    pub(super) is_broken: bool,
}

impl Space {
    /// Makes it the space of `cr3`, with nothing left of what it was.
    ///
    /// # Errors
    /// The context, if the jail is of no more use.
    fn renew(mut self, cr3: u64) -> Result<Self, ContextBox> {
        let stub = Stub::get();
        if self.jail.empty().is_err() || self.context.renew().is_err() {
            return Err(self.context);
        }
        match self.store.renew(stub.code, stub.ask, &mut self.context) {
            Ok(store) => Ok(Self {
                cr3,
                store,
                lookup: Lookup::default(),
                units: Mode::empty(),
                pages: Pages::default(),
                pending: Changes::default(),
                ..self
            }),
            Err(_) => Err(self.context),
        }
    }

    /// Whether a page at `linear` can be in the jail.
    pub(super) fn has_place(&self, linear: u64) -> bool {
        /// Where Linux lets programs map (`vm.mmap_min_addr`).
        const FIRST: u64 = 0x1_0000;
        let is_free = |range: &Range<usize>| !range.contains(&(linear as usize));
        (FIRST..0x7fff_ffff_f000).contains(&linear) && self.own.iter().all(is_free)
    }

    /// Lets `pages` be in the jail.
    pub(super) fn map(&mut self, pages: &[(u64, DataPage)]) -> Result<(), Broken> {
        let mut orders: Vec<Order> = Vec::new();
        for (linear, page) in pages {
            let (offset, writable) = (page.offset as u64, page.writable);
            let next = Order::map(*linear, PAGE as u64, offset, writable);
            match orders.last_mut() {
                Some(last)
                    if last.address + last.len == *linear
                        && last.offset + last.len == offset
                        && last.protection == next.protection =>
                {
                    last.len += PAGE as u64;
                }
                _ => orders.push(next),
            }
            let kept = Page {
                offset: page.offset,
                writable,
            };
            self.pages.insert(*linear, kept);
        }
        if self.pages.len() > PAGES_MAX {
            return Err(Broken);
        }
        self.jail.apply(&orders)
    }

    /// Takes the pages at `linear`, in ascending order, out of the jail.
    pub(super) fn unmap(&mut self, linear: &[u64]) -> Result<(), Broken> {
        let mut orders: Vec<Order> = Vec::new();
        for linear in linear {
            self.pages.remove(*linear);
            match orders.last_mut() {
                Some(last) if last.address + last.len == *linear => last.len += PAGE as u64,
                _ => orders.push(Order::unmap(*linear, PAGE as u64)),
            }
        }
        if orders.is_empty() {
            return Ok(());
        }
        self.jail.apply(&orders)
    }
}

/// The jails of a vCPU.
pub(crate) struct Windows {
    pub(super) heat: Heat,
    pub(super) spaces: Vec<Space>,
    /// Contexts that no jail has.
    free: Vec<ContextBox>,
    /// The space whose code runs, or is about to; its translations are the vCPU's now.
    pub(super) active: Option<usize>,
    /// What changed in the vCPU's own translations meanwhile.
    pub(super) pending: Changes,
    code_cache: usize,
    perf_map: bool,
    /// When the vCPU's timer expires, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) alarm: Option<u64>,
    /// How long jails ran, in this run.
    pub(super) inside: Duration,
    /// How long it took to bring in more pages than there were before, in this run.
    pub(super) growing: Duration,
    clock: u64,
    broken: u32,
    pub(crate) counters: Counters,
    /// What the vCPU counts while a jail is active, exchanged with what it counts else.
    pub(crate) assists: crate::vcpu::Counters,
    /// What was translated for jails.
    pub(crate) translations: crate::store::Counters,
}

impl Windows {
    pub(crate) fn new(options: &Options) -> Self {
        // Lock-step compares what goes through checks.
        let when = if has_fs_instructions() && options.lockstep.is_none() {
            options.windows
        } else {
            super::heat::When::Never
        };
        Self {
            heat: Heat::new(when),
            spaces: Vec::new(),
            free: Vec::new(),
            active: None,
            pending: Changes::default(),
            code_cache: options.shares().1,
            perf_map: options.perf_map,
            alarm: None,
            inside: Duration::ZERO,
            growing: Duration::ZERO,
            clock: 0,
            broken: 0,
            counters: Counters::default(),
            assists: crate::vcpu::Counters::default(),
            translations: crate::store::Counters::default(),
        }
    }

    /// How often user code was found that may be worth a jail, and how many windows were closed.
    pub(crate) fn decisions(&self) -> (u64, u64) {
        (self.heat.found, self.heat.closed)
    }

    /// Whether the vCPU's translations are those of a jail.
    #[inline(always)]
    pub(crate) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// The number of the space whose translations they are.
    #[inline(always)]
    pub(crate) fn active(&self) -> Option<usize> {
        self.active
    }

    /// Whether user code in the address space `cr3` runs in a jail.
    #[inline(always)]
    pub(crate) fn is_open(&self, cr3: u64) -> bool {
        self.heat.is_open(cr3)
    }

    /// Whether the code at `key`, which is for the jail that is active, was executed behind checks.
    pub(super) fn has_run(&self, key: &Key) -> bool {
        let key = Key {
            linear: 0,
            mode: key.mode - Mode::WINDOW,
            ..*key
        };
        let home = self.active.map(|number| &self.spaces[number].store);
        home.is_some_and(|home| home.find(&key).is_some())
    }

    /// Takes note of `changes` for all translations but those that are active.
    pub(crate) fn note(&mut self, changes: &Changes) {
        for (number, space) in self.spaces.iter_mut().enumerate() {
            if self.active != Some(number) {
                space.pending.add(changes);
            }
        }
        if self.is_active() {
            self.pending.add(changes);
        }
    }

    /// The space of `cr3`, made if need be.
    pub(super) fn space(&mut self, cr3: u64, bell: &Bell, memory: BorrowedFd<'_>) -> Option<usize> {
        self.clock += 1;
        self.bury();
        let known = self.spaces.iter().position(|space| space.cr3 == cr3);
        let number = match known {
            Some(number) => number,
            None => match self.reuse(cr3, bell) {
                Some(number) => number,
                None => match self.make(cr3, bell, memory) {
                    Ok(space) => {
                        self.spaces.push(space);
                        self.spaces.len() - 1
                    }
                    Err(_) => {
                        // The host does not allow it, now or ever: the checks go on.
                        self.heat.end();
                        return None;
                    }
                },
            },
        };
        self.spaces[number].last_used = self.clock;
        Some(number)
    }

    /// Gives a jail whose window is closed, or the one that waits longest if there are enough, to
    /// `cr3`.
    fn reuse(&mut self, cr3: u64, bell: &Bell) -> Option<usize> {
        let is_full = self.spaces.len() == JAILS;
        let spaces = self.spaces.iter().enumerate();
        let idle = spaces.filter(|(_, space)| is_full || !self.heat.is_open(space.cr3));
        let (number, _) = idle.min_by_key(|(_, space)| space.last_used)?;
        let space = self.spaces.swap_remove(number);
        match space.renew(cr3) {
            Ok(space) => {
                bell.ring();
                self.spaces.push(space);
                Some(self.spaces.len() - 1)
            }
            Err(context) => {
                self.free.push(context);
                None
            }
        }
    }

    /// Ends all jails.
    pub(crate) fn close(&mut self) {
        while !self.spaces.is_empty() {
            self.remove(0);
        }
    }

    /// Ends those that broke.
    fn bury(&mut self) {
        while let Some(number) = self.spaces.iter().position(|space| space.is_broken) {
            self.counters.broken += 1;
            self.broken += 1;
            self.remove(number);
            if self.broken == BROKEN_MAX {
                self.heat.end();
            }
        }
    }

    fn remove(&mut self, number: usize) {
        let space = self.spaces.swap_remove(number);
        drop(space.jail);
        self.free.push(space.context);
    }

    fn make(&mut self, cr3: u64, bell: &Bell, memory: BorrowedFd<'_>) -> io::Result<Space> {
        let mut context = match self.free.pop() {
            Some(mut used) => {
                used.renew()?;
                used
            }
            None => {
                let context = ContextBox::in_jail()?;
                bell.join(&context);
                context
            }
        };
        let stub = Stub::get();
        let mut store = Store::in_jail(self.code_cache, stub.code, stub.ask, &mut context)?;
        let (code, place) = (store.memory.range(), context.range());
        let jail = Jail::new(code.clone(), &context, place.clone(), memory)?;
        if self.perf_map {
            // A jail that `perf` has seen begin is to it a copy of this process.
            for pid in [std::process::id(), jail.pid()] {
                store.name_code_of(pid);
            }
        }
        // Until somebody has looked, its code stops at each poll.
        bell.ring();
        self.counters.jails += 1;
        Ok(Space {
            cr3,
            own: [code, place, jail.orders()],
            context,
            store,
            lookup: Lookup::default(),
            units: Mode::empty(),
            jail,
            pages: Pages::default(),
            pending: Changes::default(),
            last_used: 0,
            is_broken: false,
        })
    }
}

/// Whether programs may set their FS base by an instruction (SDM vol. 2, WRFSBASE): Linux says so
/// in the auxiliary vector.
fn has_fs_instructions() -> bool {
    const FSGSBASE: u64 = 1 << 1;
    rustix::param::linux_hwcap().1 as u64 & FSGSBASE != 0
}
