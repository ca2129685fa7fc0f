//! `connectionPool` and `outlierDetection`.

use super::super::Input;
use super::super::fields::Fields;
use crate::traffic::{ConnectionPool, Keepalive, OutlierDetection};

pub(super) fn pool(input: &mut Input<'_>, mut map: Fields<'_>) -> ConnectionPool {
    let mut pool = ConnectionPool::default();
    if let Some(mut tcp) = map.map(input, "tcp") {
        pool.max_connections = tcp.bound(input, "maxConnections");
        pool.connect_timeout = tcp.positive(input, "connectTimeout");
        pool.tcp_idle_timeout = tcp.duration(input, "idleTimeout").filter(|time| !time.is_zero());
        pool.max_connection_duration = tcp.positive(input, "maxConnectionDuration");
        pool.keepalive = tcp.map(input, "tcpKeepalive").map(|map| keepalive(input, map));
        tcp.rest(input);
    }
    if let Some(mut http) = map.map(input, "http") {
        pool.max_pending_requests = http.bound(input, "http1MaxPendingRequests");
        pool.max_requests = http.bound(input, "http2MaxRequests");
        pool.max_requests_per_connection = http.bound(input, "maxRequestsPerConnection");
        pool.max_retries = http.bound(input, "maxRetries");
        pool.http_idle_timeout = http.duration(input, "idleTimeout").filter(|time| !time.is_zero());
        pool.max_concurrent_streams = http.bound(input, "maxConcurrentStreams");
        let at = http.at.key("h2UpgradePolicy");
        let upgrade = match http.text(input, "h2UpgradePolicy") {
            Some("UPGRADE") => true,
            None | Some("DEFAULT" | "DO_NOT_UPGRADE") => false,
            Some(other) => {
                input.error(at, format!("\"{other}\" is not a policy; write DEFAULT, DO_NOT_UPGRADE or UPGRADE"));
                false
            }
        };
        let keep = http.boolean(input, "useClientProtocol").unwrap_or(false);
        pool.upgrade_to_http2 = upgrade && !keep;
        http.rest(input);
    }
    map.rest(input);
    pool
}

fn keepalive(input: &mut Input<'_>, mut map: Fields<'_>) -> Keepalive {
    let keepalive =
        Keepalive { time: map.positive(input, "time"), interval: map.positive(input, "interval"), probes: map.bound(input, "probes") };
    map.rest(input);
    keepalive
}

pub(super) fn outlier(input: &mut Input<'_>, mut map: Fields<'_>) -> OutlierDetection {
    let mut outlier = OutlierDetection::default();
    let all = 0..=u64::from(u32::MAX);
    // As Istio read the old name: gateway errors are counted, and they alone.
    if let Some(errors) = map.bound(input, "consecutiveErrors") {
        outlier.consecutive_gateway = errors;
        outlier.consecutive_5xx = 0;
    }
    if let Some(errors) = map.number(input, "consecutive5xxErrors", all.clone()) {
        outlier.consecutive_5xx = errors;
    }
    if let Some(errors) = map.number(input, "consecutiveGatewayErrors", all.clone()) {
        outlier.consecutive_gateway = errors;
    }
    if let Some(errors) = map.number(input, "consecutiveLocalOriginFailures", all) {
        outlier.consecutive_local = errors;
    }
    outlier.split_local_origin = map.boolean(input, "splitExternalLocalOriginErrors").unwrap_or(false);
    outlier.interval = map.positive(input, "interval").unwrap_or(outlier.interval);
    outlier.base_ejection = map.positive(input, "baseEjectionTime").unwrap_or(outlier.base_ejection);
    // 0 is protobuf's way of saying nothing.
    if let Some(percent) = map.number(input, "maxEjectionPercent", 0..=100).filter(|percent| *percent > 0) {
        outlier.max_ejection_percent = percent;
    }
    outlier.min_health_percent = map.number(input, "minHealthPercent", 0..=100).unwrap_or(0);
    map.rest(input);
    outlier
}
