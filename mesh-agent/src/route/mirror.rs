//! Copies of requests, whose answers nobody waits for.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Request;
use http::request::Parts;
use mesh_model::route::Target;

use super::attempt::{count, lease};
use super::body::{Original, RequestBody};
use super::exchange::Client;
use super::plan::Plan;
use super::request;
use crate::upstream::cluster::Wish;

/// Sends a copy to one endpoint and throws its answer away. What was too large to keep is not copied, which is counted.
pub fn mirror(client: &Rc<Client>, plan: &Plan, target: &Target, parts: &Parts, original: &Original) {
    let requests = &client.worker.shared.requests;
    let Target::Service { service, port, subset } = target else { return requests.mirror_skipped() };
    let upstream =
        plan.upstream(client, service, *port, subset.as_ref()).ok().filter(|upstream| upstream.cluster.refusal_of_requests().is_none());
    let Some(upstream) = upstream else { return requests.mirror_skipped() };
    // Nobody waits for a copy's answer: without these bounds there could be any number of them.
    let (Some(under_way), Ok(place)) = (requests.mirror_begins(), upstream.bounds.circuit.try_request()) else {
        return requests.mirror_skipped();
    };
    let Some(body) = original.whole() else { return requests.mirror_skipped() };
    let (client, parts, tasks) = (client.clone(), parts.clone(), client.worker.connections.clone());
    tasks.spawn_local(async move {
        let cluster = &upstream.cluster;
        let Some(chosen) = cluster.choose(Instant::now(), Wish { dialled: Some(client.dialled.0), ..Wish::default() }) else {
            return client.worker.shared.requests.mirror_skipped();
        };
        if count(&client, cluster, Instant::now(), &parts).is_err() {
            return client.worker.shared.requests.mirror_skipped();
        }
        let http2 = cluster.http2(client.http2);
        let sent = tokio::time::timeout(MIRROR, async {
            let mut tls_name = None;
            let mut lease = lease(&client, &upstream, &chosen.server, http2, &parts.headers, &mut tls_name, &Cell::default()).await.ok()?;
            let mut head = parts;
            request::address(&mut head, lease.http2(), tls_name.is_some(), None).ok()?;
            head.extensions.clear();
            let response = lease.send(Request::from_parts(head, RequestBody::whole(body))).await.ok()?;
            // Read to its end, so that the connection serves again.
            let read = http_body_util::BodyExt::collect(http_body_util::Limited::new(response.into_body(), MIRROR_BODY)).await;
            read.ok().map(|_| lease.keep())
        });
        match sent.await {
            Ok(Some(())) => client.worker.shared.requests.mirrored(),
            Ok(None) | Err(_) => client.worker.shared.requests.mirror_failed(),
        }
        drop((under_way, place));
    });
}

/// How long a copy may take, and how much of its answer is read.
const MIRROR: Duration = Duration::from_secs(30);
const MIRROR_BODY: usize = 1 << 20;
