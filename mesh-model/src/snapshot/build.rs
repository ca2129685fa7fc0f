//! Documents → [`Snapshot`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{Snapshot, backends, endpoints, limits, policies, routes, service_entries, traffic, virtual_services, workloads};
use crate::convert::Reading;
use crate::document::Document;
use crate::object::{Kind, Object, ObjectKey};
use crate::policy::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::problem::{Origin, Problem, Severity};
use crate::settings::MESH_NAME;
use crate::workload::PodNetworks;

/// A policy object and where it stands.
pub(super) type Placed<T> = (Origin, Arc<T>);

/// The documents by kind. Of two that name one object the later one counts, but of two policies that differ neither can be trusted.
#[derive(Default)]
pub(super) struct Sorted<'a> {
    pub(super) objects: BTreeMap<Kind, Vec<(&'a Origin, &'a Object)>>,
    pub(super) authorization: Vec<Placed<AuthorizationPolicy>>,
    pub(super) authentication: Vec<Placed<PeerAuthentication>>,
    pub(super) tokens: Vec<Placed<RequestAuthentication>>,
    /// Objects that exist, but of which nothing is known.
    pub(super) unreadable: HashSet<&'a ObjectKey>,
    pub(super) problems: Vec<Problem>,
}

impl Snapshot {
    /// Joins documents into the mesh that they describe. `problems` are those found when reading them; those of the whole are added.
    /// What has not changed since `previous` is shared with it.
    pub fn build<'a>(documents: impl IntoIterator<Item = &'a Document>, problems: Vec<Problem>, previous: Option<&Snapshot>) -> Snapshot {
        Snapshot::build_on_node(documents, problems, &PodNetworks::default(), previous)
    }

    /// As [`Snapshot::build`], with what a node knows of its pods' networks.
    pub fn build_on_node<'a>(
        documents: impl IntoIterator<Item = &'a Document>,
        problems: Vec<Problem>,
        networks: &PodNetworks,
        previous: Option<&Snapshot>,
    ) -> Snapshot {
        let mut sorted = sort(documents);
        let mut snapshot = Snapshot { version: previous.map_or(0, |p| p.version) + 1, ..Snapshot::default() };
        snapshot.problems = problems;
        settings(&mut snapshot, &mut sorted);
        for (_, object) in sorted.all(Kind::Namespace) {
            if let Object::Namespace(namespace) = object {
                snapshot.namespaces.insert(namespace.name.clone(), namespace.clone());
            }
        }
        for (_, object) in sorted.all(Kind::Node) {
            if let Object::Node(node) = object {
                snapshot.nodes.insert(node.name.clone(), node.clone());
            }
        }
        for (_, object) in sorted.all(Kind::ServiceAccount) {
            if let Object::ServiceAccount(name) = object {
                snapshot.service_accounts.insert(name.clone());
            }
        }
        let pods = workloads::join(&mut snapshot, &mut sorted, networks, previous);
        let members = endpoints::join(&mut snapshot, &mut sorted, &pods, previous);
        service_entries::join(&mut snapshot, &mut sorted, &members, previous);
        policies::join(&mut snapshot, &mut sorted, &members);
        limits::join(&mut snapshot, &mut sorted, &members);
        traffic::join(&mut snapshot, &mut sorted, previous);
        routes::join(&mut snapshot, &mut sorted, previous);
        backends::join(&mut snapshot, &mut sorted, previous);
        virtual_services::join(&mut snapshot, &mut sorted, previous);
        snapshot.problems.append(&mut sorted.problems);
        snapshot.problems.sort();
        snapshot.problems.dedup();
        snapshot
    }
}

impl<'a> Sorted<'a> {
    /// The objects of a kind, in the order of the documents.
    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = (&'a Origin, &'a Object)> + use<'a, '_> {
        self.objects.get(&kind).into_iter().flatten().copied()
    }

    pub(super) fn problem(&mut self, severity: Severity, origin: &Origin, object: impl ToString, field: &str, message: String) {
        self.problems.push(Problem {
            severity,
            origin: origin.clone(),
            object: object.to_string().into(),
            field: field.into(),
            message: message.into(),
        });
    }
}

