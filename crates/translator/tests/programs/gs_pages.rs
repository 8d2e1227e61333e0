//! Accesses of kernel code behind the base of GS, which find their page without computing where it
//! is, as long as it is there and the base is the same.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL, PAGE};

/// Where code and stack are in memory.
const CODE: u64 = 0x11_0000;
const STACK: u64 = 0x13_0000;
/// What is behind two bases: two pages each, whose first word is a number.
const PAGES: [u64; 4] = [0x14_0000, 0x15_0000, 0x16_0000, 0x17_0000];
/// Another page.
const SPARE: u64 = 0x18_0000;
const BASE: u64 = 0xffff_c000_0040_0000;
const OTHER_BASE: u64 = 0x50_0000;
const ROUNDS: u32 = 1000;

const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// `add rdi, gs:[at]`
fn add(at: u32) -> Vec<u8> {
    [&[0x65, 0x48, 0x03, 0x3c, 0x25], at.to_le_bytes().as_slice()].concat()
}

/// `stc; mov rax, gs:[at]; adc rdi, rax`: the carry lives across the access.
fn add_and_carry(at: u32) -> Vec<u8> {
    let at = at.to_le_bytes();
    [
        &[0xf9, 0x65, 0x48, 0x8b, 0x04, 0x25],
        at.as_slice(),
        &[0x48, 0x11, 0xc7],
    ]
    .concat()
}

/// `swapgs`
const SWAP: &[u8] = &[0x0f, 0x01, 0xf8];
/// `xor [rsi], rdx; invlpg [rbx]`: another page is there.
const EXCHANGE: &[u8] = &[0x48, 0x31, 0x16, 0x0f, 0x01, 0x3b];
/// `mov rax, cr3; mov cr3, rax`
const FORGET: &[u8] = &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];

/// Runs `body` in a loop at CPL 0 with these bases. RBX is the first page's address, [RSI] its page
/// table entry, which changes to that of [`SPARE`] by an XOR with RDX.
fn run(mut guest: Guest, body: &[u8], bases: [u64; 2]) -> Guest {
    let space = guest.space();
    let (entry, value) = guest.map(space, BASE, PAGES[0], 0);
    guest.map(space, BASE + PAGE, PAGES[1], 0);
    guest.map(space, OTHER_BASE, PAGES[2], 0);
    guest.map(space, OTHER_BASE + PAGE, PAGES[3], 0);
    for (page, number) in PAGES.into_iter().zip([1u64, 10, 100, 1000]) {
        guest.write(page, &number.to_le_bytes());
        guest.write(page + 8, &number.to_le_bytes());
    }
    guest.write(SPARE, &10_000u64.to_le_bytes());
    let code = Code::new()
        .set(RBX, BASE)
        .set(RSI, KERNEL + entry)
        .set(RDX, value ^ (value - PAGES[0] + SPARE))
        .set(RSP, KERNEL + STACK)
        .set(RDI, 0)
        .rounds(ROUNDS, body)
        .end(0);
    guest.write(CODE, &code.finish());
    guest.start(0, space, 0, KERNEL + CODE);
    guest.change(0, |state| {
        state.segments[5].base = bases[0];
        state.syscall.kernel_gs_base = bases[1];
    });
    assert_eq!(guest.run(), End::Result(0));
    guest
}

/// The sum of what was read in each round.
fn sum(guest: &Guest) -> u64 {
    guest.state(0).gpr[usize::from(RDI)]
}

fn helped(guest: &Guest) -> u64 {
    guest.count(0, "translated code asks for: a page that the TLB has not")
}

#[test]
fn pages_are_found_once_for_a_base() {
    for add in [add, add_and_carry] {
        let body = [add(0), add(PAGE as u32)].concat();
        let guest = run(Guest::new(1), &body, [BASE, OTHER_BASE]);
        assert_eq!(
            sum(&guest) / u64::from(ROUNDS),
            if body[0] == 0xf9 { 13 } else { 11 }
        );
        assert!(helped(&guest) < 50, "{}", helped(&guest));
    }
}

#[test]
fn another_base_has_other_pages() {
    for create in [|| Guest::new(1), Guest::in_lock_step] {
        let body = [&add(0), SWAP, &add(PAGE as u32), SWAP].concat();
        let guest = run(create(), &body, [BASE, OTHER_BASE]);
        assert_eq!(sum(&guest), u64::from(ROUNDS) * 1001);
    }
}

#[test]
fn what_is_written_is_read_again() {
    // inc qword gs:[8]
    let increment = [0x65, 0x48, 0xff, 0x04, 0x25, 8, 0, 0, 0];
    for create in [|| Guest::new(1), Guest::in_lock_step] {
        let guest = run(
            create(),
            &[&increment, add(8).as_slice()].concat(),
            [BASE, 0],
        );
        let rounds = u64::from(ROUNDS);
        assert_eq!(sum(&guest), rounds * (rounds + 1) / 2 + rounds);
    }
}

#[test]
fn pages_that_move_are_followed() {
    for create in [|| Guest::new(1), Guest::in_lock_step] {
        let body = [&add(0), EXCHANGE, &add(0), EXCHANGE].concat();
        let guest = run(create(), &body, [BASE, OTHER_BASE]);
        assert_eq!(sum(&guest), u64::from(ROUNDS) * 10_001);
    }
}

#[test]
fn a_write_of_cr3_forgets_those_of_the_lower_half() {
    // The entry of the upper half's page is not global.
    let change = [&[0x48, 0x31, 0x16], FORGET].concat();
    let body = [add(0), change.clone(), add(0), change].concat();
    let guest = run(Guest::new(1), &body, [BASE, 0]);
    assert_eq!(sum(&guest), u64::from(ROUNDS) * 10_001);
}

#[test]
fn a_base_inside_of_a_page_is_right_too() {
    let body = [add(0), add(PAGE as u32), add_and_carry(0)].concat();
    let guest = run(Guest::new(1), &body, [BASE + 8, 0]);
    assert_eq!(sum(&guest), u64::from(ROUNDS) * (1 + 10 + 2));
}

#[test]
fn nothing_is_behind_a_base_of_0_that_is_not_mapped() {
    // A page fault without an IDT: a triple fault.
    let mut guest = Guest::new(1);
    let space = guest.space();
    let code = Code::new().set(RDI, 0).raw(&add(0)).end(0);
    guest.write(CODE, &code.finish());
    guest.start(0, space, 0, KERNEL + CODE);
    guest.change(0, |state| state.segments[5].base = 0);
    assert_eq!(guest.run(), End::Exception);
}
