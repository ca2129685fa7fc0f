//! The socket at which the plug-in asks. Who asks must be of the agent's own user, root: whoever may ask names namespaces to capture.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_cni::protocol::{Answer, Attachment, Command, Failure, Request, VERSION, decode, encode, length};
use mesh_model::snapshot::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::judge::{Standings, find, judge};
use crate::ops::metrics::Metrics;
use crate::ops::metrics::agent::AddResult;
use crate::sources::Told;
use crate::sources::attachments::{Attached, is_container};
use crate::sys::netns::{Inode, inode};

/// Questions at once; more wait in the socket's queue.
const PLACES: usize = 512;
/// Longest time for a question to come in, and for an answer to go out.
const EXCHANGE: Duration = Duration::from_secs(5);
/// A plug-in is told what is awaited before it gives up, so that the operator sees it in the pod's events.
const BEFORE: Duration = Duration::from_secs(1);
/// Most addresses of a pod: the plug-in tells one a family.
const ADDRESSES: usize = 2;
/// The type of a namespace's file (`statfs`, `NSFS_MAGIC`).
const NSFS: i64 = 0x6e73_6673;

/// Opens the socket in the place of one that may be there: whoever asks meets the older agent or this one, and never nobody.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    let new = socket.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    std::fs::rename(&new, socket)?;
    Ok(listener)
}

/// What answers need.
pub struct Server {
    /// This node.
    pub node: Arc<str>,
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// How long a plug-in waits.
    pub patience: Duration,
    /// The configuration.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How far the pods are.
    pub standings: watch::Receiver<Arc<Standings>>,
    /// Who keeps what is told.
    pub told: mpsc::Sender<Told>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Answers until `stop`: then whoever waits is left without an answer, and asks the next agent. Must be called within a `LocalSet`.
    pub async fn serve(self, listener: UnixListener, stop: CancellationToken) {
        // Nobody listens any more: the agent ends.
        let _ = self.told.send(Told::Taken).await;
        let server = Rc::new(self);
        let places = Arc::new(Semaphore::new(PLACES));
        let mut asking = JoinSet::new();
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = asking.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "the answer to a CNI plug-in was not given");
                },
                (place, accepted) = next => match accepted {
                    Ok((stream, _)) => {
                        let server = server.clone();
                        asking.spawn_local(async move {
                            server.exchange(stream).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a CNI plug-in's question");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
            }
        }
    }

    async fn exchange(&self, mut stream: UnixStream) {
        let own = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a process of another user asks as the CNI plug-in does: not heard");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a process that asks as the CNI plug-in does cannot be told by its user: not heard");
                return;
            }
        }
        let answer = match tokio::time::timeout(EXCHANGE, read(&mut stream)).await {
            Ok(Ok(command)) => self.answer(command, &mut stream).await,
            Ok(Err(error)) => Some(failed(format!("the question is not understood: {error}"), true)),
            Err(_) => None,
        };
        let Some(answer) = answer else { return };
        match encode(&answer) {
            // One that does not wait for it any more asks again.
            Ok(bytes) => drop(tokio::time::timeout(EXCHANGE, stream.write_all(&bytes)).await),
            Err(error) => tracing::error!(%error, "an answer to the CNI plug-in cannot be written"),
        }
    }

    /// `None` if nobody waits for it.
    async fn answer(&self, command: Command, stream: &mut UnixStream) -> Option<Answer> {
        match command {
            Command::Add(attachment) => self.add(attachment, stream).await,
            Command::Check(attachment) => Some(self.check(&attachment)),
            Command::Del(detachment) => {
                tracing::debug!(pod = %detachment.pod, container = &*detachment.container, "a pod's sandbox ends");
                Some(self.tell(Told::Ended(detachment.container)).await)
            }
            Command::Gc(valid) => Some(self.tell(Told::Left(HashSet::from_iter(valid))).await),
            Command::Status => Some(match &self.standings.borrow().unwritten {
                None => Answer::Done,
                Some(awaited) => failed(format!("the agent waits for {awaited}"), true),
            }),
        }
    }

    async fn tell(&self, told: Told) -> Answer {
        match self.told.send(told).await {
            Ok(()) => Answer::Done,
            Err(_) => failed("the agent ends".to_owned(), true),
        }
    }

    async fn add(&self, attachment: Attachment, stream: &mut UnixStream) -> Option<Answer> {
        let start = Instant::now();
        let pod = attachment.pod.clone();
        let answer = tokio::select! {
            biased;
            answer = self.admit(attachment) => Some(answer),
            () = hung_up(stream) => None,
        };
        let took = start.elapsed();
        let result = match &answer {
            Some(Answer::Captured) => AddResult::Captured,
            Some(Answer::Outside) => AddResult::Outside,
            Some(_) => AddResult::Failed,
            None => AddResult::Abandoned,
        };
        self.metrics.agent.cni_add(result, took.as_secs_f64());
        match &answer {
            Some(Answer::Failed(failure)) => tracing::warn!(%pod, ?took, reason = &*failure.message, "a pod's start is refused"),
            Some(_) => tracing::info!(%pod, ?took, ?result, "a pod may start"),
            None => tracing::info!(%pod, ?took, "the runtime does not wait any more for a pod's start"),
        }
        answer
    }

    /// Hands the pod's network on and waits until it is captured, or known to be none of the mesh's.
    async fn admit(&self, attachment: Attachment) -> Answer {
        let deadline = tokio::time::Instant::now() + self.patience.saturating_sub(BEFORE).max(self.patience / 2);
        let Attachment { pod, container, netns, addresses } = attachment;
        if !is_container(&container) || addresses.len() > ADDRESSES {
            return failed(format!("container {container:?} with {} addresses is none by the CNI specification", addresses.len()), false);
        }
        let (path, file) = match open(&netns, &self.proc) {
            Ok(opened) => opened,
            Err(error) => return failed(format!("its network namespace {}: {error}", netns.display()), true),
        };
        let asked = match inode(&file) {
            Ok(asked) => asked,
            Err(error) => return failed(format!("its network namespace {}: {error}", netns.display()), true),
        };
        let mut network = Some(Attached { container, path, netns: file, addresses });
        let mut uid = None;
        let (mut snapshots, mut standings) = (self.snapshots.clone(), self.standings.clone());
        loop {
            let found = find(&snapshots.borrow_and_update(), &self.node, &pod);
            let awaited = match found {
                Ok(now) => {
                    if let Some(network) = network.take()
                        && self.told.send(Told::Attached(now.clone(), network)).await.is_err()
                    {
                        return failed("the agent ends".to_owned(), true);
                    }
                    let judged = judge(&standings.borrow_and_update(), uid.get_or_insert(now), asked);
                    match judged {
                        Ok(answer) => return answer,
                        Err(awaited) => awaited,
                    }
                }
                Err(_) if uid.is_some() => return failed("it was deleted while its network was made".to_owned(), false),
                Err(awaited) => awaited,
            };
            let changed = async {
                tokio::select! {
                    changed = snapshots.changed() => changed,
                    changed = standings.changed() => changed,
                }
            };
            match tokio::time::timeout_at(deadline, changed).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return failed("the agent ends".to_owned(), true),
                Err(_) => return failed(format!("it waits for {awaited}"), true),
            }
        }
    }

    /// Whether a pod is as it was set up.
    fn check(&self, attachment: &Attachment) -> Answer {
        let opened = open(&attachment.netns, &self.proc).map_err(|error| format!("its network namespace: {error}"));
        let judged = opened.and_then(|(_, file)| {
            let netns: Inode = inode(&file).map_err(|error| format!("its network namespace: {error}"))?;
            let uid = find(&self.snapshots.borrow(), &self.node, &attachment.pod)?;
            judge(&self.standings.borrow(), &uid, netns)
        });
        judged.unwrap_or_else(|awaited| failed(format!("it waits for {awaited}"), true))
    }
}

