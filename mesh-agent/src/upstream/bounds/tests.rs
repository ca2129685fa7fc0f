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
        bounds.stream_ended();
    };
    let (found, ()) = tokio::join!(waiting, ends);
    assert!(matches!(found, Ok(Ok("a shared one"))));
    assert!(matches!(bounds.place(|| true, || None::<()>).await, Ok(Err(None))), "one beyond the bound, for who has none");
    drop(only);
    assert!(matches!(bounds.place(|| false, || None::<()>).await, Ok(Err(Some(_)))));
}
