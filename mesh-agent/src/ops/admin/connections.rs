//! `/connections`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ActionError, Query};
use crate::ops::live::LiveConnection;
use crate::ops::metrics::labels::PeerInfo;
use crate::ops::record::Telemetry;
use crate::outcome::Outcome;

pub(super) const USAGE: &str = "connections that live, the oldest first, and how many were opened since the start: ?workload=ns/name, service=ns/name, client=IP, server=IP, \
                                direction=inbound|outbound, limit=N (1000)";

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 20_000;

pub(super) fn list(telemetry: &Telemetry, query: &Query) -> Result<Value, ActionError> {
    query.only(&["workload", "service", "client", "server", "direction", "limit"])?;
    let limit = query.parsed::<usize>("limit", "a number")?.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let workload = query.namespaced("workload")?;
    let service = query.namespaced("service")?;
    let client = query.parsed::<IpAddr>("client", "an IP address")?;
    let server = query.parsed::<IpAddr>("server", "an IP address")?;
    let direction = match query.get("direction") {
        None | Some("inbound" | "outbound") => query.get("direction"),
        Some(other) => return Err(ActionError::BadRequest(format!("direction={other}: expected inbound or outbound"))),
    };
    let is = |peer: &PeerInfo| match (&workload, &peer.workload) {
        (Some(wanted), Some(has)) => {
            has.namespace == wanted.namespace && (has.name == wanted.name || has.canonical.workload == wanted.name)
        }
        _ => false,
    };
    let wanted = |live: &LiveConnection| {
        let connection = &live.connection;
        let labels = &connection.labels;
        (workload.is_none() || is(&labels.source) || is(&labels.destination))
            && (service.is_none() || labels.service.as_ref().map(|service| &service.name) == service.as_ref())
            && client.is_none_or(|ip| connection.client.ip().to_canonical() == ip.to_canonical())
            && server.is_none_or(|ip| connection.server.is_some_and(|server| server.ip().to_canonical() == ip.to_canonical()))
            && direction.is_none_or(|direction| connection.direction.as_str() == direction)
    };
    let (picked, total) = telemetry.live().select(limit, wanted);
    let now = telemetry.clock().now();
    let shown: Vec<Value> = picked
        .iter()
        .map(|live| {
            let connection = &live.connection;
            let labels = &connection.labels;
            let (from_client, to_client) = live.meter().read();
            json!({
                "id": live.id,
                "direction": connection.direction.as_str(),
                "client": connection.client,
                "server": connection.server,
                "dialled": connection.dialled,
                "source": peer(&labels.source),
                "destination": peer(&labels.destination),
                "service": labels.service.as_ref().map(|service| service.host.to_string()),
                "security": labels.security.as_str(),
                "age_ms": u64::try_from(now.saturating_duration_since(live.started).as_millis()).unwrap_or(u64::MAX),
                "bytes_received": from_client,
                "bytes_sent": to_client,
                "trace_id": connection.trace_id.as_deref(),
                "closing": live.closing().map(ToString::to_string),
            })
        })
        .collect();
    Ok(json!({ "total": total, "shown": shown.len(), "connections": shown, "opened": telemetry.metrics().opened() }))
}

fn peer(peer: &PeerInfo) -> Value {
    json!({
        "workload": peer.workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.name)),
        "identity": peer.identity.as_ref().map(ToString::to_string),
    })
}

pub(super) fn close(telemetry: &Telemetry, query: &Query) -> Result<Value, ActionError> {
    query.only(&["id"])?;
    let id = query.parsed::<u64>("id", "the number that /connections shows")?;
    let id = id.ok_or_else(|| ActionError::BadRequest("id=N is missing".into()))?;
    match telemetry.live().get(id) {
        Some(live) => {
            live.close(Outcome::ClosedByOperator);
            Ok(json!({ "closing": id }))
        }
        None => Err(ActionError::NotFound(format!("connection {id} does not live (any more)"))),
    }
}
