use std::time::UNIX_EPOCH;

use mesh_model::document::parse_documents;
use mesh_model::workload::PodNetworks;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn jwks(url: &str) -> KeyLocation {
    KeyLocation::Jwks(url.into())
}

fn want(timeout: Duration, namespaces: &[&str]) -> Want {
    Want { timeout, namespaces: namespaces.iter().map(|&namespace| namespace.into()).collect() }
}

fn all(urls: &[&str]) -> BTreeMap<KeyLocation, Want> {
    urls.iter().map(|url| (jwks(url), want(TIMEOUT, &["shop"]))).collect()
}

/// So many places that a namespace names.
fn many(namespace: &str, prefix: &str, count: usize) -> BTreeMap<KeyLocation, Want> {
    (0..count).map(|number| (jwks(&format!("{prefix}{number:04}")), want(TIMEOUT, &[namespace]))).collect()
}

/// How many of the places have room.
fn held(schedule: &Schedule, prefix: &str) -> usize {
    schedule.entries.keys().filter(|location| location.url().starts_with(prefix)).count()
}

fn good(version: &str, max_age: Option<u64>) -> Result<Fetched, Arc<str>> {
    let max_age = max_age.map(Duration::from_secs);
    Ok(Fetched { text: "{}".into(), version: version.into(), keys: 1, skipped: Vec::new(), max_age })
}

struct Play {
    schedule: Schedule,
    now: Instant,
}

impl Play {
    fn new(urls: &[&str]) -> Play {
        let (mut schedule, now) = (Schedule::new(Terms::new(20 * MINUTE)), Instant::now());
        schedule.follow(&all(urls), now);
        Play { schedule, now }
    }

    fn started(&mut self) -> Vec<KeyLocation> {
        self.schedule.start(self.now, usize::MAX).into_iter().map(|job| job.location).collect()
    }

    /// Ends a fetch, and says when the next is due.
    fn done(&mut self, url: &str, result: Result<Fetched, Arc<str>>, chance: f64) -> (bool, Duration) {
        let changed = self.schedule.done(&jwks(url), result, self.now, UNIX_EPOCH, chance);
        (changed, self.schedule.next(self.now).unwrap() - self.now)
    }

    fn standing(&self, url: &str) -> (Option<String>, Option<String>) {
        let Standing { set, failure } = self.schedule.book()[&jwks(url)].clone();
        (set.map(|set| set.version.to_string()), failure.map(|failure| failure.to_string()))
    }
}

#[test]
fn what_is_new_is_fetched_at_once_and_then_at_intervals() {
    let mut play = Play::new(&["a"]);
    assert_eq!(play.started(), [jwks("a")]);
    assert_eq!((play.started(), play.schedule.next(play.now)), (vec![], None), "it runs");
    assert_eq!(play.done("a", good("1", None), 1.0), (true, 20 * MINUTE));
    assert_eq!(play.started(), []);
    play.now += 20 * MINUTE;
    assert_eq!(play.started(), [jwks("a")]);
    assert_eq!(play.done("a", good("1", None), 0.0), (false, 18 * MINUTE), "replicas do not ask all at once");
    play.schedule.follow(&all(&["a", "b"]), play.now);
    assert_eq!(play.started(), [jwks("b")]);
}

#[test]
fn an_issuer_may_ask_to_be_asked_more_often_within_bounds() {
    let mut play = Play::new(&["a"]);
    for (max_age, wait) in [(Some(300), 5 * MINUTE), (Some(0), MINUTE), (Some(86_400), 20 * MINUTE), (None, 20 * MINUTE)] {
        play.started();
        assert_eq!(play.done("a", good("1", max_age), 1.0).1, wait, "{max_age:?}");
        play.now += wait;
    }
    assert_eq!(Terms::new(Duration::from_secs(2)).shortest, Duration::from_secs(2));
}

