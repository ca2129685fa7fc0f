use std::cell::Cell;

use super::*;

#[tokio::test]
async fn whoever_waits_looks_again_when_a_request_on_a_shared_connection_ends() {
    let bounds = Bounds::new(&ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() });
    let only = bounds.now().unwrap();
    let room = Cell::new(false);
    let waiting = bounds.place(|| false, || room.get().then_some("a shared one"));
    let ends = async {
        tokio::task::yield_now().await;
        room.set(true);
        bounds.has_room();
    };
    let (found, ()) = tokio::join!(waiting, ends);
    assert!(matches!(found, Ok(Ok("a shared one"))));
    assert!(matches!(bounds.place(|| true, || None::<()>).await, Ok(Err(None))), "one beyond the bound, for who has none");
    drop(only);
    assert!(matches!(bounds.place(|| false, || None::<()>).await, Ok(Err(Some(_)))));
}

#[tokio::test]
async fn as_many_unused_connections_are_closed_as_somebody_waits_for() {
    let bounds = Bounds::new(&ConnectionPool { max_connections: Some(2), ..ConnectionPool::default() });
    let (first, second) = (bounds.now().unwrap(), bounds.now().unwrap());
    assert!(bounds.should_yield().is_none(), "nobody waits");
    let mut waiting = std::pin::pin!(bounds.place(|| false, || None::<()>));
    let mut hungry = std::pin::pin!(bounds.hungry());
    hungry.as_mut().enable();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert!(futures_util::poll!(hungry).is_ready(), "whoever has an unused one is told");
    let yields = bounds.should_yield().unwrap();
    assert!(bounds.should_yield().is_none(), "one waits, and has one");
    drop(first);
    drop(yields);
    assert!(bounds.should_yield().is_none(), "there is room");
    let Ok(Err(Some(place))) = waiting.await else { panic!("a place") };
    assert!(bounds.should_yield().is_none());
    drop((second, place));
}

#[tokio::test]
async fn a_connection_that_another_makes_free_and_nobody_can_use_is_asked_for_again() {
    let bounds = Bounds::new(&ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() });
    let _only = bounds.now().unwrap();
    let mut waiting = std::pin::pin!(bounds.place(|| false, || None::<()>));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    // It has become unused on another thread, where nobody listened before.
    let mut hungry = std::pin::pin!(bounds.hungry());
    hungry.as_mut().enable();
    bounds.has_room();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert!(futures_util::poll!(hungry).is_ready());
    assert!(bounds.should_yield().is_some());
}
