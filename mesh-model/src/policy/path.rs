//! The path of a request in one normal form, so that a policy on `/admin` cannot be walked past by `/x/..//%61dmin`.
//!
//! What is judged must be what is served: whoever matches a [`NormalPath`] forwards it in place of the path that came. A server behind
//! it then has nothing left to decode, merge or resolve into another path than the one that was allowed.
//!
//! In order: the query is cut off; escapes of unreserved characters (RFC 3986, 2.3) are decoded, and the hex digits of the others
//! made upper-case; bytes that a path may not hold unescaped are escaped; slashes in a row become one; `.` and `..` are resolved
//! (RFC 3986, 5.2.4), also those that came as `%2e`. What servers read in different ways is refused, not guessed at: `%2F`, `%5C`, `%00`,
//! a backslash, a blank or control byte, a broken escape, a fragment, and a path that climbs above its root. The strictness is that of
//! Envoy's options `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action: REJECT_REQUEST` together.

use std::borrow::Cow;
use std::fmt;

/// A path in normal form: `*`, or begins with `/`, is ASCII, and has neither a query nor `//`, `/./`, `/../`. Borrowed from the request
/// if that had it so already. Any one of them in normal form again is the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NormalPath<'a>(Cow<'a, str>);

/// Why a path is refused; the request is then answered with status 400.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum BadPath {
    /// Neither `/…` nor `http://…` nor `*`.
    #[error("the request's target is not an absolute path")]
    NotAbsolute,
    /// A blank or a control byte as it is.
    #[error("the path has byte 0x{0:02x}, which must be escaped")]
    Control(u8),
    /// `\` or `%5C`, which some servers take for `/`.
    #[error("the path has a backslash")]
    Backslash,
    /// `%2F`.
    #[error("the path has an escaped slash")]
    EscapedSlash,
    /// `%00`.
    #[error("the path has an escaped NUL")]
    EscapedNul,
    /// `%` without two hex digits.
    #[error("the path has a % without two hex digits after it")]
    BrokenEscape,
    /// `#`.
    #[error("the request's target has a fragment")]
    Fragment,
    /// More `..` than segments before them.
    #[error("the path climbs above its root")]
    AboveRoot,
}

impl<'a> NormalPath<'a> {
    /// From a request's target: path and query, `*`, or an absolute URL, whose path it then is (empty is `/`). The authority of CONNECT
    /// is no path.
    pub fn of(target: &'a [u8]) -> Result<Self, BadPath> {
        let path = path_of(target)?;
        if path == b"*" {
            return Ok(NormalPath(Cow::Borrowed("*")));
        }
        if path.is_empty() {
            return Ok(NormalPath(Cow::Borrowed("/")));
        }
        let normal = normalise(path)?;
        // Equal bytes are borrowed, so that nothing is rewritten where nothing changed.
        Ok(NormalPath(match std::str::from_utf8(path) {
            Ok(same) if same == normal => Cow::Borrowed(same),
            _ => Cow::Owned(normal),
        }))
    }

    /// The text that is matched, and that must be forwarded.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the request did not have it so: its target must be rewritten.
    pub fn changed(&self) -> bool {
        matches!(self.0, Cow::Owned(_))
    }

    /// The same, with a life of its own.
    pub fn into_owned(self) -> NormalPath<'static> {
        NormalPath(Cow::Owned(self.0.into_owned()))
    }
}

impl fmt::Display for NormalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The query of a request's target, without its `?`: to be forwarded after the [`NormalPath`] as it came.
pub fn query_of(target: &[u8]) -> Option<&[u8]> {
    let (_, query) = split_once(target, b'?')?;
    Some(query)
}

/// A piece of a path as a policy writes it, in the form that paths are compared in: bytes that a path may not hold unescaped are escaped.
/// Nothing else is changed, since a piece has no beginning and end of its own.
pub(crate) fn escape_piece(piece: &str) -> String {
    let mut escaped = String::with_capacity(piece.len());
    piece.bytes().for_each(|byte| push(&mut escaped, byte));
    escaped
}

