use super::*;
use crate::testing::{BUFFERS, Driver};

#[test]
fn requests_are_filled_and_differ() {
    let mut driver = Driver::ready(Rng::host(), 0);
    driver.request(0, &[(BUFFERS, 600, true), (BUFFERS + 600, 400, true)]);
    driver.request(0, &[(BUFFERS + 1000, 1000, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, 1000)));
    assert_eq!(driver.queues[0].take_used(), Some((2, 1000)));
    let mut bytes = [0; 2000];
    driver.memory.read(BUFFERS, &mut bytes).unwrap();
    assert_ne!(bytes[..1000], bytes[1000..]);
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    assert!(zeros < 100, "{zeros} zeros in 2000 random bytes");
}

#[test]
fn a_request_is_bounded() {
    let mut driver = Driver::ready(Rng::host(), 0);
    driver.request(0, &[(BUFFERS, REQUEST_BYTES_MAX + 1, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, REQUEST_BYTES_MAX)));
}

#[test]
fn a_source_that_fails_gives_nothing_for_random() {
    let rng = Rng::new(Box::new(|_| Err(std::io::ErrorKind::Other.into())));
    let mut driver = Driver::ready(rng, 0);
    driver.request(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.queues[0].take_used(), Some((0, 0)));
}
