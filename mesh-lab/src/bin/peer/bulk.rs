//! Large transfers both ways at once. The bytes are pseudo-random and known to both sides, so each can check what it got.
//!
//! Client → server: how many bytes follow and how many are wanted (two big-endian 64-bit numbers), then the bytes.
//! Server → client: the bytes wanted, then a line with the SHA-256 of what it received.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::peer::BulkReport;
use sha2::{Digest as _, Sha256};

use crate::connect::print;

const BLOCK: usize = 128 * 1024;
const UP: u64 = 0x9e37_79b9_7f4a_7c15;
const DOWN: u64 = 0xd1b5_4a32_d192_ed03;

/// A large transfer.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to.
    to: SocketAddr,
    /// Bytes to send.
    #[arg(long, default_value_t = 0)]
    send: u64,
    /// Bytes to receive.
    #[arg(long, default_value_t = 0)]
    receive: u64,
    /// Seconds without progress after which it gives up.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

/// Marsaglia's xorshift: fast, and no two blocks are alike.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            for (to, from) in word.iter_mut().zip(self.0.to_le_bytes()) {
                *to = from;
            }
        }
    }
}

/// Sends `length` bytes of noise and gives their digest.
fn send(mut to: impl Write, seed: u64, mut length: u64) -> io::Result<String> {
    let mut noise = Noise(seed);
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK];
    while length > 0 {
        noise.fill(&mut block);
        let size = usize::try_from(length).unwrap_or(BLOCK).min(BLOCK);
        let bytes = block.get(..size).unwrap_or_default();
        digest.update(bytes);
        to.write_all(bytes)?;
        length -= size as u64;
    }
    Ok(format!("{:x}", digest.finalize()))
}

/// Receives `length` bytes and gives their digest; `count` follows.
fn receive(mut from: impl Read, mut length: u64, count: &mut u64) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK];
    while length > 0 {
        let size = usize::try_from(length).unwrap_or(BLOCK).min(BLOCK);
        let got = from.read(block.get_mut(..size).unwrap_or_default())?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digest.update(block.get(..got).unwrap_or_default());
        *count += got as u64;
        length -= got as u64;
    }
    Ok(format!("{:x}", digest.finalize()))
}

/// The server's side.
pub fn serve(stream: &mut TcpStream, count: &mut u64) -> io::Result<()> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let [upload, download] = [&header[..8], &header[8..]].map(|half| half.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)));
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || send(&mut writer, DOWN, download));
    let digest = receive(&mut *stream, upload, count)?;
    sender.join().map_err(|_| io::Error::other("the sending thread died"))??;
    stream.write_all(format!("{digest}\n").as_bytes())?;
    // The client closes first.
    stream.read(&mut [0; 1]).map(|_| ())
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut report = BulkReport::default();
    let start = Instant::now();
    if let Err(error) = transfer(arguments, &mut report) {
        report.error = Some(format!("{error:#}"));
    }
    report.micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    report.expected_sha256 = send(io::sink(), DOWN, arguments.receive).context("digest")?;
    report.ok = report.error.is_none() && report.sent_sha256 == report.server_sha256 && report.received_sha256 == report.expected_sha256;
    print(&report)
}

fn transfer(arguments: &Arguments, report: &mut BulkReport) -> Result<()> {
    let limit = Duration::from_secs(arguments.timeout);
    let mut stream = TcpStream::connect_timeout(&arguments.to, limit).context("connect")?;
    stream.set_read_timeout(Some(limit)).context("read timeout")?;
    stream.set_write_timeout(Some(limit)).context("write timeout")?;
    let mut writer = stream.try_clone().context("duplicating the socket")?;
    let (upload, download) = (arguments.send, arguments.receive);
    let sender = std::thread::spawn(move || -> io::Result<String> {
        writer.write_all(&upload.to_be_bytes())?;
        writer.write_all(&download.to_be_bytes())?;
        send(&mut writer, UP, upload)
    });
    report.received_sha256 = receive(&mut stream, download, &mut report.received_bytes).context("receiving")?;
    report.sent_sha256 = sender.join().map_err(|_| anyhow::anyhow!("the sending thread died"))?.context("sending")?;
    report.sent_bytes = upload;
    let mut line = [0; 65];
    stream.read_exact(&mut line).context("the server's digest")?;
    report.server_sha256 = String::from_utf8_lossy(&line).trim().to_owned();
    Ok(())
}
