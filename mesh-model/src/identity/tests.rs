use super::*;

#[test]
fn round_trips() {
    let id: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    assert_eq!((id.namespace(), id.service_account()), ("shop", "cart"));
    assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
}

#[test]
fn refuses_what_is_not_an_identity() {
    for bad in [
        "",
        "spiffe://",
        "http://a/ns/b/sa/c",
        "spiffe://a/ns/b/sa/",
        "spiffe://a/ns/b/sa/c/d",
        "spiffe://A/ns/b/sa/c",
        "spiffe://a/ns/b/sa/c%2f",
        "spiffe://a/ns//sa/c",
        "spiffe://a b/ns/b/sa/c",
        "spiffe://a/sa/b/ns/c",
    ] {
        assert!(bad.parse::<Identity>().is_err(), "{bad}");
    }
}
