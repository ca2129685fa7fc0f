use super::*;

#[test]
fn the_newest_calls_count_and_nodes_do_not_disturb_each_other() {
    let (places, one, two) = (Places::new(2), "node-1".into(), "node-2".into());
    let (a, b, other) = (places.enter(&one).unwrap(), places.enter(&one).unwrap(), places.enter(&two).unwrap());
    assert!(!a.over.is_cancelled() && !b.over.is_cancelled());
    let c = places.enter(&one).unwrap();
    assert!(a.over.is_cancelled() && !b.over.is_cancelled() && !c.over.is_cancelled() && !other.over.is_cancelled());
    // One that has ended leaves its place.
    drop(b);
    let d = places.enter(&one).unwrap();
    assert!(!c.over.is_cancelled());
    drop((a, c, d, other));
    assert!(places.nodes.lock().is_empty(), "nothing is kept of who has no call");
}

#[test]
fn whoever_does_not_read_its_answers_gets_no_more_of_them() {
    let (places, node) = (Places::new(1), "node-1".into());
    let mut unread: Vec<Place> = (0..MOST_UNREAD).map(|_| places.enter(&node).unwrap().answered()).collect();
    assert!(unread.iter().all(|place| !place.over.is_cancelled()), "what is answered is not overtaken");
    assert!(places.enter(&node).is_none());
    unread.pop();
    drop(places.enter(&node).unwrap());
    unread.clear();
    assert!(places.nodes.lock().is_empty());
}