fn sort<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    // Number of the document that counts, by object; documents stay in their order.
    let mut chosen: HashMap<&ObjectKey, usize> = HashMap::new();
    let mut kept: Vec<Option<(&Document, &Object)>> = Vec::new();
    for document in documents {
        let object = match &document.reading {
            Reading::Good(object) | Reading::Cautious(object) => object,
            Reading::Unreadable => {
                sorted.unreadable.insert(&document.key);
                continue;
            }
            Reading::Foreign => continue,
        };
        // Objects without a name are different ones.
        if !document.key.name.is_empty()
            && let Some(earlier) = chosen.insert(&document.key, kept.len())
            && let Some(slot) = kept.get_mut(earlier)
            && let Some((first, first_object)) = *slot
        {
            let same = first_object == object;
            let cautious_later = matches!(document.reading, Reading::Cautious(_));
            twice(&mut sorted, document, first, same, cautious_later);
            if document.key.kind.is_security() && !same {
                let why = format!("it is defined both at {} and at {}", first.origin, document.origin);
                for (placed, object) in [(first, first_object), (document, object)] {
                    refuse(&mut sorted, placed, object, &why);
                }
                *slot = None;
                kept.push(None);
                continue;
            }
            if cautious_later {
                // What was understood goes before what was not.
                chosen.insert(&document.key, earlier);
                continue;
            }
            *slot = None;
        }
        kept.push(Some((document, object)));
    }
    for (document, object) in kept.into_iter().flatten() {
        let origin = &document.origin;
        match object {
            Object::AuthorizationPolicy(policy) => sorted.authorization.push((origin.clone(), policy.clone())),
            Object::PeerAuthentication(policy) => sorted.authentication.push((origin.clone(), policy.clone())),
            Object::RequestAuthentication(policy) => sorted.tokens.push((origin.clone(), policy.clone())),
            _ => sorted.objects.entry(document.key.kind).or_default().push((origin, object)),
        }
    }
    sorted
}

fn twice(sorted: &mut Sorted<'_>, later: &Document, first: &Document, same: bool, cautious_later: bool) {
    let effect = match (same, later.key.kind) {
        (true, _) => "both say the same",
        (_, Kind::AuthorizationPolicy) => "they differ, so everything is denied to the workloads that either selects",
        (_, Kind::RequestAuthentication) => "they differ, so no token is believed by the workloads that either selects",
        (_, Kind::PeerAuthentication) => "they differ, so STRICT is demanded of the workloads that either selects",
        _ if cautious_later => "the earlier one counts, since this one is not understood",
        _ => "this one counts",
    };
    let severity = if same { Severity::Warn } else { Severity::Error };
    let message = format!("is defined at {} too; {effect}: remove one of them", first.origin);
    sorted.problem(severity, &later.origin, &later.key, "", message);
}

fn refuse(sorted: &mut Sorted<'_>, document: &Document, object: &Object, why: &str) {
    let origin = document.origin.clone();
    match object {
        Object::AuthorizationPolicy(policy) => {
            let refused = AuthorizationPolicy { refused: Some(why.into()), rules: Vec::new(), ..(**policy).clone() };
            sorted.authorization.push((origin, Arc::new(refused)));
        }
        Object::PeerAuthentication(policy) => {
            let refused = PeerAuthentication { refused: Some(why.into()), ..(**policy).clone() };
            sorted.authentication.push((origin, Arc::new(refused)));
        }
        Object::RequestAuthentication(policy) => {
            let refused = RequestAuthentication { refused: Some(why.into()), ..(**policy).clone() };
            sorted.tokens.push((origin, Arc::new(refused)));
        }
        _ => {}
    }
}

fn settings(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>) {
    let meshes = sorted.objects.remove(&Kind::Mesh).unwrap_or_default();
    for (origin, object) in meshes {
        let Object::Mesh { name, settings } = object else { continue };
        if **name == *MESH_NAME {
            snapshot.settings = settings.clone();
        } else {
            let message = format!("is not the mesh's settings, which are named \"{MESH_NAME}\", and is not used: rename it or remove it");
            sorted.problem(Severity::Warn, origin, format!("Mesh {name}"), "metadata.name", message);
        }
    }
}
