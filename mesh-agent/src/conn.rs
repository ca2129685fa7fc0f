//! The five addresses of a proxied connection as five types, so that none is taken for another.

use std::fmt;
use std::net::SocketAddr;

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
