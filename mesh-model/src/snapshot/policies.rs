//! Policies, by the namespace they stand in, and the pods of the Services they are targeted at.

use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use super::endpoints::Members;
use crate::object::{Kind, ObjectKey};
use crate::policy::{AuthorizationPolicy, RequestAuthentication, Scope, modes::oldest};
use crate::problem::{Origin, Severity};
use crate::service::NamespacedName;

/// Fills the snapshot's policies.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, members: &Members<'_>) {
    let root = snapshot.settings.root_namespace.clone();
    // A policy whose namespace could not be read counts for the whole mesh.
    let bucket = |namespace: &Arc<str>| if namespace.is_empty() { root.clone() } else { namespace.clone() };
    for (origin, policy) in std::mem::take(&mut sorted.authorization) {
        let effect = "everything is denied to";
        let policy = match targets(snapshot, sorted, members, &origin, (Kind::AuthorizationPolicy, &policy.name, &policy.scope), effect) {
            Some(why) => {
                let refused = Some(why.into());
                Arc::new(AuthorizationPolicy { scope: Scope::Namespace, rules: Vec::new(), refused, ..(*policy).clone() })
            }
            None => policy,
        };
        snapshot.authorization.entry(bucket(&policy.name.namespace)).or_default().push(policy);
    }
    for policies in snapshot.authorization.values_mut() {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
    }
    for (origin, policy) in std::mem::take(&mut sorted.tokens) {
        let effect = "no token is believed by";
        let policy = match targets(snapshot, sorted, members, &origin, (Kind::RequestAuthentication, &policy.name, &policy.scope), effect) {
            Some(why) => Arc::new(RequestAuthentication { scope: Scope::Namespace, refused: Some(why.into()), ..(*policy).clone() }),
            None => policy,
        };
        snapshot.tokens.entry(bucket(&policy.name.namespace)).or_default().push(policy);
    }
    for policies in snapshot.tokens.values_mut() {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
    }
    let placed = std::mem::take(&mut sorted.authentication);
    for (_, policy) in &placed {
        snapshot.authentication.entry(bucket(&policy.name.namespace)).or_default().push(policy.clone());
    }
    for policies in snapshot.authentication.values_mut() {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
    }
    for (origin, policy) in &placed {
        let level = snapshot.authentication.get(&bucket(&policy.name.namespace)).into_iter().flatten();
        let level = level.filter(|other| other.selector == policy.selector && other.refused.is_none());
        if policy.refused.is_none()
            && let Some(first) = oldest(level)
            && first.name != policy.name
        {
            let message =
                format!("selects the same workloads as {}, which is older (or before it by name) and counts: remove one", first.name);
            sorted.problem(Severity::Warn, origin, format!("PeerAuthentication {}", policy.name), "spec.selector", message);
        }
    }
}

/// Finds the pods that a policy's Services have. A Service that is there but not understood leaves open whom the policy is about: it
/// must then be refused in its whole namespace, for the reason that is returned.
fn targets(
    snapshot: &mut Snapshot,
    sorted: &mut Sorted<'_>,
    members: &Members<'_>,
    origin: &Origin,
    policy: (Kind, &NamespacedName, &Scope),
    effect: &str,
) -> Option<String> {
    let (kind, policy, scope) = policy;
    let Scope::Services(services) = scope else { return None };
    let mut refused = None;
    for name in services {
        let service = NamespacedName { namespace: policy.namespace.clone(), name: name.clone() };
        if snapshot.targets.contains_key(&service) {
            continue;
        }
        let title = format!("{} {policy}", kind.name());
        let key = ObjectKey { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() };
        if let Some(pods) = members.of(&service, snapshot) {
            snapshot.targets.insert(service, pods);
        } else if sorted.unreadable.contains(&key) {
            let why = format!("is targeted at Service {service}, which is not understood");
            let message = format!("{why}: {effect} the workloads of the namespace until the Service is mended");
            sorted.problem(Severity::Error, origin, title, "spec.targetRefs", message);
            refused = Some(why);
        } else {
            let message = format!("is targeted at Service {service}, which does not exist: for that target the policy holds for nobody");
            sorted.problem(Severity::Warn, origin, title, "spec.targetRefs", message);
        }
    }
    refused
}
