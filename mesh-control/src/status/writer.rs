//! Writes the conditions: by the replica that leads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use mesh_model::convert::{Provenance, Reading, convert_from};
use mesh_model::object::{Kind, Object};
use mesh_model::problem::Origin;
use mesh_model::snapshot::Snapshot;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::conditions::{self, Found, KINDS};
use super::{backends, features, keys, routes};
use crate::config::LeaseName;
use crate::keys::Book;
use crate::leadership::Leadership;
use crate::metrics::Metrics;

/// Before the next attempt at what could not be written.
const AGAIN: Duration = Duration::from_secs(10);
/// Quiet time after a change.
const QUIET: Duration = Duration::from_millis(500);
/// Least time between two looks: each lists all objects, and pods change without end.
const PAUSE: Duration = Duration::from_secs(5);
/// How old a state of an object must be: what other objects make of it is known a moment after the object itself is.
const RIPE: Duration = Duration::from_secs(2);
/// Between two looks without a change: what changes nothing in the mesh may need an answer all the same.
const LOOK: Duration = Duration::from_secs(60);
/// Objects of a page.
const PAGE: u32 = 500;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// What it works with.
pub struct Statuses {
    /// The API server's.
    pub client: Client,
    /// Who holds it leads.
    pub lease: LeaseName,
    /// Who leads writes.
    pub leadership: watch::Receiver<Leadership>,
    /// The mesh: what other objects make of one.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The keys of issuers, and which cannot be fetched.
    pub book: watch::Receiver<Arc<Book>>,
    /// Where writes are counted.
    pub metrics: Arc<Metrics>,
}

