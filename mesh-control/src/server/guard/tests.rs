use std::collections::VecDeque;

use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_read_a_little_and_not_for_long() {
    let begun = tokio::time::Instant::now();
    discard(Full::new(Bytes::from_static(b"a request"))).await;
    assert!(begun.elapsed().is_zero());

    let mut parts: VecDeque<_> = std::iter::repeat_n(Bytes::from_static(&[0; 16 << 10]), 9).collect();
    let mut taken = 0;
    let endless = futures_util::stream::poll_fn(|_| {
        taken += 1;
        std::task::Poll::Ready(parts.pop_front().map(|part| Ok::<_, Infallible>(Frame::data(part))))
    });
    discard(StreamBody::new(endless)).await;
    assert_eq!((taken, begun.elapsed()), (5, Duration::ZERO), "no more than four of them");

    let silent = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    discard(StreamBody::new(silent)).await;
    assert_eq!(begun.elapsed(), DISCARDING);
}
