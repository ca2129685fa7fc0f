//! A TLS connection after its handshake: bytes are sealed and opened in the buffer that the socket reads from and writes to.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets};

use super::record::{self, ContentType, HEADER, Key, MAX_CONTENT, RecordError, TRAILER};
use crate::upstream::copy::buffer::{Buffer, RECORD, SMALL};
use crate::upstream::copy::socket::Socket;

/// Renews the keys of a connection (RFC 8446 7.2).
pub enum Keys {
    /// Of the dialling side.
    Client(KernelConnection<ClientConnectionData>),
    /// Of the serving side.
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Keys::Client(keys) => keys.update_rx_secret(),
            Keys::Server(keys) => keys.update_rx_secret(),
        }
    }

    fn sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Keys::Client(keys) => keys.update_tx_secret(),
            Keys::Server(keys) => keys.update_tx_secret(),
        }
    }
}

/// Why a channel is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("{detail}")]
    Io {
        /// Of what kind.
        kind: io::ErrorKind,
        /// The system's words.
        detail: Arc<str>,
    },
    /// The peer closed without saying so in TLS, or in the midst of a record: bytes may have been cut off.
    #[error("the peer closed the connection unexpectedly")]
    Truncated,
    /// The peer said goodbye in TLS.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer sent a fatal alert.
    #[error("the peer ended the connection with the alert {0:?}")]
    Alert(AlertDescription),
    /// A record is not acceptable.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A handshake message that has no place here, or in pieces.
    #[error("the peer sent an unexpected TLS handshake message")]
    Handshake,
    /// The library could not renew the keys.
    #[error("the TLS keys could not be renewed: {0}")]
    Keys(Arc<str>),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        ChannelError::Io { kind: error.kind(), detail: error.to_string().into() }
    }
}

/// A TLS connection after its handshake.
pub struct TlsChannel {
    socket: Socket,
    opener: Key,
    sealer: Key,
    keys: Keys,
    inbound: Inbound,
    outbound: Outbound,
    /// The peer asked us to renew our key.
    renew: bool,
    /// The peer said goodbye in TLS.
    closed: bool,
}

/// `start..end` of the buffer are bytes as they came; before them lies what was opened and is perhaps still in use.
#[derive(Default)]
struct Inbound {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    bulk: bool,
}

/// `sent..sealed` of the buffer wait to be written; behind them lies a record that is still being filled with `content` bytes.
#[derive(Default)]
struct Outbound {
    buffer: Option<Buffer>,
    sent: usize,
    sealed: usize,
    content: usize,
    bulk: bool,
}

impl TlsChannel {
    /// With what the handshake left: its keys, and the bytes that were read too many.
    pub fn new(socket: Socket, secrets: &ExtractedSecrets, keys: Keys, leftover: &[u8]) -> Result<Self, ChannelError> {
        let ExtractedSecrets { tx: (send, sending), rx: (receive, receiving) } = secrets;
        let mut inbound = Inbound::default();
        if !leftover.is_empty() {
            let mut buffer = Buffer::take(false);
            buffer.get_mut(..leftover.len()).ok_or(RecordError::Length)?.copy_from_slice(leftover);
            inbound = Inbound { buffer: Some(buffer), end: leftover.len(), ..inbound };
        }
        Ok(TlsChannel {
            socket,
            opener: Key::new(*receive, receiving)?,
            sealer: Key::new(*send, sending)?,
            keys,
            inbound,
            outbound: Outbound::default(),
            renew: false,
            closed: false,
        })
    }

    /// The socket below.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Ends the connection with RST.
    pub fn abort(self) {
        self.socket.abort();
    }

    // Reading.

    /// Opens the next record that is there whole, and tells where its content lies. The place stays valid until the next
    /// [`poll_fill`](Self::poll_fill).
    pub fn next_content(&mut self) -> Result<Option<Range<usize>>, ChannelError> {
        loop {
            let Inbound { buffer, start, end, .. } = &mut self.inbound;
            let Some(buffer) = buffer.as_deref_mut() else { return Ok(None) };
            let bytes = buffer.get_mut(*start..*end).unwrap_or_default();
            let Some(total) = record::length(bytes)?.filter(|total| *total <= bytes.len()) else { return Ok(None) };
            let (kind, content) = self.opener.open(bytes, total)?;
            let place = *start + HEADER..*start + HEADER + content;
            *start += total;
            match kind {
                ContentType::Data if content == 0 => {}
                ContentType::Data => return Ok(Some(place)),
                ContentType::Alert => self.take_alert(place)?,
                ContentType::Handshake => self.take_handshake(place)?,
            }
        }
    }

