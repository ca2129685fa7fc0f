//! Looking at the first bytes of a connection without taking them.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::detect::{self, Protocol};
use crate::upstream::copy::pipe::End;

/// Bytes that are looked at: a TLS ClientHello with post-quantum keys and a long list fits.
const LOOK: usize = 16 << 10;

/// Waits until `decide` says something of the first bytes, which stay where they are. `None` if the client ends, or says nothing more for
/// `limit`, before there is enough.
async fn look<T>(tcp: &TcpStream, limit: Option<Duration>, mut decide: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
    let looking = async {
        let mut buffer = vec![0; 512];
        let mut before = None;
        loop {
            tcp.readable().await?;
            let seen = match tcp.try_io(Interest::READABLE, || rustix_peek(tcp, &mut buffer)) {
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..seen).unwrap_or_default();
            if let Some(decided) = decide(bytes) {
                return Ok(Some(decided));
            }
            if seen == buffer.len() && buffer.len() < LOOK {
                buffer.resize(LOOK, 0);
                continue;
            }
            // Nothing new since the last look: the client has ended its direction. All there is room for: it will not tell any more.
            if seen == 0 || before == Some(seen) || seen == LOOK {
                return Ok(None);
            }
            before = Some(seen);
            // The readiness is taken back, so that the next bytes wake this task and these do not.
            let _ = tcp.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    };
    match limit {
        Some(limit) => tokio::time::timeout(limit, looking).await.unwrap_or(Ok(None)),
        None => looking.await,
    }
}

fn rustix_peek(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (read, _) = rustix::net::recv(tcp, buffer, rustix::net::RecvFlags::PEEK).map_err(io::Error::from)?;
    Ok(read)
}

/// What a client speaks. One that says nothing for `limit` waits for its server to speak first.
pub async fn protocol(tcp: &TcpStream, limit: Option<Duration>) -> io::Result<Protocol> {
    Ok(look(tcp, limit, detect::sniff).await?.unwrap_or(Protocol::Opaque))
}

/// The server name that a TLS client asks for.
pub async fn server_name(tcp: &TcpStream, limit: Duration) -> io::Result<Option<String>> {
    let whole = |bytes: &[u8]| {
        // A record's length stands in its bytes 3 and 4 (RFC 8446, 5.1); a hello may span several, which is rare enough to be left out.
        let [_, _, _, high, low, ..] = bytes else { return None };
        let length = 5 + usize::from(u16::from_be_bytes([*high, *low]));
        bytes.get(..length).map(detect::server_name)
    };
    Ok(look(tcp, Some(limit), whole).await?.flatten())
}

/// The host that the first request of an HTTP/1.x client names; `None` as well if its head does not come whole within `limit`.
pub async fn http_host(tcp: &TcpStream, limit: Duration) -> io::Result<Option<String>> {
    let whole = |bytes: &[u8]| memchr::memmem::find(bytes, b"\r\n\r\n").map(|_| detect::http_host(bytes));
    Ok(look(tcp, Some(limit), whole).await?.flatten())
}

/// As [`protocol`], at the end of a pipe.
pub async fn protocol_of_pipe(end: &End, limit: Option<Duration>) -> Protocol {
    let looking = poll_fn(|cx| {
        match end.poll_peek(cx, |bytes, ended| match detect::sniff(bytes) {
            None if ended => Some(Protocol::Opaque),
            None if bytes.len() >= LOOK => Some(Protocol::Opaque),
            decided => decided,
        }) {
            Poll::Ready(Ok(protocol)) => Poll::Ready(protocol),
            Poll::Ready(Err(_)) => Poll::Ready(Protocol::Opaque),
            Poll::Pending => Poll::Pending,
        }
    });
    match limit {
        Some(limit) => tokio::time::timeout(limit, looking).await.unwrap_or(Protocol::Opaque),
        None => looking.await,
    }
}
