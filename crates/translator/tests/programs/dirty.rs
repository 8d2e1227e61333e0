//! Accesses that share a check mark a page dirty only if it is written.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL};

const CODE: u64 = 0x11_0000;
const DATA: u64 = 0x14_0000;
const LINEAR: u64 = 0x40_0000;
const RBX: u8 = 3;
/// The page table entry's bit.
const DIRTY: u64 = 1 << 6;

/// Runs `body` twice with RBX at a page whose first word is 7, and the others 0. Returns that word
/// afterwards, and whether the page is dirty.
fn run(body: &[u8]) -> (u64, bool) {
    run_to(End::Result(0), body)
}

/// As [`run`], if the program ends in another way.
fn run_to(end: End, body: &[u8]) -> (u64, bool) {
    let mut guest = Guest::new(1);
    let space = guest.space();
    let (entry, _) = guest.map(space, LINEAR, DATA, 0);
    let value = guest.read(entry);
    guest.write(entry, &(value & !DIRTY).to_le_bytes());
    guest.write(DATA, &7u64.to_le_bytes());
    let code = Code::new().set(RBX, LINEAR).raw(body).raw(body).end(0);
    guest.write(CODE, &code.finish());
    guest.start(0, space, 0, KERNEL + CODE);
    assert_eq!(guest.run(), end);
    (guest.read(DATA), guest.read(entry) & DIRTY != 0)
}

#[test]
fn what_is_read_changed_and_written_is_dirty() {
    // mov rax, [rbx]; add rax, 1; mov [rbx], rax
    let body = [0x48, 0x8b, 0x03, 0x48, 0x83, 0xc0, 1, 0x48, 0x89, 0x03];
    assert_eq!(run(&body), (9, true));
}

#[test]
fn what_is_not_written_after_all_is_not() {
    // mov rax, [rbx]; test rax, rax; jnz over the next; mov [rbx], rax
    let body = [
        0x48, 0x8b, 0x03, 0x48, 0x85, 0xc0, 0x75, 3, 0x48, 0x89, 0x03,
    ];
    assert_eq!(run(&body), (7, false));
}

#[test]
fn a_stack_that_is_only_popped_from_is_not() {
    // mov rsp, rbx; pop rax; test rax, rax; jnz over the next; push rax
    let body = [0x48, 0x89, 0xdc, 0x58, 0x48, 0x85, 0xc0, 0x75, 1, 0x50];
    assert_eq!(run(&body), (7, false));
}

#[test]
fn a_stack_that_is_popped_from_and_pushed_to_is_dirty() {
    // mov rsp, rbx; pop rax; add rax, 1; push rax
    let body = [0x48, 0x89, 0xdc, 0x58, 0x48, 0x83, 0xc0, 1, 0x50];
    assert_eq!(run(&body), (9, true));
}

/// An exception that is pending is raised by the next instruction, before that does anything.
#[test]
fn what_an_x87_exception_comes_before_is_not() {
    // fninit; fldcw [rbx + 16], which is 0; fldz; fldz; fdivp; fistp qword [rbx]
    let body = [
        0xdb, 0xe3, 0xd9, 0x6b, 16, 0xd9, 0xee, 0xd9, 0xee, 0xde, 0xf9, 0xdf, 0x3b,
    ];
    assert_eq!(run_to(End::Exception, &body), (7, false));
}