    /// The bytes at a place that [`next_content`](Self::next_content) told.
    pub fn content(&self, place: Range<usize>) -> &[u8] {
        self.inbound.buffer.as_deref().and_then(|buffer| buffer.get(place)).unwrap_or_default()
    }

    fn take_alert(&mut self, place: Range<usize>) -> Result<(), ChannelError> {
        match self.content(place) {
            [_, 0] => {
                self.closed = true;
                Err(ChannelError::Closed)
            }
            // user_canceled only announces a close_notify (RFC 8446 6.1).
            [_, 90] => Ok(()),
            [_, code] => Err(ChannelError::Alert(AlertDescription::from(*code))),
            _ => Err(ChannelError::Record(RecordError::Length)),
        }
    }

    fn take_handshake(&mut self, place: Range<usize>) -> Result<(), ChannelError> {
        let mut rest = place;
        while !rest.is_empty() {
            let Some([kind, a, b, c]) = self.content(rest.clone()).first_chunk() else { return Err(ChannelError::Handshake) };
            let (kind, length) = (*kind, u32::from_be_bytes([0, *a, *b, *c]) as usize);
            let body = rest.start + 4..rest.start + 4 + length;
            if body.end > rest.end {
                return Err(ChannelError::Handshake);
            }
            rest.start = body.end;
            match (kind, self.content(body)) {
                // new_session_ticket: sessions are never resumed.
                (4, _) => {}
                // key_update: nothing may follow it under the old key.
                (24, [requested @ (0 | 1)]) if rest.is_empty() => {
                    self.renew |= *requested == 1;
                    let (sequence, secrets) = self.keys.receiving().map_err(|e| ChannelError::Keys(e.to_string().into()))?;
                    self.opener = Key::new(sequence, &secrets)?;
                    if self.renew && !self.has_output() {
                        self.renew_key()?;
                    }
                }
                _ => return Err(ChannelError::Handshake),
            }
        }
        Ok(())
    }

