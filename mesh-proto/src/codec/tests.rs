use prost::Message as _;

use super::*;
use crate::ca::IstioCertificateRequest;
use crate::nodemesh::{Budget, FetchKeysRequest, KnownKeys, LendRequest, Need};

#[test]
fn fields_are_counted_whatever_they_hold() {
    let needs = |count| {
        let budget = Budget { namespace: "shop".into(), rate_limit: "l".repeat(300), index: 7, service: "web".into() };
        let need = Need { budget: Some(budget), demand: u64::MAX, holds: u32::MAX };
        LendRequest { session: u64::MAX, turn: 1, needs: vec![need; count], answered: 3 }.encode_to_vec()
    };
    assert_eq!((fields(&[]), fields(&needs(0)), fields(&needs(1024))), (Some(0), Some(3), Some(1027)));
    let certificate = IstioCertificateRequest::for_workload("csr".into(), -1, "spiffe://a/ns/b/sa/c".into()).encode_to_vec();
    assert_eq!(fields(&certificate), Some(3));
    assert_eq!(fields(&[0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x0d, 1, 2, 3, 4]), Some(2), "fixed 64, fixed 32");
    let empty = FetchKeysRequest { known: vec![KnownKeys::default(); MOST_FIELDS + 1], wait_ms: 0 }.encode_to_vec();
    assert_eq!((empty.len(), fields(&empty)), (2 * (MOST_FIELDS + 1), Some(MOST_FIELDS + 1)));
}

#[test]
fn what_ends_too_early_is_malformed() {
    for bytes in [&[0x0a][..], &[0x0a, 5, 1], &[0x08], &[0x08, 0x80], &[0x0d, 1, 2, 3], &[0x0b], &[0x0f, 1], &[0xff; 11]] {
        assert_eq!(fields(bytes), None, "{bytes:?}");
    }
}
