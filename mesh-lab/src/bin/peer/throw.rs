//! Sends bytes that a file holds, whatever they are, and tells what came back.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::peer::End;
use mesh_lab::throw::Thrown;

use crate::connect::{end_of, print};

/// Bytes of the answer that are told of.
const KEPT: usize = 256 << 10;

/// Bytes of a file.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to.
    to: SocketAddr,
    /// The file.
    #[arg(long)]
    file: PathBuf,
    /// Then one `a` every so many milliseconds, for as long as the connection lasts.
    #[arg(long)]
    drip: Option<u64>,
    /// Don't receive.
    #[arg(long)]
    deaf: bool,
    /// Close this direction after sending.
    #[arg(long)]
    half_close: bool,
    /// End after this many seconds, if the other side does not before.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let bytes = std::fs::read(&arguments.file).with_context(|| format!("reading {}", arguments.file.display()))?;
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut thrown = Thrown::default();
    let stream = match TcpStream::connect_timeout(&arguments.to, Duration::from_secs(10)) {
        Ok(stream) => stream,
        Err(error) => {
            thrown.error = Some(error.to_string());
            return print(&thrown);
        }
    };
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(Duration::from_millis(100))).context("SO_RCVTIMEO")?;
    stream.set_write_timeout(Some(Duration::from_millis(100))).context("SO_SNDTIMEO")?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(arguments, &stream, &bytes, until));
        thrown.end = if arguments.deaf { End::Done } else { receive(&stream, until, &mut thrown.received) };
        if !arguments.deaf {
            // Whoever still sends learns of the end.
            let _ = stream.shutdown(Shutdown::Both);
        }
        thrown.sent = sending.join().unwrap_or_default();
    });
    print(&thrown)
}

fn is_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted)
}

/// How many bytes went.
fn send(arguments: &Arguments, mut stream: &TcpStream, bytes: &[u8], until: Instant) -> u64 {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(written) => sent += written,
            Err(error) if is_wait(&error) && Instant::now() < until => {}
            Err(_) => return sent as u64,
        }
    }
    if arguments.half_close {
        let _ = stream.shutdown(Shutdown::Write);
        return sent as u64;
    }
    while let Some(pause) = arguments.drip.filter(|_| Instant::now() < until) {
        std::thread::sleep(Duration::from_millis(pause));
        if stream.write(b"a").is_err() {
            break;
        }
        sent += 1;
    }
    while arguments.deaf && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    sent as u64
}

fn receive(mut stream: &TcpStream, until: Instant, received: &mut Vec<u8>) -> End {
    let mut block = vec![0; 64 << 10];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return End::Eof,
            Ok(length) => {
                let room = KEPT.saturating_sub(received.len());
                received.extend(block.iter().take(length.min(room)));
            }
            Err(error) if is_wait(&error) && Instant::now() < until => {}
            Err(error) if is_wait(&error) => return End::Timeout,
            Err(error) => return end_of(&error),
        }
        if Instant::now() >= until {
            return End::Timeout;
        }
    }
}
