use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

#[test]
fn what_a_peer_received_is_told_from_what_it_did_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    server.write_all(b"hi").unwrap();
    client.read_exact(&mut [0; 2]).unwrap();
    assert!(!has_unacknowledged(&client));
    // A peer that is gone answers the next bytes with a reset, and never acknowledges them.
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    client.write_all(b"anybody?").unwrap();
    assert!(client.write_all(b"anybody?").is_err(), "the reset has come");
    assert!(has_unacknowledged(&client));
}

#[test]
fn the_counters_are_where_the_kernel_puts_them() {
    let mut info = [0u8; 232];
    info[120..128].copy_from_slice(&101u64.to_ne_bytes());
    info[200..208].copy_from_slice(&150u64.to_ne_bytes());
    info[208..216].copy_from_slice(&20u64.to_ne_bytes());
    assert_eq!(unacknowledged(&info), Some(30));
    assert_eq!(unacknowledged(&info[..150]), None);
}
