//! GRPCRoute: methods, headers, and what a call is answered where nothing is for it.

use anyhow::Result;

use super::case::{Case, Want, call, get};
use super::stage::{hold, parents};
use crate::e2e::bed::Bed;

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls}
spec:
  parentRefs: [{group: '', kind: Service, name: calls, port: 80}]
  rules:
    - {matches: [{method: {service: shop.Cart, method: Add}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{method: {service: shop.Cart}}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{method: {method: Ping}}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{method: {type: RegularExpression, service: 'shop[.]O.*', method: 'Get.*'}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{method: {service: shop.Cart}, headers: [{name: version, value: three}]}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{headers: [{name: lost, value: '1'}]}], backendRefs: [{name: missing, port: 80}]}
    - {matches: [{method: {service: shop.Nobody}}], backendRefs: [{name: nobody, port: 80}]}
    - {matches: [{method: {service: shop.Share}}], backendRefs: [{name: v1, port: 80, weight: 3}, {name: v2, port: 80}]}
    - matches: [{method: {service: shop.Headers}}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: new}], remove: [x-gone]}}
        - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: new}]}}
      backendRefs: [{name: v2, port: 80}]
---
";

fn cases() -> Vec<Case> {
    vec![
        call("service and method", "calls/shop.Cart/Add").by("v1").wants(Want::Version("HTTP/2.0")),
        call("the service alone", "calls/shop.Cart/Remove").by("v2"),
        call("a service's name is whole", "calls/shop.Cart2/Add").wants(Want::Grpc(12)).wants(Want::ByNobody),
        call("the method alone", "calls/any.Service/Ping").by("v3"),
        call("by patterns", "calls/shop.Orders/GetAll").by("v1"),
        call("what the patterns are not for", "calls/shop.Orders/PutAll").wants(Want::Grpc(12)).wants(Want::ByNobody),
        call("a header beside the service", "calls/shop.Cart/Remove").with("version", "three").by("v3"),
        call("service and method count more than a header", "calls/shop.Cart/Add").with("version", "three").by("v1"),
        call("a backend that is not there", "calls/x.Y/Z").with("lost", "1").wants(Want::Grpc(14)).wants(Want::ByNobody),
        call("no endpoints", "calls/shop.Nobody/X").wants(Want::Grpc(14)).wants(Want::ByNobody),
        call("3 to 1", "calls/shop.Share/X").times(80).wants(Want::Shares(&[("v1", 75), ("v2", 25)])),
        call("headers", "calls/shop.Headers/X")
            .with("x-add", "old")
            .with("x-gone", "1")
            .by("v2")
            .wants(Want::Seen("x-set", "new"))
            .wants(Want::Seen("x-add", "old,new"))
            .wants(Want::NotSeen("x-gone"))
            .header("x-answer", "new"),
        call("a server's own status is passed on", "calls/shop.Cart/Add?grpc=5").status(200).wants(Want::By("v1")).wants(Want::Grpc(5)),
        call("nothing is for it", "calls/other.Service/Call").wants(Want::Grpc(12)).wants(Want::ByNobody),
        get("a request that is no call is told so by HTTP", "calls/other").refused(404),
    ]
}

pub fn grpc(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["calls"]) + ROUTE), &cases())
}
