//! Indirect jumps to odd places.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL};

const CODE: u64 = 0x11_0000;
const TARGET: u64 = 0x12_0000;
const STACK: u64 = 0x13_0800;

/// A null pointer to a function, called by kernel code: what is there runs.
#[test]
fn a_call_of_address_0_goes_there() {
    let mut guest = Guest::new(1);
    let space = guest.space();
    guest.map(space, 0, TARGET, 0);
    // mov rsp, KERNEL + STACK; call near; xor eax, eax; call rax; near: ret
    let code = Code::new()
        .set(4, KERNEL + STACK)
        .branch(&[0xe8], "near")
        .raw(&[0x31, 0xc0, 0xff, 0xd0])
        .end(1)
        .label("near")
        .raw(&[0xc3]);
    guest.write(CODE, &code.finish());
    guest.write(TARGET, &Code::new().end(2).finish());
    guest.start(0, space, 0, KERNEL + CODE);
    assert_eq!(guest.run(), End::Result(2));
}
