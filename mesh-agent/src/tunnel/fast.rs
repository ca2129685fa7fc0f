//! `nodemesh/1` over a [`TlsChannel`](super::tls::channel::TlsChannel): the connection, the relay of a stream, and the serving side.

pub mod link;
pub mod relay;
pub mod serve;
