//! Generated gRPC code of the services that the mesh's parts talk over; the contracts are in `proto/`.

pub mod codec;

/// Istio's certificate service, as istiod serves it and ztunnel calls it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// What the agents ask mesh-control for beside certificates.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod nodemesh {
    tonic::include_proto!("nodemesh.v1");
}

/// Metadata of a refusal by a replica of mesh-control that does not lead: the address of the one that does, `host:port`.
pub const LEADER: &str = "x-nodemesh-leader";

/// Protobuf's well-known types, in the version that the generated code uses.
pub use prost_types;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// Key in [`ca::IstioCertificateRequest::metadata`]: the SPIFFE ID of the workload for which a node's agent asks.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

impl ca::IstioCertificateRequest {
    /// A request by a node's agent on behalf of a workload, as ztunnel makes it.
    pub fn for_workload(csr: String, validity_seconds: i64, spiffe_id: String) -> Self {
        let value = Value { kind: Some(Kind::StringValue(spiffe_id)) };
        let metadata = Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into() };
        Self { csr, validity_duration: validity_seconds, metadata: Some(metadata) }
    }

    /// The workload on whose behalf the caller asks: `None` if it names none, an error if what stands there is no text.
    pub fn impersonated_identity(&self) -> Result<Option<&str>, NotText> {
        let value = self.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
        match value.and_then(|value| value.kind.as_ref()) {
            None | Some(Kind::NullValue(_)) => Ok(None),
            // Istio reads an absent and an empty one alike.
            Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
            Some(Kind::StringValue(text)) => Ok(Some(text)),
            Some(_) => Err(NotText),
        }
    }
}

/// `ImpersonatedIdentity` is there, but it is no text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotText;

#[cfg(test)]
mod tests;
