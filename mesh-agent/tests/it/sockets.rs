//! Ending a pod's connections from outside, on a real kernel.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mesh_agent::sys::netns::NetNs;
use mesh_agent::sys::sockdiag::Destroyer;

/// A connection to the listener: both ends, the client's first.
fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_secs(5)).expect("it listens");
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (server, _) = listener.accept().expect("it accepts");
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (client, server)
}

/// Where there is no such connection, or no longer, the kernel takes the next best for it: whoever listens at its local end.
#[test]
fn a_connection_is_ended_and_never_the_listener_behind_it() {
    let destroyer = Destroyer::new(&NetNs::current().unwrap()).unwrap();
    for at in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        let listener = TcpListener::bind(at).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ip = if at.starts_with('[') { "::1" } else { "127.0.0.1" }.parse().unwrap();
        let here = SocketAddr::new(ip, port);
        assert!(!destroyer.destroy(here, SocketAddr::new(ip, 9)).unwrap(), "{at}: there is no such connection");
        let (mut client, mut server) = connection(&listener);
        let there = client.local_addr().unwrap();
        // Either end will do.
        assert!(destroyer.destroy(here, there).unwrap(), "{at}");
        assert!(server.read(&mut [0]).is_err() && client.read(&mut [0]).is_err(), "{at}: both ends are told");
        assert!(!destroyer.destroy(here, there).unwrap(), "{at}: it is gone");
        let (mut client, mut server) = connection(&listener);
        let there = client.local_addr().unwrap();
        assert!(destroyer.destroy(there, here).unwrap(), "{at}");
        assert!(server.read(&mut [0]).is_err() && client.read(&mut [0]).is_err(), "{at}: both ends are told");
        assert!(!destroyer.destroy(here, there).unwrap(), "{at}: the server's end went with it");
        connection(&listener);
    }
}
