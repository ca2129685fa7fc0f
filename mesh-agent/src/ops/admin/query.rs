//! Parameters of a request.

use std::str::FromStr;

use mesh_model::service::NamespacedName;

use super::ActionError;

/// The parameters behind the `?`, decoded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c=d` with percent encoding and `+` for a blank.
    pub fn parse(text: &str) -> Result<Query, ActionError> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Query(pairs))
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every value of a parameter that may be given several times.
    pub fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Refuses parameters other than these, and any that is given twice.
    pub fn only(&self, names: &[&str]) -> Result<(), ActionError> {
        self.only_repeating(names, &[])
    }

    /// As [`Query::only`], where those of `several` may be given several times.
    pub fn only_repeating(&self, names: &[&str], several: &[&str]) -> Result<(), ActionError> {
        let twice = |name: &str| !several.contains(&name) && self.all(name).nth(1).is_some();
        if let Some((name, _)) = self.0.iter().find(|(name, _)| twice(name)) {
            return Err(ActionError::BadRequest(format!("parameter \"{name}\" is given twice")));
        }
        let names = [names, several].concat();
        match self.0.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) if names.is_empty() => {
                Err(ActionError::BadRequest(format!("unknown parameter \"{name}\": there is none here")))
            }
            Some((name, _)) => Err(ActionError::BadRequest(format!("unknown parameter \"{name}\": there are {}", names.join(", ")))),
        }
    }

    /// The value of a parameter, parsed; `expected` says what would be right.
    pub fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, ActionError> {
        let parse = |value: &str| value.parse().map_err(|_| ActionError::BadRequest(format!("{name}={value}: expected {expected}")));
        self.get(name).map(parse).transpose()
    }

    /// The value of a parameter as `namespace/name`.
    pub fn namespaced(&self, name: &str) -> Result<Option<NamespacedName>, ActionError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.split_once('/') {
            Some((namespace, own)) if !namespace.is_empty() && !own.is_empty() && !own.contains('/') => {
                Ok(Some(NamespacedName { namespace: namespace.into(), name: own.into() }))
            }
            _ => Err(ActionError::BadRequest(format!("{name}={value}: expected namespace/name"))),
        }
    }
}

fn decode(text: &str) -> Result<String, ActionError> {
    let bad = || ActionError::BadRequest(format!("\"{}\" is not percent-encoded UTF-8", text.chars().take(100).collect::<String>()));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(bad);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).map_err(|_| bad())?
            }
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| bad())
}