    /// Reads from the socket, once. Places told before are void. Bytes that make no whole record yet are kept.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let inbound = &mut self.inbound;
        if inbound.start == inbound.end {
            (inbound.start, inbound.end) = (0, 0);
            match self.socket.poll_readable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    inbound.buffer = None;
                    return Poll::Pending;
                }
            }
        }
        inbound.make_room();
        let Inbound { buffer: Some(buffer), end, bulk, .. } = inbound else { return Poll::Pending };
        let space = buffer.get_mut(*end..).unwrap_or_default();
        let room = space.len();
        match self.socket.poll_recv(cx, &mut [IoSliceMut::new(space)]) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(if self.closed { ChannelError::Closed } else { ChannelError::Truncated })),
            Poll::Ready(Ok(n)) => {
                *end += n;
                *bulk = n == room || n >= SMALL;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => {
                inbound.release();
                Poll::Pending
            }
        }
    }

    /// Reads what is there without waiting for more. False if there is nothing.
    pub fn try_fill(&mut self) -> Result<bool, ChannelError> {
        let inbound = &mut self.inbound;
        inbound.make_room();
        let Inbound { buffer: Some(buffer), end, .. } = inbound else { return Ok(false) };
        match self.socket.try_recv(buffer.get_mut(*end..).unwrap_or_default()) {
            Some(Ok(0)) => Err(ChannelError::Truncated),
            Some(Ok(n)) => {
                *end += n;
                Ok(true)
            }
            Some(Err(error)) => Err(error.into()),
            None => {
                inbound.release();
                Ok(false)
            }
        }
    }

    // Writing.

    /// Appends to the record that is being filled; begins another if it is full. False if the buffer has no room.
    pub fn put(&mut self, bytes: &[u8]) -> Result<bool, ChannelError> {
        if self.outbound.content + bytes.len() > MAX_CONTENT {
            self.seal()?;
        }
        let Some(space) = self.outbound.space() else { return Ok(false) };
        let Some(place) = space.get_mut(..bytes.len()) else { return Ok(false) };
        place.copy_from_slice(bytes);
        self.outbound.content += bytes.len();
        Ok(true)
    }

    /// Appends as much as there is room for, in as many records as it takes, and tells how much that was.
    pub fn put_some(&mut self, mut bytes: &[u8]) -> Result<usize, ChannelError> {
        let mut taken = 0;
        while !bytes.is_empty() {
            let Some(space) = self.outbound.space() else { break };
            let n = space.len().min(bytes.len());
            if n == 0 {
                self.seal()?;
                continue;
            }
            let (now, later) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
            if let Some(place) = space.get_mut(..n) {
                place.copy_from_slice(now);
            }
            self.outbound.content += n;
            taken += n;
            bytes = later;
        }
        self.outbound.bulk = taken >= MAX_CONTENT;
        Ok(taken)
    }

    /// Reads from `socket` straight into records, each read's bytes behind a header of four bytes that `header` makes from their number.
    /// Full records are sealed. Returns the bytes read, 0 at the end of the stream; an error of the channel is in the inner result. Without
    /// room it is pending and wakes nobody: whoever has output must flush it and come again.
    pub fn poll_put_from(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        limit: usize,
        header: impl Fn(usize) -> [u8; 4],
    ) -> Poll<io::Result<Result<usize, ChannelError>>> {
        const SLOTS: usize = 16;
        if socket.poll_readable(cx)?.is_pending() {
            return Poll::Pending;
        }
        if self.outbound.content + 4 >= MAX_CONTENT
            && let Err(error) = self.seal()
        {
            return Poll::Ready(Ok(Err(error)));
        }
        if self.outbound.space().is_none_or(|space| space.len() <= 4) {
            return Poll::Pending;
        }
        let Outbound { buffer: Some(buffer), sealed, content, bulk, .. } = &mut self.outbound else { return Poll::Pending };
        // The places for content: the rest of the record begun, then whole records as far as the buffer reaches.
        let mut slots: [IoSliceMut<'_>; SLOTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut used = 0;
        let mut wanted = 0;
        let mut skip = *sealed + HEADER + *content + 4;
        let mut length = MAX_CONTENT - *content - 4;
        let mut rest: &mut [u8] = buffer;
        while used < SLOTS && wanted < limit {
            let Some((_, from)) = rest.split_at_mut_checked(skip) else { break };
            let Some((slot, behind)) = from.split_at_mut_checked(length.min(limit - wanted)) else { break };
            if behind.len() < TRAILER {
                break;
            }
            wanted += slot.len();
            if let Some(place) = slots.get_mut(used) {
                *place = IoSliceMut::new(slot);
            }
            used += 1;
            rest = behind;
            skip = TRAILER + HEADER + 4;
            length = MAX_CONTENT - 4;
        }
        if wanted == 0 {
            return Poll::Pending;
        }
        let got = match socket.poll_recv(cx, slots.get_mut(..used).unwrap_or_default()) {
            Poll::Ready(Ok(got)) => got,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                self.outbound.release();
                return Poll::Pending;
            }
        };
        *bulk = got >= MAX_CONTENT / 2;
        Poll::Ready(Ok(self.close_slots(got, header).map(|()| got)))
    }

    /// Puts headers before the bytes that were read into the places for content, and seals the records that are full.
    fn close_slots(&mut self, mut left: usize, header: impl Fn(usize) -> [u8; 4]) -> Result<(), ChannelError> {
        while left > 0 {
            let n = left.min(MAX_CONTENT - self.outbound.content - 4);
            let Some(place) = self.outbound.space().and_then(|space| space.first_chunk_mut::<4>()) else { break };
            *place = header(n);
            self.outbound.content += 4 + n;
            left -= n;
            if self.outbound.content == MAX_CONTENT {
                self.seal()?;
            }
        }
        Ok(())
    }

    /// The bytes of the record being filled, from its content's beginning.
    pub fn unsealed(&self) -> &[u8] {
        let outbound = &self.outbound;
        let from = outbound.sealed + HEADER;
        outbound.buffer.as_deref().and_then(|buffer| buffer.get(from..from + outbound.content)).unwrap_or_default()
    }

    /// Whether another record would find room.
    pub fn has_room(&self) -> bool {
        self.outbound.buffer.as_ref().is_none_or(|buffer| self.outbound.sealed + RECORD <= buffer.len())
    }

    /// Whether anything waits to be written, sealed or not.
    pub fn has_output(&self) -> bool {
        self.outbound.content > 0 || self.outbound.sent < self.outbound.sealed
    }

    /// Seals the record that is being filled, if there is anything in it.
    pub fn seal(&mut self) -> Result<(), ChannelError> {
        if self.outbound.content > 0 { self.seal_as(ContentType::Data) } else { Ok(()) }
    }

    fn seal_as(&mut self, kind: ContentType) -> Result<(), ChannelError> {
        let Outbound { buffer: Some(buffer), sealed, content, .. } = &mut self.outbound else { return Ok(()) };
        let record = buffer.get_mut(*sealed..).unwrap_or_default();
        *sealed += self.sealer.seal(kind, record, *content)?;
        *content = 0;
        Ok(())
    }

    /// Announces a new key and uses it. Only while nothing waits to be sealed: what was read into its place already must stay there.
    fn renew_key(&mut self) -> Result<(), ChannelError> {
        const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
        if self.put(&KEY_UPDATE)? {
            self.seal_as(ContentType::Handshake)?;
            let (sequence, secrets) = self.keys.sending().map_err(|e| ChannelError::Keys(e.to_string().into()))?;
            self.sealer = Key::new(sequence, &secrets)?;
            self.renew = false;
        }
        Ok(())
    }

    /// Says goodbye in TLS, as far as there is room for it.
    pub fn put_close_notify(&mut self) -> Result<(), ChannelError> {
        self.seal()?;
        if self.put(&[1, 0])? {
            self.seal_as(ContentType::Alert)?;
        }
        Ok(())
    }

    /// Seals and writes all that waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.seal()?;
        loop {
            let outbound = &mut self.outbound;
            while outbound.sent < outbound.sealed {
                let bytes = outbound.buffer.as_deref().and_then(|buffer| buffer.get(outbound.sent..outbound.sealed)).unwrap_or_default();
                match self.socket.poll_send(cx, &[IoSlice::new(bytes)]) {
                    Poll::Ready(Ok(n)) => outbound.sent += n,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            outbound.release();
            if !self.renew && !self.sealer.is_worn() {
                return Poll::Ready(Ok(()));
            }
            self.renew_key()?;
        }
    }
}

