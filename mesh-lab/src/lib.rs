//! Worlds to test the mesh in, on a real kernel: nodes and pods made of network namespaces and cgroups, real programs in them.
//!
//! A [`World`] has a fabric (a bridge in a namespace of its own, so that what crosses nodes can be captured), [`Node`]s joined to
//! it, and [`Pod`]s on the nodes. Nothing in it has a way out of the machine. Everything that is made is first written down under
//! [`record::STATE`], so that a crash leaves nothing for good: a guardian process removes the world when its owner dies, and
//! [`sweep`] removes what even that missed.
//!
//! Needs root, cgroup v2 (alone or beside v1), and the programs `ip`, `nsenter` and `tcpdump`.

pub mod ask;
pub mod capture;
pub mod cgroup;
pub mod http;
pub mod http2;
pub mod manifests;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod packages;
pub mod pcap;
pub mod peer;
pub mod pod;
pub mod process;
pub mod record;
pub mod throw;
pub mod world;

pub use capture::Capture;
pub use cgroup::Cgroup;
pub use http::{Response, http_get};
pub use manifests::Manifests;
pub use mesh::{Agent, Control, Mesh, MeshOptions};
pub use node::Node;
pub use pcap::Trace;
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Place, Process};
pub use record::{Kept, KeptWorld, kept, sweep};
pub use world::World;
