use mesh_model::service::NamespacedName;

use super::*;

fn name(index: usize) -> LentBudget {
    let name = |name: &str| NamespacedName { namespace: "shop".into(), name: name.into() };
    LentBudget { limit: name("l"), index, service: name("web") }
}

fn need(index: usize, demand: u64, holds: u32) -> (LentBudget, Need) {
    (name(index), Need { demand, holds })
}

#[test]
fn asks_when_it_is_time_and_soon_when_more_is_needed() {
    let (mut pace, start) = (Pace::default(), Instant::now());
    let calm = [need(0, 100_000, 500_000)];
    assert!(!pace.is_due(start, &[]), "there is nothing to ask for");
    assert!(pace.is_due(start, &calm));
    pace.asks(start, &calm);
    pace.again(start, Duration::from_secs(1), false);
    assert!(!pace.is_due(start + Duration::from_millis(999), &calm));
    assert!(pace.is_due(start + Duration::from_secs(1), &calm));
    let more = [need(0, 700_000, 500_000)];
    assert!(!pace.is_due(start + LOOK / 2, &more) && pace.is_due(start + LOOK, &more));
    assert!(!pace.is_due(start + LOOK, &[need(0, 2_000_000, WHOLE)]), "there is no more than all");
    assert!(pace.is_due(start + LOOK, &[need(0, 0, 500_000), need(1, 0, 500_000)]), "one is new");
    pace.again(start, SELDOM, true);
    assert!(!pace.is_due(start + LOOK, &more), "nobody lends");
    assert!(pace.is_due(start + SELDOM, &more));
}
