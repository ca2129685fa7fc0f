//! A path from a client to a server, and the measuring of it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::Pod;

use super::load::{self, Load, Sample};
use super::usage::{Others, Watched};

/// The port of the iperf3 server, in the server's pod.
pub const BULK_PORT: u16 = 5201;
/// The port of nginx.
pub const HTTP_PORT: u16 = 8080;
/// Its port for calls of gRPC.
pub const GRPC_PORT: u16 = 8090;
/// The call that is made: `/service/method`, and what those of its service begin with.
pub const GRPC_METHOD: &str = "/bench.Echo/Unary";
/// See above.
pub const GRPC_PREFIX: &str = "/bench.Echo/";

/// The ways from client to server that are compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum PathId {
    /// Two nodes, no mesh.
    Direct,
    /// One node, no mesh.
    DirectLocal,
    /// One node, through the mesh: judged in the kernel, a policy in force.
    SameNode,
    /// Two nodes, through the mesh: mTLS between two agents, a policy in force.
    CrossNode,
    /// Two nodes, an Envoy in each pod: mTLS between them, a policy in force.
    Envoy,
    /// Two nodes, through the mesh: HTTP/1.1 by a route at the client's agent and a rule about requests at the server's, mTLS between them.
    CrossNodeHttp,
    /// The same by an Envoy in each pod.
    EnvoyHttp,
    /// Two nodes, no mesh: unary calls of gRPC.
    DirectGrpc,
    /// Two nodes, through the mesh: unary calls by a GRPCRoute at the client's agent and a rule about methods at the server's, mTLS between.
    CrossNodeGrpc,
    /// The same by an Envoy in each pod.
    EnvoyGrpc,
}

impl PathId {
    const ALL: [Self; 10] = [
        Self::Direct,
        Self::DirectLocal,
        Self::SameNode,
        Self::CrossNode,
        Self::Envoy,
        Self::CrossNodeHttp,
        Self::EnvoyHttp,
        Self::DirectGrpc,
        Self::CrossNodeGrpc,
        Self::EnvoyGrpc,
    ];

    /// Its name, as in `--only` and in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectLocal => "direct-local",
            Self::SameNode => "same-node",
            Self::CrossNode => "cross-node",
            Self::Envoy => "envoy",
            Self::CrossNodeHttp => "cross-node-http",
            Self::EnvoyHttp => "envoy-http",
            Self::DirectGrpc => "direct-grpc",
            Self::CrossNodeGrpc => "cross-node-grpc",
            Self::EnvoyGrpc => "envoy-grpc",
        }
    }

    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Direct => "no mesh, across nodes",
            Self::DirectLocal => "no mesh, same node",
            Self::SameNode => "mesh, same node, policy",
            Self::CrossNode => "mesh, across nodes, L4 mTLS",
            Self::Envoy => "Envoy pair, L4 mTLS",
            Self::CrossNodeHttp => "mesh, across nodes, L7 mTLS",
            Self::EnvoyHttp => "Envoy pair, L7 mTLS",
            Self::DirectGrpc => "no mesh, gRPC",
            Self::CrossNodeGrpc => "mesh, gRPC, L7 mTLS",
            Self::EnvoyGrpc => "Envoy pair, gRPC, L7 mTLS",
        }
    }

    /// The path over the same wires without anything between; None if it is one.
    pub fn baseline(self) -> Option<Self> {
        match self {
            Self::Direct | Self::DirectLocal | Self::DirectGrpc => None,
            Self::CrossNodeGrpc | Self::EnvoyGrpc => Some(Self::DirectGrpc),
            Self::SameNode => Some(Self::DirectLocal),
            Self::CrossNode | Self::Envoy | Self::CrossNodeHttp | Self::EnvoyHttp => Some(Self::Direct),
        }
    }

    /// It needs the mesh.
    pub fn is_meshed(self) -> bool {
        matches!(self, Self::SameNode | Self::CrossNode | Self::CrossNodeHttp | Self::CrossNodeGrpc)
    }

    /// It needs Envoy.
    pub fn is_envoy(self) -> bool {
        matches!(self, Self::Envoy | Self::EnvoyHttp | Self::EnvoyGrpc)
    }

    /// It carries calls of gRPC.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::DirectGrpc | Self::CrossNodeGrpc | Self::EnvoyGrpc)
    }

    /// The load can be put on it: iperf3 speaks no HTTP, and clients of gRPC keep their connection.
    pub fn carries(self, load: Load) -> bool {
        match load {
            Load::One | Load::Many => true,
            Load::New => !self.is_grpc(),
            Load::Bulk => !self.is_grpc() && !matches!(self, Self::CrossNodeHttp | Self::EnvoyHttp),
        }
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.key())
    }
}

/// The wanted paths (none: all) and their baselines, in the table's order.
pub fn with_baselines(wanted: &[PathId]) -> Vec<PathId> {
    let needed = |id: &PathId| wanted.is_empty() || wanted.iter().any(|want| want == id || want.baseline() == Some(*id));
    PathId::ALL.into_iter().filter(needed).collect()
}

/// A path that can be measured.
#[derive(Debug)]
pub struct Path {
    /// Which.
    pub id: PathId,
    /// Where the clients run.
    pub client: Pod,
    /// Where the servers run.
    pub server: Pod,
    /// What the clients dial: for requests, and for bulk.
    pub address: String,
    /// See above.
    pub http_port: u16,
    /// See above.
    pub bulk_port: u16,
    /// The processes between client and server.
    pub between: Vec<Watched>,
    /// The script that makes wrk write its summary as JSON.
    pub script: PathBuf,
    /// A file that holds a message of gRPC, its prefix too; h2load writes beside it.
    pub message: PathBuf,
}

impl Path {
    /// Puts the load on the path for so long.
    pub fn measure(&self, load: Load, time: Duration) -> Result<Sample> {
        self.between.iter().for_each(Watched::reset_peak);
        let node = self.client.node().cgroup();
        let others = Others::beside(node.parent().context("the node's cgroup has none above")?)?;
        let before = self.cpu_micros()?;
        let mut sample = match load {
            Load::Bulk => load::iperf(&self.client, &self.server, BULK_PORT, &self.address, self.bulk_port, time)?,
            Load::One | Load::Many | Load::New if self.id.is_grpc() => {
                let url = format!("http://{}:{}{GRPC_METHOD}", self.address, self.http_port);
                load::h2load(&self.client, &self.message, load, &url, time)?
            }
            Load::One | Load::Many | Load::New => {
                let url = format!("http://{}:{}/", self.address, self.http_port);
                load::wrk(&self.client, &self.script, load, &url, time)?
            }
        };
        sample.others_share = others.share()?;
        if !self.between.is_empty() {
            sample.cpu_seconds = Some(self.cpu_micros()?.saturating_sub(before) as f64 / 1e6);
            let peaks: Vec<u64> = self.between.iter().map(Watched::peak_bytes).collect::<Result<_>>()?;
            sample.rss_bytes = peaks.into_iter().max();
        }
        Ok(sample)
    }

    fn cpu_micros(&self) -> Result<u64> {
        self.between.iter().map(Watched::cpu_micros).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{PathId, with_baselines};

    #[test]
    fn a_ratio_needs_what_it_refers_to() {
        assert_eq!(with_baselines(&[PathId::SameNode]), [PathId::DirectLocal, PathId::SameNode]);
        assert_eq!(with_baselines(&[PathId::Envoy, PathId::CrossNode]), [PathId::Direct, PathId::CrossNode, PathId::Envoy]);
        assert_eq!(with_baselines(&[]), PathId::ALL);
    }
}
