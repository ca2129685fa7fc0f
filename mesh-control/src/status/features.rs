//! The mesh as an object of the Gateway API (`XMesh` of GEP-3949, experimental): that it is there, and what it can do. Pure.

use std::time::SystemTime;

use kube::core::{ApiResource, GroupVersionKind};
use mesh_model::gateway::CONTROLLER_NAME;
use mesh_model::route::ConditionStatus;
use serde_json::{Map, Value, json};

use super::routes;

/// Name of the object that is made if there is none.
pub const NAME: &str = "nodemesh";

/// What the mesh does, by the names of the Gateway API's `pkg/features`; sorted, as the status must be.
pub const FEATURES: [&str; 38] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// The resource.
pub fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    ApiResource::from_gvk_with_plural(&kind, "xmeshes")
}

/// The object that is made. Its spec is the user's from then on.
pub fn object() -> Value {
    json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XMesh",
        "metadata": { "name": NAME },
        "spec": { "controllerName": CONTROLLER_NAME },
    })
}

/// Whether an object is for us to fill.
pub fn is_ours(object: &Value) -> bool {
    object.pointer("/spec/controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME)
}

/// A merge patch for the status; `None` if that says it already. `instance` names who claims the mesh.
pub fn patch(object: &Value, instance: &str, now: SystemTime) -> Option<Value> {
    let accepted = match object.pointer("/spec/parametersRef") {
        None | Some(Value::Null) => ConditionStatus { status: true, reason: "Accepted", message: format!("claimed by {instance}").into() },
        Some(_) => {
            let message = format!("claimed by {instance}, which takes no parameters: remove parametersRef");
            ConditionStatus { status: false, reason: "InvalidParameters", message: message.into() }
        }
    };
    let status = object.get("status").cloned().unwrap_or_default();
    let before = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let generation = object.pointer("/metadata/generation").cloned().unwrap_or(Value::Null);
    let made = routes::condition("Accepted", &accepted, &before, &generation, now);
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({ "name": name })).collect();
    let features = Value::from(features);
    if before.contains(&made) && status.get("supportedFeatures") == Some(&features) {
        return None;
    }
    let others = before.into_iter().filter(|one| one.get("type").and_then(Value::as_str) != Some("Accepted"));
    let mut status = Map::new();
    status.insert("conditions".into(), others.chain([made]).collect());
    status.insert("supportedFeatures".into(), features);
    let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or(Value::Null);
    Some(json!({ "metadata": { "resourceVersion": version }, "status": status }))
}

#[cfg(test)]
mod tests;
