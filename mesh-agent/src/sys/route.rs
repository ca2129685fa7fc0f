//! The rule and the route that a pod's namespace needs, in each family, for transparent delivery. No iptables, no conntrack.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};

use super::netns::NetNs;

/// The table that calls every address local; other software in pods has no reason to use it.
const TABLE: u32 = 100;
/// Before the main table (32766) and behind the local one (0).
const PRIORITY: u32 = 100;
/// The loopback device has the same index in every namespace.
const LOOPBACK: u32 = 1;

/// `ip rule add fwmark MARK lookup 100` and `ip route add local default dev lo table 100`, for IPv4 and IPv6. Idempotent.
pub(super) async fn deliver_marked_locally(netns: &NetNs, mark: u32) -> io::Result<()> {
    let handle = connect(netns)?;
    absent_or(handle.route().add(v4_route()).replace().execute().await)?;
    existing_or(v4_rule(&handle, mark).execute().await)?;
    // A namespace with IPv6 switched off has nothing to deliver there.
    if netns.run(has_ipv6)? {
        absent_or(handle.route().add(v6_route()).replace().execute().await)?;
        existing_or(v6_rule(&handle, mark).execute().await)?;
    }
    Ok(())
}

/// The reverse of [`deliver_marked_locally`]; what is not there is no error.
pub(super) async fn forget_marked(netns: &NetNs, mark: u32) -> io::Result<()> {
    let handle = connect(netns)?;
    let mut v4 = v4_rule(&handle, mark);
    let mut v6 = v6_rule(&handle, mark);
    absent_or(handle.rule().del(v6.message_mut().clone()).execute().await)?;
    absent_or(handle.route().del(v6_route()).execute().await)?;
    absent_or(handle.route().del(v4_route()).execute().await)?;
    // Last, for by it `delivers_marked_locally` knows that something is left to take back.
    absent_or(handle.rule().del(v4.message_mut().clone()).execute().await)
}

/// Whether the rule of [`deliver_marked_locally`] is there.
pub(super) async fn delivers_marked_locally(netns: &NetNs, mark: u32) -> io::Result<bool> {
    let handle = connect(netns)?;
    let mut rules = handle.rule().get(IpVersion::V4).execute();
    while let Some(rule) = rules.try_next().await.map_err(io::Error::other)? {
        let is = |wanted: RuleAttribute| rule.attributes.contains(&wanted);
        if rule.header.table == TABLE as u8 && is(RuleAttribute::FwMark(mark)) && is(RuleAttribute::Priority(PRIORITY)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn connect(netns: &NetNs) -> io::Result<Handle> {
    let (connection, handle, _) = netns.run(rtnetlink::new_connection)??;
    // Ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|off| off.trim() == "0")
}

fn v4_route() -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new().table_id(TABLE).kind(RouteType::Local).scope(RouteScope::Host).output_interface(LOOPBACK).build()
}

fn v6_route() -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Universe)
        .output_interface(LOOPBACK)
        .build()
}

fn v4_rule(handle: &Handle, mark: u32) -> rtnetlink::RuleAddRequest<Ipv4Addr> {
    let mut rule = handle.rule().add().v4();
    complete(rule.message_mut(), mark);
    rule
}

fn v6_rule(handle: &Handle, mark: u32) -> rtnetlink::RuleAddRequest<Ipv6Addr> {
    let mut rule = handle.rule().add().v6();
    complete(rule.message_mut(), mark);
    rule
}

fn complete(rule: &mut rtnetlink::packet_route::rule::RuleMessage, mark: u32) {
    rule.header.table = TABLE as u8;
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Priority(PRIORITY));
    rule.attributes.push(RuleAttribute::FwMark(mark));
    rule.attributes.push(RuleAttribute::FwMask(u32::MAX));
}

fn existing_or(result: Result<(), Error>) -> io::Result<()> {
    forgive(result, libc::EEXIST)
}

fn absent_or(result: Result<(), Error>) -> io::Result<()> {
    // A kernel without IPv6 has nothing of that family to take away.
    let absent = [Some(libc::ESRCH), Some(libc::EAFNOSUPPORT)];
    forgive(result, libc::ENOENT).or_else(|e| if absent.contains(&e.raw_os_error()) { Ok(()) } else { Err(e) })
}

fn forgive(result: Result<(), Error>, errno: i32) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(Error::NetlinkError(message)) => {
            let error = message.to_io();
            if error.raw_os_error() == Some(errno) { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
