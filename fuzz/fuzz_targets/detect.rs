//! What is spoken on a connection: the first bytes agree with patterns that say the same, a verdict does not change as more bytes come,
//! and a server name is the one that a second reader of the ClientHello finds.
#![no_main]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_agent::route::detect::{HTTP2_PREFACE, Protocol, server_name, sniff};
use regex::bytes::Regex;

/// Bytes of a first line after which it is judged without its end.
const ENOUGH: usize = 256;

fn pattern(text: &str) -> Regex {
    Regex::new(&format!("(?s-u){text}")).unwrap()
}

static REQUEST: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\r\n]{0,4}[A-Z_-]{1,24} [A-Za-z0-9/*\[][^\n]* HTTP/1\.[^ \n]*\n"));
static LINE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\r\n]{0,4}[^\r\n][^\n]*\n"));
static METHOD: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\r\n]{0,4}[A-Z_-]{1,24}$"));
static BEGUN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\r\n]{0,4}[A-Z_-]{1,24} ([^\n]*)$"));
static TARGET: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([A-Za-z0-9/*\[][^\n]*)?$"));

fn model(bytes: &[u8]) -> Option<Protocol> {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Some(Protocol::Http2);
    }
    if HTTP2_PREFACE.starts_with(bytes) || bytes == [0x16] || bytes.iter().all(|b| matches!(b, b'\r' | b'\n')) {
        return None;
    }
    if bytes.starts_with(&[0x16, 3]) {
        return Some(Protocol::Tls);
    }
    if LINE.is_match(bytes) {
        return Some(if REQUEST.is_match(bytes) { Protocol::Http1 } else { Protocol::Opaque });
    }
    if METHOD.is_match(bytes) {
        return None;
    }
    let Some(rest) = BEGUN.captures(bytes).map(|found| found.get(1).unwrap().as_bytes()) else { return Some(Protocol::Opaque) };
    match (TARGET.is_match(rest), rest.len() >= ENOUGH, rest.strip_suffix(b"\r").unwrap_or(rest).iter().any(u8::is_ascii_control)) {
        (false, _, _) | (true, true, true) => Some(Protocol::Opaque),
        (true, true, false) => Some(Protocol::Http1),
        (true, false, _) => None,
    }
}

/// Takes bytes off the front.
fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

fn number(from: &mut &[u8], bytes: usize) -> Option<usize> {
    Some(take(from, bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// The server name of a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).
fn name_of(mut records: &[u8]) -> Option<String> {
    let mut message = Vec::new();
    while let Some(kind) = number(&mut records, 1) {
        take(&mut records, 2)?;
        let length = number(&mut records, 2)?;
        let fragment = take(&mut records, length)?;
        if kind != 22 {
            break;
        }
        message.extend_from_slice(fragment);
        if message.len() >= 4 && message.len() >= 4 + number(&mut &message[1..4], 3)? {
            break;
        }
    }
    let mut hello = message.as_slice();
    take(&mut hello, 4 + 2 + 32)?;
    for length_bytes in [1, 2, 1] {
        let length = number(&mut hello, length_bytes)?;
        take(&mut hello, length)?;
    }
    take(&mut hello, 2)?;
    while let Some(kind) = number(&mut hello, 2) {
        let length = number(&mut hello, 2)?;
        let mut extension = take(&mut hello, length)?;
        if kind == 0 {
            take(&mut extension, 3)?;
            let length = number(&mut extension, 2)?;
            return Some(String::from_utf8(take(&mut extension, length)?.to_vec()).ok()?.to_lowercase());
        }
    }
    None
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(name) = server_name(bytes) {
        assert_eq!(name_of(bytes).as_ref(), Some(&name));
    }
    let mut told = None;
    for length in (0..bytes.len().min(400)).chain([bytes.len()]) {
        let verdict = sniff(&bytes[..length]);
        assert_eq!(verdict, model(&bytes[..length]), "{:?}", String::from_utf8_lossy(&bytes[..length]));
        // A long line that has no end yet is judged by its beginning, and may then end otherwise.
        if told.is_some() && verdict != told {
            assert!(
                length > ENOUGH && told != Some(Protocol::Tls) && told != Some(Protocol::Http2),
                "{told:?} becomes {verdict:?} at {length}"
            );
            break;
        }
        told = verdict.or(told);
    }
});
