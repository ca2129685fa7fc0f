use serde_json::json;

use super::super::testing::{Answer, Issuer, jwks};
use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

async fn get(issuer: &Issuer, location: KeyLocation) -> Result<Fetched, FetchError> {
    Fetcher::new(Some(issuer.roots.clone())).fetch(&location, TIMEOUT).await
}

fn at(url: String) -> KeyLocation {
    KeyLocation::Jwks(url.into())
}

async fn fails(issuer: &Issuer, location: KeyLocation, result: &str, why: &str) {
    let error = get(issuer, location.clone()).await.unwrap_err();
    assert_eq!(error.result(), result, "{location}: {error}");
    let text = error.to_string();
    assert!(text.contains(why) && text.len() < 700, "{location}: {error}");
}

#[tokio::test]
async fn keys_are_fetched_over_tls_and_reduced_to_what_can_be_used() {
    let issuer = Issuer::start().await;
    let mut answer = Answer::of(200, jwks(&["a", "b"]).replace("\"keys\":[", "\"keys\":[{\"kty\":\"oct\",\"k\":\"x\"},"));
    answer.headers.push(("cache-control", "public, Max-Age=300, must-revalidate".into()));
    issuer.set("/keys", answer);
    let first = get(&issuer, at(format!("{}/keys", issuer.https))).await.unwrap();
    assert_eq!((first.keys, first.max_age, first.skipped.len()), (2, Some(Duration::from_secs(300)), 1), "{first:?}");
    assert!(!first.text.contains("oct"));
    // The same keys elsewhere, without TLS, are of the same version; others are not.
    issuer.set("/again", Answer::of(200, jwks(&["a", "b"])));
    let again = get(&issuer, at(format!("{}/again", issuer.http))).await.unwrap();
    assert_eq!((&again.version, again.max_age, again.skipped.len()), (&first.version, None, 0));
    issuer.set("/keys", Answer::of(200, jwks(&["c"])));
    assert_ne!(get(&issuer, at(format!("{}/keys", issuer.https))).await.unwrap().version, first.version);
}

#[tokio::test]
async fn only_roots_that_are_given_are_trusted() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    issuer.set("/keys", Answer::of(200, jwks(&["a"])));
    let location = at(format!("{}/keys", issuer.https));
    fails(&other, location.clone(), "unreachable", "invalid peer certificate").await;
    assert!(issuer.asked().is_empty());
    let fetcher = Fetcher::new(Some(other.roots.clone()));
    assert!(fetcher.fetch(&location, TIMEOUT).await.is_err());
    std::fs::copy(&issuer.roots, &other.roots).unwrap();
    assert!(fetcher.fetch(&location, TIMEOUT).await.is_ok(), "the file is read anew");
    std::fs::remove_file(&other.roots).unwrap();
    let error = fetcher.fetch(&location, TIMEOUT).await.unwrap_err();
    assert_eq!(error.result(), "roots", "{error}");
}

