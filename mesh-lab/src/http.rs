//! A plain GET from inside a namespace, for metrics and admin pages.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns;

const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Gets `http://<address>:<port><path>` from inside the namespace, in at most ten seconds a read.
///
/// # Errors
/// Nobody listens, or the answer is no HTTP. A status such as 503 is no error.
pub fn http_get(namespace: &Path, url: &str) -> Result<Response> {
    request(namespace, "GET", url, "")
}

/// As [`http_get`], with any method and a body.
///
/// # Errors
/// As [`http_get`].
pub fn request(namespace: &Path, method: &str, url: &str, body: &str) -> Result<Response> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url}: only http:// is spoken here"))?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let address: SocketAddr = authority.parse().with_context(|| format!("{url}: needs an address and a port"))?;
    let length = body.len();
    let text = format!("{method} {path} HTTP/1.0\r\nHost: {authority}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let answer = netns::within(namespace, || -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(LIMIT)).context("read timeout")?;
        stream.set_write_timeout(Some(LIMIT)).context("write timeout")?;
        stream.write_all(text.as_bytes()).context("sending")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("receiving")?;
        Ok(answer)
    })??;
    parse(&answer).with_context(|| format!("{method} {url}"))
}

fn parse(answer: &[u8]) -> Result<Response> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no HTTP answer: {text:?}") };
    let status = head.split(' ').nth(1).and_then(|code| code.get(..3)).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no HTTP status: {head:?}"))?;
    let chunked = head.lines().any(|line| line.to_ascii_lowercase().starts_with("transfer-encoding:") && line.contains("chunked"));
    let body = if chunked { unchunk(body).context("chunks are broken")? } else { body.to_owned() };
    Ok(Response { status, body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn plain_and_chunked_bodies() {
        let plain = parse(b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nwaiting").expect("parses");
        assert_eq!((plain.status, plain.body.as_str()), (503, "waiting"));
        let chunked = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n").expect("parses");
        assert_eq!(chunked.body, "abcde");
    }

    #[test]
    fn no_http_is_an_error() {
        assert!(parse(b"").is_err());
        assert!(parse(b"\x16\x03\x01\r\n\r\n").is_err());
    }
}
