//! How one agent of an instance takes the place of another, while both carry connections.
//!
//! ```text
//!  newer                                   older
//!    │ connects: "announce 1"  ───────────►  notes it: asked to end (SIGTERM) it serves on, for a while, until it is replaced
//!    │ reads its configuration, gets its certificates, loads its programs
//!    │ "release"               ───────────►  stops writing the kernel's maps, lets go ports and lock; accepts on
//!    │             ◄───────────  "released"
//!    │ takes the lock, adopts the maps, opens its own listeners beside the older one's
//!    │ "serving"               ───────────►  drains: what waits at its listeners goes to the newer one's
//!    │             ◄─────────── (end of the connection: the older one is gone)
//! ```
//!
//! They speak over a Unix-domain socket beside the lock, in lines. Who asks must be of the same user: whoever may ask may end the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::lock::{LockError, WriterLock};

mod course;

pub use course::{Course, Why};

/// How long the older agent is waited for: to answer, and to let go.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long the older agent serves on for one that is to replace it.
pub const SUCCESSION: Duration = Duration::from_secs(30);
/// Longest line.
const LINE: u64 = 64;
const ANNOUNCE: &str = "announce 1";
const RELEASE: &str = "release";
const RELEASED: &str = "released";
const SERVING: &str = "serving";

/// Where the older agent hears the newer one.
fn socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Why an agent does not take another's place.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The socket.
    #[error("{path}: {error} (--run-dir says where)")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The older one does not let go.
    #[error(
        "another agent of this instance{} serves this node and holds {}: {why}; end it, or give this agent an --instance of its own",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .lock.display()
    )]
    Held {
        /// The lock's file.
        lock: PathBuf,
        /// The one that holds it.
        pid: Option<u32>,
        /// What it did not do.
        why: String,
    },
}

/// What a newer agent asks for. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Announce,
    Release,
    Serving,
}

/// A line of the newer agent's, without its end.
fn ask(line: &str) -> Option<Ask> {
    match line {
        ANNOUNCE => Some(Ask::Announce),
        RELEASE => Some(Ask::Release),
        SERVING => Some(Ask::Serving),
        _ => None,
    }
}

/// What newer agents do, each known by its number.
#[derive(Debug)]
pub enum Event {
    /// One starts, and will ask for release.
    Announced {
        /// Its number.
        id: u64,
        /// Its process.
        pid: Option<i32>,
    },
    /// One wants to take over. Answered by sending; dropping the sender refuses.
    Release(u64, oneshot::Sender<()>),
    /// One has every pod of the node in its hands.
    Serving(u64),
    /// One has gone.
    Gone(u64),
}

/// The door at which newer agents knock. Dropping it closes it; those that are inside go on talking.
pub struct Door {
    path: PathBuf,
    accepting: AbortHandle,
}

impl Door {
    /// Opens it; for the holder of the lock only. Must be called within a `LocalSet`.
    pub fn open(directory: &Path) -> Result<(Door, mpsc::UnboundedReceiver<Event>), HandoverError> {
        let path = socket(directory);
        let failed = |error| HandoverError::Socket { path: path.clone(), error };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let (events, heard) = mpsc::unbounded_channel();
        let accepting = tokio::task::spawn_local(accept(listener, events)).abort_handle();
        Ok((Door { path, accepting }, heard))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, events: mpsc::UnboundedSender<Event>) {
    let own = rustix::process::geteuid().as_raw();
    for id in 0.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept another agent's request");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own => {
                let pid = peer.pid().filter(|pid| *pid != 0);
                drop(tokio::task::spawn_local(listen(id, pid, stream, events.clone())));
            }
            Ok(peer) => tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a process of another user asks for a handover: not heard"),
            Err(error) => tracing::warn!(%error, "a process that asks for a handover cannot be told by its user: not heard"),
        }
    }
}

