//! Which endpoints are near, and how many requests go farther: Istio's `localityLbSetting` on Envoy's priorities.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::traffic::Locality;

use super::{Candidate, LocalityName};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The label with a pod's sub-zone.
pub const SUBZONE: &str = "topology.istio.io/subzone";

/// What stands for a whole when shares are compared. Fine enough for thousands of endpoints.
pub(super) const WHOLE: u64 = 1 << 32;

/// How endpoints are grouped.
#[derive(Debug)]
pub(super) enum Grouping {
    /// Nearest first; a group gets what those before it cannot take.
    Priorities(Vec<Vec<usize>>),
    /// Each group gets its percentage.
    Shares(Vec<(u32, Vec<usize>)>),
}

/// Those of a client's labels that decide which endpoints are near it: clients that differ in them choose differently under one policy.
pub fn decisive(locality: &Locality, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    if locality.enabled == Some(false) {
        return BTreeMap::new();
    }
    // With a value of its own (`key=value`) an entry asks for nobody's.
    let named = locality.failover_priority.iter().map(|label| &**label).filter(|label| !label.contains('='));
    let keys = named.chain((!locality.distribute.is_empty()).then_some(SUBZONE));
    keys.filter_map(|key| labels.get_key_value(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Groups the candidates that have a weight. Istio's order: `distribute` if an entry is for this node, else failover by label or place, else
/// all alike.
pub(super) fn group(locality: &Locality, from: &LocalityName, candidates: &[Candidate], outlier_on: bool) -> Grouping {
    let weighted = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.weight > 0);
    if locality.enabled == Some(false) {
        return Grouping::Priorities(vec![weighted().map(|(index, _)| index).collect()]);
    }
    let mine = [&*from.region, &*from.zone, &*from.subzone];
    if let Some((_, shares)) = locality.distribute.iter().find(|(pattern, _)| matches(pattern, mine)) {
        let mut groups: Vec<(u32, Vec<usize>)> = shares.iter().map(|(_, percent)| (*percent, Vec::new())).collect();
        for (index, candidate) in weighted() {
            let (region, zone) = &candidate.locality;
            let there = [&**region, &**zone, candidate.labels.get(SUBZONE).map_or("", String::as_str)];
            // Endpoints of a place that is not named get nothing, as in Istio.
            if let Some(number) = shares.iter().position(|(pattern, _)| matches(pattern, there))
                && let Some((_, group)) = groups.get_mut(number)
            {
                group.push(index);
            }
        }
        groups.retain(|(percent, group)| *percent > 0 && !group.is_empty());
        return Grouping::Shares(groups);
    }
    // Without outlier detection nothing would ever make a request go farther.
    let in_force = locality.enabled.unwrap_or(outlier_on);
    let mut ranked: Vec<((usize, u8), usize)> =
        weighted().map(|(index, candidate)| (if in_force { rank(locality, from, candidate) } else { (0, 0) }, index)).collect();
    ranked.sort_unstable();
    let groups = ranked.chunk_by(|a, b| a.0 == b.0).map(|group| group.iter().map(|(_, index)| *index).collect()).collect();
    Grouping::Priorities(groups)
}

/// How far a candidate is: less is nearer.
fn rank(locality: &Locality, from: &LocalityName, candidate: &Candidate) -> (usize, u8) {
    let labels = &locality.failover_priority;
    let alike = labels.iter().take_while(|label| same_label(label, from, candidate)).count();
    let (region, zone) = &candidate.locality;
    let is_target = |(here, there): &(Arc<str>, Arc<str>)| **here == *from.region && **there == **region;
    let place = if from.region.is_empty() {
        // Where this node is is not known: all are alike, as in Istio.
        0
    } else if **region != *from.region {
        if locality.failover.iter().any(is_target) { 2 } else { 3 }
    } else if labels.is_empty() && **zone != *from.zone {
        1
    } else {
        0
    };
    // With labels the place counts only for the `failover` map.
    let place = if labels.is_empty() || !locality.failover.is_empty() { place } else { 0 };
    (labels.len() - alike, place)
}

/// Whether a `failoverPriority` label (`key`, or `key=value` with what counts as this node's value) is the same here and there. As in Istio
/// one that both lack is.
fn same_label(label: &str, from: &LocalityName, candidate: &Candidate) -> bool {
    let (key, own) = label.split_once('=').map_or((label, None), |(key, value)| (key, Some(value)));
    let mine = own.or_else(|| from.labels.get(key).map(String::as_str)).unwrap_or(match key {
        REGION => &from.region,
        ZONE => &from.zone,
        SUBZONE => &from.subzone,
        _ => "",
    });
    let theirs = candidate.labels.get(key).map(String::as_str).unwrap_or(match key {
        REGION => &candidate.locality.0,
        ZONE => &candidate.locality.1,
        _ => "",
    });
    mine == theirs
}

/// Whether a place matches `region/zone/sub-zone`, of which each may be `*` and the last ones may be left out.
fn matches(pattern: &str, place: [&str; 3]) -> bool {
    pattern.split('/').zip(place).all(|(pattern, part)| pattern == "*" || pattern == part)
}

/// Part of [`WHOLE`] that a group can take: all while at least 1/1.4 of it is usable, in proportion below (Envoy's overprovisioning factor).
pub(super) fn availability(group: &[usize], usable: &dyn Fn(usize) -> bool) -> u64 {
    let all = group.len() as u64;
    let mut healthy = 0;
    for index in group {
        healthy += u64::from(usable(*index));
        if healthy * 14 >= all * 10 && healthy > 0 {
            return WHOLE;
        }
    }
    (healthy * 14 * WHOLE).checked_div(all * 10).unwrap_or(0).min(WHOLE)
}

/// The priority that a request goes to. `chance` is any number.
pub(super) fn priority(groups: &mut dyn Iterator<Item = &[usize]>, usable: &dyn Fn(usize) -> bool, chance: u64) -> Option<usize> {
    let mut ends = Vec::new();
    let mut sum = 0;
    for group in groups {
        sum = (sum + availability(group, usable)).min(WHOLE);
        if sum == WHOLE && ends.is_empty() {
            return Some(0);
        }
        ends.push(sum);
        if sum == WHOLE {
            break;
        }
    }
    // If all together cannot take everything they share it in proportion to what they can.
    let point = ((u128::from(chance) * u128::from(sum)) >> 64) as u64;
    ends.iter().position(|end| point < *end)
}