fn failed(message: String, again: bool) -> Answer {
    Answer::Failed(Failure { message: message.into(), again })
}

/// Reads a question.
async fn read(stream: &mut UnixStream) -> io::Result<Command> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; length(header)?];
    stream.read_exact(&mut body).await?;
    #[derive(serde::Deserialize)]
    struct Spoken {
        version: u32,
    }
    let Spoken { version } = decode(&body)?;
    if version != VERSION {
        let message =
            format!("the plug-in speaks version {version} of the protocol, and the agent {VERSION}; one of them is being updated");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(decode::<Request>(&body)?.command)
}

/// Returns when the other side has gone. It has nothing more to say, so whatever it says is no better.
async fn hung_up(stream: &mut UnixStream) {
    let _ = stream.read(&mut [0]).await;
}

/// Opens a network namespace that the runtime names, and says where it is on this side. Its `/proc` is seen at `proc`, and its `/var/run`
/// may be a link that is not there in a container.
fn open(path: &Path, proc: &Path) -> io::Result<(PathBuf, File)> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return refused("is no absolute path");
    }
    let here = match path.strip_prefix("/proc") {
        Ok(rest) if rest.to_str().and_then(|rest| rest.split('/').next()).is_none_or(|pid| pid.parse::<u32>().is_err()) => {
            return refused("is of no process that has a number");
        }
        Ok(rest) => proc.join(rest),
        Err(_) => match path.strip_prefix("/var/run") {
            Ok(rest) if !path.exists() => Path::new("/run").join(rest),
            _ => path.to_owned(),
        },
    };
    // What is no namespace may be a pipe, which must not be waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&here)?;
    if i128::from(rustix::fs::fstatfs(&file)?.f_type) != i128::from(NSFS) {
        return refused(
            "is no namespace on the agent's side; the host's directory must be mounted there with mountPropagation: HostToContainer",
        );
    }
    let own = std::fs::metadata("/proc/self/ns/net")?;
    if inode(&file)? == (own.dev(), own.ino()) {
        return refused("is the node's own");
    }
    Ok((here, file))
}

#[cfg(test)]
mod tests;
