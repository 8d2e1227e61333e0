//! Instructions with bytes in two pages, whose second page becomes another one, or is written.

use crate::code::Code;
use crate::guest::{End, GLOBAL, Guest, KERNEL, PAGE, USER};

/// Guest-physical pages: the first one, and two for the second.
const FIRST: u64 = 0x11_0000;
const SECOND: u64 = 0x12_0000;
const OTHER: u64 = 0x13_0000;
const HANDLER: u64 = 0x14_0000;
/// Where `mov eax, imm32` is in the first page: the opcode and a byte of the operand.
const STRADDLING: usize = 0xffe;
const ROUNDS: u32 = 1000;

/// `syscall`
const SYSCALL: &[u8] = &[0x0f, 0x05];
/// `mov [rdi], rsi; invlpg [r10]`
const CHANGE_ENTRY: &[u8] = &[0x48, 0x89, 0x37, 0x41, 0x0f, 0x01, 0x3a];
/// `mov cr3, rdi`
const CHANGE_SPACE: &[u8] = &[0x0f, 0x22, 0xdf];
/// `mov [r10], sil`
const CHANGE_BYTE: &[u8] = &[0x41, 0x88, 0x32];

/// Where code runs.
#[derive(Debug, Clone, Copy)]
struct Place {
    linear: u64,
    cpl: u8,
}

const PLACES: [Place; 3] = [
    Place {
        linear: 0x40_0000,
        cpl: 3,
    },
    Place {
        linear: 0x40_0000,
        cpl: 0,
    },
    Place {
        linear: 0xffff_c000_0000_0000,
        cpl: 0,
    },
];

impl Place {
    fn flags(self) -> u64 {
        if self.cpl == 3 { USER } else { 0 }
    }
}

/// Calls the straddling instruction often, has `change` made at CPL 0 (or `own`, by the program
/// itself), and calls it again. R12 and R13 are what it returned before and after.
fn guest(place: Place, change: &[u8], is_own: bool) -> (Guest, u64) {
    let mut guest = Guest::new(1);
    let space = guest.space();
    // mov ebx, 2; outer: mov r9d, ROUNDS; jmp again; again: call; dec r9d; jnz again; mov r12, r13;
    // mov r13, rax; dec ebx; jz done; ...; jmp outer. The call after the change is in the block
    // that made it all the time, and is linked.
    let mut code = Code::new()
        .raw(&[0xbb, 2, 0, 0, 0])
        .label("outer")
        .raw(&[0x41, 0xb9])
        .raw(&ROUNDS.to_le_bytes())
        .branch(&[0xe9], "again")
        .label("again")
        .branch(&[0xe8], "straddling")
        .raw(&[0x41, 0xff, 0xc9])
        .branch(&[0x0f, 0x85], "again")
        .raw(&[0x4d, 0x89, 0xec, 0x49, 0x89, 0xc5, 0xff, 0xcb])
        .branch(&[0x0f, 0x84], "done")
        .raw(if place.cpl == 3 && !is_own {
            SYSCALL
        } else {
            change
        })
        .branch(&[0xe9], "outer")
        .label("done")
        .end(0);
    code = code.fill_to(STRADDLING, 0xcc).label("straddling");
    guest.write(FIRST, &code.raw(&[0xb8, 0x11]).finish());
    // The rest of the operand; ret.
    guest.write(SECOND, &[0x22, 0x33, 0x44, 0xc3]);
    guest.write(OTHER, &[0x55, 0x66, 0x77, 0xc3]);
    guest.write(HANDLER, &[change, &[0x48, 0x0f, 0x07]].concat());
    guest.map(space, KERNEL + HANDLER, HANDLER, GLOBAL);
    guest.map(space, place.linear, FIRST, place.flags());
    guest.map(space, place.linear + PAGE, SECOND, place.flags());
    guest.map(space, place.linear + 8 * PAGE, 0x15_0000, place.flags());
    guest.start(0, space, place.cpl, place.linear);
    guest.change(0, |state| {
        state.syscall.lstar = KERNEL + HANDLER;
        state.gpr[4] = place.linear + 9 * PAGE;
        state.gpr[10] = place.linear + PAGE;
    });
    (guest, space)
}

