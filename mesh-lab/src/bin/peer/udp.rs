//! Datagrams.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::peer::{End, Report};

use crate::connect::{end_of, print};

/// A server that sends back what it gets.
#[derive(clap::Args)]
pub struct EchoArguments {
    /// Where; `[::]:PORT` serves both families.
    #[arg(long)]
    listen: SocketAddr,
}

/// One datagram.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to.
    to: SocketAddr,
    /// What.
    #[arg(long, default_value = "ping")]
    send: String,
    /// connect() the socket first.
    #[arg(long)]
    connect: bool,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
}

pub fn echo(arguments: &EchoArguments) -> Result<()> {
    let socket = UdpSocket::bind(arguments.listen).with_context(|| format!("bind {}", arguments.listen))?;
    println!("listening on {}", arguments.listen);
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).context("receiving")?;
        socket.send_to(buffer.get(..length).unwrap_or_default(), from).with_context(|| format!("sending to {from}"))?;
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::default();
    if let Err(error) = exchange(arguments, &mut report) {
        report.end = end_of(&error);
        report.errno = error.raw_os_error();
        report.error = Some(error.to_string());
    }
    print(&report)
}

fn exchange(arguments: &Arguments, report: &mut Report) -> std::io::Result<()> {
    let any = if arguments.to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(arguments.timeout)))?;
    if arguments.connect {
        socket.connect(arguments.to)?;
        report.connected = true;
        report.peer = socket.peer_addr().ok();
        socket.send(arguments.send.as_bytes())?;
    } else {
        socket.send_to(arguments.send.as_bytes(), arguments.to)?;
    }
    report.local = socket.local_addr().ok();
    let mut buffer = vec![0; 65536];
    let (length, from) = socket.recv_from(&mut buffer)?;
    report.peer = Some(from);
    report.received_bytes = length as u64;
    report.received = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    report.end = End::Done;
    Ok(())
}
