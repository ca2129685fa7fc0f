//! Who may ask. The endpoint has no password: being on the node's loopback is the right. So it must be sure of that, and of not being spoken
//! to by a browser on behalf of some page: a page's host name can be made to resolve to 127.0.0.1 (DNS rebinding), and a page can post a form
//! to any address.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("only processes of this node may ask")]
    Peer,
    #[error("the Host header must be one and name the loopback: localhost, 127.0.0.1 or [::1]")]
    Host,
    #[error("web pages may not ask")]
    Browser,
}

pub(super) fn check(peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refusal::Peer);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::Host) };
    if !host.to_str().is_ok_and(is_loopback) {
        return Err(Refusal::Host);
    }
    // Sent by browsers only. The address bar and the endpoint's own pages are fine.
    for origin in headers.get_all(ORIGIN) {
        let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")).is_some_and(is_loopback);
        if !own {
            return Err(Refusal::Browser);
        }
    }
    let same_site = |value: &http::HeaderValue| matches!(value.as_bytes(), b"same-origin" | b"none");
    if !headers.get_all("sec-fetch-site").iter().all(same_site) {
        return Err(Refusal::Browser);
    }
    Ok(())
}

/// Whether `host[:port]` names the loopback literally; a name is never resolved.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if port.is_empty() || is_port(port) => {
                return host.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.is_loopback());
            }
            _ => return false,
        },
        None => match authority.find(':') {
            Some(at) => {
                let (host, port) = authority.split_at(at);
                if !is_port(port) {
                    return false;
                }
                host
            }
            None => authority,
        },
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}
