use super::*;

#[test]
fn urls_of_keys_are_judged() {
    for good in [
        "https://i",
        "https://i/keys?a=b@c",
        "http://keycloak.auth.svc.cluster.local:8080/realms/a/certs",
        "HTTPS://[fd00::1]:443/k",
        "https://10.0.0.1/@",
    ] {
        assert_eq!(check_url(good), Ok(()), "{good}");
    }
    let long = format!("https://i/{}", "a".repeat(MAX_URL));
    for (bad, why) in [
        ("issuer", "is not a URL"),
        ("file:///etc/passwd", "https or http"),
        ("https://", "no host"),
        ("https:///keys", "no host"),
        ("https://:443/keys", "no host"),
        ("https://[]:443/keys", "no host"),
        ("https://me:secret@i/keys", "credentials"),
        ("https://@i/keys", "credentials"),
        ("https://i/a b", "blanks"),
        ("https://i/\u{1}", "blanks"),
        ("https://i/keys#a", "fragment"),
        (&long, "2048"),
    ] {
        assert!(check_url(bad).is_err_and(|error| error.contains(why)), "{bad}: {:?}", check_url(bad));
    }
}

#[test]
fn an_issuers_metadata_stands_behind_it() {
    let of = |issuer: &str| KeyLocation::Issuer(issuer.into()).url();
    assert_eq!(of("https://i"), "https://i/.well-known/openid-configuration");
    assert_eq!(of("https://i/realms/a/"), "https://i/realms/a/.well-known/openid-configuration");
    let jwks = KeyLocation::Jwks("HTTP://i/keys/".into());
    assert_eq!((jwks.url().as_str(), jwks.is_clear()), ("HTTP://i/keys/", true));
    assert!(!KeyLocation::Issuer("https://i".into()).is_clear());
}
