//! `retries`.

use super::super::Input;
use super::super::fields::Fields;
use crate::route::{RetryOn, RetryPolicy};
use crate::virtual_service::HttpRoute;

/// What Istio retries on where nothing is said.
const DEFAULT: &str = "connect-failure,refused-stream,unavailable,cancelled,503";

pub(super) fn read(input: &mut Input<'_>, mut map: Fields<'_>, route: &mut HttpRoute) {
    if !map.has("attempts") {
        input.warn(map.at.key("attempts"), "is missing, which means none; write how many attempts there may be after the first");
    }
    let attempts = map.number(input, "attempts", 0..=1000).unwrap_or(0);
    route.try_timeout = map.duration(input, "perTryTimeout").filter(|time| !time.is_zero());
    let backoff = map.positive(input, "backoff");
    let at = map.at.key("retryOn");
    let mut on = RetryOn::default();
    for word in map.text(input, "retryOn").unwrap_or(DEFAULT).split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !add(&mut on, word) {
            input.warn(at.clone(), format!("\"{word}\" is not a condition that is known here; no attempt is made again for it"));
        }
    }
    for (key, default) in [("retryRemoteLocalities", false), ("retryIgnorePreviousHosts", true)] {
        let at = map.at.key(key);
        if map.boolean(input, key).is_some_and(|value| value != default) {
            input.warn(at, "is not supported: an attempt goes to an endpoint that was not tried, the balancer's next");
        }
    }
    map.rest(input);
    route.retry = Some(RetryPolicy { attempts, backoff, on });
}

/// Adds a word of Envoy's `retry_on` and `retry_grpc_on`, or a status code; false if it is none.
fn add(on: &mut RetryOn, word: &str) -> bool {
    match word {
        "5xx" => on.server_errors = true,
        "gateway-error" => on.gateway_errors = true,
        "connect-failure" => on.connect_failure = true,
        "refused-stream" => on.refused_stream = true,
        "reset" => on.reset = true,
        "reset-before-request" => on.reset_before_request = true,
        "retriable-4xx" => on.retriable_4xx = true,
        // The codes stand in the list themselves.
        "retriable-status-codes" => {}
        "cancelled" => on.grpc.push(1),
        "deadline-exceeded" => on.grpc.push(4),
        "resource-exhausted" => on.grpc.push(8),
        "internal" => on.grpc.push(13),
        "unavailable" => on.grpc.push(14),
        code => match code.parse() {
            Ok(code @ 100..=599) => on.statuses.push(code),
            _ => return false,
        },
    }
    true
}
