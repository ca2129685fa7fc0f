//! One TCP connection, opened in any of the ways that applications use.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mesh_lab::peer::{End, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Linux' MSG_FASTOPEN.
const MSG_FASTOPEN: i32 = 0x2000_0000;
const KEPT: usize = 64 * 1024;

/// One TCP connection.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to.
    to: SocketAddr,
    /// Non-blocking connect, then poll.
    #[arg(long)]
    nonblocking: bool,
    /// Bind to this address first (port 0: any).
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// TCP Fast Open: by the socket option and connect(), or by sendto() without connect().
    #[arg(long, value_enum)]
    fast_open: Option<FastOpen>,
    /// An IPv6 socket with the IPv4 address mapped.
    #[arg(long)]
    mapped: bool,
    /// Text to send; `\r`, `\n`, `\0` and `\xHH` are understood.
    #[arg(long, default_value = "")]
    send: String,
    /// Bytes to send, as hexadecimal digits; instead of --send.
    #[arg(long)]
    send_hex: Option<String>,
    /// Wait for this many bytes before sending: for servers that speak first.
    #[arg(long, default_value_t = 0)]
    read_first: usize,
    /// Close this direction after sending.
    #[arg(long)]
    half_close: bool,
    /// End after this many bytes received.
    #[arg(long)]
    expect: Option<u64>,
    /// Abort the connection at the end instead of closing it.
    #[arg(long)]
    reset: bool,
    /// Don't receive; stay connected for this many milliseconds.
    #[arg(long)]
    hold: Option<u64>,
    /// Seconds for connect() and for each receive.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum FastOpen {
    /// TCP_FASTOPEN_CONNECT.
    Connect,
    /// sendto() with MSG_FASTOPEN.
    Sendto,
}

/// A connection that goes on.
#[derive(clap::Args)]
pub struct TickArguments {
    /// Where to.
    to: SocketAddr,
    /// Milliseconds between rounds.
    #[arg(long, default_value_t = 50)]
    interval: u64,
    /// End after this many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds for connect() and for each answer.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

/// What an error says about the other side.
pub fn end_of(error: &io::Error) -> End {
    match error.kind() {
        // shutdown() of a connection that the other side has aborted meanwhile says that it is not connected.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected => {
            End::Reset
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Timeout,
        _ => End::Error,
    }
}

pub fn print(report: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report).context("writing the report")?);
    Ok(())
}

