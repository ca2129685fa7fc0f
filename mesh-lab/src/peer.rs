//! The peer program `mesh-lab-peer`: servers and clients that do what applications do to sockets, and report it as JSON.
//!
//! It exists beside curl and nginx because tests ask for things that those can't do on demand: a bind before the connect, TCP Fast
//! Open, a mapped address on an IPv6 socket, a reset, a peer that stops reading. This module starts it and reads what it says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pod::Pod;
use crate::process::{Place, Process};

mod calls;

pub use calls::{CallReport, WebSocketReport};

/// What a client saw (`connect`, `tick`, `udp`).
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// connect() succeeded.
    pub connected: bool,
    /// The error that ended it, as the system words it.
    pub error: Option<String>,
    /// Its number.
    pub errno: Option<i32>,
    /// getsockname() once connected.
    pub local: Option<SocketAddr>,
    /// getpeername() once connected.
    pub peer: Option<SocketAddr>,
    /// What was received, as text; at most the first 64 KiB.
    pub received: String,
    /// How many bytes were received.
    pub received_bytes: u64,
    /// How it ended.
    pub end: End,
    /// Microseconds that connect() took.
    pub connect_micros: u64,
    /// Microseconds from connect()'s return to the first byte received.
    pub first_byte_micros: Option<u64>,
    /// Rounds of a `tick` client.
    pub ticks: u64,
}

/// What a client saw that connects again and again (`repeat`).
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct RepeatReport {
    /// Connections that did all that was asked of them.
    pub rounds: u64,
    /// Those that did not, in words; at most the first hundred.
    pub failures: Vec<String>,
}

/// How a connection ended for the one who reports it.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It never came to be.
    #[default]
    NotConnected,
    /// The other side closed in order.
    Eof,
    /// The other side aborted (ECONNRESET, EPIPE).
    Reset,
    /// Time was up.
    Timeout,
    /// This side had enough.
    Done,
    /// Another error.
    Error,
}

/// What a `bulk` client saw.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkReport {
    /// Everything arrived as it was sent, both ways.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// Bytes sent, and their SHA-256 here and as the server computed it.
    pub sent_bytes: u64,
    /// See [`Self::sent_bytes`].
    pub sent_sha256: String,
    /// See [`Self::sent_bytes`].
    pub server_sha256: String,
    /// Bytes received, their SHA-256, and what it should be.
    pub received_bytes: u64,
    /// See [`Self::received_bytes`].
    pub received_sha256: String,
    /// See [`Self::received_bytes`].
    pub expected_sha256: String,
    /// How long it took.
    pub micros: u64,
}

/// What a `hold` client saw.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldReport {
    /// Connections that connect() opened.
    pub opened: u64,
    /// Connections that it refused.
    pub failed: u64,
    /// Connections that were still open at the end.
    pub alive: u64,
}

/// What a server writes to its log for each connection, one line each.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The client, as accept() gives it.
    pub peer: SocketAddr,
    /// This side, as getsockname() gives it.
    pub local: SocketAddr,
    /// None at accept; then how the client's direction ended.
    pub end: Option<End>,
    /// Bytes received until then.
    pub received_bytes: u64,
}

/// Where the peer program lies: `NODEMESH_LAB_PEER`, or near this program in the target directory.
///
/// # Errors
/// It isn't built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NODEMESH_LAB_PEER") {
        return Ok(PathBuf::from(path));
    }
    let executable = std::env::current_exe().context("finding this program")?;
    executable
        .ancestors()
        .skip(1)
        .take(3)
        .map(|directory| directory.join("mesh-lab-peer"))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("mesh-lab-peer is not built near {}: cargo build -p mesh-lab", executable.display()))
}

/// Runs the peer program in a place to its end, and reads its last line.
///
/// # Errors
/// It can't be started, `limit` passed, or it wrote no report; carries what it wrote.
pub fn run<T: DeserializeOwned>(place: &Place, words: &[&str], limit: Duration) -> Result<T> {
    let binary = binary()?.display().to_string();
    let words: Vec<&str> = std::iter::once(binary.as_str()).chain(words.iter().copied()).collect();
    let finished = place.exec(&words, limit)?;
    last_line(finished.success()?).with_context(|| words.join(" "))
}

fn last_line<T: DeserializeOwned>(text: &str) -> Result<T> {
    let line = text.trim_end().lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("no report in {text:?}"))
}

impl Pod {
    /// Runs a client of the peer program in the pod: `connect`, `tick` or `udp` with its flags (`mesh-lab-peer --help`).
    ///
    /// # Errors
    /// It can't be started, or runs for longer than `limit`. A refused connection is no error: see [`Report`].
    pub fn peer(&self, words: &[&str], limit: Duration) -> Result<Report> {
        run(&self.place(), words, limit)
    }

    /// Connects, sends the text, and reports what came back until the other side closed (this side half-closes after sending).
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub fn connect(&self, to: SocketAddr, text: &str) -> Result<Report> {
        self.peer(&["connect", &to.to_string(), "--send", text, "--half-close"], Duration::from_secs(30))
    }

