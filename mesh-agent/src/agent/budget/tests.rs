use super::*;

#[test]
fn no_more_than_the_limit_and_each_place_comes_back() {
    let budget = Budget::new(2);
    let places = [budget.take().unwrap(), budget.take().unwrap()];
    assert_eq!((budget.take().unwrap_err().first, budget.take().unwrap_err().first), (true, false), "told of once");
    assert_eq!(budget.used(), 2);
    let [one, another] = places;
    drop(one);
    let third = budget.take().unwrap();
    assert!(!budget.take().unwrap_err().first, "it was never far from its limit");
    drop((another, third));
    assert_eq!(budget.used(), 0);
    let _places = [budget.take().unwrap(), budget.take().unwrap()];
    assert!(budget.take().unwrap_err().first);
}

#[test]
fn nought_is_no_limit() {
    let budget = Budget::new(0);
    let places: Vec<_> = (0..10_000).map(|_| budget.take().unwrap()).collect();
    assert_eq!(budget.used(), 10_000);
    drop(places);
    assert_eq!(budget.used(), 0);
}

#[test]
fn workers_share_it() {
    let budget = Budget::new(100);
    let taken: usize = std::thread::scope(|scope| {
        let work = || (0..1000).filter_map(|_| budget.take().ok()).collect::<Vec<_>>();
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        let all: Vec<Vec<Place>> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        all.iter().map(Vec::len).sum()
    });
    assert_eq!((taken, budget.used()), (100, 0));
}

#[test]
fn the_default_leaves_room_for_others() {
    assert_eq!(default_limit(Some(1 << 20)), 65_536);
    assert_eq!(default_limit(Some(1024)), 64);
    assert_eq!(default_limit(Some(0)), 1);
    assert_eq!(default_limit(None), u32::MAX);
}

#[test]
fn tunnels_crowd_before_they_are_refused() {
    let budget = tunnels(10);
    let places: Vec<_> = (0..20).map(|_| budget.take().unwrap()).collect();
    assert!(!budget.is_crowded());
    let more: Vec<_> = (0..10).map(|_| budget.take().unwrap()).collect();
    assert!(budget.is_crowded() && budget.take().is_err());
    drop(more);
    assert!(!budget.is_crowded());
    drop(places);
    let any = tunnels(0);
    let _places: Vec<_> = (0..1000).map(|_| any.take().unwrap()).collect();
    assert!(!any.is_crowded());
}