/// Hears one newer agent to its end.
async fn listen(id: u64, pid: Option<i32>, stream: UnixStream, events: mpsc::UnboundedSender<Event>) {
    let (read, mut write) = stream.into_split();
    let mut lines = Lines::new(read);
    if lines.next().await.as_deref().and_then(ask) != Some(Ask::Announce) {
        return;
    }
    // Nobody listens any more: the process ends.
    let _ = events.send(Event::Announced { id, pid });
    while let Some(asked) = lines.next().await.as_deref().and_then(ask) {
        match asked {
            Ask::Announce => {}
            Ask::Release => {
                let (grant, granted) = oneshot::channel();
                let _ = events.send(Event::Release(id, grant));
                if granted.await.is_err() || say(&mut write, RELEASED).await.is_err() {
                    break;
                }
            }
            Ask::Serving => {
                let _ = events.send(Event::Serving(id));
            }
        }
    }
    let _ = events.send(Event::Gone(id));
}

async fn say(to: &mut OwnedWriteHalf, line: &str) -> io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes()).await
}

/// Lines of bounded length.
struct Lines(BufReader<OwnedReadHalf>);

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        Lines(BufReader::new(read))
    }

    /// The next line; `None` at the end, and where there is no line.
    async fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        (&mut self.0).take(LINE).read_line(&mut line).await.ok()?;
        line.strip_suffix('\n').map(str::to_owned)
    }
}

/// What a starting agent finds.
pub enum Place {
    /// Nobody serves the instance.
    Free(WriterLock),
    /// An agent does.
    Taken(Predecessor),
}

/// An agent that is to be replaced.
pub struct Predecessor {
    /// Its process.
    pub pid: Option<u32>,
    lines: Lines,
    write: OwnedWriteHalf,
}

/// Takes the lock, or announces this agent to its holder.
pub async fn find(directory: &Path) -> Result<Place, HandoverError> {
    let path = socket(directory);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = WriterLock::try_take(directory)? {
            return Ok(Place::Free(lock));
        }
        let connected = async {
            let stream = UnixStream::connect(&path).await?;
            let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
            let (read, mut write) = stream.into_split();
            say(&mut write, ANNOUNCE).await?;
            Ok::<_, io::Error>(Predecessor { pid, lines: Lines::new(read), write })
        };
        // Between the lock and the door of one that is just starting, or ending, lies a moment.
        match connected.await {
            Ok(predecessor) => return Ok(Place::Taken(predecessor)),
            Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(held(directory, None, format!("it does not answer at {} ({error})", path.display()))),
        }
    }
}

fn held(directory: &Path, pid: Option<u32>, why: String) -> HandoverError {
    HandoverError::Held { lock: super::lock::file(directory), pid: pid.or_else(|| WriterLock::holder(directory)), why }
}

impl Predecessor {
    /// Asks it to let go and takes the lock. `None` beside the lock: it was gone before it answered.
    pub async fn release(mut self, directory: &Path) -> Result<(WriterLock, Option<Predecessor>), HandoverError> {
        let asked = tokio::time::timeout(PATIENCE, async {
            say(&mut self.write, RELEASE).await.ok()?;
            self.lines.next().await
        });
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(_) => return Err(held(directory, self.pid, format!("it was asked to hand over and did not within {PATIENCE:?}"))),
        };
        let released = answer.as_deref() == Some(RELEASED);
        match WriterLock::take(directory, if released { PATIENCE } else { Duration::from_secs(1) }).await? {
            Some(lock) => Ok((lock, released.then_some(self))),
            None if released => Err(held(directory, None, "the one before it handed over, and another was quicker".into())),
            None => Err(held(directory, self.pid, "it was asked to hand over and refused; its log says why".into())),
        }
    }

    /// Returns when it has ended.
    pub async fn gone(&mut self) {
        while self.lines.next().await.is_some() {}
    }

    /// Tells it that its pods are served, and waits until it is gone.
    pub async fn relieve(mut self) {
        // One that is gone already has nothing to be told.
        if say(&mut self.write, SERVING).await.is_ok() {
            self.gone().await;
        }
    }
}

#[cfg(test)]
mod tests;
