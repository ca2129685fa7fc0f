use super::*;

#[tokio::test]
async fn what_waits_at_a_listener_is_taken_before_it_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
    let mut taken = Vec::new();
    empty(listener, |stream, peer| taken.push((stream, peer)));
    let peers: std::collections::HashSet<SocketAddr> = taken.iter().map(|(_, peer)| *peer).collect();
    assert_eq!(peers, clients.iter().map(|client| client.local_addr().unwrap()).collect());
    assert!(std::net::TcpStream::connect(at).is_err(), "it is closed");
}
