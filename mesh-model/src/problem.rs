//! What is wrong with the configuration, in words that name the object, the field and the mend.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::object::ObjectKey;

/// How much a [`Problem`] weighs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Nothing is lost: something is there that the mesh has no use for.
    Info,
    /// Something the author asked for is not done, or is done with caution.
    Warn,
    /// An object could not be understood.
    Error,
}

/// Where an object came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// A manifest.
    File {
        /// The file.
        file: Arc<Path>,
        /// 1-based line; that of the document's first line where nothing better is known, 0 for the file as a whole.
        line: u32,
    },
    /// An object of a Kubernetes API server.
    Object(Arc<ObjectOrigin>),
    /// The API server as a whole.
    Api,
}

/// Which state of which object of an API server.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectOrigin {
    /// The object.
    pub key: ObjectKey,
    /// `metadata.resourceVersion`: rises with every change; empty if it could not be read.
    pub resource_version: Arc<str>,
    /// `metadata.generation`: rises with every change of `spec`, for the kinds that count it.
    pub generation: Option<i64>,
}

impl Origin {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Origin::File { file, .. } => Some(file),
            Origin::Object(_) | Origin::Api => None,
        }
    }

    /// The line, if it is known.
    pub fn line(&self) -> Option<u32> {
        match self {
            Origin::File { line, .. } if *line > 0 => Some(*line),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line: 0 } => write!(f, "{}", file.display()),
            Origin::File { file, line } => write!(f, "{}:{line}", file.display()),
            Origin::Object(object) => write!(f, "{object}"),
            Origin::Api => f.write_str("API server"),
        }
    }
}

impl fmt::Display for ObjectOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (resourceVersion {}", self.key, self.resource_version)?;
        if let Some(generation) = self.generation {
            write!(f, ", generation {generation}")?;
        }
        f.write_str(")")
    }
}

/// One thing that is wrong. Equal problems are the same problem, so a log can name each once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Problem {
    /// Its weight.
    pub severity: Severity,
    /// Where.
    pub origin: Origin,
    /// `Kind namespace/name`, as far as they could be read; empty for a file as a whole.
    pub object: Arc<str>,
    /// Path of the field, e.g. `spec.rules[0].from[1].source.ipBlocks[0]`; empty for the object as a whole.
    pub field: Arc<str>,
    /// What is wrong, what follows from it, and what to do.
    pub message: Arc<str>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        // An object's origin names it already.
        let object = if matches!(self.origin, Origin::Object(_)) { "" } else { &*self.object };
        for part in [object, &*self.field] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

/// Way to a field inside an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct FieldPath(pub Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Segment {
    /// Into a mapping.
    Key(String),
    /// Into a list, 0-based.
    Index(usize),
}

impl FieldPath {
    /// From dotted names, e.g. `spec.selector`; an empty text is the object itself.
    pub fn of(dotted: &str) -> Self {
        FieldPath(dotted.split('.').filter(|s| !s.is_empty()).map(|s| Segment::Key(s.into())).collect())
    }

    /// One step further into a mapping.
    pub fn key(&self, key: impl Into<String>) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Key(key.into()));
        path
    }

    /// One step further into a list.
    pub fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Index(index));
        path
    }

    /// This path below `parent`.
    pub fn below(&self, parent: &FieldPath) -> Self {
        FieldPath(parent.0.iter().chain(&self.0).cloned().collect())
    }

    /// Whether it leads to `other` or into it.
    pub fn starts_with(&self, other: &FieldPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(n) => write!(f, "[{n}]")?,
                // A name with dots (labels, annotations) is bracketed, as `kubectl -o jsonpath` would have it.
                Segment::Key(k) if k.contains(['.', '/', '[']) => write!(f, "[\"{k}\"]")?,
                Segment::Key(k) if i == 0 => f.write_str(k)?,
                Segment::Key(k) => write!(f, ".{k}")?,
            }
        }
        Ok(())
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as S;
        FieldPath(
            path.iter()
                .filter_map(|segment| match segment {
                    S::Seq { index } => Some(Segment::Index(*index)),
                    S::Map { key } => Some(Segment::Key(key.clone())),
                    S::Enum { .. } | S::Unknown => None,
                })
                .collect(),
        )
    }
}

impl From<&serde_ignored::Path<'_>> for FieldPath {
    fn from(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path as P;
        match path {
            P::Root => FieldPath::default(),
            P::Seq { parent, index } => FieldPath::from(*parent).index(*index),
            P::Map { parent, key } => FieldPath::from(*parent).key(key),
            P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => FieldPath::from(*parent),
        }
    }
}

/// A [`Problem`] whose object and place are known to the caller only: what a conversion finds in one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its weight.
    pub severity: Severity,
    /// Where in the object.
    pub field: FieldPath,
    /// As [`Problem::message`].
    pub message: String,
}

impl Finding {
    /// An object that could not be understood.
    pub fn error(field: FieldPath, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, field, message: message.into() }
    }

    /// Something that is not done.
    pub fn warn(field: FieldPath, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Warn, field, message: message.into() }
    }

    /// Something of no use.
    pub fn info(field: FieldPath, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Info, field, message: message.into() }
    }
}
