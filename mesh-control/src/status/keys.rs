//! What is said of a RequestAuthentication whose issuers' keys cannot be fetched. Pure.

use std::sync::Arc;

use mesh_model::policy::RequestAuthentication;
use mesh_model::policy::request_authentication::{KeyLocation, KeySource};
use mesh_model::problem::Severity;

use super::conditions::Found;
use crate::keys::{Book, Standing};

/// Reason of the condition where there are no keys, so that no token is believed.
const MISSING: &str = "KeysMissing";
/// Reason of the condition where keys are in force that could not be fetched again.
const STALE: &str = "KeysStale";

/// What there is to say of a book: whether there are keys, and why they could not be fetched.
pub fn troubles(book: &Book) -> Vec<(KeyLocation, bool, Arc<str>)> {
    let trouble =
        |(location, standing): (&KeyLocation, &Standing)| Some((location.clone(), standing.set.is_some(), standing.failure.clone()?));
    book.iter().filter_map(trouble).collect()
}

/// What there is to say of a policy.
pub fn found(policy: &RequestAuthentication, book: &Book) -> Vec<Found> {
    let of_rule = |(i, rule): (usize, &Arc<mesh_model::policy::JwtRule>)| {
        let standing = book.get(&rule.location()?)?;
        let failure = standing.failure.as_ref()?;
        let field = if rule.keys == KeySource::Discovery { "issuer" } else { "jwksUri" };
        let (severity, reason, effect) = match &standing.set {
            Some(_) => (Severity::Warn, STALE, "those from before stay in force"),
            None => (Severity::Error, MISSING, "no token of the issuer is believed until they can"),
        };
        let message = format!("the issuer's keys cannot be fetched: {failure}; {effect}");
        Some(Found { severity, field: format!("spec.jwtRules[{i}].{field}"), message, reason: Some(reason) })
    };
    policy.rules.iter().enumerate().filter_map(of_rule).collect()
}

#[cfg(test)]
mod tests;
