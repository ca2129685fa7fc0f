//! What a verified JWT says, as policies ask for it.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// Claims whose text is a list with blanks between its elements (RFC 8693, 4.2; the names are those that Istio splits).
const BLANK_SEPARATED: [&str; 2] = ["scope", "permission"];

/// The payload of a verified token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    principal: Option<String>,
    all: Map<String, Value>,
}

impl Claims {
    /// From the payload. Only of a token whose signature, issuer and times have been checked: policies trust it.
    pub fn new(all: Map<String, Value>) -> Self {
        let text = |name: &str| all.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let principal = text("iss").zip(text("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}"));
        Claims { principal, all }
    }

    /// The request principal `<iss>/<sub>`; `None` if the token lacks either.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.all.get("iss").and_then(Value::as_str)
    }

    /// The payload.
    pub fn payload(&self) -> &Map<String, Value> {
        &self.all
    }

    /// Whether `hit` holds for a text of the claim at a path of keys: of a claim that is a text, the text; of a list, one of its texts;
    /// of `scope` and `permission`, a word of it. Other types have no texts, as in Istio; `lenient` also takes numbers and truth values as
    /// they are written, and a text of words as a whole.
    pub(super) fn any(&self, path: &[impl AsRef<str>], lenient: bool, hit: impl Fn(&str) -> bool) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let found = rest.iter().try_fold(self.all.get(first.as_ref()), |value, key| value.map(|value| value.get(key.as_ref())));
        let Some(value) = found.flatten() else { return false };
        let words = rest.is_empty() && BLANK_SEPARATED.contains(&first.as_ref());
        match value {
            Value::String(text) if words => text.split(' ').filter(|word| !word.is_empty()).any(&hit) || lenient && hit(text),
            Value::Array(list) => list.iter().any(|element| scalar(element, lenient).is_some_and(|text| hit(&text))),
            value => scalar(value, lenient).is_some_and(|text| hit(&text)),
        }
    }
}

fn scalar(value: &Value, lenient: bool) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(_) | Value::Number(_) if lenient => Some(Cow::Owned(value.to_string())),
        _ => None,
    }
}
