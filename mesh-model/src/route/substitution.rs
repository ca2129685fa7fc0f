//! Replacing what a pattern matches in a text.

use std::fmt;
use std::sync::Arc;

use super::{compile, complaint};

/// A pattern and what stands in the place of everything that it matches in a text: RE2's GlobalReplace, which Envoy's `regex_rewrite` is.
/// Equal if written alike.
#[derive(Clone)]
pub struct Substitution {
    pattern: Arc<str>,
    parts: regex::Regex,
    by: Arc<str>,
    /// What `by` is made of.
    pieces: Arc<[Piece]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Text(Box<str>),
    /// What a group of the pattern matched; 0 is all of it.
    Group(usize),
}

impl Substitution {
    /// Compiles one. In `by` `\\1` to `\\9` stand for the pattern's groups, `\\0` for the whole and `\\\\` for a backslash, as RE2 writes it.
    ///
    /// # Errors
    /// Says what is wrong: the pattern is empty or not understood, or `by` names a group that it does not have.
    pub fn new(pattern: &str, by: &str) -> Result<Substitution, String> {
        if pattern.is_empty() {
            return Err("is missing; write a pattern".into());
        }
        let parts = compile(pattern).map_err(|error| complaint(pattern, &error))?;
        let pieces = pieces(by).ok_or_else(|| format!("\"{by}\" has a \\ before something else than a digit or another \\"))?;
        let groups = parts.captures_len().saturating_sub(1);
        let unknown = pieces.iter().find_map(|piece| match piece {
            Piece::Group(number) if *number > groups => Some(*number),
            _ => None,
        });
        match unknown {
            Some(number) => Err(format!("\"{by}\" names group {number}, and the pattern has {groups}")),
            None => Ok(Substitution { pattern: pattern.into(), parts, by: by.into(), pieces: pieces.into() }),
        }
    }

    /// The text with every part that matches replaced; parts do not overlap.
    pub fn apply(&self, text: &str) -> String {
        let replace = |groups: &regex::Captures<'_>| {
            let mut out = String::new();
            for piece in &*self.pieces {
                match piece {
                    Piece::Text(text) => out.push_str(text),
                    Piece::Group(number) => out.push_str(groups.get(*number).map_or("", |group| group.as_str())),
                }
            }
            out
        };
        self.parts.replace_all(text, replace).into_owned()
    }
}

/// `None` if a backslash stands before what has no meaning there.
fn pieces(by: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = by.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next()? {
            '\\' => text.push('\\'),
            digit => {
                let number = digit.to_digit(10)?;
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                }
                pieces.push(Piece::Group(usize::try_from(number).ok()?));
            }
        }
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
    Some(pieces)
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.by == other.by
    }
}

impl Eq for Substitution {}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}/", self.pattern, self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_matches_is_replaced() {
        for (pattern, by, text, wanted) in [
            // Envoy's own examples of regex_rewrite.
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("/+", "/", "//a///b", "/a/b"),
            ("b", r"[\0\\]", "/abc", r"/a[b\]c"),
            ("(x)?a", r"<\1>", "/a/xa", "/<>/<x>"),
            ("nothing", "x", "/a", "/a"),
            ("a", "$0", "/a", "/$0"),
        ] {
            assert_eq!(Substitution::new(pattern, by).unwrap().apply(text), wanted, "{pattern} {by}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_said() {
        for (pattern, by, word) in
            [("", "x", "missing"), ("(", "x", "not a pattern"), ("a", r"\1", "group 1"), ("a", r"\n", "before"), ("a", "\\", "before")]
        {
            let error = Substitution::new(pattern, by).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
