//! Routes of the Gateway API with Service parents (GAMMA), and Istio's kinds, request by request: what the standard's own suite for meshes
//! leaves open (paths, `Location`, precedence over several routes, conditions, retries, mirrors, the breaker's whole course).
//!
//! A module is a theme: the objects, and a table of requests with what must come of each. The objects are applied together; the whole
//! table is one exec in the client's pod, again and again until it holds in full twice in a row or the time that the standard gives a
//! mesh is over.

mod backends;
mod breaker;
mod case;
mod cors;
mod filters;
mod groups;
mod grpc;
mod istio;
mod judge;
mod lending;
mod locality;
mod matching;
mod mirrors;
mod redirects;
mod retries;
mod rewrites;
mod sessions;
mod stage;
mod statuses;
mod timeouts;

pub use backends::backends;
pub use breaker::breaker;
pub use cors::cors;
pub use filters::filters;
pub use groups::groups;
pub use grpc::grpc;
pub use istio::{faults, subsets};
pub use lending::lending;
pub use locality::locality;
pub use matching::{matching, precedence};
pub use mirrors::mirrors;
pub use redirects::redirects;
pub use retries::retries;
pub use rewrites::rewrites;
pub use sessions::sessions;
pub use stage::{CONSUMER, PRODUCER, forget};
pub use statuses::statuses;
pub use timeouts::timeouts;
