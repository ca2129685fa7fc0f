use super::*;

#[tokio::test]
async fn finished_when_the_last_holder_is_gone() {
    let (trigger, mut watch) = new();
    let second = watch.clone();
    assert_eq!(watch.phase(), Phase::Serving);
    let holder = tokio::spawn(async move {
        watch.draining().await;
        drop(second);
        assert_eq!(watch.phase(), Phase::Draining);
    });
    assert_eq!(trigger.drain(Duration::from_secs(60), Duration::ZERO).await, Drained::Finished);
    holder.await.unwrap();
}

#[tokio::test]
async fn those_who_take_too_long_are_told_to_end() {
    let (trigger, mut watch) = new();
    let mut other = trigger.watch();
    tokio::spawn(async move { watch.ending().await });
    tokio::spawn(async move { other.ending().await });
    assert_eq!(trigger.drain(Duration::ZERO, Duration::from_secs(60)).await, Drained::Ended);
}

#[tokio::test]
async fn one_who_never_lets_go_is_left_behind() {
    let (trigger, watch) = new();
    assert_eq!(trigger.drain(Duration::ZERO, Duration::ZERO).await, Drained::Abandoned);
    assert_eq!(watch.phase(), Phase::Ending);
}

#[tokio::test]
async fn nobody_holds_nobody_waits() {
    let (trigger, watch) = new();
    drop(watch);
    assert_eq!(trigger.drain(Duration::from_secs(60), Duration::from_secs(60)).await, Drained::Finished);
}

#[tokio::test]
async fn a_trigger_that_is_dropped_frees_those_who_wait() {
    let (trigger, mut watch) = new();
    drop(trigger);
    watch.draining().await;
    watch.ending().await;
}
