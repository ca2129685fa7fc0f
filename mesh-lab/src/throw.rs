//! A client that sends whatever bytes a test wants, from inside a pod: `mesh-lab-peer throw`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::http2::{self, Frame};
use crate::peer::{self, End};
use crate::pod::Pod;

/// What it saw.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Thrown {
    /// Why it could not connect.
    pub error: Option<String>,
    /// Bytes that went.
    pub sent: u64,
    /// What came back, at most the first 256 KiB.
    pub received: Vec<u8>,
    /// How it ended.
    pub end: End,
}

impl Thrown {
    /// What came back, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// The status of an HTTP/1 answer; 0 if there is none.
    pub fn status(&self) -> u16 {
        let text = self.text();
        let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|status| status.parse().ok());
        status.unwrap_or(0)
    }

    /// What came back, as HTTP/2.
    pub fn frames(&self) -> Vec<Frame> {
        http2::frames(&self.received)
    }
}

impl Pod {
    /// Sends bytes from the pod and receives until the other side ends the connection, for `limit` at most; `flags` are the program's own
    /// (`mesh-lab-peer throw --help`).
    ///
    /// # Errors
    /// The program can't be started, or writes no report.
    pub fn throw(&self, to: SocketAddr, bytes: &[u8], limit: Duration, flags: &[&str]) -> Result<Thrown> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("mesh-lab-throw-{}-{number}", std::process::id()));
        std::fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        let (to, seconds) = (to.to_string(), limit.as_secs().max(1).to_string());
        let path = file.display().to_string();
        let words = [&["throw", &to, "--file", &path, "--seconds", &seconds], flags].concat();
        let thrown = peer::run(&self.place(), &words, limit + Duration::from_secs(15));
        let _ = std::fs::remove_file(&file);
        thrown
    }
}
