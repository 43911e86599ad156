#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

#[test]
fn machine_ids_are_stable_and_differ() {
    let id = |n| machine_id(&InstanceId::from_unix_nanos(n));
    assert_eq!(id(1), id(1));
    assert_ne!(id(1), id(2));
    assert!(id(1).len() == 32 && id(1).bytes().all(|b| b.is_ascii_hexdigit()));
}
