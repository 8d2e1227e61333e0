//! Pages that share an entry of the translator's TLB: they are found in its second level, whatever
//! is going on with flags, and not a moment longer than they are there.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL, PAGE};

/// Where code and stack are in memory.
const CODE: u64 = 0x11_0000;
const STACK: u64 = 0x13_0000;
/// Pages for data.
const FIRST: u64 = 0x14_0000;
const SECOND: u64 = 0x15_0000;
const OTHER: u64 = 0x16_0000;
/// Pages that are this far apart share an entry.
const APART: u64 = 16 << 20;
const LOWER: u64 = 0x40_0000;
const UPPER: u64 = 0xffff_c000_0040_0000;

const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// `mov rax, [rbx]`
const READ: &[u8] = &[0x48, 0x8b, 0x03];
/// `mov rax, [rbp + 0]`
const READ_OTHER: &[u8] = &[0x48, 0x8b, 0x45, 0x00];
/// `mov [rbx + 8], rcx; mov [rbp + 16], rcx`
const WRITES: &[u8] = &[0x48, 0x89, 0x4b, 0x08, 0x48, 0x89, 0x4d, 0x10];
/// `add rdi, rax`
const SUM: &[u8] = &[0x48, 0x01, 0xc7];
/// `invlpg [rbx]`
const FORGET_PAGE: &[u8] = &[0x0f, 0x01, 0x3b];
/// `mov rax, cr3; mov cr3, rax`
const FORGET_ALL: &[u8] = &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];

/// A guest that has run a loop at CPL 0.
pub(crate) struct Done {
    pub(crate) guest: Guest,
    pub(crate) refills: u64,
    pub(crate) fills: u64,
}

impl Done {
    fn sum(&self) -> u64 {
        self.guest.state(0).gpr[usize::from(RDI)]
    }
}

/// Runs `body` this often, with `linear` in RBX and `other` in RBP. Behind them are pages with 1
/// and 3 in the first word. The page table's entry for `linear` is at RSI, and changes to that of a
/// page with 2 by an XOR with RDX.
fn run(rounds: u32, body: &[u8], linear: u64, other: u64) -> Done {
    run_in(Guest::new(1), rounds, body, linear, other)
}

/// Writes to two pages that share an entry, and to the first again, in one block, this often.
pub(crate) fn write_in_lock_step(rounds: u32) -> Done {
    // mov rax, rbx; not rax; not rax; mov [rax + 8], rdi: nobody knows that it is the same page.
    let again = [0x48, 0x89, 0xd8, 0x48, 0xf7, 0xd0, 0x48, 0xf7, 0xd0];
    let body = [WRITES, &again, &[0x48, 0x89, 0x78, 0x08]].concat();
    run_in(Guest::in_lock_step(), rounds, &body, LOWER, LOWER + APART)
}

fn run_in(mut guest: Guest, rounds: u32, body: &[u8], linear: u64, other: u64) -> Done {
    let space = guest.space();
    let (entry, value) = guest.map(space, linear & !(PAGE - 1), FIRST, 0);
    guest.map(space, (linear & !(PAGE - 1)) + PAGE, SECOND, 0);
    if other & !(PAGE - 1) != linear & !(PAGE - 1) {
        guest.map(space, other & !(PAGE - 1), OTHER, 0);
    }
    for (page, number) in [(FIRST, 1u64), (SECOND, 2), (OTHER, 3)] {
        guest.write(page, &number.to_le_bytes());
    }
    let code = Code::new()
        .set(RBX, linear)
        .set(RBP, other)
        .set(RSI, KERNEL + entry)
        .set(RDX, value ^ (value - FIRST + SECOND))
        .set(RSP, KERNEL + STACK)
        .set(RDI, 0)
        .rounds(rounds, body)
        .end(0);
    guest.write(CODE, &code.finish());
    guest.start(0, space, 0, KERNEL + CODE);
    assert_eq!(guest.run(), End::Result(0));
    Done {
        refills: guest.count(0, "TLB of translated code: hits of the second level"),
        fills: guest.count(0, "translated code asks for: a page that the TLB has not"),
        guest,
    }
}

