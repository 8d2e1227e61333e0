//! The clock on the host's real counter.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use clock::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[test]
fn no_thread_sees_time_before_what_another_saw() {
    let clock = Clock::following_tsc(native::time_stamp, 1 << 40);
    clock.resume();
    let latest = AtomicU64::new(0);
    let end = Instant::now() + Duration::from_millis(300);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < end {
                    for _ in 0..100 {
                        let before = latest.load(Ordering::Acquire);
                        let now = clock.now();
                        assert!(now >= before, "{now} after {before}");
                        latest.fetch_max(now, Ordering::AcqRel);
                    }
                }
            });
        }
    });
}

#[test]
fn it_keeps_the_hosts_rate() {
    let clock = Clock::following_tsc(native::time_stamp, 0);
    clock.resume();
    let (machine, host) = (clock.now(), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let passed = clock.now() - machine;
    let host = host.elapsed().as_nanos() as u64;
    // 500 ppm of what NTP may slew the host's clock by, and a busy host between two readings.
    assert!(passed.abs_diff(host) < 5_000_000, "{passed} ns of {host}");
}
