//! The thread that writes. Lines come through a bounded channel; when it is full, a line is lost and counted.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Lines that may wait. At some 500 bytes each about 2 MB.
const QUEUE: usize = 4096;

enum Message {
    Line(String),
    Flush(SyncSender<()>),
}

/// The sending end.
pub struct Writer {
    queue: SyncSender<Message>,
    lost: Counter,
}

impl Writer {
    pub(super) fn start(out: impl Write + Send + 'static, written: Counter, lost: Counter) -> io::Result<Writer> {
        let (queue, lines) = sync_channel(QUEUE);
        let counted = lost.clone();
        // It ends when the last sender is gone.
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || run(io::BufWriter::with_capacity(64 * 1024, out), &lines, &written, &counted))?;
        Ok(Writer { queue, lost })
    }

    pub(super) fn send(&self, line: String) {
        match self.queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.inc();
            }
        }
    }

    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        // A full queue means that the writer is stuck: a place will hardly come free within the deadline.
        self.queue.try_send(Message::Flush(done)).is_ok() && wait.recv_timeout(deadline).is_ok()
    }
}

fn run(mut out: impl Write, lines: &Receiver<Message>, written: &Counter, lost: &Counter) {
    let mut failing = false;
    let mut batch = 0;
    loop {
        // Flush when there is nothing more to write, not after each line.
        let message = match lines.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                settle(out.flush(), &mut batch, &mut failing, written, lost);
                match lines.recv() {
                    Ok(message) => message,
                    Err(_) => return,
                }
            }
            Err(TryRecvError::Disconnected) => {
                settle(out.flush(), &mut batch, &mut failing, written, lost);
                return;
            }
        };
        match message {
            Message::Line(line) => {
                batch += 1;
                let result = out.write_all(line.as_bytes());
                if result.is_err() {
                    settle(result, &mut batch, &mut failing, written, lost);
                }
            }
            Message::Flush(done) => {
                settle(out.flush(), &mut batch, &mut failing, written, lost);
                let _ = done.try_send(());
            }
        }
    }
}

/// Books the lines since the last flush as written or lost, and reports the first failure of a row.
fn settle(result: io::Result<()>, batch: &mut u64, failing: &mut bool, written: &Counter, lost: &Counter) {
    let count = std::mem::take(batch);
    match result {
        Ok(()) => {
            written.inc_by(count);
            *failing = false;
        }
        Err(error) => {
            lost.inc_by(count);
            if !std::mem::replace(failing, true) {
                tracing::warn!(%error, "the access log can't be written; its lines are lost until it can");
            }
        }
    }
}
