//! Several DestinationRules for one host in one namespace: as in Istio the oldest counts, and the subsets of the others are added to its.

use std::sync::Arc;

use crate::traffic::{DestinationRule, Subset, TrafficPolicy};

/// Adds a younger rule to an older one. Returns what of it is not used: field and reason.
pub(super) fn into(older: &mut DestinationRule, rule: &DestinationRule) -> Vec<(&'static str, String)> {
    let mut lost = Vec::new();
    let says_nothing = |rule: &DestinationRule| *rule.policy == TrafficPolicy::default() && rule.ports.is_empty();
    let with = |what: String| format!("{what} {} for the same host, which is older (or before it by name) and counts", older.name);
    if !says_nothing(rule) && !says_nothing(older) {
        lost.push((
            "spec.trafficPolicy",
            format!("is not used beside that of {}; write one rule for the host", with(String::new()).trim()),
        ));
    }
    for name in rule.subsets.keys().filter(|name| older.subsets.contains_key(*name)) {
        lost.push(("spec.subsets", with(format!("\"{name}\" is not used: it is a subset of")) + "; remove one of them"));
    }
    // An older one without a policy takes the younger's, and so do its subsets.
    if says_nothing(older) && !says_nothing(rule) {
        let bare = older.clone();
        older.policy = rule.policy.clone();
        older.ports = rule.ports.clone();
        older.subsets = bare.subsets.iter().map(|(name, subset)| (name.clone(), rebase(subset, &bare, rule))).collect();
    }
    for (name, subset) in &rule.subsets {
        if !older.subsets.contains_key(name) {
            let subset = rebase(subset, rule, older);
            older.subsets.insert(name.clone(), subset);
        }
    }
    lost
}

/// A subset that was written under one host's policy, under another's.
fn rebase(subset: &Subset, from: &DestinationRule, onto: &DestinationRule) -> Subset {
    let mut moved = Subset {
        labels: subset.labels.clone(),
        policy: replace(&subset.policy, &from.policy, &onto.policy),
        ports: onto.ports.iter().map(|(port, base)| (*port, replace(&subset.policy, &from.policy, base))).collect(),
    };
    // What it has for a port that its host had nothing for is its own, and inherits nothing.
    let own = subset.ports.iter().filter(|(port, _)| !from.ports.contains_key(port));
    moved.ports.extend(own.map(|(port, policy)| (*port, policy.clone())));
    moved
}

/// Each group of settings that a policy has from one host's, from another's.
fn replace(policy: &Arc<TrafficPolicy>, from: &Arc<TrafficPolicy>, onto: &Arc<TrafficPolicy>) -> Arc<TrafficPolicy> {
    if policy == from {
        return onto.clone();
    }
    let mut moved = TrafficPolicy::clone(policy);
    if policy.pool == from.pool {
        moved.pool = onto.pool.clone();
    }
    if policy.outlier == from.outlier {
        moved.outlier = onto.outlier.clone();
    }
    if (&policy.balancer, &policy.locality, &policy.warmup) == (&from.balancer, &from.locality, &from.warmup) {
        moved.balancer = onto.balancer.clone();
        moved.locality = onto.locality.clone();
        moved.warmup = onto.warmup.clone();
    }
    if policy.tls == from.tls {
        moved.tls = onto.tls.clone();
    }
    Arc::new(moved)
}
