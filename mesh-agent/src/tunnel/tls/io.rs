//! A [`TlsChannel`] as a byte stream, for the HTTP/2 library.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{ChannelError, TlsChannel};

/// The stream of a channel's contents. Writes are gathered into records until they are flushed.
pub struct TlsIo {
    channel: TlsChannel,
    content: Range<usize>,
    goodbye: bool,
}

impl TlsIo {
    /// Over the channel.
    pub fn new(channel: TlsChannel) -> Self {
        TlsIo { channel, content: 0..0, goodbye: false }
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
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
                Err(ChannelError::Closed) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let channel = &mut self.channel;
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
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
            ready!(channel.poll_flush(cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel.poll_flush(cx).map_err(io::Error::from)
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
