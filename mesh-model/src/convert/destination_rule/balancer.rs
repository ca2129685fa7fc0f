//! `loadBalancer`.

use std::sync::Arc;

use super::super::Input;
use super::super::fields::Fields;
use crate::traffic::{Balancer, HashKey, HashTable, Locality, Warmup};

/// What `loadBalancer` says; a subset's replaces its host's as one.
#[derive(Default)]
pub(super) struct Balancing {
    pub(super) balancer: Balancer,
    pub(super) locality: Locality,
    pub(super) warmup: Option<Warmup>,
}

const RING: u32 = 1024;
/// Envoy's bounds of its tables.
const LARGEST_RING: u64 = 8 << 20;
const MAGLEV: u32 = 65_537;
const LARGEST_MAGLEV: u64 = 5_000_011;

pub(super) fn balancing(input: &mut Input<'_>, mut map: Fields<'_>) -> Balancing {
    let mut balancing = Balancing::default();
    if map.has("simple") && map.has("consistentHash") {
        input.error(map.at.clone(), "has both simple and consistentHash, of which the hash is used; leave one out");
    }
    let at = map.at.key("simple");
    balancing.balancer = match map.text(input, "simple") {
        // LEAST_CONN is the old name.
        None | Some("UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN") => Balancer::LeastRequest,
        Some("ROUND_ROBIN") => Balancer::RoundRobin,
        Some("RANDOM") => Balancer::Random,
        Some("PASSTHROUGH") => Balancer::Passthrough,
        Some(other) => {
            let known = "write LEAST_REQUEST, ROUND_ROBIN, RANDOM or PASSTHROUGH";
            input.error(at, format!("\"{other}\" is not a way of balancing; {known}. LEAST_REQUEST is used until then"));
            Balancer::LeastRequest
        }
    };
    if let Some(hash) = map.map(input, "consistentHash").and_then(|map| hash(input, map)) {
        balancing.balancer = hash;
    }
    if let Some(map) = map.map(input, "localityLbSetting") {
        balancing.locality = locality(input, map);
    }
    let warmup_at = map.at.key("warmup");
    let old = map.positive(input, "warmupDurationSecs");
    balancing.warmup = old.map(|duration| Warmup { duration, minimum_percent: 10, aggression: 1.0 });
    if let Some(mut map) = map.map(input, "warmup") {
        let duration = map.positive(input, "duration");
        let minimum = map.decimal(input, "minimumPercent", 0.0..=100.0).unwrap_or(10.0);
        let aggression = map.decimal(input, "aggression", 1.0..=1e6).unwrap_or(1.0);
        if duration.is_none() && !input.findings.iter().any(|finding| finding.field == map.at.key("duration")) {
            input.error(map.at.key("duration"), "is missing; write how long a new endpoint gets less than its share");
        }
        map.rest(input);
        // In range.
        let minimum_percent = minimum.round() as u8;
        balancing.warmup = duration.map(|duration| Warmup { duration, minimum_percent, aggression });
    }
    if balancing.warmup.is_some() && !matches!(balancing.balancer, Balancer::LeastRequest | Balancer::RoundRobin) {
        input.warn(warmup_at, "has no effect with this way of balancing; write simple: LEAST_REQUEST or ROUND_ROBIN, or leave it out");
        balancing.warmup = None;
    }
    map.rest(input);
    balancing
}

