//! The peer program's gRPC and WebSocket: servers that do as they are asked, clients that report what they were answered.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Client, Server, binary, run};
use crate::pod::Pod;

/// How one gRPC call ended.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct CallReport {
    /// gRPC's status code.
    pub code: i32,
    /// Its message.
    pub message: String,
    /// Its details (`grpc-status-details-bin`), as text.
    pub details: String,
    /// The names of the servers that the answers came from.
    pub servers: Vec<String>,
    /// The texts of the answers.
    pub texts: Vec<String>,
    /// Messages of the client that the server had seen with its last answer.
    pub messages: u32,
    /// Metadata that the server sent beside the status.
    pub metadata: Vec<(String, String)>,
}

/// How a WebSocket went.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct WebSocketReport {
    /// Texts that came back.
    pub texts: Vec<String>,
    /// Bytes of binary messages that came back as they were sent.
    pub binary_bytes: u64,
    /// The code with which the server closed, if it closed with one.
    pub close_code: Option<u16>,
    /// The reason beside it.
    pub close_reason: String,
}

impl Pod {
    /// Starts a gRPC server that answers as `name`.
    ///
    /// # Errors
    /// As [`Pod::serve`].
    pub fn serve_grpc(&self, name: &str, port: u16) -> Result<Server> {
        self.serve_as(&["grpc-serve", "--listen", &format!("[::]:{port}"), "--name", name])
    }

    /// Starts a WebSocket server that sends back what it gets, and closes as it is told.
    ///
    /// # Errors
    /// As [`Pod::serve`].
    pub fn serve_web_socket(&self, port: u16) -> Result<Server> {
        self.serve_as(&["ws-serve", "--listen", &format!("[::]:{port}")])
    }

    /// Runs a gRPC client of the peer program with these words (`mesh-lab-peer grpc-call --help`), whose calls share one connection.
    ///
    /// # Errors
    /// It can't be started, or runs for longer than `limit`. A call that fails is no error: see [`CallReport`].
    pub fn grpc(&self, words: &[&str], limit: Duration) -> Result<Vec<CallReport>> {
        run(&self.place(), &[&["grpc-call"], words].concat(), limit)
    }

    /// As [`Pod::grpc`], running on; its guard's [`Client::finish`] gives the reports.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_grpc(&self, words: &[&str]) -> Result<Client> {
        self.spawn_peer(&[&["grpc-call"], words].concat())
    }

    /// Opens a WebSocket, sends texts and so many bytes of binary messages, and closes it.
    ///
    /// # Errors
    /// It can't be started, runs for longer than `limit`, or there was no WebSocket.
    pub fn web_socket(&self, words: &[&str], limit: Duration) -> Result<WebSocketReport> {
        run(&self.place(), &[&["ws-call"], words].concat(), limit)
    }

    pub(super) fn serve_as(&self, words: &[&str]) -> Result<Server> {
        let binary = binary()?.display().to_string();
        let words: Vec<&str> = std::iter::once(binary.as_str()).chain(words.iter().copied()).collect();
        let mut process = self.place().spawn(&words, &self.log_file(), &[])?;
        process.wait_for_log("listening", Duration::from_secs(10))?;
        Ok(Server { process })
    }
}
