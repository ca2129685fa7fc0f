use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[tokio::test]
async fn carries_bytes_both_ways_and_keeps_half_close() {
    let (mut a, mut b) = pair();
    a.write_all(b"question").await.unwrap();
    AsyncWriteExt::shutdown(&mut a).await.unwrap();
    let mut text = String::new();
    b.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    b.write_all(b"answer").await.unwrap();
    drop(b);
    text.clear();
    a.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
}

#[test]
fn holds_no_more_than_its_capacity_and_wakes_the_writer() {
    let (a, b) = pair();
    let mut cx = context();
    let bytes = vec![7; CAPACITY + 1];
    assert!(matches!(a.poll_send(&mut cx, &[IoSlice::new(&bytes)]), Poll::Ready(Ok(CAPACITY))));
    assert!(a.poll_send(&mut cx, &[IoSlice::new(&bytes)]).is_pending());
    assert!(a.has_unread());
    let mut buf = vec![0; 10];
    assert!(matches!(b.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut buf)]), Poll::Ready(Ok(10))));
    assert!(matches!(a.poll_send(&mut cx, &[IoSlice::new(&bytes)]), Poll::Ready(Ok(10))));
}

#[test]
fn an_abort_reaches_the_other_end_even_with_bytes_under_way() {
    let (a, b) = pair();
    let mut cx = context();
    assert!(b.poll_aborted(&mut cx).is_pending());
    assert!(a.poll_send(&mut cx, &[IoSlice::new(b"x")]).is_ready());
    a.abort();
    assert!(b.poll_aborted(&mut cx).is_ready());
    let mut buf = [0; 4];
    assert!(matches!(b.try_recv(&mut buf), Some(Err(_))));
    assert!(matches!(b.poll_send(&mut cx, &[IoSlice::new(b"x")]), Poll::Ready(Err(_))));
}

#[test]
fn writing_to_nobody_fails() {
    let (a, b) = pair();
    drop(b);
    assert!(matches!(a.poll_send(&mut context(), &[IoSlice::new(b"x")]), Poll::Ready(Err(_))));
}
