use super::*;
use crate::keys::schedule::{KeySet, Standing};

const AT: Duration = Duration::from_secs(1_700_000_000);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + AT + Duration::from_secs(seconds)
}

fn place(name: &str) -> KeyLocation {
    KeyLocation::Jwks(name.into())
}

fn set(version: &str, fetched: u64, length: usize) -> Standing {
    let set = KeySet { text: "x".repeat(length).into(), version: version.into(), keys: 1, fetched: at(fetched) };
    Standing { set: Some(Arc::new(set)), failure: None }
}

fn known(name: &str, version: &str, fetched: u64, failure: &str) -> Known {
    Known { location: place(name), version: version.into(), fetched: at(fetched), failure: failure.into() }
}

/// Versions and failures of an answer.
fn said(book: &Book, known: &[Known], last: bool) -> Vec<String> {
    let answer = news(book, known, at(100), last);
    let outcome = |one: FetchedKeys| match one.outcome.unwrap() {
        Outcome::Set(set) => set.version,
        Outcome::Failure(why) => why,
    };
    answer.keys.into_iter().map(outcome).collect()
}

#[test]
fn an_agent_is_told_what_it_does_not_know_and_no_more() {
    let book = Book::from([
        (place("a"), set("2", 50, 1)),
        (place("b"), Standing { set: None, failure: Some("away".into()) }),
        (place("c"), Standing::default()),
        (place("d"), Standing { failure: Some("away".into()), ..set("7", 10, 1) }),
    ]);
    assert_eq!(said(&book, &[known("a", "", 0, ""), known("b", "", 0, ""), known("c", "", 0, "")], false), ["2", "away"]);
    assert_eq!(said(&book, &[known("a", "1", 40, "")], false), ["2"]);
    for nothing in [known("a", "2", 40, ""), known("b", "", 0, "away"), known("b", "1", 40, ""), known("c", "", 0, "")] {
        assert!(said(&book, &[nothing], true).is_empty());
    }
    assert_eq!(said(&book, &[known("b", "", 0, "late")], false), ["away"], "another reason than before");
    assert_eq!(said(&book, &[known("d", "", 0, "")], false), ["7"], "the last good keys, whatever failed since");
}

#[test]
fn what_another_replica_fetched_later_stays() {
    let book = Book::from([(place("a"), set("1", 50, 1))]);
    assert!(said(&book, &[known("a", "2", 60, "")], true).is_empty());
    assert_eq!(said(&book, &[known("a", "2", 100 + 61, "")], false), ["1"], "unless its clock is wrong");
}

#[test]
fn what_no_policy_names_is_not_answered_and_at_last_said_so() {
    assert!(said(&Book::new(), &[known("a", "", 0, "")], false).is_empty(), "this replica may be behind");
    assert_eq!(said(&Book::new(), &[known("a", "", 0, "")], true), [UNKNOWN]);
    assert!(said(&Book::new(), &[known("a", "", 0, UNKNOWN)], true).is_empty());
    assert!(said(&Book::new(), &[known("a", "1", 0, "")], true).is_empty(), "what it has it keeps");
}

#[test]
fn an_answer_is_no_longer_than_it_may_be() {
    let book = Book::from([(place("a"), set("1", 0, MAX_KEYS + 1)), (place("b"), set("2", 0, MAX_KEYS)), (place("c"), set("3", 0, 1))]);
    let (a, b, c) = (|| known("a", "", 0, ""), || known("b", "", 0, ""), || known("c", "", 0, ""));
    assert_eq!(said(&book, &[a(), b(), c()], false), ["1"]);
    assert_eq!(said(&book, &[b(), c()], false), ["2"]);
    assert_eq!(said(&book, &[c()], false), ["3"]);
}

#[test]
fn what_says_no_place_is_malformed() {
    assert!(Known::read(KnownKeys::default()).is_err());
    let source = Some(KeySource { source: Some(Source::Issuer("https://i".into())) });
    let read = Known::read(KnownKeys { source, fetched_unix_ms: u64::MAX, ..KnownKeys::default() }).unwrap();
    assert_eq!(read.location, KeyLocation::Issuer("https://i".into()));
}

#[test]
fn what_is_longer_than_anything_that_is_told_is_not_kept() {
    let with = |url: usize, version: usize, failure: usize| {
        let source = Some(KeySource { source: Some(Source::JwksUri("u".repeat(url))) });
        Known::read(KnownKeys { source, version: "v".repeat(version), failure: "f".repeat(failure), fetched_unix_ms: 0 }).map(drop)
    };
    with(MAX_URL, MAX_VERSION, MAX_FAILURE).unwrap();
    for (refused, field) in [
        (with(MAX_URL + 1, 0, 0), "known.source"),
        (with(1, MAX_VERSION + 1, 0), "known.version"),
        (with(1, 0, MAX_FAILURE + 1), "known.failure"),
    ] {
        assert!(refused.unwrap_err().starts_with(field), "{field}");
    }
}

fn service(book: watch::Receiver<Arc<Book>>, patience: Duration, stop: CancellationToken) -> Arc<KeysService> {
    let nobody = crate::ca::NodeTokens::open(std::path::Path::new("/nonexistent"), SystemTime::now());
    Arc::new(KeysService::new(Arc::new(nobody), book, patience, stop, Arc::new(Metrics::new())))
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_news_for_as_long_as_it_may() {
    let (sender, book) = watch::channel(Arc::new(Book::from([(place("a"), Standing::default())])));
    let stop = CancellationToken::new();
    let service = service(book, Duration::from_secs(8), stop.clone());
    let ask = |wait: u64| {
        let service = service.clone();
        tokio::spawn(async move { service.await_news(&[known("a", "", 0, "")], Duration::from_secs(wait)).await.keys.len() })
    };
    let start = tokio::time::Instant::now();
    assert_eq!(ask(1000).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 8);
    assert_eq!(ask(3).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 8 + 3);
    let waiting = ask(8);
    tokio::task::yield_now().await;
    sender.send_replace(Arc::new(Book::from([(place("a"), set("1", 0, 1))])));
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(start.elapsed().as_secs(), 8 + 3, "at once");
    sender.send_replace(Arc::new(Book::from([(place("a"), Standing::default())])));
    let waiting = ask(8);
    tokio::task::yield_now().await;
    stop.cancel();
    assert_eq!(waiting.await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 8 + 3, "at once");
}

#[tokio::test]
async fn nobody_is_answered_who_does_not_say_who_it_is() {
    let (_sender, book) = watch::channel(Arc::default());
    let service = service(book, Duration::from_secs(1), CancellationToken::new());
    let refused = service.fetch(Request::new(FetchKeysRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}
