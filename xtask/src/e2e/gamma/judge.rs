//! Whether answers are as a table wants them. Pure; the result is for a person's eyes.

use std::collections::BTreeMap;

use mesh_lab::ask::{Answered, Asked};

use super::case::{Case, Want};

/// Points that a share may be off.
const TOLERANCE: usize = 5;
/// Characters of a body that are told.
const TOLD: usize = 120;

/// What does not hold, a paragraph for each row: what it shows, the request, what was expected and what was seen.
pub fn judge(cases: &[Case], answers: &[Vec<Answered>]) -> Vec<String> {
    let mut wrong = Vec::new();
    if cases.len() != answers.len() {
        return vec![format!("{} requests have {} answers", cases.len(), answers.len())];
    }
    let mut before = None;
    for (case, answers) in cases.iter().zip(answers) {
        let missed: Vec<String> = case.wants.iter().filter_map(|want| miss(want, answers, before.as_deref())).collect();
        if !missed.is_empty() || answers.is_empty() {
            wrong.push(format!("{}\n  {}\n    {}", case.why, line(&case.asked), missed.join("\n    ")));
        }
        before = answers.last().and_then(server).or(before);
    }
    wrong
}

/// The request as a person would write it.
fn line(asked: &Asked) -> String {
    let headers: String = asked.headers.iter().map(|(name, value)| format!(" -H '{name}: {value}'")).collect();
    let carried: String = asked.carry.iter().map(|(from, to)| format!(" -H '{to}: <{from}>'")).collect();
    let times = if asked.times > 1 { format!(" x {}", asked.times) } else { String::new() };
    format!("{} {}{headers}{carried}{times}", asked.method, asked.url)
}

fn server(answer: &Answered) -> Option<String> {
    answer.seen().map(|seen| seen.name)
}

/// What was expected and seen, if a want is not met.
fn miss(want: &Want, answers: &[Answered], before: Option<&str>) -> Option<String> {
    match want {
        Want::Among(names) => {
            let all = names_of(answers);
            let good = all.len() == names.len() && names.iter().all(|name| all.contains_key(*name));
            (!good).then(|| format!("expected answers by {names:?}, seen {all:?}"))
        }
        Want::Shares(shares) => {
            let all = names_of(answers);
            let share = |name: &str| all.get(name).copied().unwrap_or(0) * 100;
            let near = |(name, percent): &(&str, usize)| {
                (share(name)).abs_diff(percent * answers.len()) <= TOLERANCE * answers.len() && (*percent > 0 || share(name) == 0)
            };
            let known = all.keys().all(|name| shares.iter().any(|(other, _)| other == name));
            (!shares.iter().all(near) || !known).then(|| format!("expected {shares:?} percent of {}, seen {all:?}", answers.len()))
        }
        single => {
            let (number, (expected, seen)) = answers.iter().enumerate().find_map(|(i, answer)| Some((i, one(single, answer, before)?)))?;
            let which = if answers.len() > 1 { format!(" (number {} of {})", number + 1, answers.len()) } else { String::new() };
            let answer = answers.get(number).map(summary).unwrap_or_default();
            Some(format!("expected {expected}, seen {seen}{which}; the answer: {answer}"))
        }
    }
}

/// How many each server answered; `-` for what none of them did.
fn names_of(answers: &[Answered]) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for answer in answers {
        let good = answer.status == 200;
        *names.entry(server(answer).filter(|_| good).unwrap_or_else(|| "-".to_owned())).or_default() += 1;
    }
    names
}

/// What was expected of an answer and what was seen, if they differ.
fn one(want: &Want, answer: &Answered, before: Option<&str>) -> Option<(String, String)> {
    let seen = answer.seen();
    let text = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let differ = |expected: String, found: Option<String>| (found.as_deref() != Some(&*expected)).then(|| (expected, text(found)));
    let named = |what: &str, pair: Option<(String, String)>| pair.map(|(expected, found)| (format!("{what} {expected}"), found));
    match want {
        Want::Status(status) => named("status", differ(status.to_string(), Some(answer.status.to_string()))),
        Want::Grpc(status) => named("gRPC status", differ(status.to_string(), answer.grpc_status().map(|status| status.to_string()))),
        Want::By(name) => named("an answer by", differ((*name).to_owned(), seen.map(|seen| seen.name))),
        Want::ByNobody if answer.status == 0 => Some(("an answer by the mesh".to_owned(), "none".to_owned())),
        Want::ByNobody => seen.map(|seen| ("an answer by the mesh".to_owned(), format!("one by {}", seen.name))),
        Want::AsBefore => named("an answer by the same server,", differ(before.unwrap_or("nobody").to_owned(), seen.map(|seen| seen.name))),
        Want::Header(name, value) => named(&format!("{name}:"), differ(value.clone(), answer.header(name))),
        Want::NoHeader(name) => answer.header(name).map(|value| (format!("no header {name}"), value)),
        Want::Target(target) => named("a server that sees", differ(target.clone(), seen.map(|seen| seen.target))),
        Want::Host(host) => named("a server that sees the host", differ((*host).to_owned(), seen.map(|seen| seen.host))),
        Want::Seen(name, value) => {
            let found = seen.map(|seen| seen.all(name).join(",")).filter(|found| !found.is_empty());
            named(&format!("a server that sees {name}:"), differ((*value).to_owned(), found))
        }
        Want::NotSeen(name) => {
            let found = seen.map(|seen| seen.all(name).join(","))?;
            (!found.is_empty()).then(|| (format!("a server that does not see {name}"), found))
        }
        Want::Version(version) => named("a server spoken to by", differ((*version).to_owned(), seen.map(|seen| seen.version))),
        Want::Body(bytes) => named("a body of bytes:", differ(bytes.to_string(), seen.map(|seen| seen.body.to_string()))),
        Want::AtLeast(millis) => {
            (answer.millis < *millis).then(|| (format!("an answer after {millis} ms or more"), format!("{} ms", answer.millis)))
        }
        // Of all answers together.
        Want::Among(_) | Want::Shares(_) => None,
    }
}

fn summary(answer: &Answered) -> String {
    if let Some(error) = &answer.error {
        return error.clone();
    }
    match answer.seen() {
        Some(seen) => format!("{} by {} for {} {}{}", answer.status, seen.name, seen.method, seen.host, seen.target),
        None => format!("{} {:?}", answer.status, answer.body.chars().take(TOLD).collect::<String>()),
    }
}

#[cfg(test)]
mod tests;
