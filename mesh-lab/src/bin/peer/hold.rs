//! Many connections that do nothing.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::peer::HoldReport;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::connect::print;

/// Many connections.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to.
    to: SocketAddr,
    /// How many.
    #[arg(long, default_value_t = 100)]
    connections: u64,
    /// Seconds to hold them.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds for each connect().
    #[arg(long, default_value_t = 5)]
    timeout: u64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    let wanted = arguments.connections + 64;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).context("raising the limit of open files")?;
    }
    let mut report = HoldReport::default();
    let mut held = Vec::new();
    for _ in 0..arguments.connections {
        match TcpStream::connect_timeout(&arguments.to, Duration::from_secs(arguments.timeout)) {
            Ok(stream) => {
                report.opened += 1;
                held.push(stream);
            }
            Err(_) => report.failed += 1,
        }
    }
    println!("holding {}", report.opened);
    std::thread::sleep(Duration::from_secs(arguments.seconds));
    for mut stream in held {
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        let alive = match stream.read(&mut [0; 1]) {
            Ok(length) => length > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        report.alive += u64::from(alive);
    }
    print(&report)
}