fn hash(input: &mut Input<'_>, mut map: Fields<'_>) -> Option<Balancer> {
    let at = map.at.clone();
    let keys = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    if keys.iter().filter(|key| map.has(key)).count() > 1 {
        input.error(at.clone(), format!("has several of {}, of which the first is used; leave one", keys.join(", ")));
    }
    if map.has("ringHash") && map.has("maglev") {
        input.error(at.clone(), "has both ringHash and maglev, of which maglev is used; leave one out");
    }
    let before = input.findings.len();
    let header = map.text(input, "httpHeaderName").map(|name| HashKey::Header(name.to_ascii_lowercase().into()));
    let cookie = map.map(input, "httpCookie").and_then(|map| cookie(input, map));
    let source = map.boolean(input, "useSourceIp").filter(|yes| *yes).map(|_| HashKey::SourceIp);
    let query = map.text(input, "httpQueryParameterName").map(|name| HashKey::Query(name.into()));
    let key = header.or(cookie).or(source).or(query);
    if key.is_none() && input.findings.len() == before {
        input.error(at, format!("says nothing to hash; write one of {}", keys.join(", ")));
    }
    let old = map.number(input, "minimumRingSize", 0..=LARGEST_RING).filter(|size| *size > 0);
    let mut table = HashTable::Ring { minimum: old.unwrap_or(RING) };
    if let Some(mut map) = map.map(input, "ringHash") {
        if let Some(minimum) = map.number(input, "minimumRingSize", 0..=LARGEST_RING).filter(|size| *size > 0) {
            table = HashTable::Ring { minimum };
        }
        map.rest(input);
    }
    if let Some(mut map) = map.map(input, "maglev") {
        let at = map.at.key("tableSize");
        let mut size = map.number(input, "tableSize", 0..=LARGEST_MAGLEV).filter(|size| *size > 0).unwrap_or(MAGLEV);
        if !prime(size) {
            input.error(at, format!("{size} is not a prime number, which Maglev's table needs; write one such as {MAGLEV}, which is used"));
            size = MAGLEV;
        }
        table = HashTable::Maglev { size };
        map.rest(input);
    }
    map.rest(input);
    key.map(|key| Balancer::Hash { key, table })
}

fn prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}

fn cookie(input: &mut Input<'_>, mut map: Fields<'_>) -> Option<HashKey> {
    let at = map.at.key("name");
    let name = map.text(input, "name");
    let path: Arc<str> = map.text(input, "path").unwrap_or_default().into();
    let ttl = map.duration(input, "ttl");
    map.unsupported(input, "attributes", "is not supported: a cookie that is made here has path and age alone");
    map.rest(input);
    if name.is_none() {
        input.error(at, "is missing; write the cookie's name");
    }
    Some(HashKey::Cookie { name: name?.into(), path, ttl })
}

fn locality(input: &mut Input<'_>, mut map: Fields<'_>) -> Locality {
    let mut locality = Locality { enabled: map.boolean(input, "enabled"), ..Locality::default() };
    if map.has("distribute") && map.has("failover") {
        input.error(map.at.clone(), "has both distribute and failover, of which distribute comes first; leave one out");
    }
    for mut map in map.maps(input, "distribute") {
        let at = map.at.clone();
        let from = map.text(input, "from");
        let mut to: Vec<(Arc<str>, u32)> = Vec::new();
        let before = input.findings.len();
        if let Some((to_at, value)) = map.take("to")
            && let Some(mut shares) = Fields::of(input, to_at, value)
        {
            for name in value.as_object().into_iter().flat_map(|shares| shares.keys()) {
                to.extend(shares.number(input, name, 0..=100).map(|share| (name.as_str().into(), share)));
            }
        }
        map.rest(input);
        let sum: u32 = to.iter().map(|(_, share)| share).sum();
        match from {
            _ if input.findings.len() > before => {}
            Some(from) if sum == 100 => locality.distribute.push((from.into(), to)),
            Some(_) => input.error(at.key("to"), format!("adds up to {sum}, not to 100; the distribution is not used")),
            None => input.error(at.key("from"), "is missing; write a region, region/zone/*, or * for all"),
        }
    }
    for mut map in map.maps(input, "failover") {
        let at = map.at.clone();
        match (map.text(input, "from"), map.text(input, "to")) {
            (Some(from), Some(to)) if from != to => locality.failover.push((from.into(), to.into())),
            _ => input.error(at, "does not name two regions; write from and to"),
        }
        map.rest(input);
    }
    locality.failover_priority = map.texts(input, "failoverPriority").into_iter().map(|(_, text)| text.into()).collect();
    map.rest(input);
    locality
}
