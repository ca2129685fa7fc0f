use std::cell::Cell;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::ops::drain;

const LIMIT: Duration = Duration::from_secs(60);

/// Answers only what is no wait, and knows how many wait.
#[derive(Default)]
struct Waits(Cell<usize>);

struct Waiting(Rc<Waits>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

impl Service for Waits {
    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<ReplyBody> {
        if request.uri().path() == "/wait" {
            self.0.set(self.0.get() + 1);
            let _waiting = Waiting(self.clone());
            std::future::pending::<()>().await;
        }
        Response::new(ReplyBody::unrecorded(Bytes::from_static(b"answered")))
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_asked_for_that_has_gone_is_given_up() {
    let (_trigger, drain) = drain::new();
    let manners = Manners { head_timeout: LIMIT, counters: Arc::default() };
    let waits = Rc::new(Waits::default());
    for ends_its_side_only in [true, false] {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut served = std::pin::pin!(serve(server, false, waits.clone(), manners.clone(), drain.clone(), std::future::pending()));
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        assert!(tokio::time::timeout(LIMIT / 2, served.as_mut()).await.is_err(), "it has ended by itself");
        assert_eq!(waits.0.get(), 1);
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let kept = if ends_its_side_only {
            client.shutdown().await.unwrap();
            Some(client)
        } else {
            drop(client);
            None
        };
        assert!(tokio::time::timeout(LIMIT / 2, served).await.is_ok(), "it goes on for nobody");
        assert_eq!(waits.0.get(), 0);
        drop(kept);
    }
}
