//! The threads that carry connections: each has a runtime of its own, listeners of its own in every pod, and a pool of tunnels of its own.
//! A connection lives and dies on the thread that accepted it.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pods::LocalPod;
use crate::capture::accept::Listeners;
use crate::ops::drain::DrainWatch;
use crate::shared::{Shared, Worker};
use crate::{inbound, outbound};

struct Assignment {
    pod: Arc<LocalPod>,
    listeners: Listeners,
}

/// The running workers.
pub struct Workers {
    inboxes: Vec<mpsc::UnboundedSender<Assignment>>,
    threads: Vec<JoinHandle<()>>,
}

/// The first worker that ended, which none should before the drain.
pub type Ended = mpsc::UnboundedReceiver<usize>;

impl Workers {
    /// Starts `count` threads. The drain waits for their connections.
    pub fn start(count: usize, shared: &Arc<Shared>, drain: &DrainWatch) -> io::Result<(Self, Ended)> {
        let mut workers = Workers { inboxes: Vec::new(), threads: Vec::new() };
        let (ended_tx, ended) = mpsc::unbounded_channel();
        for index in 0..count {
            let (inbox, assignments) = mpsc::unbounded_channel();
            let (shared, drain, ended) = (shared.clone(), drain.clone(), ended_tx.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Err(error) = run(shared, drain, assignments) {
                    tracing::error!(worker = index, %error, "a worker cannot run");
                }
                let _ = ended.send(index);
            })?;
            workers.inboxes.push(inbox);
            workers.threads.push(thread);
        }
        Ok((workers, ended))
    }

    /// For handing them pods.
    pub fn handle(&self) -> Assign {
        Assign(self.inboxes.clone())
    }

    /// Waits for the threads, which end once they are drained.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Hands pods to the workers.
pub struct Assign(Vec<mpsc::UnboundedSender<Assignment>>);

impl Assign {
    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Lets every worker serve a pod with its own listeners.
    pub fn add(&self, pod: &Arc<LocalPod>, listeners: Vec<Listeners>) {
        for (inbox, listeners) in self.0.iter().zip(listeners) {
            // A worker that has ended is noticed by whoever holds `Ended`.
            let _ = inbox.send(Assignment { pod: pod.clone(), listeners });
        }
    }
}

fn run(shared: Arc<Shared>, drain: DrainWatch, mut assignments: mpsc::UnboundedReceiver<Assignment>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let worker = Rc::new(Worker::new(shared, drain.clone()).map_err(io::Error::other)?);
    runtime.block_on(local.run_until(async {
        let mut draining = drain.clone();
        worker.http.sweep(worker.shared.clusters.clone());
        loop {
            tokio::select! {
                assignment = assignments.recv() => match assignment {
                    Some(assignment) => serve(&worker, assignment),
                    None => break,
                },
                () = draining.draining() => break,
            }
        }
        worker.http.close();
        // Streams of open tunnels may go on until the deadline; new ones are turned away by the tunnel itself.
        worker.drained().await;
    }));
    Ok(())
}

fn serve(worker: &Rc<Worker>, assignment: Assignment) {
    let Assignment { pod, listeners } = assignment;
    worker.adopt(&pod);
    for listener in listeners.outbound {
        let (serving, owner) = (worker.clone(), pod.clone());
        accept(worker, listener, &pod, worker.drain_watch(), move |stream, peer| {
            serving.connections.spawn_local(outbound::serve(serving.clone(), owner.clone(), stream, peer));
        });
    }
    for listener in listeners.inbound {
        let (serving, owner) = (worker.clone(), pod.clone());
        accept(worker, listener, &pod, worker.drain_watch(), move |stream, peer| {
            serving.connections.spawn_local(inbound::serve_plaintext(serving.clone(), owner.clone(), stream, peer));
        });
    }
    let server = inbound::server(worker, &pod);
    for listener in listeners.tunnel {
        let (serving, owner, server) = (worker.clone(), pod.clone(), server.clone());
        accept(worker, listener, &pod, worker.drain_watch(), move |stream, peer| {
            serving.connections.spawn_local(inbound::serve_tunnel(serving.clone(), owner.clone(), server.clone(), stream, peer));
        });
    }
}

/// Pause after an accept that failed for want of descriptors or memory: the next would fail as well.
const PAUSE: Duration = Duration::from_millis(50);

fn accept(
    worker: &Worker,
    listener: StdListener,
    pod: &LocalPod,
    mut drain: DrainWatch,
    mut each: impl FnMut(TcpStream, SocketAddr) + 'static,
) {
    let gone: CancellationToken = pod.gone.clone();
    worker.acceptors.spawn_local(async move {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a pod's listener cannot be used; its connections are refused");
                return;
            }
        };
        loop {
            tokio::select! {
                biased;
                () = gone.cancelled() => return,
                () = drain.draining() => return empty(listener, each),
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => each(stream, peer),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    });
}

/// Takes what waits at a listener, so that closing it resets nobody.
fn empty(listener: TcpListener, mut each: impl FnMut(TcpStream, SocketAddr)) {
    // The queue itself is asked, not what the event loop knows of it.
    let Ok(listener) = listener.into_std() else { return };
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    each(stream, peer);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

/// Errors that accept() hands on from the connection itself.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

#[cfg(test)]
mod tests;
