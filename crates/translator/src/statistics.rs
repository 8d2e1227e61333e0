//! What a vCPU counted, for people.
//!
//! Counting must not slow down what is counted: neither links that are followed nor hits of the
//! first jump cache and the first level of the TLB are, since translated code does these by itself.

use crate::store;
use crate::vcpu::{Counters, TranslatorVcpu};
use engine::{Statistic, TIME, Vcpu};

const CODE: &str = "code behind checks";
const EXITS: &str = "translated code asks for";
const JUMPS: &str = "jumps";
const TLB: &str = "TLB of translated code";
const WINDOWS: &str = "windows";
const WINDOW_CODE: &str = "code in windows";
const WINDOW_STOPS: &str = "windows stop for";
const LOCKSTEP: &str = "lock-step";

impl TranslatorVcpu {
    /// All that it counted, and what its interpreter did.
    pub(crate) fn all_statistics(&self) -> Vec<Statistic> {
        let (own, windows) = (&self.counters, &self.windows);
        let core = self.core.statistics();
        let (mut all, others): (Vec<_>, Vec<_>) = core.into_iter().partition(|s| s.group == TIME);
        let translating = own.translating + windows.assists.translating;
        all.extend([
            Statistic::time("translating", translating),
            Statistic::time("in windows, all in all", windows.counters.time),
            Statistic::time("of that, in their code", windows.counters.inside),
        ]);
        all.extend(code(CODE, &self.store.counters, own));
        all.extend([
            Statistic::events(CODE, "entries from Rust code", own.entries),
            Statistic::level(CODE, "blocks now", self.store.blocks.len() as u64),
            Statistic::bytes(CODE, "cache in use now", self.store.used() as u64),
            Statistic::bytes(CODE, "cache", self.store.memory.capacity() as u64),
        ]);
        all.extend(exits(EXITS, own));
        all.extend([
            Statistic::events(EXITS, "a page that the TLB has not", self.lookup.fills),
            Statistic::events(EXITS, "an access for the interpreter", own.accesses),
            Statistic::events(EXITS, "a twin: a shared check failed", own.singles),
        ]);
        all.extend([
            Statistic::events(JUMPS, "links made", self.store.counters.linked),
            Statistic::events(JUMPS, "links with an adapter", self.store.counters.adapters),
            Statistic::events(JUMPS, "hits of the second cache", self.context.second_hits),
            Statistic::events(JUMPS, "fills of the caches", self.lookup.jump_fills),
        ]);
        all.extend(self.tlb());
        all.extend(self.window_statistics());
        if let Some(lockstep) = &self.lockstep {
            all.extend([
                Statistic::events(LOCKSTEP, "blocks checked", lockstep.checked),
                Statistic::events(
                    LOCKSTEP,
                    "instructions in them",
                    lockstep.checked_instructions,
                ),
                Statistic::events(LOCKSTEP, "blocks not checked", lockstep.unchecked),
            ]);
        }
        all.extend(others);
        all.extend([
            Statistic::events("events", "looks at requests and timers", own.attended),
            Statistic::events(
                "interpreter",
                "blocks of modes that are not translated",
                own.interpreted,
            ),
        ]);
        all
    }

    fn tlb(&self) -> [Statistic; 6] {
        let own = &self.counters;
        [
            ("hits of the second level", self.context.refills),
            ("flushes of everything", own.forgot_all),
            ("flushes of what is not global", own.forgot_locals),
            ("flushes of the lower half", own.forgot_lower),
            ("flushes of permissions to write", own.forgot_writes),
            ("pages of kernel code looked up again", own.checked_pages),
        ]
        .map(|(name, value)| Statistic::events(TLB, name, value))
    }

    fn window_statistics(&self) -> Vec<Statistic> {
        let (counters, assists) = (&self.windows.counters, &self.windows.assists);
        let (finds, closed) = self.windows.decisions();
        let own = [
            ("finds of code that computes", finds),
            ("opened", counters.opened),
            ("closed, as they did not pay", closed),
            ("processes made", counters.jails),
            ("processes that broke", counters.broken),
            ("runs", counters.runs),
            ("stops in them", counters.stops),
            ("stops by a signal", counters.interrupted),
            ("stops by a signal, amiss", counters.amiss),
            ("fills: a page was missing", counters.fills),
            ("pages mapped by them", counters.mapped),
            ("pages unmapped", counters.unmapped),
        ];
        let own = own.map(|(name, value)| Statistic::events(WINDOWS, name, value));
        let mut all = own.to_vec();
        all.extend(code(WINDOW_CODE, &self.windows.translations, assists));
        all.extend(exits(WINDOW_STOPS, assists));
        all
    }
}

/// What was translated, and why it was dropped.
fn code(group: &'static str, store: &store::Counters, own: &Counters) -> [Statistic; 8] {
    let all_new = store.flushes.saturating_sub(own.full);
    [
        ("blocks translated", store.translated),
        ("instructions in them", store.translated_insns),
        ("bytes of host code for them", store.translated_bytes),
        ("bytes of records of them", store.record_bytes),
        ("blocks dropped: code was written", own.rewritten),
        ("blocks dropped: code is elsewhere now", own.displaced),
        ("flushes: the cache was full", own.full),
        ("flushes: all code may be new", all_new),
    ]
    .map(|(name, value)| Statistic::events(group, name, value))
}

/// Why translated code needed Rust code.
fn exits(group: &'static str, own: &Counters) -> [Statistic; 6] {
    [
        ("a jump that is not linked", own.links),
        ("a jump that is in no cache", own.indirect),
        ("a poll, at a link", own.polls),
        ("a poll, at a jump", own.rung),
        ("an instruction for the interpreter", own.callouts),
        ("an instruction that raised a signal", own.faults),
    ]
    .map(|(name, value)| Statistic::events(group, name, value))
}
