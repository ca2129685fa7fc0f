//! A [`TlsChannel`] as a byte stream, for the HTTP/2 library.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{ChannelError, TlsChannel};

/// The stream of a channel's contents. Writes are gathered into records until they are flushed.
pub struct TlsIo {
    channel: TlsChannel,
    content: Range<usize>,
    goodbye: bool,
    fault: Fault,
}

/// What ended a stream: the HTTP/2 library keeps no more of an error than its text.
pub type Fault = Rc<RefCell<Option<ChannelError>>>;

impl TlsIo {
    /// Over the channel.
    pub fn new(channel: TlsChannel) -> Self {
        TlsIo { channel, content: 0..0, goodbye: false, fault: Fault::default() }
    }

    /// Where the error will be told that ends the stream.
    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }

    fn failed(&self, error: ChannelError) -> io::Error {
        self.fault.borrow_mut().get_or_insert_with(|| error.clone());
        error.into()
    }

    /// A write fails when the peer has closed; why it did so may wait to be read.
    fn write_failed(&mut self, error: ChannelError) -> io::Error {
        let mut why = error;
        while let ChannelError::Io { .. } = why {
            match self.channel.next_content() {
                Ok(Some(_)) => {}
                Ok(None) => match self.channel.try_fill() {
                    Ok(true) => {}
                    Ok(false) | Err(_) => break,
                },
                Err(alert) => why = alert,
            }
        }
        self.failed(why)
    }
}

impl From<ChannelError> for io::Error {
    fn from(error: ChannelError) -> Self {
        let kind = match &error {
            ChannelError::Io { kind, .. } => *kind,
            ChannelError::Truncated | ChannelError::Closed => io::ErrorKind::UnexpectedEof,
            ChannelError::Alert(_) => io::ErrorKind::ConnectionAborted,
            ChannelError::Record(_) | ChannelError::Handshake | ChannelError::Keys(_) => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.content.is_empty() {
                let n = this.content.len().min(buf.remaining());
                let place = this.content.start..this.content.start + n;
                buf.put_slice(this.channel.content(place));
                this.content.start += n;
                return Poll::Ready(Ok(()));
            }
            match this.channel.next_content() {
                Ok(Some(place)) => this.content = place,
                Ok(None) => match ready!(this.channel.poll_fill(cx)) {
                    Ok(()) => {}
                    Err(ChannelError::Closed) => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(this.failed(error))),
                },
                Err(ChannelError::Closed) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(this.failed(error))),
            }
        }
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let channel = &mut self.channel;
            let mut taken = 0;
            for buf in bufs {
                let n = channel.put_some(buf)?;
                taken += n;
                if n < buf.len() {
                    break;
                }
            }
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            if let Err(error) = ready!(channel.poll_flush(cx)) {
                return Poll::Ready(Err(self.write_failed(error)));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel.poll_flush(cx).map_err(|error| self.write_failed(error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.goodbye {
            ready!(this.channel.poll_flush(cx))?;
            this.channel.put_close_notify()?;
            this.goodbye = true;
        }
        ready!(this.channel.poll_flush(cx))?;
        Poll::Ready(this.channel.socket().shutdown())
    }
}
