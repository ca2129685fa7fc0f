//! RateLimit (`nodemesh.dev`): how many requests a workload takes. Limits that cannot be read are left out, with an error each; whom the
//! object is about must be understood in whole, or it would limit others than its author meant.

use std::sync::Arc;
use std::time::Duration;

use super::fields::{Fields, spec};
use super::{Input, Reading, selector};
use crate::limit::{Limit, LimitBy, LimitScope, MOST_LIMITS, RateLimit};
use crate::object::Object;
use crate::policy::{NormalPath, Scope};
use crate::problem::{FieldPath, Severity};

/// As many as anybody may ask for: numbers of the API that are whole in every language.
const MOST: u64 = i32::MAX as u64;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some((mut spec, _)) = spec(input) else { return Reading::Unreadable };
    if let Some((at, _)) = spec.take("targetRef") {
        input.error(at, "is not a field of a RateLimit; write a list in targetRefs");
    }
    for read_below in ["selector", "targetRefs"] {
        spec.take(read_below);
    }
    let (targets, entries) = selector::scope_and_entries(input);
    if input.failed() {
        return Reading::Unreadable;
    }
    let scope = scope(input, &mut spec, &targets);
    let maps = spec.maps(input, "limits");
    let at = FieldPath::of("spec.limits");
    if maps.is_empty() && !input.failed() {
        input.error(at.clone(), "is empty, so nothing is limited; write at least one limit");
    }
    if maps.len() > MOST_LIMITS {
        let message = format!("has {} limits, of which the first {MOST_LIMITS} count; make another RateLimit of the rest", maps.len());
        input.error(at, message);
    }
    let read = maps.into_iter().take(MOST_LIMITS).enumerate();
    let limits: Vec<Limit> = read.filter_map(|(index, map)| limit(input, index, map)).collect();
    for limit in limits.iter().filter(|limit| scope == LimitScope::Service && !limit.by.is_lent()) {
        let message = "has a budget for each client or header value, of which every pod that counts has a fixed and equal part: with scope: \
                       service only budgets for all, or for a path, are lent from one pod to another";
        input.warn(FieldPath::of("spec.limits").index(limit.index).key("by"), message);
    }
    spec.rest(input);
    let object = Object::RateLimit(Arc::new(RateLimit { name: input.name.clone(), targets, entries, limits, scope }));
    if input.failed() { Reading::Cautious(object) } else { Reading::Good(object) }
}

fn scope(input: &mut Input<'_>, spec: &mut Fields<'_>, targets: &Scope) -> LimitScope {
    let at = FieldPath::of("spec.scope");
    match spec.text(input, "scope") {
        None | Some("endpoint") => LimitScope::Endpoint,
        Some("service") if matches!(targets, Scope::Services(_)) => LimitScope::Service,
        Some("service") => {
            input.error(at, "is service, and no Service or ServiceEntry is targeted; name it in targetRefs. Each pod has the limits for itself until then");
            LimitScope::Endpoint
        }
        Some(other) => {
            input.error(at, format!("\"{other}\" is neither endpoint nor service; each pod has the limits for itself until it is"));
            LimitScope::Endpoint
        }
    }
}

fn limit(input: &mut Input<'_>, index: usize, mut map: Fields<'_>) -> Option<Limit> {
    let before = input.findings.len();
    let at = map.at.clone();
    let requests: Option<u32> = if map.has("requests") {
        map.number(input, "requests", 1..=MOST)
    } else {
        input.error(at.key("requests"), format!("is missing; write how many requests there may be, from 1 to {MOST}"));
        None
    };
    let per = per(input, &mut map);
    let burst: Option<u32> = map.number(input, "burst", 1..=MOST);
    let by = match map.map(input, "by") {
        Some(map) => by(input, map),
        None => Some(LimitBy::Everyone),
    };
    map.rest(input);
    // A field that was there and could not be read must not be taken for one that was left out.
    let failed = input.findings.iter().skip(before).any(|finding| finding.severity == Severity::Error);
    let requests = requests.filter(|_| !failed)?;
    Some(Limit { index, requests, per: per?, burst: burst.unwrap_or(requests), by: by? })
}

fn per(input: &mut Input<'_>, map: &mut Fields<'_>) -> Option<Duration> {
    let at = map.at.clone();
    let unit = map.has("unit");
    if unit == map.has("per") {
        let what = if unit { "are both there; leave one of them out" } else { "are both missing; write one of them" };
        for key in ["unit", "per"] {
            map.take(key);
        }
        input.error(at.key("unit"), format!("and per {what}: unit is second, minute or hour, per a duration such as 10s"));
        return None;
    }
    if unit {
        map.take("per");
        let text = map.text(input, "unit")?;
        let seconds = match text {
            "second" => 1,
            "minute" => 60,
            "hour" => 3600,
            other => {
                input.error(at.key("unit"), format!("\"{other}\" is none of second, minute and hour; for another time write per"));
                return None;
            }
        };
        return Some(Duration::from_secs(seconds));
    }
    map.take("unit");
    let per = map.duration(input, "per")?;
    if !(SHORTEST..=LONGEST).contains(&per) {
        input.error(at.key("per"), "is not from 1ms to 24h");
        return None;
    }
    Some(per)
}

/// What `by` may name, one of them.
const KEYS: [&str; 3] = ["source", "header", "pathPrefix"];

fn by(input: &mut Input<'_>, mut map: Fields<'_>) -> Option<LimitBy> {
    let at = map.at.clone();
    let said: Vec<&str> = KEYS.into_iter().filter(|key| map.has(key)).collect();
    let read = match *said.as_slice() {
        ["source"] => match map.boolean(input, "source") {
            Some(true) => Some(LimitBy::Source),
            Some(false) => {
                input.error(at.key("source"), "is false; write true, or leave by out for one budget for all");
                None
            }
            None => None,
        },
        ["header"] => map.text(input, "header").and_then(|text| header(input, at.key("header"), text)),
        ["pathPrefix"] => map.text(input, "pathPrefix").and_then(|text| prefix(input, at.key("pathPrefix"), text)),
        [] => {
            input.error(at, "names nothing; write source, header or pathPrefix, or leave by out for one budget for all");
            None
        }
        _ => {
            input.error(at, "names more than one of source, header and pathPrefix; make a limit for each");
            None
        }
    };
    for known in KEYS {
        map.take(known);
    }
    map.rest(input);
    read
}

fn header(input: &mut Input<'_>, at: FieldPath, name: &str) -> Option<LimitBy> {
    // RFC 9110, 5.6.2.
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.len() > 256 || !name.bytes().all(token) {
        input.error(at, format!("\"{name}\" is not the name of a header"));
        return None;
    }
    Some(LimitBy::Header(name.to_ascii_lowercase().into()))
}

fn prefix(input: &mut Input<'_>, at: FieldPath, text: &str) -> Option<LimitBy> {
    match NormalPath::of(text.as_bytes()) {
        Ok(path) if text.starts_with('/') && path.as_str() == text => Some(LimitBy::PathPrefix(text.into())),
        Ok(path) => {
            let message = format!("\"{text}\" is the beginning of no path in the form in which paths are judged; write {}", path.as_str());
            input.error(at, message);
            None
        }
        Err(error) => {
            input.error(at, format!("\"{text}\" is not a path: {error}; write one that begins with /"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
