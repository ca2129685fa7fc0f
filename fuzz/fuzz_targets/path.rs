//! The normal form of a path: a fixed point with nothing left to resolve, the one that a second implementation finds, refused where that
//! refuses, and fit to be forwarded.
#![no_main]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use http::uri::PathAndQuery;
use libfuzzer_sys::fuzz_target;
use mesh_model::policy::path::{NormalPath, query_of};

const KEPT: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
const ALLOWED: &[u8] = b"!$&'()*+,;=:@";

/// By the letter of RFC 3986, a segment after the other; `None` where it is refused.
fn model(target: &[u8]) -> Option<String> {
    if target.contains(&b'#') {
        return None;
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap();
    let path = match path {
        b"*" => return Some("*".into()),
        [] | [b'/', ..] => path,
        absolute => {
            let lower = absolute.to_ascii_lowercase();
            let authority = ["http://", "https://"].iter().find(|scheme| lower.starts_with(scheme.as_bytes()))?.len();
            let slash = absolute[authority..].iter().position(|byte| *byte == b'/').map(|at| authority + at);
            &absolute[slash.unwrap_or(absolute.len())..]
        }
    };
    let mut segments: Vec<String> = Vec::new();
    let mut is_folder = true;
    for raw in path.split(|byte| *byte == b'/').skip(1) {
        let segment = segment(raw)?;
        is_folder = matches!(segment.as_str(), "" | "." | "..");
        match segment.as_str() {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            _ => segments.push(segment),
        }
    }
    let end = if is_folder && !segments.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", segments.join("/")))
}

fn segment(raw: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut at = 0;
    while at < raw.len() {
        let escaped = raw[at] == b'%';
        let byte = if escaped {
            let digits = std::str::from_utf8(raw.get(at + 1..at + 3)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            u8::from_str_radix(digits, 16).unwrap()
        } else {
            raw[at]
        };
        let refused = if escaped { matches!(byte, b'/' | b'\\' | 0) } else { matches!(byte, 0..=32 | 127 | b'\\') };
        if refused {
            return None;
        }
        if KEPT.contains(&byte) || !escaped && ALLOWED.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        at += if escaped { 3 } else { 1 };
    }
    Some(text)
}

fuzz_target!(|target: &[u8]| {
    let normal = NormalPath::of(target);
    assert_eq!(normal.as_ref().ok().map(NormalPath::as_str), model(target).as_deref());
    let Ok(path) = normal else { return };
    let text = path.as_str();
    let again = NormalPath::of(text.as_bytes()).unwrap();
    assert!(again.as_str() == text && !again.changed());
    assert!(text == "*" || text.split('/').skip(1).all(|segment| !matches!(segment, "." | "..")));
    assert!(!text.contains("//") && text.bytes().all(|byte| byte.is_ascii_graphic()));
    // It goes on as the target of a request.
    assert_eq!(PathAndQuery::try_from(text).unwrap().as_str(), text);
    let query = target.iter().position(|byte| *byte == b'?').map(|at| &target[at + 1..]);
    assert_eq!(query_of(target), query);
});
