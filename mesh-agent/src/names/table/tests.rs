use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn names(all: &[&str]) -> BTreeSet<Arc<str>> {
    all.iter().map(|name| Arc::from(*name)).collect()
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn known(table: &Table, name: &str) -> Option<Vec<IpAddr>> {
    table.known().get(name).map(|known| known.addresses.to_vec())
}

#[test]
fn an_answer_counts_for_its_time_within_bounds() {
    let (mut table, start) = (Table::default(), Instant::now());
    table.want(start, &names(&["a", "b", "c"]));
    assert_eq!(table.due(start, 9).len(), 3);
    assert_eq!(table.due(start, 9), Vec::<Arc<str>>::new(), "they are being asked for");
    assert_eq!(table.next(), None);
    for (name, ttl, expected) in [("a", SECOND, SHORTEST), ("b", 60 * SECOND, 60 * SECOND), ("c", 86_400 * SECOND, LONGEST)] {
        table.heard(start, name, Reply::Addresses(ips(&["127.0.0.1", "192.0.2.1", "::1", "192.0.2.1", "0.0.0.0"]), ttl));
        assert_eq!(known(&table, name), Some(ips(&["192.0.2.1"])));
        assert!(!table.due(start + expected - SECOND, 9).iter().any(|due| **due == *name));
        assert_eq!(table.next(), Some(start + expected));
        assert_eq!(table.due(start + expected, 9), [Arc::from(name)]);
    }
}

#[test]
fn what_is_known_stays_while_nobody_answers() {
    let (mut table, mut now) = (Table::default(), Instant::now());
    table.want(now, &names(&["a"]));
    table.due(now, 1);
    table.heard(now, "a", Reply::Addresses(ips(&["192.0.2.1"]), 10 * SECOND));
    now += 10 * SECOND;
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(table.due(now, 1).len(), 1);
        table.heard(now, "a", Reply::Failed);
        assert_eq!(known(&table, "a"), Some(ips(&["192.0.2.1"])));
        assert_eq!(table.next(), Some(now + pause * SECOND));
        now += pause * SECOND;
    }
    table.due(now, 1);
    table.heard(now, "a", Reply::Addresses(vec![], SECOND));
    assert_eq!(known(&table, "a"), Some(vec![]), "that there is none is an answer");
    table.due(now + SHORTEST, 1);
    table.heard(now + SHORTEST, "a", Reply::Failed);
    assert_eq!(table.next(), Some(now + SHORTEST + SECOND), "an answer ends a row of failures");
}

#[test]
fn names_come_and_go() {
    let (mut table, start) = (Table::default(), Instant::now());
    table.want(start, &names(&["a", "b"]));
    assert_eq!(table.due(start, 1).len(), 1, "no more than are asked for at once");
    assert_eq!(table.due(start, 1).len(), 1);
    table.heard(start, "a", Reply::Addresses(ips(&["192.0.2.1"]), 60 * SECOND));
    table.want(start + SECOND, &names(&["a", "c"]));
    assert_eq!(known(&table, "a"), Some(ips(&["192.0.2.1"])));
    table.heard(start + SECOND, "b", Reply::Addresses(ips(&["192.0.2.2"]), 60 * SECOND));
    assert_eq!(known(&table, "b"), None, "nobody wants it any more");
    assert_eq!(table.due(start + SECOND, 9), [Arc::from("c")]);
}

#[test]
fn of_a_family_that_nobody_answers_for_what_is_known_stays() {
    let (mut table, now) = (Table::default(), Instant::now());
    table.want(now, &BTreeSet::from(["a".into()]));
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let addresses = |table: &Table| table.known().get("a").map(|known| known.addresses.to_vec());
    table.heard(now, "a", Reply::Half { addresses: Vec::new(), failed: Family::V4 });
    assert_eq!(addresses(&table), None, "there may be some");
    table.heard(now, "a", Reply::Addresses(vec![ip("192.0.2.1"), ip("2001:db8::1")], Duration::from_secs(60)));
    table.heard(now, "a", Reply::Half { addresses: vec![ip("2001:db8::2")], failed: Family::V4 });
    assert_eq!(addresses(&table).unwrap(), [ip("2001:db8::2"), ip("192.0.2.1")]);
    assert_eq!(table.next(), Some(now + RETRY), "and is asked for again soon");
    table.heard(now, "a", Reply::Half { addresses: vec![ip("169.254.169.254"), ip("192.0.2.3")], failed: Family::V6 });
    assert_eq!(addresses(&table).unwrap(), [ip("192.0.2.3"), ip("2001:db8::2")], "what only the node itself reaches is nobody's");
}
