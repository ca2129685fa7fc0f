//! The bounds of the tunnel.

use std::time::Duration;

/// Every wait and every number that bounds tunnels. One for all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// For the TCP connection to the peer's tunnel port.
    pub connect_timeout: Duration,
    /// For a handshake that we began.
    pub client_handshake_timeout: Duration,
    /// For a handshake that a peer began.
    pub server_handshake_timeout: Duration,
    /// From the request for a stream to its answer.
    pub response_timeout: Duration,
    /// After which a pooled connection that nobody used is closed.
    pub pool_idle_timeout: Duration,
    /// After which the serving side closes a connection without streams; longer than the other side's pool keeps it.
    pub server_idle_timeout: Duration,
    /// Between two questions to a peer whether it lives.
    pub ping_interval: Duration,
    /// Without an answer for this long, the connection is dead. Also how long the kernel tries to deliver bytes of a live stream.
    pub ping_timeout: Duration,
    /// Without a byte either way for this long, a stream is ended. `None`: never.
    pub stream_idle_timeout: Option<Duration>,
    /// How long the answer to a stream may wait for the application's first bytes, to travel with them.
    pub accept_delay: Duration,
    /// Idle connections kept a destination.
    pub max_idle: usize,
    /// Idle connections that are to be at hand for a destination in use.
    pub warm: usize,
    /// Connections that may be dialled at once for one destination.
    pub max_dials: usize,
    /// Handshakes of peers under way at once on a worker; the oldest gives way.
    pub max_handshakes: usize,
    /// Of them, those of one pod, for which its own oldest gives way.
    pub max_pod_handshakes: usize,
    /// Streams at once on an HTTP/2 connection.
    pub max_streams: u32,
    /// Bytes of an HTTP/2 request's headers.
    pub max_header_bytes: u32,
    /// Bytes of a stream that are kept to be sent again until the peer has accepted it.
    pub max_retained: usize,
    /// Whether to offer and accept the protocol of our own, or HBONE only.
    pub own_protocol: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connect_timeout: Duration::from_secs(5),
            client_handshake_timeout: Duration::from_secs(5),
            server_handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(10),
            pool_idle_timeout: Duration::from_secs(300),
            server_idle_timeout: Duration::from_secs(600),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            stream_idle_timeout: None,
            accept_delay: Duration::from_millis(20),
            max_idle: 128,
            warm: 2,
            max_dials: 8,
            max_handshakes: 256,
            max_pod_handshakes: 64,
            max_streams: 200,
            max_header_bytes: 16 << 10,
            max_retained: 64 << 10,
            own_protocol: true,
        }
    }
}
