//! Names and values of HTTP, checked before they are used (RFC 9110, 5.1 and 5.5; RFC 6265, 4.1.1).

use std::sync::Arc;

/// Headers that say how a message is framed or how long a connection lives: the proxies' own, on each hop.
const OF_THE_HOP: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Whether a text is a token.
pub(super) fn is_token(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fine)
}

/// A header's name, in lower case.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, String> {
    if is_token(text) { Ok(text.to_ascii_lowercase().into()) } else { Err(format!("\"{}\" is not a header's name", text.escape_default())) }
}

/// Name of a header that may be changed, in lower case.
pub(super) fn changeable_name(text: &str) -> Result<Arc<str>, String> {
    let name = header_name(text)?;
    if OF_THE_HOP.contains(&&*name) {
        Err(format!("\"{text}\" says how a message travels and cannot be changed"))
    } else if &*name == "host" {
        Err("\"host\" is changed by a URLRewrite's hostname, not as a header".into())
    } else {
        Ok(name)
    }
}

/// A header's value: visible characters, spaces and tabs, and none of these at its ends.
pub(super) fn header_value(text: &str) -> Result<Arc<str>, String> {
    let fine = |c: char| c == '\t' || !c.is_control();
    if text.chars().all(fine) && text.trim_matches([' ', '\t']) == text {
        Ok(text.into())
    } else {
        Err(format!("\"{}\" is not a header's value: control characters and spaces at its ends cannot be sent", text.escape_default()))
    }
}

/// A host's name or address, without a port.
pub(super) fn host(text: &str) -> Result<Arc<str>, String> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(fine) {
        Ok(text.into())
    } else {
        Err(format!("\"{}\" is not a host's name; write e.g. www.example.com, in lower case and without a port", text.escape_default()))
    }
}

/// A path or what replaces a part of one: what may stand in a request line before the query.
pub(super) fn path(text: &str) -> Result<Arc<str>, String> {
    let fine = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
    if text.bytes().all(fine) {
        Ok(text.into())
    } else {
        Err(format!("\"{}\" is not a path; write other characters as %XX", text.escape_default()))
    }
}
