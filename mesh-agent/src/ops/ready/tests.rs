use super::*;

#[test]
fn ready_when_the_last_blocker_is_gone() {
    let readiness = Readiness::new();
    assert!(readiness.is_ready());
    let (programs, certificates) = (readiness.block("kernel programs"), readiness.block("certificates"));
    certificates.progress("2 of 5");
    assert_eq!(readiness.awaited(), ["kernel programs", "certificates (2 of 5)"]);
    drop(programs);
    assert!(!readiness.is_ready());
    assert_eq!(readiness.clone().awaited(), ["certificates (2 of 5)"]);
    drop(certificates);
    assert!(readiness.is_ready() && readiness.awaited().is_empty());
    let again = readiness.block("a new root");
    assert!(!readiness.is_ready());
    drop(again);
    assert!(readiness.is_ready());
}

#[test]
fn the_same_name_may_be_held_twice() {
    let readiness = Readiness::new();
    let (one, two) = (readiness.block("listener"), readiness.block("listener"));
    drop(one);
    assert_eq!(readiness.awaited(), ["listener"]);
    drop(two);
    assert!(readiness.is_ready());
}

#[tokio::test]
async fn waiting_ends_with_the_last_blocker() {
    let readiness = Readiness::new();
    let blocker = readiness.block("configuration");
    let waiting = tokio::spawn({
        let readiness = readiness.clone();
        async move { readiness.ready().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(blocker);
    waiting.await.unwrap();
}