#[tokio::test]
async fn an_issuers_metadata_tells_where_its_keys_are() {
    let issuer = Issuer::start().await;
    issuer.set("/keys", Answer::of(200, jwks(&["a"])));
    let metadata = |issuer: &str, keys: &str| Answer::of(200, json!({ "issuer": issuer, "jwks_uri": keys, "more": 1 }).to_string());
    let place = "/realms/a/.well-known/openid-configuration";
    let name = format!("{}/realms/a", issuer.https);
    let location = KeyLocation::Issuer(format!("{name}/").into());
    issuer.set(place, metadata(&name, &format!("{}/keys", issuer.https)));
    assert_eq!(get(&issuer, location.clone()).await.unwrap().keys, 1);
    assert_eq!(issuer.asked(), [place, "/keys"]);
    for (answer, result, why) in [
        (metadata("https://evil.example", &format!("{}/keys", issuer.https)), "malformed", "another issuer"),
        (metadata(&name, &format!("{}/keys", issuer.http)), "malformed", "without TLS"),
        (metadata(&name, "file:///etc/passwd"), "malformed", "no URL"),
        (metadata(&name, "https://me:secret@localhost/keys"), "malformed", "no URL"),
        (Answer::of(200, "{}"), "malformed", "write where the keys are into jwksUri"),
        (Answer::of(404, ""), "status", "404"),
    ] {
        issuer.set(place, answer);
        fails(&issuer, location.clone(), result, why).await;
    }
    assert!(!issuer.asked().contains(&"/keys".to_owned()));
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_never_away_from_tls() {
    let issuer = Issuer::start().await;
    issuer.set("/a/keys", Answer::of(200, jwks(&["a"])));
    issuer.set("/absolute", Answer::redirect(302, &format!("{}/a/keys#x", issuer.https)));
    issuer.set("/path", Answer::redirect(301, "/a/keys"));
    issuer.set("/scheme", Answer::redirect(307, &format!("{}/a/keys", issuer.https.strip_prefix("https:").unwrap())));
    issuer.set("/a/relative", Answer::redirect(308, "keys"));
    issuer.set("/twice", Answer::redirect(303, "path?secret"));
    for good in ["/absolute", "/path", "/scheme", "/a/relative", "/twice"] {
        assert!(get(&issuer, at(format!("{}{good}", issuer.https))).await.is_ok(), "{good}");
    }
    issuer.set("/clear", Answer::redirect(302, &format!("{}/a/keys", issuer.http)));
    issuer.set("/file", Answer::redirect(302, "file:///etc/passwd"));
    issuer.set("/me", Answer::redirect(302, "https://me:secret@localhost/"));
    issuer.set("/nowhere", Answer::of(302, ""));
    issuer.set("/loop", Answer::redirect(302, "/loop"));
    for (bad, why) in [
        ("/clear", "without TLS"),
        ("/file", "no URL of https or http"),
        ("/me", "without credentials"),
        ("/nowhere", "no URL"),
        ("/loop", "more than five"),
    ] {
        issuer.asked();
        fails(&issuer, at(format!("{}{bad}?key=secret", issuer.https)), "redirect", why).await;
        assert!(issuer.asked().len() <= 6);
    }
    let error = get(&issuer, at(format!("{}/me?key=secret", issuer.https))).await.unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
    // From http there is nothing to lose.
    issuer.set("/up", Answer::redirect(302, &format!("{}/a/keys", issuer.https)));
    assert!(get(&issuer, at(format!("{}/up", issuer.http))).await.is_ok());
    issuer.set("/metadata", Answer::redirect(302, "http://169.254.169.254/latest"));
    fails(&issuer, at(format!("{}/metadata", issuer.http)), "refused", "169.254.169.254").await;
}

#[tokio::test]
async fn what_is_no_good_answer_is_told_without_its_content() {
    let issuer = Issuer::start().await;
    for (answer, result, why) in [
        (Answer::of(500, "secret"), "status", "500"),
        (Answer::of(204, ""), "status", "204"),
        (Answer::of(200, "secret"), "malformed", "not JSON"),
        (Answer::of(200, "{\"keys\": \"secret\"}"), "malformed", "has not the form"),
        (Answer::of(200, "{\"keys\": []}"), "malformed", "none of its keys"),
        (Answer::of(200, vec![b' '; MAX_BODY + 1]), "too_long", "1048576"),
    ] {
        issuer.set("/keys", answer);
        let location = at(format!("{}/keys", issuer.https));
        fails(&issuer, location.clone(), result, why).await;
        assert!(!get(&issuer, location).await.unwrap_err().to_string().contains("secret"));
    }
}

#[tokio::test]
async fn an_issuer_that_is_slow_or_away_is_given_up() {
    let issuer = Issuer::start().await;
    issuer.set("/slow", Answer { delay: Duration::from_secs(3600), ..Answer::of(200, jwks(&["a"])) });
    let fetcher = Fetcher::new(Some(issuer.roots.clone()));
    let error = fetcher.fetch(&at(format!("{}/slow", issuer.https)), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((error.result(), error.to_string().as_str()), ("timeout", "no answer within 0.3 s"));
    fails(&issuer, at("https://127.0.0.1:1/keys".into()), "unreachable", "refused").await;
    fails(&issuer, at("https://me:secret@localhost/".into()), "refused", "credentials").await;
}
