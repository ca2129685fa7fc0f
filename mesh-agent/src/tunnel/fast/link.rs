//! A connection of `nodemesh/1`: frames in TLS records. Used for one stream after the other.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::tunnel::error::{HandshakeError, TunnelError};
use crate::tunnel::tls::channel::{ChannelError, TlsChannel};
use crate::tunnel::wire::{self, Decoder, Frame, Item, WireError};
use crate::upstream::copy::socket::Socket;

/// Why a link is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// TLS or the socket below failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// What came is not of the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A frame that has no place there.
    #[error("{0}")]
    Unexpected(&'static str),
}

impl LinkError {
    /// Whether the peer broke the protocol, rather than the connection having broken.
    pub fn is_protocol(&self) -> bool {
        match self {
            LinkError::Channel(error) => matches!(error, ChannelError::Record(_) | ChannelError::Handshake | ChannelError::Keys(_)),
            LinkError::Wire(_) | LinkError::Unexpected(_) => true,
        }
    }

    /// Whether the peer ended the connection as TLS has it, without a word about streams.
    pub fn is_closed(&self) -> bool {
        matches!(self, LinkError::Channel(ChannelError::Closed | ChannelError::Truncated))
    }

    /// As the failure of a stream that was not accepted yet.
    pub fn into_tunnel_error(self) -> TunnelError {
        let text = Arc::<str>::from(self.to_string());
        match self {
            LinkError::Channel(ChannelError::Alert(alert)) => TunnelError::Handshake(HandshakeError::Alert { alert }),
            error if error.is_protocol() => TunnelError::Protocol(text),
            _ => TunnelError::Lost(text),
        }
    }
}

/// What a link received.
#[derive(Debug)]
pub enum Received {
    /// Bytes of the application, by their place in the channel's buffer.
    Data(Range<usize>),
    /// A frame.
    Frame(Frame),
}

/// A connection of `nodemesh/1`.
pub struct Link {
    /// Boxed, as links are handed around between pool and relays.
    channel: Box<TlsChannel>,
    decoder: Decoder,
    /// The part of the last opened record that was not looked at yet.
    content: Range<usize>,
    scratch: Vec<u8>,
    /// The peer said that it will accept no further stream.
    pub going_away: bool,
}

impl Link {
    /// Over a channel whose handshake has agreed on the protocol.
    pub fn new(channel: TlsChannel) -> Self {
        Link { channel: Box::new(channel), decoder: Decoder::default(), content: 0..0, scratch: Vec::new(), going_away: false }
    }

    /// The records.
    pub fn channel(&mut self) -> &mut TlsChannel {
        &mut self.channel
    }

    /// The bytes at a place that [`Received::Data`] told.
    pub fn bytes(&self, place: Range<usize>) -> &[u8] {
        self.channel.content(place)
    }

    /// Queues a frame. False if there is no room before a flush.
    pub fn put(&mut self, frame: &Frame) -> Result<bool, LinkError> {
        self.scratch.clear();
        frame.encode(&mut self.scratch);
        let room = self.channel.put(&self.scratch)?;
        if self.scratch.capacity() > 256 {
            self.scratch = Vec::new();
        }
        Ok(room)
    }

    /// Reads from `app` straight into DATA frames; see [`TlsChannel::poll_put_from`].
    pub fn poll_put_from(&mut self, cx: &mut Context<'_>, app: &mut Socket, limit: usize) -> Poll<io::Result<Result<usize, LinkError>>> {
        self.channel.poll_put_from(cx, app, limit, wire::data_header).map_ok(|inner| inner.map_err(LinkError::from))
    }

    /// Writes all that is queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.channel.poll_flush(cx).map_err(LinkError::from)
    }

    /// Queues a frame and writes all that is queued.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        if !self.put(frame)? {
            poll_fn(|cx| self.poll_flush(cx)).await?;
            self.put(frame)?;
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// The next thing of what has been read. Places told before stay valid until [`TlsChannel::poll_fill`].
    pub fn next_received(&mut self) -> Result<Option<Received>, LinkError> {
        loop {
            while !self.content.is_empty() {
                let (consumed, item) = self.decoder.next(self.channel.content(self.content.clone()))?;
                self.content.start += consumed;
                match item {
                    Some(Item::Data(n)) => return Ok(Some(Received::Data(self.content.start - n..self.content.start))),
                    Some(Item::Frame(frame)) => return Ok(Some(Received::Frame(frame))),
                    None => {}
                }
            }
            match self.channel.next_content()? {
                Some(place) => self.content = place,
                None => return Ok(None),
            }
        }
    }

    /// The next thing, waiting for it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, LinkError>> {
        loop {
            if let Some(received) = self.next_received()? {
                return Poll::Ready(Ok(received));
            }
            std::task::ready!(self.channel.poll_fill(cx))?;
        }
    }

    /// Whether another stream could begin: no frame half read, nothing unsent.
    pub fn is_between_streams(&self) -> bool {
        self.decoder.is_between_frames() && !self.channel.has_output()
    }

    /// Whether anything waits to be written.
    pub fn has_output(&self) -> bool {
        self.channel.has_output()
    }

    /// Ends the connection with RST.
    pub fn abort(self) {
        self.channel.abort();
    }
}
