//! The five addresses of a proxied connection as five types, so that none is taken for another.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address!(
    /// The client application's own end.
    ClientAddr
);
address!(
    /// What the client application dialled: a Service's address or a pod's.
    OrigDst
);
address!(
    /// The server application's end: the pod's address and the port it listens on.
    ServerAddr
);
address!(
    /// Where a tunnel ends: the server pod's address and the tunnel port.
    TunnelAddr
);

/// Bytes of the application that a connection has carried, without the mesh's own framing. Written by whoever copies, read by whoever reports.
#[derive(Debug, Default)]
pub struct Meter {
    /// From the client towards the server.
    pub from_client: AtomicU64,
    /// From the server towards the client.
    pub to_client: AtomicU64,
}

impl Meter {
    /// Counts bytes that went towards the server.
    pub fn add_from_client(&self, bytes: u64) {
        self.from_client.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that went towards the client.
    pub fn add_to_client(&self, bytes: u64) {
        self.to_client.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Both counts: from the client, to the client.
    pub fn read(&self) -> (u64, u64) {
        (self.from_client.load(Ordering::Relaxed), self.to_client.load(Ordering::Relaxed))
    }
}
