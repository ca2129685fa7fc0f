use std::cell::Cell;

use super::*;

#[tokio::test]
async fn whoever_waits_looks_again_when_a_request_on_a_shared_connection_ends() {
    let bounds = Bounds::new(&ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() });
    let only = bounds.now().unwrap();
    let room = Cell::new(false);
    let mut pending = Pending::under(&bounds);
    let waiting = bounds.place(&mut pending, || false, || room.get().then_some("a shared one"));
    let ends = async {
        tokio::task::yield_now().await;
        room.set(true);
        bounds.has_room();
    };
    let (found, ()) = tokio::join!(waiting, ends);
    assert!(matches!(found, Ok(Ok("a shared one"))));
    assert!(
        matches!(bounds.place(&mut Pending::under(&bounds), || true, || None::<()>).await, Ok(Err(None))),
        "one beyond the bound, for who has none"
    );
    drop(only);
    assert!(matches!(bounds.place(&mut Pending::under(&bounds), || false, || None::<()>).await, Ok(Err(Some(_)))));
}

#[tokio::test]
async fn as_many_unused_connections_are_closed_as_somebody_waits_for() {
    let bounds = Bounds::new(&ConnectionPool { max_connections: Some(2), ..ConnectionPool::default() });
    let (first, second) = (bounds.now().unwrap(), bounds.now().unwrap());
    assert!(bounds.should_yield().is_none(), "nobody waits");
    let mut pending = Pending::under(&bounds);
    let mut waiting = std::pin::pin!(bounds.place(&mut pending, || false, || None::<()>));
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
    let mut pending = Pending::under(&bounds);
    let mut waiting = std::pin::pin!(bounds.place(&mut pending, || false, || None::<()>));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    // It has become unused on another thread, where nobody listened before.
    let mut hungry = std::pin::pin!(bounds.hungry());
    hungry.as_mut().enable();
    bounds.has_room();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert!(futures_util::poll!(hungry).is_ready());
    assert!(bounds.should_yield().is_some());
}

#[tokio::test]
async fn for_who_waits_for_something_else_no_connection_is_closed() {
    let pool = ConnectionPool { max_connections: Some(1), max_pending_requests: Some(2), ..ConnectionPool::default() };
    let bounds = Bounds::new(&pool);
    let _only = bounds.now().unwrap();
    let mut pending = [(); 3].map(|()| Pending::under(&bounds));
    let [elsewhere, here, late] = pending.each_mut();
    elsewhere.begin().unwrap();
    assert!(bounds.should_yield().is_none());
    {
        let mut waiting = std::pin::pin!(bounds.place(here, || false, || None::<()>));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(bounds.circuit.count(Resource::Pending), 2, "both wait");
        assert!(bounds.place(late, || false, || None::<()>).await.is_err(), "and a third may not");
        let first = bounds.should_yield();
        assert!(first.is_some() && bounds.should_yield().is_none(), "one place is waited for");
    }
    // Who waited elsewhere before counts as the same when it waits here.
    let mut waiting = std::pin::pin!(bounds.place(elsewhere, || false, || None::<()>));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(bounds.circuit.count(Resource::Pending), 2, "and still counts once");
    assert!(bounds.should_yield().is_some());
}
