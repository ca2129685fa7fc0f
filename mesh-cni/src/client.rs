//! Asking the agent.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::protocol::{Answer, Command, Request, VERSION, receive, send};

/// Between two attempts to reach an agent that is not there.
const AGAIN: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody could be asked.
    #[error("the mesh's agent on this node cannot be reached at {socket}: {error}")]
    Unreachable {
        /// Where.
        socket: String,
        /// What happened last.
        error: io::Error,
    },
    /// It was asked, and did not answer in time or not in order.
    #[error("the mesh's agent on this node did not answer: {0}")]
    NoAnswer(io::Error),
}

/// Asks once. `deadline` bounds it all.
pub fn ask(socket: &Path, command: Command, deadline: Instant) -> Result<Answer, AskError> {
    let unreachable = |error| AskError::Unreachable { socket: socket.display().to_string(), error };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    let mut exchange = || -> io::Result<Answer> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_write_timeout(Some(left))?;
        stream.set_read_timeout(Some(left))?;
        send(&mut stream, &Request { version: VERSION, command: command.clone() })?;
        receive(&mut stream)
    };
    exchange().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => AskError::NoAnswer(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
        _ => AskError::NoAnswer(error),
    })
}

/// Asks until there is an answer: an agent that is being replaced is back in a moment.
pub fn ask_until(socket: &Path, command: &Command, deadline: Instant) -> Result<Answer, AskError> {
    loop {
        let error = match ask(socket, command.clone(), deadline) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if Instant::now() + AGAIN >= deadline {
            return Err(error);
        }
        std::thread::sleep(AGAIN);
    }
}
