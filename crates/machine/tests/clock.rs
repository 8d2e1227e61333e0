//! The clock on the host's own counter, if that is one.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use clock::Clock;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn no_thread_sees_time_before_what_another_saw() {
    let clock = Clock::following_tsc(native::time_stamp, 1 << 40);
    clock.resume();
    let latest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500_000 {
                    let before = latest.load(Ordering::Acquire);
                    let now = clock.now();
                    assert!(now >= before, "{now} after {before}");
                    latest.fetch_max(now, Ordering::AcqRel);
                }
            });
        }
    });
}
