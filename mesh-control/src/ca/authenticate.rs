//! Who asks: the node that a bearer token stands for.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, digest};
use tonic::metadata::MetadataMap;

use super::refusal::Refusal;
use crate::files::{self, Stamp};

/// An authenticated caller; an extension of requests that were let in by their heads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The node whose agent it is.
    pub node: Arc<str>,
}

/// The boxed future of an authentication.
pub type Authentication<'a> = Pin<Box<dyn Future<Output = Result<Caller, Refusal>> + Send + 'a>>;

/// Knows whose token a token is.
pub trait Authenticator: Send + Sync + 'static {
    /// The caller that a bearer token stands for. `from`: the address that shows it; it proves nothing.
    fn authenticate<'a>(&'a self, token: &'a str, from: Option<IpAddr>) -> Authentication<'a>;
}

/// Shortest token: 16 characters, so that it can hold 96 bits of chance in base64.
pub const MIN_TOKEN: usize = 16;
/// Longest token; those of Kubernetes have about 1 KB.
pub const MAX_TOKEN: usize = 8 * 1024;

/// The token of a call: `authorization: Bearer <token>` (RFC 6750, 2.1; the scheme in any case).
pub fn bearer(metadata: &MetadataMap) -> Result<&str, Refusal> {
    let mut values = metadata.get_all("authorization").iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(Refusal::NoToken),
        (Some(value), None) => value.to_str().map_err(|_| Refusal::TokenForm)?,
        (Some(_), Some(_)) => return Err(Refusal::TokenForm),
    };
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::TokenForm)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || !is_token(token) {
        return Err(Refusal::TokenForm);
    }
    Ok(token)
}

fn is_token(text: &str) -> bool {
    (MIN_TOKEN..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Tokens of nodes, from files, for a mesh without Kubernetes: a directory with one file a node (its name is the node's, its content the
/// token), or one file with a line `<node> <token>` each.
///
/// Only digests are kept, and every one is compared in constant time.
#[derive(Debug)]
pub struct NodeTokens {
    path: PathBuf,
    table: ArcSwap<Table>,
}

pub(super) type Digest = [u8; digest::SHA256_OUTPUT_LEN];

#[derive(Debug, Default)]
struct Table {
    tokens: Vec<(Arc<str>, Digest)>,
    problems: Vec<String>,
    stamps: Option<BTreeMap<PathBuf, Stamp>>,
}

impl NodeTokens {
    /// Reads the tokens. What is wrong with them is in [`NodeTokens::problems`].
    pub fn open(path: &Path, now: SystemTime) -> NodeTokens {
        let tokens = NodeTokens { path: path.into(), table: ArcSwap::default() };
        tokens.refresh(now);
        tokens
    }

    /// Reads them again if the files have changed; says whether they were read. A file that cannot be read takes its node's token away;
    /// a path that cannot be read at all takes away nothing, so that a remount locks nobody out.
    pub fn refresh(&self, now: SystemTime) -> bool {
        let before = self.table.load();
        let table = match self.stamps() {
            Ok(stamps) => {
                let settled = stamps.values().all(|stamp| stamp.settled(now));
                if before.stamps.as_ref() == Some(&stamps) && settled {
                    return false;
                }
                let mut table = self.read(&stamps);
                if before.stamps.as_ref() == Some(&stamps) && before.tokens == table.tokens && before.problems == table.problems {
                    return false;
                }
                table.stamps = Some(stamps);
                table
            }
            Err(error) => {
                let problem = format!("{}: cannot be read: {error}", self.path.display());
                if before.problems.contains(&problem) {
                    return false;
                }
                Table { tokens: before.tokens.clone(), problems: vec![problem], stamps: None }
            }
        };
        self.table.store(Arc::new(table));
        true
    }

    /// What is wrong with the files.
    pub fn problems(&self) -> Vec<String> {
        self.table.load().problems.clone()
    }

    /// How many nodes have a token.
    pub fn len(&self) -> usize {
        self.table.load().tokens.len()
    }

    /// Whether no node has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The node whose token it is.
    pub fn node(&self, token: &str) -> Option<Arc<str>> {
        let asked = sha256(token.as_bytes());
        let table = self.table.load();
        let mut found = None;
        for (node, digest) in &table.tokens {
            if constant_time::verify_slices_are_equal(&asked, digest).is_ok() {
                found = Some(node.clone());
            }
        }
        found
    }

    fn stamps(&self) -> std::io::Result<BTreeMap<PathBuf, Stamp>> {
        if self.path.is_dir() {
            return files::list(&self.path, |_| true);
        }
        Ok([(self.path.clone(), Stamp::of(&self.path)?)].into())
    }

    fn read(&self, stamps: &BTreeMap<PathBuf, Stamp>) -> Table {
        let mut table = Table::default();
        let single = stamps.len() == 1 && stamps.contains_key(&self.path);
        for path in stamps.keys() {
            let text = match files::read(path) {
                Ok(text) => text,
                Err(error) => {
                    table.problems.push(format!("{}: cannot be read: {error}", path.display()));
                    continue;
                }
            };
            if single {
                for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
                    if line.is_empty() || line.starts_with('#') {
                        continue;
                    }
                    let place = format!("{}:{number}", path.display());
                    match line.split_once(char::is_whitespace) {
                        Some((node, token)) => table.add(&place, node, token),
                        None => table.problems.push(format!("{place}: is not of the form <node> <token>")),
                    }
                }
            } else {
                let node = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                table.add(&path.display().to_string(), node, &text);
            }
        }
        table.drop_shared();
        table
    }
}

impl Table {
    fn add(&mut self, place: &str, node: &str, token: &str) {
        let token = token.trim();
        let named = !node.is_empty()
            && node.len() <= 253
            && node.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        if !named {
            self.problems.push(format!("{place}: \"{}\" is not the name of a node", node.escape_default()));
        } else if !is_token(token) {
            self.problems.push(format!("{place}: the token must be {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters without blanks"));
        } else {
            self.tokens.push((node.into(), sha256(token.as_bytes())));
        }
    }

    /// A token that two nodes have says which of them asks no more: it counts for neither.
    fn drop_shared(&mut self) {
        let mut owner: BTreeMap<Digest, &Arc<str>> = BTreeMap::new();
        let mut shared: HashSet<Digest> = HashSet::new();
        for (node, digest) in &self.tokens {
            if let Some(other) = owner.insert(*digest, node)
                && other != node
            {
                shared.insert(*digest);
                self.problems
                    .push(format!("nodes {other} and {node} have the same token, which is accepted from neither; give each its own"));
            }
        }
        self.tokens.retain(|(_, digest)| !shared.contains(digest));
    }
}

impl Authenticator for NodeTokens {
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<IpAddr>) -> Authentication<'a> {
        let result = match self.node(token) {
            Some(node) => Ok(Caller { node }),
            None if self.is_empty() => Err(Refusal::NoAuthenticator("no node has a token".into())),
            None => Err(Refusal::UnknownToken),
        };
        Box::pin(std::future::ready(result))
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    digest
}

#[cfg(test)]
mod tests;
