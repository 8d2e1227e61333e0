//! Lock-step where translated code does much by itself: every block is checked all the same.

use crate::guest::{End, Guest};
use crate::{crossings, tlb};

/// How many blocks were checked. None was not.
fn checked(guest: &Guest) -> u64 {
    assert_eq!(guest.count(0, "lock-step: blocks not checked"), 0);
    guest.count(0, "lock-step: blocks checked")
}

#[test]
fn system_calls_and_returns_are_checked() {
    let (mut guest, calls) = crossings::in_lock_step();
    assert_eq!(guest.run(), End::Result(1));
    assert!(checked(&guest) > 2 * calls, "{}", checked(&guest));
}

/// The second level grants again what was granted to the block before, and nothing else.
#[test]
fn writes_that_the_second_level_grants_are_checked() {
    const ROUNDS: u32 = 1000;
    let done = tlb::write_in_lock_step(ROUNDS);
    let rounds = u64::from(ROUNDS);
    assert!(checked(&done.guest) >= rounds);
    // In each round two pages are granted anew, and then the first once more.
    assert!(done.fills >= 2 * rounds, "{}", done.fills);
    assert!(done.refills >= rounds - 10, "{}", done.refills);
}
