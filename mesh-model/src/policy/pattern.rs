//! How a policy's values match: exactly, by prefix `a*`, by suffix `*a`, or by presence `*`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::service::NamespacedName;

/// A value of a policy's field.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StringMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// `a*`: it begins with this.
    Prefix(Arc<str>),
    /// `*a`: it ends with this.
    Suffix(Arc<str>),
    /// `*`: it is there.
    Present,
}

/// Why a text is no [`StringMatch`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParsePatternError {
    /// Empty text.
    #[error("is empty; write the value, or `*` for any")]
    Empty,
    /// A star that means nothing there.
    #[error("\"{0}\" has a `*` that is neither alone, first nor last; write it as a prefix `a*`, a suffix `*a` or in full")]
    Star(String),
}

impl FromStr for StringMatch {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (built, rest): (fn(Arc<str>) -> StringMatch, &str) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => return Ok(StringMatch::Present),
            (Some(rest), _) => (StringMatch::Suffix, rest),
            (None, Some(rest)) => (StringMatch::Prefix, rest),
            (None, None) => (StringMatch::Exact, text),
        };
        match rest {
            "" => Err(ParsePatternError::Empty),
            _ if rest.contains('*') => Err(ParsePatternError::Star(text.chars().take(300).collect())),
            _ => Ok(built(rest.into())),
        }
    }
}

impl StringMatch {
    /// Whether a text that is there matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            StringMatch::Exact(whole) => **whole == *text,
            StringMatch::Prefix(start) => text.starts_with(&**start),
            StringMatch::Suffix(end) => text.ends_with(&**end),
            StringMatch::Present => true,
        }
    }

    /// As [`StringMatch::matches`], of bytes that need not be text.
    pub(crate) fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            StringMatch::Exact(whole) => whole.as_bytes() == bytes,
            StringMatch::Prefix(start) => bytes.starts_with(start.as_bytes()),
            StringMatch::Suffix(end) => bytes.ends_with(end.as_bytes()),
            StringMatch::Present => true,
        }
    }

    /// As [`StringMatch::matches`], with no difference between ASCII letters of either case.
    pub(crate) fn matches_ignoring_case(&self, text: &str) -> bool {
        let part = |part: Option<&[u8]>, fixed: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(fixed.as_bytes()));
        let bytes = text.as_bytes();
        match self {
            StringMatch::Exact(whole) => part(Some(bytes), whole),
            StringMatch::Prefix(start) => part(bytes.get(..start.len()), start),
            StringMatch::Suffix(end) => part(bytes.len().checked_sub(end.len()).and_then(|from| bytes.get(from..)), end),
            StringMatch::Present => true,
        }
    }

    /// A value of a condition, where a star elsewhere than at one end stands for itself (`Accept: */*` is asked for by its end), as in
    /// Istio. There is none that is not understood.
    pub(crate) fn of_condition(text: &str) -> StringMatch {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => StringMatch::Present,
            (Some(end), _) => StringMatch::Suffix(end.into()),
            (None, Some(start)) => StringMatch::Prefix(start.into()),
            (None, None) => StringMatch::Exact(text.into()),
        }
    }

    /// The same pattern with `from` at its fixed beginning replaced by `to`, or `None` if it does not begin so.
    pub(crate) fn with_start(&self, from: &str, to: &str) -> Option<StringMatch> {
        let swap = |text: &Arc<str>| text.strip_prefix(from).map(|rest| format!("{to}{rest}").into());
        match self {
            StringMatch::Exact(whole) => swap(whole).map(StringMatch::Exact),
            StringMatch::Prefix(start) => swap(start).map(StringMatch::Prefix),
            StringMatch::Suffix(_) | StringMatch::Present => None,
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StringMatch::Exact(whole) => f.write_str(whole),
            StringMatch::Prefix(start) => write!(f, "{start}*"),
            StringMatch::Suffix(end) => write!(f, "*{end}"),
            StringMatch::Present => f.write_str("*"),
        }
    }
}

/// A value about the caller's identity. An absent identity matches none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum IdentityPattern {
    /// Of [`Identity::principal`].
    Principal(StringMatch),
    /// Of the namespace.
    Namespace(StringMatch),
    /// Of namespace and service account, exactly, in any trust domain.
    ServiceAccount(NamespacedName),
    /// Of the trust domain.
    TrustDomain(StringMatch),
}

impl IdentityPattern {
    /// Whether the identity matches; `principal` is its [`Identity::principal`], made once for many patterns.
    pub fn matches(&self, identity: &Identity, principal: &str) -> bool {
        match self {
            IdentityPattern::Principal(pattern) => pattern.matches(principal),
            IdentityPattern::Namespace(pattern) => pattern.matches(identity.namespace()),
            IdentityPattern::ServiceAccount(name) => *name.namespace == *identity.namespace() && *name.name == *identity.service_account(),
            IdentityPattern::TrustDomain(pattern) => pattern.matches(identity.trust_domain().as_str()),
        }
    }
}

#[cfg(test)]
mod tests;
