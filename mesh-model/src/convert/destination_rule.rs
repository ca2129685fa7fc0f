//! DestinationRule (`networking.istio.io`): how clients talk to a host.
//!
//! A mistake in one field costs that field alone; the whole is lost only where it cannot be told which host or which clients are meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fields::{Fields, spec};
use super::host::{export_to, host};
use super::{Input, Reading};
use crate::object::Object;
use crate::problem::{FieldPath, Severity};
use crate::traffic::{DestinationRule, Subset, TlsMode, TrafficPolicy};

mod balancer;
mod pool;
mod tls;

use balancer::Balancing;

/// A `trafficPolicy` as far as it says something. A subset's goes over its host's, one of these groups at a time.
#[derive(Default)]
struct Said {
    pool: Option<crate::traffic::ConnectionPool>,
    outlier: Option<crate::traffic::OutlierDetection>,
    balancing: Option<Balancing>,
    tls: Option<TlsMode>,
    /// `portLevelSettings`
    ports: BTreeMap<u16, Said>,
}

impl Said {
    /// What holds where this is said on top of another policy. What it says of single ports is left aside.
    fn over(&self, base: &TrafficPolicy) -> TrafficPolicy {
        let mut policy = base.clone();
        if let Some(pool) = &self.pool {
            policy.pool = pool.clone();
        }
        if let Some(outlier) = &self.outlier {
            policy.outlier = Some(outlier.clone());
        }
        if let Some(Balancing { balancer, locality, warmup }) = &self.balancing {
            policy.balancer = balancer.clone();
            policy.locality = locality.clone();
            policy.warmup = warmup.clone();
        }
        if let Some(tls) = &self.tls {
            policy.tls = tls.clone();
        }
        policy
    }

    fn says_nothing(&self) -> bool {
        self.pool.is_none() && self.outlier.is_none() && self.balancing.is_none() && self.tls.is_none()
    }
}

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some((mut spec, created)) = spec(input) else { return Reading::Unreadable };
    let before = input.findings.len();
    let host = match spec.text(input, "host") {
        Some(text) => host(text, &input.name.namespace).map_err(|message| input.error(FieldPath::of("spec.host"), message)).ok(),
        None => {
            if input.findings.len() == before {
                input.error(FieldPath::of("spec.host"), "is missing; write the name of the Service that the rule is about");
            }
            None
        }
    };
    let selector = match spec.map(input, "workloadSelector") {
        Some(mut map) => {
            let labels = map.labels(input, "matchLabels");
            map.rest(input);
            labels
        }
        // It is absent, or was no mapping.
        None => (!input.failed_at("spec.workloadSelector")).then(BTreeMap::new),
    };
    let export_to = export_to(input, &mut spec);
    let said = spec.map(input, "trafficPolicy").map(|map| traffic_policy(input, map, true)).unwrap_or_default();
    let policy = Arc::new(said.over(&TrafficPolicy::default()));
    let ports = ports(&said);
    let mut subsets = BTreeMap::new();
    for map in spec.maps(input, "subsets") {
        let at = map.at.clone();
        if let Some((name, subset)) = subset(input, map, &policy, &ports)
            && subsets.insert(name.clone(), subset).is_some()
        {
            input.error(at.key("name"), format!("\"{name}\" is the name of an earlier subset too, which is replaced; give each its own"));
        }
    }
    spec.rest(input);
    let (Some(host), Some(selector)) = (host, selector) else { return Reading::Unreadable };
    let rule = DestinationRule { name: input.name.clone(), created, host, export_to, selector, policy, ports, subsets };
    // An earlier version must not stand in for one that asks for TLS which cannot be had.
    let good = !input.failed() || refuses(&rule);
    let object = Object::DestinationRule(Arc::new(rule));
    if good { Reading::Good(object) } else { Reading::Cautious(object) }
}

fn refuses(rule: &DestinationRule) -> bool {
    let own = std::iter::once(&rule.policy).chain(rule.ports.values());
    let parts = rule.subsets.values().flat_map(|subset| std::iter::once(&subset.policy).chain(subset.ports.values()));
    own.chain(parts).any(|policy| matches!(policy.tls, TlsMode::Refuse(_)))
}

fn ports(said: &Said) -> BTreeMap<u16, Arc<TrafficPolicy>> {
    said.ports.iter().map(|(port, said)| (*port, Arc::new(said.over(&TrafficPolicy::default())))).collect()
}

fn subset(
    input: &mut Input<'_>,
    mut map: Fields<'_>,
    host: &Arc<TrafficPolicy>,
    host_ports: &BTreeMap<u16, Arc<TrafficPolicy>>,
) -> Option<(Arc<str>, Subset)> {
    let name = map.text(input, "name");
    if name.is_none() {
        input.error(map.at.key("name"), "is missing; write the name that routes call the subset by");
    }
    let labels = map.labels(input, "labels");
    let said = map.map(input, "trafficPolicy").map(|map| traffic_policy(input, map, true)).unwrap_or_default();
    map.rest(input);
    let over = |base: &Arc<TrafficPolicy>| if said.says_nothing() { base.clone() } else { Arc::new(said.over(base)) };
    // The host's settings of a port are what the subset's own go over there, as in Istio.
    let mut all: BTreeMap<_, _> = host_ports.iter().map(|(port, base)| (*port, over(base))).collect();
    all.extend(ports(&said));
    Some((name?.into(), Subset { labels: labels?, policy: over(host), ports: all }))
}

/// `trafficPolicy`, or an item of its `portLevelSettings`, which has none of its own.
fn traffic_policy(input: &mut Input<'_>, mut map: Fields<'_>, whole: bool) -> Said {
    let mut said = Said::default();
    if let Some(map) = map.map(input, "connectionPool") {
        said.pool = Some(pool::pool(input, map));
    }
    if let Some(map) = map.map(input, "outlierDetection") {
        said.outlier = Some(pool::outlier(input, map));
    }
    if let Some(map) = map.map(input, "loadBalancer") {
        said.balancing = Some(balancer::balancing(input, map));
    }
    said.tls = tls::tls(input, &mut map);
    if whole {
        for mut map in map.maps(input, "portLevelSettings") {
            let at = map.at.key("port");
            let mut number = None;
            if let Some(mut port) = map.map(input, "port") {
                number = port.number::<u16>(input, "number", 1..=65535);
                port.rest(input);
            }
            let before = input.findings.len();
            let settings = traffic_policy(input, map, false);
            match number {
                Some(number) => {
                    if said.ports.insert(number, settings).is_some() {
                        input.error(at, format!("{number} has settings twice, of which the later count; leave one out"));
                    }
                }
                None => {
                    input.findings.truncate(before);
                    input.error(at, "names no port; write number: and the Service's port. The settings are not used");
                }
            }
        }
        map.unsupported(input, "tunnel", "is not supported: connections go to the host itself");
        map.unsupported(input, "proxyProtocol", "is not supported: connections begin without a PROXY header");
    }
    let budget = "is not supported: write connectionPool.http.maxRetries to bound the retries in flight";
    map.unsupported(input, "retryBudget", budget);
    map.rest(input);
    said
}

impl Input<'_> {
    fn failed_at(&self, field: &str) -> bool {
        let field = FieldPath::of(field);
        self.findings.iter().any(|finding| finding.severity == Severity::Error && finding.field == field)
    }
}

#[cfg(test)]
mod tests;
