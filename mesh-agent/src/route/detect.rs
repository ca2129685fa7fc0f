//! What is spoken on a connection: what the Service's port declares, then what the first bytes say. Pure.

/// HTTP/2 as a client begins it with prior knowledge (RFC 9113, 3.4).
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are looked at before a long first line is taken for HTTP.
const ENOUGH: usize = 256;
/// Longest method that is known to be in use.
const LONGEST_METHOD: usize = 24;

/// What a Service's port says of itself by `appProtocol`, or by its name as Istio reads it (`http-web`, `grpc`, `tcp-db`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// HTTP, of whichever version the client speaks.
    Http,
    /// HTTP/2 with prior knowledge: the server takes nothing else.
    Http2,
    /// TLS.
    Tls,
    /// Anything else, which is not to be looked into.
    Tcp,
    /// Nothing.
    Unknown,
}

impl Declared {
    /// Reads `appProtocol` and the port's name.
    pub fn of(app_protocol: &str, name: &str) -> Declared {
        let by = |word: &str| match word {
            "http" | "kubernetes.io/ws" | "grpc-web" => Declared::Http,
            "http2" | "grpc" | "kubernetes.io/h2c" => Declared::Http2,
            "https" | "tls" | "kubernetes.io/wss" => Declared::Tls,
            "tcp" | "mongo" | "mysql" | "redis" | "udp" => Declared::Tcp,
            _ => Declared::Unknown,
        };
        if !app_protocol.is_empty() {
            return by(&app_protocol.to_ascii_lowercase());
        }
        let name = name.to_ascii_lowercase();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Declared::Http;
        }
        by(name.split('-').next().unwrap_or_default())
    }
}

/// What the first bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS.
    Tls,
    /// Something else.
    Opaque,
}

/// Looks at the first bytes of a client; `None` if they do not tell yet.
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    if bytes.is_empty() {
        return None;
    }
    let common = bytes.len().min(HTTP2_PREFACE.len());
    if bytes.get(..common) == HTTP2_PREFACE.get(..common) {
        // `P` may become POST or PUT: three letters tell.
        return (common == HTTP2_PREFACE.len()).then_some(Protocol::Http2);
    }
    match bytes {
        [0x16] => return None,
        [0x16, 3, ..] => return Some(Protocol::Tls),
        _ => {}
    }
    http1(bytes)
}

/// A request line (RFC 9112, 3): method, target, version. Empty lines before it are allowed.
fn http1(bytes: &[u8]) -> Option<Protocol> {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    if start > 4 {
        return Some(Protocol::Opaque);
    }
    let line = bytes.get(start..).unwrap_or_default();
    let method = line.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    match line.get(method) {
        None if method > LONGEST_METHOD => return Some(Protocol::Opaque),
        None => return None,
        Some(b' ') if (1..=LONGEST_METHOD).contains(&method) => {}
        Some(_) => return Some(Protocol::Opaque),
    }
    let rest = line.get(method + 1..).unwrap_or_default();
    // Targets begin with a slash, a star, a scheme, or (CONNECT) a host, whether the line's end is there or not.
    if rest.first().is_some_and(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'/' | b'*' | b'[')) {
        return Some(Protocol::Opaque);
    }
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        // A line may be cut within its end.
        let text = rest.strip_suffix(b"\r").unwrap_or(rest);
        return match rest.len() >= ENOUGH {
            true if text.iter().any(u8::is_ascii_control) => Some(Protocol::Opaque),
            true => Some(Protocol::Http1),
            false => None,
        };
    };
    let line = rest.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.iter().rposition(|b| *b == b' ').and_then(|at| line.get(at + 1..)).unwrap_or_default();
    Some(if version.starts_with(b"HTTP/1.") { Protocol::Http1 } else { Protocol::Opaque })
}

/// The host that the head of an HTTP/1.x request names, by its target or else by `Host` (RFC 9112, 3.2), in lower case and without the port.
/// `None` if the head is not whole in `bytes`, or names none or two.
pub fn http_host(bytes: &[u8]) -> Option<String> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let mut lines = bytes.get(..end)?.split(|b| *b == b'\n').skip_while(|line| line.iter().all(|b| matches!(b, b'\r' | b'\n')));
    let target = lines.next()?.split(|b| *b == b' ').nth(1)?;
    let named = lines.filter_map(|line| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    let mut named = named.collect::<Vec<_>>().into_iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host,
        _ => return None,
    };
    let absolute = std::str::from_utf8(target).ok()?.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
    host_of(absolute.unwrap_or(host))
}

/// The host of an authority, in lower case, without user and port.
pub fn host_of(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    (!host.is_empty()).then(|| host.to_owned())
}

/// The server name of a TLS ClientHello that is complete in `bytes` (RFC 6066, 3); `None` if there is none or it is cut off.
pub fn server_name(bytes: &[u8]) -> Option<String> {
    let mut records = rustls::server::Acceptor::default();
    let mut input = bytes;
    while !input.is_empty() {
        records.read_tls(&mut input).ok()?;
        match records.accept() {
            Ok(Some(accepted)) => return accepted.client_hello().server_name().map(str::to_ascii_lowercase),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