fn failed(report: &mut Report, error: &io::Error) {
    report.error = Some(error.to_string());
    report.errno = error.raw_os_error();
    if report.connected {
        report.end = end_of(error);
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let payload = match &arguments.send_hex {
        Some(digits) => unhex(digits)?,
        None => unescape(&arguments.send)?,
    };
    let mut report = Report::default();
    let start = Instant::now();
    match open(arguments, &payload) {
        Ok((socket, sent)) => {
            report.connected = true;
            report.connect_micros = micros(start);
            let stream = TcpStream::from(socket);
            report.local = stream.local_addr().ok();
            report.peer = stream.peer_addr().ok();
            if let Err(error) = talk(arguments, stream, payload.get(sent..).unwrap_or_default(), &mut report) {
                failed(&mut report, &error);
            }
        }
        Err(error) => {
            report.connect_micros = micros(start);
            failed(&mut report, &error);
        }
    }
    print(&report)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Opens the connection; gives how many bytes of the payload went with the SYN.
fn open(arguments: &Arguments, payload: &[u8]) -> io::Result<(Socket, usize)> {
    let to = match (arguments.mapped, arguments.to.ip()) {
        (true, IpAddr::V4(address)) => SocketAddr::new(address.to_ipv6_mapped().into(), arguments.to.port()),
        _ => arguments.to,
    };
    let limit = Duration::from_secs(arguments.timeout);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(address) = arguments.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
    }
    // Bounds a blocking connect() too.
    socket.set_write_timeout(Some(limit))?;
    let mut sent = 0;
    match arguments.fast_open {
        Some(FastOpen::Sendto) => {
            let flags = MsgFlags::from_bits_retain(MSG_FASTOPEN);
            sent = sendto(socket.as_raw_fd(), payload, &SockaddrStorage::from(to), flags)?;
        }
        Some(FastOpen::Connect) => {
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
        }
        None if arguments.nonblocking => connect_nonblocking(&socket, to, limit)?,
        None => socket.connect(&to.into())?,
    }
    socket.set_read_timeout(Some(limit))?;
    Ok((socket, sent))
}

fn connect_nonblocking(socket: &Socket, to: SocketAddr, limit: Duration) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {
            let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            if poll(&mut events, timeout)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    socket.set_nonblocking(false)
}

fn talk(arguments: &Arguments, mut stream: TcpStream, payload: &[u8], report: &mut Report) -> io::Result<()> {
    let connected = Instant::now();
    let mut kept = Vec::new();
    let mut received = 0u64;
    let mut buffer = vec![0; 64 * 1024];
    let mut ended = None;
    let mut sent = false;
    let result = loop {
        if !sent && received >= arguments.read_first as u64 {
            sent = true;
            if let Err(error) = stream.write_all(payload) {
                break Err(error);
            }
            if report.peer.is_none() {
                // With TCP Fast Open the connection comes to be with the first write.
                report.local = stream.local_addr().ok();
                report.peer = stream.peer_addr().ok();
            }
            if arguments.half_close
                && let Err(error) = stream.shutdown(Shutdown::Write)
            {
                break Err(error);
            }
            if let Some(millis) = arguments.hold {
                std::thread::sleep(Duration::from_millis(millis));
                ended = Some(End::Done);
            }
        }
        if ended.is_some() || sent && arguments.expect.is_some_and(|wanted| received >= wanted) {
            ended = Some(End::Done);
            break Ok(());
        }
        match stream.read(&mut buffer) {
            Ok(0) => {
                ended = Some(End::Eof);
                break Ok(());
            }
            Ok(length) => {
                report.first_byte_micros.get_or_insert_with(|| micros(connected));
                received += length as u64;
                let room = KEPT.saturating_sub(kept.len()).min(length);
                kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) => break Err(error),
        }
    };
    report.received = String::from_utf8_lossy(&kept).into_owned();
    report.received_bytes = received;
    report.end = ended.unwrap_or_default();
    if arguments.reset {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    result
}

pub fn tick(arguments: &TickArguments) -> Result<()> {
    let mut report = Report::default();
    let start = Instant::now();
    let limit = Duration::from_secs(arguments.timeout);
    match TcpStream::connect_timeout(&arguments.to, limit) {
        Ok(mut stream) => {
            report.connected = true;
            report.connect_micros = micros(start);
            report.local = stream.local_addr().ok();
            report.peer = stream.peer_addr().ok();
            stream.set_read_timeout(Some(limit)).context("read timeout")?;
            stream.set_write_timeout(Some(limit)).context("write timeout")?;
            report.end = End::Done;
            while start.elapsed() < Duration::from_secs(arguments.seconds) {
                match round(&mut stream, report.ticks) {
                    Ok(true) => report.ticks += 1,
                    Ok(false) => {
                        report.end = End::Eof;
                        break;
                    }
                    Err(error) => {
                        failed(&mut report, &error);
                        break;
                    }
                }
                println!("tick {}", report.ticks);
                std::thread::sleep(Duration::from_millis(arguments.interval));
            }
        }
        Err(error) => failed(&mut report, &error),
    }
    print(&report)
}

/// Sends a line and reads it back; false where the other side closed.
fn round(stream: &mut TcpStream, number: u64) -> io::Result<bool> {
    let line = format!("round {number:08}\n");
    stream.write_all(line.as_bytes())?;
    let mut answer = vec![0; line.len()];
    match stream.read_exact(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
        Ok(()) if answer == line.as_bytes() => Ok(true),
        Ok(()) => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not what was sent")),
    }
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        bail!("--send-hex: an odd number of digits");
    }
    digits
        .chunks(2)
        .map(|pair| {
            let text = std::str::from_utf8(pair).context("--send-hex")?;
            u8::from_str_radix(text, 16).with_context(|| format!("--send-hex: {text:?}"))
        })
        .collect()
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            bytes.extend(character.to_string().into_bytes());
            continue;
        }
        match rest.next() {
            Some('r') => bytes.push(b'\r'),
            Some('n') => bytes.push(b'\n'),
            Some('0') => bytes.push(0),
            Some('\\') => bytes.push(b'\\'),
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).with_context(|| format!("--send: \\x{digits}"))?);
            }
            other => bail!("--send: unknown escape \\{}", other.map(String::from).unwrap_or_default()),
        }
    }
    Ok(bytes)
}