/// Why no path in normal form has such a piece in it, in words that follow the piece; `None` if one may.
pub(crate) fn never_in_normal_path(piece: &str) -> Option<&'static str> {
    let bytes = piece.as_bytes();
    if bytes.contains(&b'?') || bytes.contains(&b'#') {
        return Some("has a query or fragment, which is no part of the path");
    }
    if piece.contains("//") || piece.contains("/./") || piece.contains("/../") {
        return Some("has `//`, `/./` or `/../`, which is resolved before");
    }
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'%', [high, low, ..]) => match escape(*high, *low) {
                Ok(byte) if unreserved(byte) => return Some("escapes a character that is decoded before"),
                Ok(_) if high.is_ascii_lowercase() || low.is_ascii_lowercase() => {
                    return Some("has an escape in lower case, and escapes are made upper-case before");
                }
                Ok(_) => {}
                Err(_) => return Some("has an escape that makes a request be refused"),
            },
            (b'\\', _) => return Some("has a backslash, which makes a request be refused"),
            (byte, _) if *byte <= b' ' || *byte == 0x7f => {
                return Some("has a blank or control character, which makes a request be refused");
            }
            _ => {}
        }
    }
    None
}

/// The path of a target, its query cut off.
fn path_of(target: &[u8]) -> Result<&[u8], BadPath> {
    if target.contains(&b'#') {
        return Err(BadPath::Fragment);
    }
    let without_query = split_once(target, b'?').map_or(target, |(path, _)| path);
    match without_query {
        [] | [b'/', ..] | b"*" => return Ok(without_query),
        _ => {}
    }
    let after_scheme = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = without_query.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    });
    let rest = after_scheme.ok_or(BadPath::NotAbsolute)?;
    let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    Ok(rest.get(slash..).unwrap_or_default())
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let found = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..found)?, bytes.get(found + 1..)?))
}

/// Of a path that begins with `/`.
fn normalise(path: &[u8]) -> Result<String, BadPath> {
    let mut normal = String::with_capacity(path.len());
    // Ends of `normal` before each segment that is in it.
    let mut starts: Vec<usize> = Vec::new();
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    // What is before the first slash: nothing.
    segments.next();
    while let Some(raw) = segments.next() {
        let last = segments.peek().is_none();
        let start = normal.len();
        normal.push('/');
        decode(raw, &mut normal)?;
        match normal.get(start + 1..).unwrap_or_default() {
            "" | "." if !last => normal.truncate(start),
            "." => normal.truncate(start + 1),
            ".." => {
                let before = starts.pop().ok_or(BadPath::AboveRoot)?;
                normal.truncate(before + usize::from(last));
            }
            _ => starts.push(start),
        }
    }
    Ok(normal)
}

fn decode(segment: &[u8], into: &mut String) -> Result<(), BadPath> {
    let mut rest = segment;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let [high, low, after @ ..] = after else { return Err(BadPath::BrokenEscape) };
                rest = after;
                let byte = escape(*high, *low)?;
                if unreserved(byte) { into.push(char::from(byte)) } else { push_escaped(into, byte) }
            }
            b'\\' => return Err(BadPath::Backslash),
            0..=b' ' | 0x7f => return Err(BadPath::Control(*first)),
            byte => push(into, *byte),
        }
    }
    Ok(())
}

/// The byte that an escape stands for.
fn escape(high: u8, low: u8) -> Result<u8, BadPath> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low).ok_or(BadPath::BrokenEscape)?;
    match byte {
        b'/' => Err(BadPath::EscapedSlash),
        b'\\' => Err(BadPath::Backslash),
        0 => Err(BadPath::EscapedNul),
        byte => Ok(byte),
    }
}

/// RFC 3986, 2.3.
fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// A byte that stands for itself, escaped if a path may not hold it so (RFC 3986, 3.3). `%` is taken to begin an escape.
fn push(into: &mut String, byte: u8) {
    if unreserved(byte) || b"/%!$&'()*+,;=:@".contains(&byte) { into.push(char::from(byte)) } else { push_escaped(into, byte) }
}

fn push_escaped(into: &mut String, byte: u8) {
    into.push('%');
    for digit in [byte >> 4, byte & 15] {
        into.extend(char::from_digit(u32::from(digit), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

#[cfg(test)]
mod tests;
