use super::super::access::AccessConfig;
use super::super::fixtures::{connection, world};
use super::*;

#[tokio::test]
async fn closing_reaches_the_owner_before_and_after_it_waits() {
    let world = world(AccessConfig::default());
    let recorder = world.telemetry.open(connection());
    let live = recorder.live().clone();
    live.close(Outcome::Drained);
    assert_eq!(live.closed().await, Outcome::Drained);

    let other = world.telemetry.open(connection());
    let live = other.live().clone();
    let waiting = tokio::spawn(async move { live.closed().await });
    tokio::task::yield_now().await;
    assert_eq!(
        world
            .telemetry
            .live()
            .close_where(&Outcome::PolicyRevoked { reason: crate::outcome::DenyReason::DenyPolicy, policy: None }, |l| l.id
                == other.live().id),
        1
    );
    assert!(matches!(waiting.await.unwrap(), Outcome::PolicyRevoked { .. }));
}

#[test]
fn the_oldest_are_listed_first_and_no_more_than_asked_for() {
    let world = world(AccessConfig::default());
    let all: Vec<_> = (0..100).map(|_| world.telemetry.open(connection())).collect();
    let live = world.telemetry.live();
    assert_eq!(live.len(), 100);
    let (picked, total) = live.select(10, |_| true);
    assert_eq!(total, 100);
    assert_eq!(picked.iter().map(|live| live.id).collect::<Vec<_>>(), all[..10].iter().map(|one| one.live().id).collect::<Vec<_>>());
    assert!(live.get(all[7].live().id).is_some());
    drop(all);
    assert!(live.is_empty());
}

#[test]
fn bytes_are_counted_once_by_any_number_of_callers() {
    let world = world(AccessConfig::default());
    let recorder = world.telemetry.open(connection());
    std::thread::scope(|scope| {
        let meter = recorder.meter();
        scope.spawn(|| (0..20_000).for_each(|_| meter.add_from_client(1)));
        for _ in 0..3 {
            scope.spawn(|| (0..500).for_each(|_| world.telemetry.live().count_bytes()));
        }
    });
    recorder.finish(Outcome::Completed);
    let text = super::super::metrics::tests::strict::open_metrics(&world.scrape());
    assert_eq!(text.sum("istio_tcp_received_bytes_total", &[]), 20_000.0);
}
