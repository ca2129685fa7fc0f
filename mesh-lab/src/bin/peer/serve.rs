//! TCP servers of every temper.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use mesh_lab::peer::{End, Served};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{bulk, connect::end_of};

/// A TCP server.
#[derive(clap::Args)]
pub struct Arguments {
    /// What it does with a connection.
    #[arg(long, value_enum, default_value_t = Mode::Echo)]
    mode: Mode,
    /// Where; `[::]:PORT` serves both families.
    #[arg(long)]
    listen: SocketAddr,
    /// What a server that speaks first says.
    #[arg(long, default_value = "220 greeter ready\r\n")]
    banner: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Sends back what it gets.
    Echo,
    /// Speaks first, then sends back what it gets.
    Banner,
    /// Says whom it sees as client and as itself, as JSON, and closes.
    PeerName,
    /// The other end of `bulk`.
    Bulk,
    /// Reads all, then says how many bytes.
    Sink,
    /// Never reads.
    Stall,
    /// Resets the connection once it got something.
    Reset,
    /// Speaks first and closes its direction, then reads all.
    HalfClose,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let address = arguments.listen;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).context("socket")?;
    socket.set_reuse_address(true).context("SO_REUSEADDR")?;
    if address.is_ipv6() {
        socket.set_only_v6(false).context("IPV6_V6ONLY")?;
    }
    socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
    socket.listen(4096).context("listen")?;
    say(&format!("listening on {address}"));
    let listener = std::net::TcpListener::from(socket);
    loop {
        // Out of descriptors, or a client that gave up: neither ends a server.
        let Ok((stream, peer)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let (mode, banner) = (arguments.mode, arguments.banner.clone());
        std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || serve(stream, peer, mode, &banner))
            .context("starting a thread")?;
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn report(served: &Served) {
    if let Ok(line) = serde_json::to_string(served) {
        say(&line);
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr, mode: Mode, banner: &str) {
    let Ok(local) = stream.local_addr() else { return };
    let mut served = Served { peer, local, end: None, received_bytes: 0 };
    report(&served);
    let _ = stream.set_nodelay(true);
    let result = match mode {
        Mode::Echo => echo(&mut stream, &mut served.received_bytes),
        Mode::Banner => stream.write_all(banner.as_bytes()).and_then(|()| echo(&mut stream, &mut served.received_bytes)),
        Mode::PeerName => stream
            .write_all(format!("{{\"peer\":\"{peer}\",\"local\":\"{local}\"}}\n").as_bytes())
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .and_then(|()| drain(&mut stream, &mut served.received_bytes)),
        Mode::Bulk => bulk::serve(&mut stream, &mut served.received_bytes),
        Mode::Sink => drain(&mut stream, &mut served.received_bytes)
            .and_then(|()| stream.write_all(format!("{{\"bytes\":{}}}\n", served.received_bytes).as_bytes())),
        Mode::Stall => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Mode::Reset => {
            let mut first = [0; 1024];
            stream.read(&mut first).and_then(|length| {
                served.received_bytes = length as u64;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))
            })
        }
        Mode::HalfClose => stream
            .write_all(banner.as_bytes())
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .and_then(|()| drain(&mut stream, &mut served.received_bytes)),
    };
    served.end = Some(match result {
        Ok(()) => End::Eof,
        Err(error) => end_of(&error),
    });
    report(&served);
}

fn echo(stream: &mut TcpStream, received: &mut u64) -> io::Result<()> {
    let mut buffer = [0; 16384];
    loop {
        let length = stream.read(&mut buffer)?;
        *received += length as u64;
        match buffer.get(..length) {
            Some([]) | None => return stream.shutdown(Shutdown::Write),
            Some(bytes) => stream.write_all(bytes)?,
        }
    }
}

fn drain(stream: &mut TcpStream, received: &mut u64) -> io::Result<()> {
    let mut buffer = [0; 16384];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => *received += length as u64,
        }
    }
}