#[test]
fn pages_that_share_an_entry_cost_no_walks() {
    const ROUNDS: u32 = 1000;
    let reads = [READ, SUM, READ_OTHER, SUM].concat();
    for linear in [LOWER, UPPER] {
        for body in [WRITES, &reads] {
            let done = run(ROUNDS, body, linear, linear + APART);
            assert!(
                done.refills > 2 * u64::from(ROUNDS) - 50,
                "{}",
                done.refills
            );
            assert!(done.fills < 50, "{}", done.fills);
        }
        assert_eq!(
            run(ROUNDS, &reads, linear, linear + APART).sum(),
            u64::from(ROUNDS) * (1 + 3)
        );
    }
}

#[test]
fn a_read_and_a_written_page_do_not_disturb_each_other() {
    // mov rax, [rbx]; mov [rbp + 8], rax
    let body = [READ, &[0x48, 0x89, 0x45, 0x08]].concat();
    let done = run(1000, &body, LOWER, LOWER + APART);
    assert!(done.refills < 50, "{}", done.refills);
    assert!(done.fills < 50, "{}", done.fills);
}

#[test]
fn flags_survive_a_refill() {
    // add rsi, rdx; mov rax, [rbx]; mov rax, [rbp]; pushfq; pop rax; and eax, 8d5; rol rdi, 7;
    // xor rdi, rax, after RDX was made a number of many bits: imul rdx, rdx, 0x1234567; inc rdx
    let body = [
        &[0x48, 0x69, 0xd2, 0x67, 0x45, 0x23, 0x01, 0x48, 0xff, 0xc2],
        [0x48, 0x01, 0xd6].as_slice(),
        READ,
        READ_OTHER,
        &[0x9c, 0x58, 0x25, 0xd5, 0x08, 0x00, 0x00],
        &[0x48, 0xc1, 0xc7, 0x07, 0x48, 0x31, 0xc7],
    ]
    .concat();
    const ROUNDS: u32 = 1000;
    let quiet = run(ROUNDS, &body, LOWER, LOWER + 8);
    let other = run(ROUNDS, &body, LOWER, LOWER + APART);
    assert!(quiet.refills < 50, "{}", quiet.refills);
    assert!(other.refills > 2 * u64::from(ROUNDS) - 50);
    assert_eq!(quiet.sum(), other.sum());
}

#[test]
fn an_access_across_two_pages_is_no_endless_refill() {
    // Half of each number: the upper one of the first page's last word, the lower one of the next
    // page's first.
    let body = [READ, SUM, READ_OTHER].concat();
    const ROUNDS: u32 = 100;
    for linear in [LOWER, UPPER] {
        let done = run(ROUNDS, &body, linear + PAGE - 4, linear + APART);
        assert_eq!(done.sum(), u64::from(ROUNDS) * (2 << 32));
    }
}

#[test]
fn the_second_level_forgets_what_invlpg_forgets() {
    // The page is in the second level only when its entry changes: xor [rsi], rdx
    let body = [READ, SUM, READ_OTHER, &[0x48, 0x31, 0x16], FORGET_PAGE].concat();
    const ROUNDS: u32 = 1000;
    for linear in [LOWER, UPPER] {
        let done = run(ROUNDS, &body, linear, linear + APART);
        assert_eq!(done.sum(), u64::from(ROUNDS / 2) * (1 + 2));
        assert!(done.refills > u64::from(ROUNDS) - 50, "{}", done.refills);
    }
}

#[test]
fn the_second_level_forgets_what_a_cr3_write_forgets() {
    // More often than there are generations.
    const ROUNDS: u32 = 10_000;
    let body = [READ, SUM, READ_OTHER, &[0x48, 0x31, 0x16], FORGET_ALL].concat();
    for linear in [LOWER, UPPER] {
        let done = run(ROUNDS, &body, linear, linear + APART);
        assert_eq!(done.sum(), u64::from(ROUNDS / 2) * (1 + 2));
    }
}

#[test]
fn the_second_level_lets_no_code_be_written_unseen() {
    // mov byte [rbx], b8; mov [rbx + 1], ecx; mov byte [rbx + 5], c3; mov [rbp + 8], rcx; call rbx
    let body = [
        &[0xc6, 0x03, 0xb8, 0x89, 0x4b, 0x01, 0xc6, 0x43, 0x05, 0xc3],
        [0x48, 0x89, 0x4d, 0x08, 0xff, 0xd3].as_slice(),
        SUM,
    ]
    .concat();
    const ROUNDS: u32 = 300;
    for linear in [LOWER, UPPER] {
        let done = run(ROUNDS, &body, linear, linear + APART);
        assert_eq!(done.sum(), (1..=u64::from(ROUNDS)).sum::<u64>());
    }
}
