//! One connection after the other, each with a question, an answer and an orderly end.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_lab::peer::RepeatReport;

use crate::connect::print;

const QUESTION: &[u8] = b"are you there?\n";
const KEPT: usize = 100;

/// One connection after the other.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to: an echo server.
    to: SocketAddr,
    /// Milliseconds between connections.
    #[arg(long, default_value_t = 2)]
    interval: u64,
    /// End after this many seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds for connect() and for each receive.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let limit = Duration::from_secs(arguments.timeout);
    let mut report = RepeatReport::default();
    while begun.elapsed() < Duration::from_secs(arguments.seconds) {
        match round(arguments.to, limit) {
            Ok(()) => {
                report.rounds += 1;
                println!("tick {}", report.rounds);
            }
            Err(error) if report.failures.len() < KEPT => {
                report.failures.push(format!("{} ms after the start: {error}", begun.elapsed().as_millis()));
            }
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_millis(arguments.interval));
    }
    print(&report)
}

fn round(to: SocketAddr, limit: Duration) -> io::Result<()> {
    let named = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let mut stream = TcpStream::connect_timeout(&to, limit).map_err(named("connect"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(QUESTION).map_err(named("send"))?;
    let mut answer = vec![0; QUESTION.len()];
    stream.read_exact(&mut answer).map_err(named("receive"))?;
    stream.shutdown(Shutdown::Write).map_err(named("close"))?;
    let rest = stream.read(&mut [0; 1]).map_err(named("end"))?;
    if answer == QUESTION && rest == 0 { Ok(()) } else { Err(io::Error::other("another answer than the question")) }
}
