//! Policies asked about a request, or about all that a connection may bring.

use ipnet::IpNet;

use super::program::{Policy, Steps, Test, Values};
use super::{ConnectionFacts, Headers, RequestFacts};
use crate::policy::{Action, StringMatch};

/// Kleene's logic: a conjunction is the least of its parts, a disjunction the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Truth {
    /// Whatever the request is.
    No,
    /// The request decides.
    Maybe,
    /// Whatever the request is.
    Yes,
}

impl From<bool> for Truth {
    fn from(yes: bool) -> Self {
        if yes { Truth::Yes } else { Truth::No }
    }
}

fn all(parts: impl Iterator<Item = Truth>) -> Truth {
    let mut truth = Truth::Yes;
    for part in parts {
        truth = truth.min(part);
        if truth == Truth::No {
            break;
        }
    }
    truth
}

/// None of no parts; callers read an empty list as one that holds.
fn any(parts: impl Iterator<Item = Truth>) -> Truth {
    let mut truth = Truth::No;
    for part in parts {
        truth = truth.max(part);
        if truth == Truth::Yes {
            break;
        }
    }
    truth
}

impl<T> Values<T> {
    /// `hit` is told which reading is the stricter one.
    fn judge(&self, deny: bool, hit: impl Fn(&T, bool) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(|value| hit(value, deny))) && !self.none.iter().any(|value| hit(value, !deny))
    }
}

pub(super) struct Question<'a> {
    connection: &'a ConnectionFacts<'a>,
    principal: Option<String>,
    request: Option<&'a RequestFacts<'a>>,
}

impl<'a> Question<'a> {
    pub(super) fn new(connection: &'a ConnectionFacts<'a>, request: Option<&'a RequestFacts<'a>>) -> Self {
        Question { connection, principal: connection.identity.map(|identity| identity.principal()), request }
    }

    /// Whether the policy matches the request; without one, whether it matches every request.
    pub(super) fn certainly(&self, policy: &Policy) -> bool {
        self.policy(policy) == Truth::Yes
    }

    /// Whether the policy matches the request; without one, whether it may match one.
    pub(super) fn possibly(&self, policy: &Policy) -> bool {
        self.policy(policy) != Truth::No
    }

    fn policy(&self, policy: &Policy) -> Truth {
        if policy.refused {
            return Truth::from(policy.kind() == Action::Deny);
        }
        let deny = policy.action == Action::Deny;
        any(policy.rules.iter().map(|rule| self.rule(rule, deny)))
    }

    fn rule(&self, rule: &Steps, deny: bool) -> Truth {
        let tests = |tests: &[Test]| all(tests.iter().map(|test| self.test(test, deny)));
        let one_of = |list: &[Vec<Test>]| if list.is_empty() { Truth::Yes } else { any(list.iter().map(|each| tests(each))) };
        // The order is that of the cost: a part that does not hold ends the rule.
        let to = one_of(&rule.to);
        if to == Truth::No {
            return to;
        }
        let from = to.min(one_of(&rule.from));
        if from == Truth::No {
            return from;
        }
        from.min(tests(&rule.when))
    }

    fn test(&self, test: &Test, deny: bool) -> Truth {
        let connection = self.connection;
        let within = |values: &Values<IpNet>, address: std::net::IpAddr| {
            let address = address.to_canonical();
            Truth::from(values.judge(deny, |net, _| net.contains(&address)))
        };
        match test {
            Test::Identity(values) => {
                let caller = connection.identity.zip(self.principal.as_deref());
                values.judge(deny, |pattern, _| caller.is_some_and(|(identity, principal)| pattern.matches(identity, principal))).into()
            }
            Test::Source(values) => within(values, connection.source),
            Test::Destination(values) => within(values, connection.destination),
            Test::Port(values) => values.judge(deny, |port, _| *port == connection.port).into(),
            _ => self.request.map_or(Truth::Maybe, |request| http(test, request, deny).into()),
        }
    }
}

fn http(test: &Test, request: &RequestFacts<'_>, deny: bool) -> bool {
    match test {
        Test::Host(values) => {
            let name = request.host.map(without_port);
            values.judge(deny, |pattern, _| [request.host, name].iter().flatten().any(|host| pattern.matches_ignoring_case(host)))
        }
        Test::Method(values) => values
            .judge(deny, |pattern, stricter| pattern.matches(request.method) || stricter && pattern.matches_ignoring_case(request.method)),
        Test::Path(values) => values.judge(deny, |pattern, stricter| pattern.matches(request.path, stricter)),
        Test::Header(name, values) => {
            let lines = Lines::of(request.headers, name);
            values.judge(deny, |pattern, stricter| lines.matches(pattern, stricter))
        }
        Test::RequestPrincipal(values) => {
            let principal = request.jwt.and_then(|claims| claims.principal());
            values.judge(deny, |pattern, _| principal.is_some_and(|principal| pattern.matches(principal)))
        }
        Test::Claim(path, values) => values
            .judge(deny, |pattern, stricter| request.jwt.is_some_and(|claims| claims.any(path, stricter, |text| pattern.matches(text)))),
        Test::Sni(values) => match request.sni {
            Some(name) => values.judge(deny, |pattern, _| pattern.matches_ignoring_case(name)),
            None => deny,
        },
        // Asked of the connection.
        Test::Identity(_) | Test::Source(_) | Test::Destination(_) | Test::Port(_) => false,
    }
}

/// The host of an authority, without its port and the dot at its end.
fn without_port(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The values of one header.
struct Lines<'a> {
    first: Option<&'a [u8]>,
    more: Vec<&'a [u8]>,
    /// Empty unless there is more than one.
    joined: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn of(headers: &'a dyn Headers, name: &str) -> Lines<'a> {
        let mut lines = Lines { first: None, more: Vec::new(), joined: Vec::new() };
        headers.each_value(name, &mut |value| match lines.first {
            None => lines.first = Some(value),
            Some(_) => lines.more.push(value),
        });
        if let (Some(first), false) = (lines.first, lines.more.is_empty()) {
            lines.joined.extend_from_slice(first);
            for value in &lines.more {
                lines.joined.push(b',');
                lines.joined.extend_from_slice(value);
            }
        }
        lines
    }

    fn matches(&self, pattern: &StringMatch, stricter: bool) -> bool {
        let Some(first) = self.first else { return false };
        if self.more.is_empty() {
            return pattern.matches_bytes(first);
        }
        pattern.matches_bytes(&self.joined)
            || stricter && (pattern.matches_bytes(first) || self.more.iter().any(|line| pattern.matches_bytes(line)))
    }
}