impl Inbound {
    /// Gets a buffer, or moves what is kept to its front, so that a whole record fits.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.as_ref().is_none_or(|buffer| buffer.is_large() != self.bulk) {
                self.buffer = Some(Buffer::take(self.bulk));
            }
            return;
        }
        let Some(buffer) = &mut self.buffer else { return };
        let kept = self.end - self.start;
        if self.bulk && !buffer.is_large() {
            let mut larger = Buffer::take(true);
            if let (Some(to), Some(from)) = (larger.get_mut(..kept), buffer.get(self.start..self.end)) {
                to.copy_from_slice(from);
            }
            self.buffer = Some(larger);
        } else if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, kept);
    }

    fn release(&mut self) {
        if self.start == self.end {
            *self = Inbound { bulk: self.bulk, ..Inbound::default() };
        }
    }
}

impl Outbound {
    /// Where the next content goes, up to what the record and the buffer have room for.
    fn space(&mut self) -> Option<&mut [u8]> {
        let buffer = self.buffer.get_or_insert_with(|| Buffer::take(self.bulk));
        let from = self.sealed + HEADER + self.content;
        let room = (MAX_CONTENT - self.content).min(buffer.len().checked_sub(from + TRAILER)?);
        buffer.get_mut(from..from + room)
    }

    fn release(&mut self) {
        if self.content == 0 && self.sent == self.sealed {
            *self = Outbound { bulk: self.bulk, ..Outbound::default() };
        }
    }
}
