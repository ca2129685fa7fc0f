//! How a policy's `paths` match: exactly, by prefix, suffix or presence, or by Istio's path templates.

use std::str::FromStr;
use std::sync::Arc;

use crate::policy::StringMatch;
use crate::policy::path::{NormalPath, escape_piece};

/// A value of `paths`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PathMatch {
    /// As other texts match.
    Text(StringMatch),
    /// Segments: `{*}` (`None`) is exactly one, of at least one character.
    Segments(Vec<Option<Arc<str>>>),
    /// Segments, each with a slash after it, then anything (`{**}`), then this.
    Open(Vec<Option<Arc<str>>>, Arc<str>),
}

/// Why a text is no [`PathMatch`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParsePathError {
    /// As of other texts.
    #[error(transparent)]
    Text(#[from] crate::policy::pattern::ParsePatternError),
    /// A template that does not begin with `/`.
    #[error("\"{0}\" is a path template that does not begin with `/`")]
    Relative(String),
    /// A brace that belongs to none of the operators.
    #[error("\"{0}\" has `{{`, `}}` or `*` outside of the operators `{{*}}` and `{{**}}`, each of which must be a whole segment")]
    Operator(String),
    /// An operator after `{**}`.
    #[error("\"{0}\" has an operator after `{{**}}`, which must be the last")]
    NotLast(String),
}

impl FromStr for PathMatch {
    type Err = ParsePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains(['{', '}']) {
            return Ok(PathMatch::Text(normal(text.parse()?)));
        }
        let shown = || text.chars().take(300).collect::<String>();
        let body = text.strip_prefix('/').ok_or_else(|| ParsePathError::Relative(shown()))?;
        let mut segments = Vec::new();
        let mut rest: Option<String> = None;
        for segment in body.split('/') {
            match (segment, &mut rest) {
                ("{*}", None) => segments.push(None),
                ("{**}", None) => rest = Some(String::new()),
                ("{*}" | "{**}", Some(_)) => return Err(ParsePathError::NotLast(shown())),
                (literal, _) if literal.contains(['{', '}', '*']) => return Err(ParsePathError::Operator(shown())),
                (literal, None) => segments.push(Some(escape_piece(literal).into())),
                (literal, Some(rest)) => {
                    rest.push('/');
                    rest.push_str(&escape_piece(literal));
                }
            }
        }
        Ok(match rest {
            None => PathMatch::Segments(segments),
            Some(rest) => PathMatch::Open(segments, rest.into()),
        })
    }
}

/// In the form that paths are compared in: what is written in full is normalised as a request's path is.
fn normal(pattern: StringMatch) -> StringMatch {
    let piece = |text: &str| -> Arc<str> { escape_piece(text).into() };
    match pattern {
        // A query is no part of a path, so that such a value matches none; it must not become one that does.
        StringMatch::Exact(text) if text.contains('?') => StringMatch::Exact(text),
        StringMatch::Exact(text) => match NormalPath::of(text.as_bytes()) {
            Ok(path) if text.starts_with('/') => StringMatch::Exact(path.as_str().into()),
            _ => StringMatch::Exact(text),
        },
        StringMatch::Prefix(text) => StringMatch::Prefix(piece(&text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(piece(&text)),
        StringMatch::Present => StringMatch::Present,
    }
}

impl PathMatch {
    /// Whether a path matches. An operator stands for the characters that a URI's path may have, as in Envoy; with `lenient` for all, and
    /// `{**}` between slashes then also for no segment at all (`/a/{**}/b` matches `/a/b`).
    pub fn matches(&self, path: &NormalPath<'_>, lenient: bool) -> bool {
        let (segments, end) = match self {
            PathMatch::Text(pattern) => return pattern.matches(path.as_str()),
            PathMatch::Segments(segments) => (segments, None),
            PathMatch::Open(segments, end) => (segments, Some(end)),
        };
        let Some(mut rest) = path.as_str().strip_prefix('/') else { return false };
        let fits = |text: &str| lenient || text.bytes().all(|byte| byte != b'*');
        let mut wanted = segments.iter().peekable();
        while let Some(segment) = wanted.next() {
            let whole = end.is_none() && wanted.peek().is_none();
            let (found, after) = match rest.split_once('/') {
                Some(_) if whole => return false,
                Some((found, after)) => (found, after),
                None if whole => (rest, ""),
                None => return false,
            };
            rest = after;
            let hit = match segment {
                Some(literal) => **literal == *found,
                None => !found.is_empty() && fits(found),
            };
            if !hit {
                return false;
            }
        }
        let Some(end) = end else { return true };
        let between = rest.strip_suffix(&**end);
        between.is_some_and(fits) || lenient && end.strip_prefix('/').is_some_and(|end| end == rest)
    }
}
