//! Routes of a Service's own namespace (producer) and of its clients' (consumer) at once.

use anyhow::Result;

use super::case::{Want, get};
use super::stage::{CONSUMER, PRODUCER, holds, parents, route, route_to, set};
use crate::cluster;
use crate::e2e::bed::{Bed, apply};

const PRODUCERS: &str = "
    - matches: [{path: {value: /producer}}]
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-group, value: producer}]}}]
      backendRefs: [{name: v1, port: 80}]
    - {matches: [{path: {value: /common}}], backendRefs: [{name: v1, port: 80}]}
";

const CONSUMERS: &str = "
    - matches: [{path: {value: /consumer}}]
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-group, value: consumer}]}}]
      backendRefs: [{name: v4, port: 80}]
    - {matches: [{path: {value: /common}}], backendRefs: [{name: v4, port: 80}]}
";

/// A second route of the consumer's, with a backend in the producer's namespace.
const MORE: &str = "    - {matches: [{path: {value: /more}}], backendRefs: [{name: v2, namespace: NAMESPACE, port: 80}]}";
const ONLY: &str = "    - {backendRefs: [{name: v4, port: 80}]}";

pub fn groups(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    let of = |name: &str| format!("name: {name}, namespace: {PRODUCER}, port: 80");
    apply(PRODUCER, &(parents(&["groups", "groups-only"]) + &route("groups", PRODUCERS)))?;
    let consumers = route_to("groups", &of("groups"), CONSUMERS)
        + &route_to("groups-more", &of("groups"), &MORE.replace("NAMESPACE", PRODUCER))
        + &route_to("groups-only", &of("groups-only"), ONLY);
    apply(CONSUMER, &consumers)?;
    let at = |name: &str, path: &str| format!("{name}.{PRODUCER}{path}");
    let theirs = [
        get("the consumer's route", at("groups", "/consumer")).by("v4").header("x-group", "consumer"),
        get("another route of the consumer's beside it", at("groups", "/more")).by("v2"),
        get("the same path in both is the consumer's", at("groups", "/common")).by("v4"),
        get("the producer's routes are replaced, not added to", at("groups", "/producer")).refused(404),
        get("a port that the consumer's routes are not for", at("groups", ":8080/producer"))
            .times(30)
            .wants(Want::Among(&["v1", "v2", "v3"])),
        get("a consumer's route where the producer has none", at("groups-only", "/")).by("v4"),
    ];
    let consumer = holds(CONSUMER, &theirs)?;
    let ours = [
        get("the producer's route", at("groups", "/producer")).by("v1").header("x-group", "producer"),
        get("the same path in both is the producer's", at("groups", "/common")).by("v1"),
        get("a consumer's routes are for its own namespace", at("groups", "/consumer")).refused(404),
        get("another one of the consumer's", at("groups", "/more")).refused(404),
        get("no route of the producer's", at("groups-only", "/")).times(30).wants(Want::Among(&["v1", "v2", "v3"])),
    ];
    let producer = holds(PRODUCER, &ours)?;
    cluster::ask(&["-n", CONSUMER, "delete", "httproute", "groups", "groups-more", "groups-only"])?;
    let after = [
        get("without routes of its own the producer's", at("groups", "/producer")).by("v1").header("x-group", "producer"),
        get("its own are gone", at("groups", "/more")).refused(404),
        get("none of either", at("groups-only", "/")).times(30).wants(Want::Among(&["v1", "v2", "v3"])),
    ];
    holds(CONSUMER, &after)?;
    Ok(format!("consumer: {consumer}\nproducer: {producer}"))
}
