//! Where requests carry tokens.

use std::borrow::Cow;
use std::sync::Arc;

use super::JwtError;
use crate::policy::JwtRule;
use crate::policy::http::Headers;
use crate::policy::request_authentication::TokenHeader;

/// The header of RFC 6750.
const AUTHORIZATION: &str = "authorization";
/// What stands before the token in it; schemes have no case.
const BEARER: &str = "Bearer ";
/// The query parameter of RFC 6750.
const ACCESS_TOKEN: &str = "access_token";

/// Where a token stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// `Authorization: Bearer …`.
    Bearer,
    /// A header, its name in lower case, and what stands before the token.
    Header(Arc<str>, Arc<str>),
    /// A query parameter.
    Param(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}

impl Place {
    /// Spelt out, the place of RFC 6750 is the same place.
    fn of(header: &TokenHeader) -> Place {
        if *header.name == *AUTHORIZATION && header.prefix.eq_ignore_ascii_case(BEARER) {
            Place::Bearer
        } else {
            Place::Header(header.name.clone(), header.prefix.clone())
        }
    }

    /// Whether a rule looks there.
    pub(super) fn is_of(&self, rule: &JwtRule) -> bool {
        match self {
            Place::Bearer => rule.default_places() || rule.from_headers.iter().any(|header| Place::of(header) == Place::Bearer),
            Place::Header(name, prefix) => rule.from_headers.iter().any(|header| header.name == *name && header.prefix == *prefix),
            Place::Param(name) if **name == *ACCESS_TOKEN && rule.default_places() => true,
            Place::Param(name) => rule.from_params.contains(name),
            Place::Cookie(name) => rule.from_cookies.contains(name),
        }
    }
}

/// The tokens at the places that the rules look at, and with `defaults` at those of RFC 6750 in any case.
pub(super) fn find<'r>(
    rules: impl Iterator<Item = &'r JwtRule>,
    defaults: bool,
    headers: &dyn Headers,
    query: Option<&[u8]>,
) -> Result<Vec<(Place, String)>, JwtError> {
    let mut places = if defaults { vec![Place::Bearer, Place::Param(ACCESS_TOKEN.into())] } else { Vec::new() };
    for rule in rules {
        if rule.default_places() {
            places.extend([Place::Bearer, Place::Param(ACCESS_TOKEN.into())]);
        }
        places.extend(rule.from_headers.iter().map(Place::of));
        places.extend(rule.from_params.iter().cloned().map(Place::Param));
        places.extend(rule.from_cookies.iter().cloned().map(Place::Cookie));
    }
    places.sort();
    places.dedup();
    let mut found = Vec::new();
    for place in places {
        let mut values = Vec::new();
        match &place {
            Place::Bearer => headers.each_value(AUTHORIZATION, &mut |value| values.extend(after(value, BEARER, true))),
            Place::Header(name, prefix) => headers.each_value(name, &mut |value| values.extend(after(value, prefix, false))),
            Place::Param(name) => values.extend(query.into_iter().flat_map(|query| param(query, name))),
            Place::Cookie(name) => headers.each_value("cookie", &mut |value| {
                let pairs = value.split(|byte| *byte == b';').filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes()));
                values.extend(pairs.filter_map(|rest| rest.strip_prefix(b"=")).map(Cow::Borrowed));
            }),
        }
        for value in values {
            let text = std::str::from_utf8(value.trim_ascii()).map_err(|_| JwtError::Malformed("it is not text"))?;
            found.push((place.clone(), text.to_owned()));
        }
    }
    Ok(found)
}

fn after<'a>(value: &'a [u8], prefix: &str, ignore_case: bool) -> Option<Cow<'a, [u8]>> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    let begins = if ignore_case { start.eq_ignore_ascii_case(prefix.as_bytes()) } else { start == prefix.as_bytes() };
    begins.then_some(Cow::Borrowed(rest))
}

/// The values of a query parameter, decoded, whose name may be escaped too.
fn param<'a>(query: &'a [u8], name: &str) -> Vec<Cow<'a, [u8]>> {
    let pairs = query.split(|byte| *byte == b'&').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = pair.split_at_checked(at)?;
        (*decode(key) == *name.as_bytes()).then(|| decode(value.get(1..).unwrap_or_default()))
    });
    pairs.collect()
}

/// Escapes decoded; what is not one stands for itself.
fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        rest = match (first, after) {
            (b'%', [high, low, after @ ..]) if let Some((high, low)) = digit(*high).zip(digit(*low)) => {
                decoded.push(high << 4 | low);
                after
            }
            _ => {
                decoded.push(*first);
                after
            }
        };
    }
    Cow::Owned(decoded)
}