impl Statuses {
    /// Runs as long as the process; writes while this replica leads.
    pub async fn run(mut self) -> (&'static str, Result<(), String>) {
        let mut leadership = self.leadership.clone();
        loop {
            let own = leadership.borrow_and_update().is_own();
            let work = async { if own { self.write().await } else { std::future::pending().await } };
            tokio::select! {
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return ("the writer of statuses", Err("nobody says who leads".into()));
                    }
                }
                () = work => {}
            }
        }
    }

    /// Writes, whenever there may be something to say. Never ends.
    async fn write(&mut self) {
        let mut complaint = String::new();
        let mut seen = Seen::default();
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            let told = keys::troubles(&self.book.borrow_and_update());
            let mut wait = LOOK;
            // Before the mesh was read once, what other objects make of one is not known.
            if snapshot.version() > 0 {
                match self.reconcile(&snapshot, &mut seen, Instant::now()).await {
                    Ok(unripe) => {
                        complaint.clear();
                        if unripe {
                            tokio::time::sleep(RIPE).await;
                            continue;
                        }
                    }
                    Err(error) => {
                        wait = AGAIN;
                        let error = error.to_string();
                        if error != complaint {
                            tracing::warn!(%error, "the status of objects cannot be written; it is tried again");
                            complaint = error;
                        }
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
            let book = &mut self.book;
            let troubled = async { book.wait_for(|book| keys::troubles(book) != told).await.is_ok() };
            tokio::select! {
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => tokio::time::sleep(QUIET).await,
                    Err(_) => std::future::pending().await,
                },
                known = troubled => if !known { std::future::pending().await },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Looks at every object once. True if some are so new that they were left for a moment later. One that cannot be written keeps no
    /// other from being; the last error is told.
    async fn reconcile(&self, snapshot: &Snapshot, seen: &mut Seen, now: Instant) -> Result<bool, kube::Error> {
        let (mut unripe, mut failed) = (false, None);
        seen.begin();
        for kind in KINDS.into_iter().chain(routes::KINDS).chain(backends::KINDS) {
            for resource in mesh_sources::kube::resources(kind) {
                match self.of_kind(kind, &resource, snapshot, seen, now).await {
                    // Not served in this version, or not at all.
                    Err(kube::Error::Api(status)) if status.code == NOT_FOUND => continue,
                    Ok((left, error)) => {
                        unripe |= left;
                        failed = error.or(failed);
                    }
                    Err(error) => failed = Some(error),
                }
                break;
            }
        }
        failed = self.tell_features(seen).await.err().or(failed);
        seen.end();
        failed.map_or(Ok(unripe), Err)
    }

    /// Says in the objects that stand for the mesh what it can do, and makes one if its name is free. They are experimental: where their
    /// kind is not installed there is nobody to tell.
    async fn tell_features(&self, seen: &mut Seen) -> Result<(), kube::Error> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &features::resource());
        let mut meshes = match all.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND => {
                if !std::mem::replace(&mut seen.no_meshes, true) {
                    tracing::info!("the kind XMesh is not installed: what the mesh can do is told in no object");
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        seen.no_meshes = false;
        if !meshes.iter().any(|mesh| mesh.metadata.name.as_deref() == Some(features::NAME)) {
            let object: DynamicObject = serde_json::from_value(features::object()).map_err(kube::Error::SerdeError)?;
            match all.create(&PostParams::default(), &object).await {
                Ok(made) => meshes.push(made),
                // Somebody was faster: the next look sees it.
                Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
                Err(error) => return Err(error),
            }
        }
        for mesh in meshes {
            let value = serde_json::to_value(&mesh).unwrap_or_default();
            if !features::is_ours(&value) {
                continue;
            }
            let instance = format!("mesh-control (Lease {})", self.lease);
            if let Some(patch) = features::patch(&value, &instance, SystemTime::now()) {
                self.write_status(&all, &mesh.metadata.name.unwrap_or_default(), patch).await?;
            }
        }
        Ok(())
    }

    /// Writes a status. That the object has changed since, or is gone, is no error: the next look sees it as it is.
    async fn write_status(&self, place: &Api<DynamicObject>, name: &str, patch: Value) -> Result<(), kube::Error> {
        match place.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => self.metrics.status_written("written"),
            Err(kube::Error::Api(status)) if matches!(status.code, CONFLICT | NOT_FOUND) => self.metrics.status_written("conflict"),
            Err(error) => {
                self.metrics.status_written("failed");
                return Err(error);
            }
        }
        Ok(())
    }

    async fn of_kind(
        &self,
        kind: Kind,
        resource: &ApiResource,
        snapshot: &Snapshot,
        seen: &mut Seen,
        now: Instant,
    ) -> Result<(bool, Option<kube::Error>), kube::Error> {
        let (mut unripe, mut failed) = (false, None);
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = all.list(&page).await?;
            for object in list.items {
                let (namespace, name) = (object.metadata.namespace.clone(), object.metadata.name.clone().unwrap_or_default());
                if now.saturating_duration_since(seen.since(kind, &object, now)) < RIPE {
                    unripe = true;
                    continue;
                }
                let mut value = serde_json::to_value(&object).unwrap_or_default();
                // In a list they stand at the list only.
                if let Some(value) = value.as_object_mut() {
                    value.insert("apiVersion".into(), json!(resource.api_version));
                    value.insert("kind".into(), json!(resource.kind));
                }
                let Some(patch) = patch(kind, &value, snapshot, &self.book.borrow().clone(), SystemTime::now()) else { continue };
                let place: Api<DynamicObject> = match &namespace {
                    Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
                    None => Api::all_with(self.client.clone(), resource),
                };
                if let Err(error) = self.write_status(&place, &name, patch).await {
                    failed = Some(error);
                }
            }
            match list.metadata.continue_ {
                Some(next) if !next.is_empty() => page = page.continue_token(&next),
                _ => return Ok((unripe, failed)),
            }
        }
    }
}

/// Since when each object has been as it is.
#[derive(Default)]
struct Seen {
    now: HashMap<Box<str>, (Option<i64>, Instant)>,
    before: HashMap<Box<str>, (Option<i64>, Instant)>,
    /// It was said that the kind XMesh is not installed.
    no_meshes: bool,
}

impl Seen {
    fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    fn since(&mut self, kind: Kind, object: &DynamicObject, now: Instant) -> Instant {
        let metadata = &object.metadata;
        // An object that was made anew under the same name has another.
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let key = format!("{}/{uid}/{:?}/{:?}", kind.name(), metadata.namespace, metadata.name).into_boxed_str();
        let since = match self.before.get(&key) {
            Some((generation, since)) if *generation == metadata.generation => *since,
            _ => now,
        };
        self.now.insert(key, (metadata.generation, since));
        since
    }

    /// Lets go of those that are gone.
    fn end(&mut self) {
        self.before = HashMap::new();
    }
}

/// What is to be written into the status of an object.
fn patch(kind: Kind, object: &Value, snapshot: &Snapshot, book: &Book, now: SystemTime) -> Option<Value> {
    if routes::KINDS.contains(&kind) {
        routes::patch(object, &routes::said(object, snapshot)?, now)
    } else if backends::KINDS.contains(&kind) {
        backends::patch(object, &backends::said(object, snapshot)?, now)
    } else {
        conditions::patch(kind, object, &found(kind, object, snapshot, book), now)
    }
}

/// What is wrong with an object: with itself, as it is now, with it among the others, and with what it names outside of the mesh.
fn found(kind: Kind, object: &Value, snapshot: &Snapshot, book: &Book) -> Vec<Found> {
    let converted = convert_from(object, Provenance::ApiServer);
    let mut all: Vec<Found> = converted
        .findings
        .into_iter()
        .map(|finding| Found { severity: finding.severity, field: finding.field.to_string(), message: finding.message, reason: None })
        .collect();
    if let Reading::Good(Object::RequestAuthentication(policy)) = &converted.reading {
        all.extend(keys::found(policy, book));
    }
    let text = |key: &str| object.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str).unwrap_or_default();
    let generation = object.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_i64);
    for problem in snapshot.problems() {
        let Origin::Object(origin) = &problem.origin else { continue };
        let of_it = origin.key.kind == kind && &*origin.key.name == text("name") && &*origin.key.namespace == text("namespace");
        // What is known of an earlier state is not of this one.
        if of_it && origin.generation == generation {
            all.push(Found {
                severity: problem.severity,
                field: problem.field.to_string(),
                message: problem.message.to_string(),
                reason: None,
            });
        }
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests;