#[test]
fn what_failed_is_tried_again_ever_later_and_the_last_good_keys_stay() {
    let mut play = Play::new(&["a"]);
    play.started();
    assert_eq!(play.standing("a"), (None, None));
    assert_eq!(play.done("a", Err("away".into()), 1.0), (true, AGAIN));
    assert_eq!(play.standing("a"), (None, Some("away".into())));
    let mut waits = Vec::new();
    for _ in 0..40 {
        play.now += 2 * MINUTE;
        play.started();
        let (changed, wait) = play.done("a", Err("away".into()), 1.0);
        assert!(!changed);
        waits.push(wait.as_secs());
    }
    assert_eq!(waits[..7], [2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(waits[39], 60);
    play.now += MINUTE;
    play.started();
    assert!(play.done("a", good("1", None), 1.0).0);
    assert_eq!(play.standing("a"), (Some("1".into()), None));
    play.now += 20 * MINUTE;
    play.started();
    assert_eq!(play.done("a", Err("gone".into()), 0.0), (true, AGAIN / 2));
    assert_eq!(play.standing("a"), (Some("1".into()), Some("gone".into())));
    play.now += MINUTE;
    play.started();
    assert!(play.done("a", good("2", None), 1.0).0);
    assert_eq!(play.standing("a"), (Some("2".into()), None));
}

#[test]
fn what_nobody_names_any_more_is_forgotten_even_while_it_is_fetched() {
    let mut play = Play::new(&["a"]);
    play.started();
    play.schedule.follow(&all(&["b"]), play.now);
    assert!(!play.schedule.done(&jwks("a"), good("1", None), play.now, UNIX_EPOCH, 1.0));
    assert_eq!(play.schedule.book().into_keys().collect::<Vec<_>>(), [jwks("b")]);
}

#[test]
fn what_waits_longest_goes_first_and_never_more_than_there_is_room_for() {
    let mut play = Play::new(&["b"]);
    play.schedule.follow(&all(&["a", "b", "c"]), play.now + Duration::from_secs(1));
    play.now += MINUTE;
    let first: Vec<KeyLocation> = play.schedule.start(play.now, 1).into_iter().map(|job| job.location).collect();
    assert_eq!(first, [jwks("b")]);
    assert_eq!(play.schedule.start(play.now, 0), []);
    assert_eq!(play.started(), [jwks("a"), jwks("c")]);
}

#[test]
fn of_too_many_places_those_that_were_there_stay() {
    let mut play = Play::new(&["z"]);
    let names: Vec<String> = (0..MOST).map(|i| format!("{i:04}")).chain(["z".into()]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    play.schedule.follow(&all(&names), play.now);
    assert_eq!(play.started().len(), MOST);
    assert_eq!(play.standing("z"), (None, None));
    let (_, failure) = play.standing("0499");
    assert!(failure.is_some_and(|failure| failure.contains("500 places at most")));
    play.schedule.follow(&all(&names[1..]), play.now);
    assert_eq!(play.standing("0499"), (None, None), "there is room again");
}

#[test]
fn one_namespace_leaves_room_for_the_fetches_of_others() {
    let (mut schedule, now) = (Schedule::new(Terms::new(20 * MINUTE)), Instant::now());
    let mut wanted = many("loud", "0", 400);
    schedule.follow(&wanted, now);
    assert_eq!(schedule.start(now, 16).len(), 8);
    assert_eq!(schedule.start(now, 8), []);
    assert_eq!(schedule.next(now), None, "what is due waits for an end and is not looked at again and again");
    wanted.extend(many("quiet", "q", 1));
    let later = now + MINUTE;
    schedule.follow(&wanted, later);
    let jobs = schedule.start(later, 8);
    assert_eq!(jobs.iter().map(|job| job.location.clone()).collect::<Vec<_>>(), [jwks("q0000")], "although others wait for longer");
    // Whoever renames what is being fetched has not more under way for it, once its old fetches are ended.
    assert!(schedule.is_running(&jwks("00000")));
    schedule.follow(&many("loud", "1", 400), later);
    assert!(!schedule.is_running(&jwks("00000")) && !schedule.is_running(&jwks("q0000")));
}

#[test]
fn namespaces_fetch_in_turns() {
    let (mut schedule, now) = (Schedule::new(Terms::new(20 * MINUTE)), Instant::now());
    schedule.follow(&many("loud", "0", 10), now);
    let later = now + MINUTE;
    let mut wanted = many("loud", "0", 10);
    wanted.extend(many("quiet", "q", 10));
    wanted.insert(jwks("both"), want(TIMEOUT, &["loud", "other"]));
    schedule.follow(&wanted, later);
    let mut urls: Vec<String> = schedule.start(later, 16).into_iter().take(5).map(|job| job.location.url()).collect();
    urls.sort();
    assert_eq!(urls, ["00000", "00001", "both", "q0000", "q0001"], "what two want is on the account of the one that has less");
}

#[test]
fn places_are_shared_evenly_among_namespaces() {
    let (mut schedule, now) = (Schedule::new(Terms::new(20 * MINUTE)), Instant::now());
    let mut wanted = many("loud", "0", 600);
    schedule.follow(&wanted, now);
    assert_eq!(held(&schedule, "0"), MOST);
    // One that comes gets its share, and keeps it whatever others name; as when all come at once.
    wanted.extend(many("quiet", "q", 10));
    schedule.follow(&wanted, now);
    assert_eq!((held(&schedule, "0"), held(&schedule, "q")), (MOST - 10, 10));
    wanted.extend(many("loud", "!", 600));
    schedule.follow(&wanted, now);
    assert_eq!((held(&schedule, "0"), held(&schedule, "!"), held(&schedule, "q")), (MOST - 10, 0, 10), "those that were there stay");
    let mut anew = Schedule::new(Terms::new(20 * MINUTE));
    anew.follow(&wanted, now);
    assert_eq!((held(&anew, "!"), held(&anew, "q")), (MOST - 10, 10));
    wanted.extend(many("third", "t", 600));
    anew.follow(&wanted, now);
    assert_eq!((held(&anew, "!"), held(&anew, "q"), held(&anew, "t")), (245, 10, 245));
    assert!(anew.book()[&jwks("t0500")].failure.as_ref().is_some_and(|failure| failure.contains("each namespace's share")));
}

#[test]
fn a_snapshot_wants_what_its_rules_name() {
    let text = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: shop}\nspec:\n  jwtRules:\n  \
        - {issuer: a, jwksUri: 'https://a/keys', timeout: 2s}\n  - {issuer: b, jwksUri: 'https://a/keys', timeout: 1h}\n  \
        - {issuer: 'https://c'}\n  - {issuer: d, jwks: '{\"keys\": [{}]}'}\n---\n\
        apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: b, namespace: shop}\nspec:\n  jwtRules:\n  \
        - {issuer: 'https://e', audience: wrong}\n---\n\
        apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: c, namespace: bank}\nspec:\n  jwtRules:\n  \
        - {issuer: 'https://c'}\n";
    let parsed = parse_documents(std::path::Path::new("a.yaml"), text);
    let snapshot = Snapshot::build_on_node(parsed.documents.iter(), parsed.problems.clone(), &PodNetworks::default(), None);
    let expected = [
        (jwks("https://a/keys"), want(TIMEOUTS.1, &["shop"])),
        (KeyLocation::Issuer("https://c".into()), want(TIMEOUT, &["bank", "shop"])),
    ];
    assert_eq!(wanted(&snapshot), BTreeMap::from(expected));
}
