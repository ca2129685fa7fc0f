//! A stream for a relay that polls: one system call a message, and an abort is noticed even while nobody reads.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::End;

/// A connected stream: a TCP socket, or one end of a [`pipe`](super::pipe) behind which this agent reads itself.
#[derive(Debug)]
pub struct Socket(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(Tcp),
    Pipe(End),
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Socket(Kind::Tcp(Tcp::new(tcp)))
    }
}

impl From<End> for Socket {
    fn from(end: End) -> Self {
        Socket(Kind::Pipe(end))
    }
}

impl Socket {
    /// Takes a connected stream.
    pub fn new(stream: impl Into<Socket>) -> Self {
        stream.into()
    }

    /// Whether a read might return something; registers for waking if not.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.poll_readable(cx),
            Kind::Pipe(end) => end.poll_readable(cx),
        }
    }

    /// Reads into `bufs`, which must not be empty in sum; 0 is the end of the stream.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => tcp.poll_recv(cx, bufs),
            Kind::Pipe(end) => end.poll_recv(cx, bufs),
        }
    }

    /// Reads without registering for anything; `None` if nothing is there.
    pub fn try_recv(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => tcp.try_recv(buf),
            Kind::Pipe(end) => end.try_recv(buf),
        }
    }

    /// Writes what is taken of `bufs`, which must not be empty in sum.
    pub fn poll_send(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.poll_send(cx, bufs),
            Kind::Pipe(end) => end.poll_send(cx, bufs),
        }
    }

    /// Waits for the connection to be aborted while unread bytes are left where they are. To be polled by whoever cannot read now.
    pub fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.0 {
            Kind::Tcp(tcp) => tcp.poll_aborted(cx),
            Kind::Pipe(end) => end.poll_aborted(cx),
        }
    }

    /// Ends this direction. An error means that the connection is gone already.
    pub fn shutdown(&self) -> io::Result<()> {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.shutdown(),
            Kind::Pipe(end) => {
                end.shutdown();
                Ok(())
            }
        }
    }

    /// Whether the other side's kernel has not acknowledged every byte that was sent.
    pub fn has_unacknowledged(&self) -> bool {
        match &self.0 {
            Kind::Tcp(tcp) => tcp.has_unacknowledged(),
            Kind::Pipe(end) => end.has_unread(),
        }
    }

    /// Closes with an abort, whatever is still unsent.
    pub fn abort(self) {
        match self.0 {
            Kind::Tcp(tcp) => tcp.abort(),
            Kind::Pipe(end) => end.abort(),
        }
    }
}

/// A connected stream with its own knowledge of whether bytes may be waiting.
///
/// Tokio's vectored calls try again after every partial read or write only to hear "would block"; here a partial transfer marks the
/// socket as drained (edge-triggered epoll tells of whatever comes later), which halves the system calls of request and response.
#[derive(Debug)]
struct Tcp {
    tcp: TcpStream,
    /// Bytes may wait although the readiness was taken back, because [`Tcp::poll_aborted`] listened for an abort.
    unread: bool,
}

impl Tcp {
    fn new(tcp: TcpStream) -> Self {
        Tcp { tcp, unread: false }
    }

    /// Whether a read might return something; registers for waking if not.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unread {
            return Poll::Ready(Ok(()));
        }
        self.tcp.poll_read_ready(cx)
    }

    /// Reads into `bufs`, which must not be empty in sum; 0 is the end of the stream.
    fn poll_recv(&mut self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let wanted: usize = bufs.iter().map(|b| b.len()).sum();
        loop {
            if self.unread {
                match recv(&self.tcp, bufs) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.unread = false,
                    result => {
                        // A full read says nothing about what is left.
                        self.unread = matches!(result, Ok(n) if n == wanted || n == 0);
                        return Poll::Ready(result);
                    }
                }
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            if let Some(result) = self.recv_once(bufs, wanted) {
                return Poll::Ready(result);
            }
        }
    }

    /// Reads without registering for anything; `None` if nothing is there.
    fn try_recv(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let wanted = buf.len();
        let mut bufs = [IoSliceMut::new(buf)];
        if self.unread {
            self.unread = false;
            match recv(&self.tcp, &mut bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Some(result),
            }
        }
        self.recv_once(&mut bufs, wanted)
    }

    fn recv_once(&self, bufs: &mut [IoSliceMut<'_>], wanted: usize) -> Option<io::Result<usize>> {
        let mut got = 0;
        // "Would block" takes the readiness back without a race: the event it belongs to was looked at before the call.
        let full = self.tcp.try_io(Interest::READABLE, || {
            got = recv(&self.tcp, bufs)?;
            if got > 0 && got < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match full {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
            Err(_) if got == 0 => None,
            _ => Some(Ok(got)),
        }
    }

    /// Writes what the kernel takes of `bufs`, which must not be empty in sum.
    fn poll_send(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted: usize = bufs.iter().map(|b| b.len()).sum();
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            let mut sent = 0;
            let full = self.tcp.try_io(Interest::WRITABLE, || {
                sent = send(&self.tcp, bufs)?;
                if sent < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match full {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) if sent == 0 => {}
                _ => return Poll::Ready(Ok(sent)),
            }
        }
    }

    /// Waits for the connection to be aborted while unread bytes are left where they are. To be polled by whoever cannot read now.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            match ready!(self.tcp.poll_read_ready(cx)) {
                Ok(()) => {}
                Err(error) => return Poll::Ready(error),
            }
            self.unread = true;
            let looked = self.tcp.try_io(Interest::READABLE, || match self.tcp.take_error()? {
                Some(error) => Ok(error),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            match looked {
                Ok(error) => return Poll::Ready(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The peer's end of stream stays ready for ever; there is nothing more to hear of it until it is read.
                    if self.at_end() {
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    fn at_end(&self) -> bool {
        let readiness = self.tcp.try_io(Interest::READABLE, || Ok(()));
        readiness.is_ok()
    }

    /// Sends FIN. An error means that the connection is gone already.
    fn shutdown(&self) -> io::Result<()> {
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    /// Whether the peer's kernel has not acknowledged every byte that was sent.
    fn has_unacknowledged(&self) -> bool {
        crate::sys::sockopt::has_unacknowledged(&self.tcp)
    }

    /// Closes with RST, whatever is still unsent.
    fn abort(self) {
        abort(self.tcp);
    }
}

/// Closes with RST, whatever is still unsent.
pub fn abort(tcp: TcpStream) {
    // Fails only if the connection is gone, which is what is wanted.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
}

fn recv(tcp: &TcpStream, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    loop {
        match rustix::io::readv(tcp, bufs) {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

fn send(tcp: &TcpStream, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let result = match bufs {
            [one] => rustix::net::send(tcp, one, SendFlags::NOSIGNAL),
            many => rustix::io::writev(tcp, many),
        };
        match result {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