/// What R12 and R13 were.
fn results(guest: &Guest) -> (u64, u64) {
    let gpr = guest.state(0).gpr;
    (gpr[12], gpr[13])
}

#[test]
fn the_second_page_may_be_mapped_elsewhere_by_invlpg() {
    for place in PLACES {
        let (mut guest, space) = guest(place, CHANGE_ENTRY, false);
        // The second page's entry is made twice: what it will be, and what it is.
        let second = place.linear + PAGE;
        let (_, later) = guest.map(space, second, OTHER, place.flags());
        let (entry, _) = guest.map(space, second, SECOND, place.flags());
        guest.change(0, |state| {
            state.gpr[7] = KERNEL + entry;
            state.gpr[6] = later;
        });
        assert_eq!(guest.run(), End::Result(0), "{place:?}");
        assert_eq!(results(&guest), (0x4433_2211, 0x7766_5511), "{place:?}");
    }
}

#[test]
fn the_second_page_may_be_another_one_in_another_address_space() {
    for place in PLACES {
        let (mut guest, _) = guest(place, CHANGE_SPACE, false);
        let other = guest.space();
        guest.map(other, place.linear, FIRST, place.flags());
        guest.map(other, place.linear + PAGE, OTHER, place.flags());
        guest.map(other, place.linear + 8 * PAGE, 0x15_0000, place.flags());
        guest.change(0, |state| state.gpr[7] = other);
        assert_eq!(guest.run(), End::Result(0), "{place:?}");
        assert_eq!(results(&guest), (0x4433_2211, 0x7766_5511), "{place:?}");
    }
}

#[test]
fn the_second_page_may_go_away() {
    for place in PLACES {
        let (mut guest, space) = guest(place, CHANGE_ENTRY, false);
        let (entry, _) = guest.map(space, place.linear + PAGE, SECOND, place.flags());
        guest.change(0, |state| state.gpr[7] = KERNEL + entry);
        assert_eq!(guest.run(), End::Exception, "{place:?}");
        let state = guest.state(0);
        assert_eq!(state.gpr[13], 0x4433_2211, "{place:?}");
        // The fault is that of the fetch, at the page's beginning.
        assert_eq!(state.cr2, place.linear + PAGE, "{place:?}");
        assert_eq!(state.rip, place.linear + STRADDLING as u64, "{place:?}");
    }
}

#[test]
fn writes_to_either_page_are_seen() {
    for place in PLACES {
        for (at, changed) in [(0, 0x4433_9911), (2, 0x9933_2211), (-1, 0x4433_2299)] {
            let (mut guest, _) = guest(place, CHANGE_BYTE, true);
            guest.change(0, |state| {
                state.gpr[10] = state.gpr[10].wrapping_add_signed(at);
                state.gpr[6] = 0x99;
            });
            assert_eq!(guest.run(), End::Result(0), "{place:?}");
            assert_eq!(results(&guest), (0x4433_2211, changed), "{place:?}, {at}");
        }
    }
}

#[test]
fn nobody_helps_in_a_loop() {
    for place in PLACES {
        let (mut guest, _) = guest(place, CHANGE_BYTE, true);
        guest.change(0, |state| state.gpr[6] = 0x22);
        assert_eq!(guest.run(), End::Result(0), "{place:?}");
        for name in [
            "translated code asks for: an instruction for the interpreter",
            "translated code asks for: a jump that is not linked",
            "translated code asks for: a poll, at a link",
            "translated code asks for: a jump that is in no cache",
            "code behind checks: entries from Rust code",
        ] {
            let count = guest.count(0, name);
            assert!(count < 30, "{place:?}: {name} {count}");
        }
    }
}