    /// As [`Self::connect`], with this side left open until the other closes: servers of HTTP take a client that ends its side before it
    /// is answered for one that has gone.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub fn request(&self, to: SocketAddr, text: &str) -> Result<Report> {
        self.peer(&["connect", &to.to_string(), "--send", text], Duration::from_secs(30))
    }

    /// Sends and receives pseudo-random bytes at once with a `bulk` server, and compares digests.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub fn bulk(&self, to: SocketAddr, send: u64, receive: u64, limit: Duration) -> Result<BulkReport> {
        let seconds = limit.as_secs().max(1).to_string();
        let words = ["bulk", &to.to_string(), "--send", &send.to_string(), "--receive", &receive.to_string(), "--timeout", &seconds];
        run(&self.place(), &words, limit + Duration::from_secs(5))
    }

    /// Starts a client of the peer program that runs on; its guard's [`Client::finish`] gives the report.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_peer(&self, words: &[&str]) -> Result<Client> {
        let binary = binary()?.display().to_string();
        let words: Vec<&str> = std::iter::once(binary.as_str()).chain(words.iter().copied()).collect();
        Ok(Client { process: self.place().spawn(&words, &self.log_file(), &[])? })
    }

    /// Starts a server of the peer program on all addresses of both families: `echo`, `banner`, `peer-name`, `bulk`, `sink`,
    /// `stall`, `reset`, `half-close`. Returns once it listens.
    ///
    /// # Errors
    /// It can't be started, or the port is taken.
    pub fn serve(&self, mode: &str, port: u16) -> Result<Server> {
        self.serve_with(&["--mode", mode, "--listen", &format!("[::]:{port}")])
    }

    /// As [`Self::serve`], with the server's own flags.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_with(&self, flags: &[&str]) -> Result<Server> {
        self.serve_as(&[&["serve"], flags].concat())
    }
}

/// What an HTTP server of the peer program was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HttpSeen {
    /// The server's name.
    pub name: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The host, by the target or the header.
    pub host: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Each line of the headers.
    pub headers: Vec<(String, String)>,
    /// Each line of the trailers.
    pub trailers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body: usize,
    /// Requests that the server has had, this one too.
    pub total: u64,
    /// Those for the path that a query's `about` names, whatever theirs said; 0 without one.
    pub about: u64,
}

impl HttpSeen {
    /// The values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

impl Pod {
    /// Starts an HTTP server that answers as `name`.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_http(&self, name: &str, port: u16) -> Result<Server> {
        self.serve_as(&["http", "--listen", &format!("[::]:{port}"), "--name", name])
    }

    /// Runs curl with these words and reads its answer, in at most ten seconds.
    ///
    /// # Errors
    /// There is no curl, or what it wrote is no answer. A request that fails is no error: see [`Curled::exit`].
    pub fn curl(&self, words: &[&str]) -> Result<Curled> {
        let all: Vec<&str> =
            ["curl", "-sS", "-i", "-m", "10", "-w", "\n%{http_code} %{http_version}"].iter().chain(words).copied().collect();
        let finished = self.exec(&all, Duration::from_secs(15))?;
        let text = finished.stdout.as_str();
        let (rest, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let status = last.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0);
        // Interim answers come first.
        let mut rest = rest;
        let mut head = "";
        while let Some((first, after)) = rest.split_once("\r\n\r\n").filter(|_| rest.starts_with("HTTP/")) {
            (head, rest) = (first, after);
        }
        let headers =
            head.lines().skip(1).filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
        Ok(Curled { exit: finished.code(), status, headers: headers.collect(), body: rest.to_owned(), error: finished.stderr.clone() })
    }
}

/// An answer that curl got.
#[derive(Debug, Clone)]
pub struct Curled {
    /// Its exit code.
    pub exit: Option<i32>,
    /// Status of the response; 0 if there was none.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
    /// What it complained of.
    pub error: String,
}

impl Curled {
    /// The first value of a header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// What the peer program's server saw.
    ///
    /// # Panics
    /// The body is nothing that it wrote.
    pub fn seen(&self) -> HttpSeen {
        let seen = serde_json::from_str(&self.body);
        #[expect(clippy::panic, reason = "a test's answer is not what the test asked for")]
        seen.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A running server of the peer program.
#[derive(Debug)]
pub struct Server {
    /// Its process.
    pub process: Process,
}

impl Server {
    /// The connections it accepted, and how they ended, in order.
    pub fn served(&self) -> Vec<Served> {
        self.process.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many connections it accepted.
    pub fn accepted(&self) -> usize {
        self.served().iter().filter(|served| served.end.is_none()).count()
    }
}

/// A running client of the peer program.
#[derive(Debug)]
pub struct Client {
    /// Its process.
    pub process: Process,
}

impl Client {
    /// Waits for its end and reads its report.
    ///
    /// # Errors
    /// It still runs after `limit`, or wrote no report.
    pub fn finish<T: DeserializeOwned>(mut self, limit: Duration) -> Result<T> {
        let status = self.process.wait(limit)?;
        let log = self.process.log();
        status.with_context(|| format!("the client still runs after {limit:?}; it wrote:\n{log}"))?;
        last_line(&log)
    }

    /// How many rounds a `tick` client has done.
    pub fn ticks(&self) -> u64 {
        self.process.log().lines().filter_map(|line| line.strip_prefix("tick ")).filter_map(|number| number.parse().ok()).max().unwrap_or(0)
    }
}
