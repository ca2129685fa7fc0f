//! The frames of `nodemesh/1`, the protocol between our own agents. Pure: bytes in, frames out.
//!
//! Inside TLS, each direction is a sequence of frames: a byte of type, three bytes of payload length (big endian), the payload.
//! A connection carries one stream at a time:
//!
//! ```text
//! client                                        server
//!                                       READY   once the client's certificate is accepted
//! OPEN  DATA…                                   the application's first bytes travel with OPEN
//!                        ACCEPT DATA… | REFUSE  nothing reaches the application before it is accepted
//! DATA…                                  DATA…
//! FIN                                      FIN  half-close, each direction by itself
//! OPEN …                                        the next stream, once both have ended
//! ```
//!
//! - `ABORT` says that an application reset its connection; the tunnel's connection ends with it.
//! - `PING` is answered by `PONG` with the same eight bytes.
//! - `GOAWAY` says that its sender will accept no further stream: an OPEN that was not accepted before was not looked at.
//! - A server's FIN tells how many bytes it has delivered. If those are all, the client may use the connection for the next stream
//!   at once: no byte of the old one can hold it up.
//! - After REFUSE the client still ends its direction with FIN, or closes.
//!
//! Fields that may be added later travel as type, length (two bytes), value; unknown ones are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::StatusCode;

/// Bytes before a payload.
pub const HEADER: usize = 4;
/// The longest payload of a frame that is not DATA.
pub const MAX_CONTROL: usize = 4096;
/// The longest text of any field.
pub const MAX_TEXT: usize = 1024;
/// The longest payload of DATA that its header can tell.
pub const MAX_DATA: usize = (1 << 24) - 1;

const READY: u8 = 1;
const OPEN: u8 = 2;
const ACCEPT: u8 = 3;
const REFUSE: u8 = 4;
const DATA: u8 = 5;
const FIN: u8 = 6;
const ABORT: u8 = 7;
const PING: u8 = 8;
const PONG: u8 = 9;
const GOAWAY: u8 = 10;

const FIELD_CLIENT: u8 = 1;
const FIELD_HOST: u8 = 2;
const FIELD_BAGGAGE: u8 = 3;
const FIELD_TRACEPARENT: u8 = 4;

const OPEN_ACCEPT_AT_ONCE: u8 = 1;

/// The bytes are not of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type that does not exist.
    #[error("frame type {0} does not exist")]
    Type(u8),
    /// A payload that is too long or too short for its type.
    #[error("a frame of type {kind} cannot be {length} bytes long")]
    Length {
        /// The frame's type.
        kind: u8,
        /// As its header says.
        length: usize,
    },
    /// A field that cannot be read.
    #[error("field {field} of a frame of type {kind} is malformed")]
    Field {
        /// The frame's type.
        kind: u8,
        /// The field's.
        field: u8,
    },
}

/// The request for a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// The application's port; its address is the connection's own destination.
    pub port: u16,
    /// The client keeps what it sent and may ask again on another connection: accept before anything is delivered, do not delay it.
    pub accept_at_once: bool,
    /// The client application's own end.
    pub client: Option<SocketAddr>,
    /// The name of the service that was dialled.
    pub host: Option<String>,
    /// As HBONE's header of that name.
    pub baggage: Option<String>,
    /// As HBONE's header of that name.
    pub traceparent: Option<String>,
}

/// A frame other than DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The server has accepted the client's certificate.
    Ready,
    /// The request for a stream.
    Open(Open),
    /// The stream stands.
    Accept {
        /// As HBONE's header of that name; describes the destination.
        baggage: Option<String>,
    },
    /// There will be no stream.
    Refuse {
        /// As HBONE's.
        status: StatusCode,
        /// For the log.
        reason: String,
    },
    /// No more bytes of this direction.
    Fin {
        /// Bytes that the sender has delivered of the other direction.
        delivered: u64,
    },
    /// An application reset its connection.
    Abort,
    /// A question whether the peer lives.
    Ping([u8; 8]),
    /// Its answer.
    Pong([u8; 8]),
    /// No further stream will be accepted.
    GoAway,
}

/// What [`Decoder::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The last so many of the consumed bytes are the application's.
    Data(usize),
    /// A whole frame.
    Frame(Frame),
}

/// The header of a DATA frame.
pub fn data_header(length: usize) -> [u8; HEADER] {
    debug_assert!(length <= MAX_DATA);
    header(DATA, length)
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    [kind, a, b, c]
}

impl Frame {
    /// Appends the frame's bytes, no more than [`HEADER`] + [`MAX_CONTROL`]. Texts longer than [`MAX_TEXT`] are left out, except reasons,
    /// which are cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend([0; HEADER]);
        let kind = match self {
            Frame::Ready => READY,
            Frame::Open(open) => {
                out.extend(open.port.to_be_bytes());
                out.push(if open.accept_at_once { OPEN_ACCEPT_AT_ONCE } else { 0 });
                if let Some(client) = open.client {
                    put_address(out, client);
                }
                put_text(out, FIELD_HOST, open.host.as_deref());
                put_text(out, FIELD_BAGGAGE, open.baggage.as_deref());
                put_text(out, FIELD_TRACEPARENT, open.traceparent.as_deref());
                OPEN
            }
            Frame::Accept { baggage } => {
                put_text(out, FIELD_BAGGAGE, baggage.as_deref());
                ACCEPT
            }
            Frame::Refuse { status, reason } => {
                out.extend(status.as_u16().to_be_bytes());
                out.extend(beginning(reason).bytes());
                REFUSE
            }
            Frame::Fin { delivered } => {
                out.extend(delivered.to_be_bytes());
                FIN
            }
            Frame::Abort => ABORT,
            Frame::Ping(data) => {
                out.extend(data);
                PING
            }
            Frame::Pong(data) => {
                out.extend(data);
                PONG
            }
            Frame::GoAway => GOAWAY,
        };
        let length = out.len() - at - HEADER;
        for (place, byte) in out.iter_mut().skip(at).zip(header(kind, length)) {
            *place = byte;
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Frame, WireError> {
        let length = || WireError::Length { kind, length: payload.len() };
        let empty = |frame| if payload.is_empty() { Ok(frame) } else { Err(length()) };
        let eight = || <[u8; 8]>::try_from(payload).map_err(|_| length());
        match kind {
            // Later versions may say more in it.
            READY => Ok(Frame::Ready),
            OPEN => {
                let ([high, low, flags], fields) = payload.split_first_chunk().ok_or_else(length)?;
                let mut open =
                    Open { port: u16::from_be_bytes([*high, *low]), accept_at_once: flags & OPEN_ACCEPT_AT_ONCE != 0, ..Open::default() };
                fields_of(kind, fields, |field, value| {
                    match field {
                        FIELD_CLIENT => open.client = Some(address(value)?),
                        FIELD_HOST => open.host = Some(text(value)?),
                        FIELD_BAGGAGE => open.baggage = Some(text(value)?),
                        FIELD_TRACEPARENT => open.traceparent = Some(text(value)?),
                        _ => {}
                    }
                    Some(())
                })?;
                Ok(Frame::Open(open))
            }
            ACCEPT => {
                let mut baggage = None;
                fields_of(kind, payload, |field, value| {
                    if field == FIELD_BAGGAGE {
                        baggage = Some(text(value)?);
                    }
                    Some(())
                })?;
                Ok(Frame::Accept { baggage })
            }
            REFUSE => {
                let (status, reason) = payload.split_first_chunk().ok_or_else(length)?;
                let status = StatusCode::from_u16(u16::from_be_bytes(*status)).map_err(|_| WireError::Field { kind, field: 0 })?;
                let reason = reason.get(..reason.len().min(MAX_TEXT)).unwrap_or_default();
                let reason = printable(&String::from_utf8_lossy(reason));
                // What stands for bytes that are no text is longer than they.
                Ok(Frame::Refuse { status, reason: beginning(&reason).to_owned() })
            }
            FIN => Ok(Frame::Fin { delivered: u64::from_be_bytes(eight()?) }),
            ABORT => empty(Frame::Abort),
            PING => Ok(Frame::Ping(eight()?)),
            PONG => Ok(Frame::Pong(eight()?)),
            GOAWAY => empty(Frame::GoAway),
            other => Err(WireError::Type(other)),
        }
    }
}

/// A peer's text, fit for a log: no control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As much of a text as a field may have.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn put_text(out: &mut Vec<u8>, field: u8, text: Option<&str>) {
    if let Some(text) = text.filter(|text| text.len() <= MAX_TEXT) {
        out.push(field);
        out.extend((text.len() as u16).to_be_bytes());
        out.extend(text.as_bytes());
    }
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(FIELD_CLIENT);
    match address.ip() {
        IpAddr::V4(ip) => {
            out.extend(6u16.to_be_bytes());
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.extend(18u16.to_be_bytes());
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = value.split_last_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    if let Ok(v4) = <[u8; 4]>::try_from(ip) {
        return Some((Ipv4Addr::from(v4), port).into());
    }
    let v6 = <[u8; 16]>::try_from(ip).ok()?;
    Some((Ipv6Addr::from(v6), port).into())
}

fn text(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    (text.len() <= MAX_TEXT && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// Calls `each` with every field; `None` from it means that the field is malformed.
fn fields_of(kind: u8, mut rest: &[u8], mut each: impl FnMut(u8, &[u8]) -> Option<()>) -> Result<(), WireError> {
    while let Some(([field, high, low], behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let malformed = WireError::Field { kind, field: *field };
        let (value, next) = behind.split_at_checked(length).ok_or(malformed.clone())?;
        each(*field, value).ok_or(malformed)?;
        rest = next;
    }
    if rest.is_empty() { Ok(()) } else { Err(WireError::Field { kind, field: 0 }) }
}

/// Cuts a direction's bytes into frames, wherever the pieces end. Holds at most [`HEADER`] + [`MAX_CONTROL`] bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What is there of a frame that is not DATA, or of any frame's header.
    partial: Vec<u8>,
    /// Bytes still to come of a DATA frame.
    data: usize,
}

impl Decoder {
    /// Looks at the front of `input`: how many bytes were consumed, and what they brought. `None` with everything consumed: more is needed.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Option<Item>), WireError> {
        if self.data > 0 {
            return Ok(self.take_data(0, input));
        }
        if self.partial.is_empty() {
            // The usual case: the frame, or at least its header, is there in one piece.
            if let Some((head, behind)) = input.split_first_chunk::<HEADER>() {
                let (kind, length) = parse_header(*head)?;
                if kind == DATA {
                    self.data = length;
                    return Ok(self.take_data(HEADER, behind));
                }
                if let Some(payload) = behind.get(..length) {
                    return Ok((HEADER + length, Some(Item::Frame(Frame::decode(kind, payload)?))));
                }
            }
        }
        self.gather(input)
    }

    fn take_data(&mut self, before: usize, input: &[u8]) -> (usize, Option<Item>) {
        let n = self.data.min(input.len());
        self.data -= n;
        (before + n, (n > 0).then_some(Item::Data(n)))
    }

    fn gather(&mut self, input: &[u8]) -> Result<(usize, Option<Item>), WireError> {
        let mut consumed = 0;
        loop {
            let wanted = match self.partial.first_chunk::<HEADER>() {
                None => HEADER,
                Some(head) => {
                    let (kind, length) = parse_header(*head)?;
                    if kind == DATA {
                        self.partial.clear();
                        self.data = length;
                        let (n, item) = self.take_data(0, input.get(consumed..).unwrap_or_default());
                        return Ok((consumed + n, item));
                    }
                    HEADER + length
                }
            };
            let missing = wanted - self.partial.len();
            if missing == 0 {
                let partial = std::mem::take(&mut self.partial);
                let (head, payload) = partial.split_first_chunk::<HEADER>().ok_or(WireError::Type(0))?;
                return Ok((consumed, Some(Item::Frame(Frame::decode(parse_header(*head)?.0, payload)?))));
            }
            let rest = input.get(consumed..).unwrap_or_default();
            let piece = rest.get(..missing.min(rest.len())).unwrap_or_default();
            if piece.is_empty() {
                return Ok((consumed, None));
            }
            self.partial.extend_from_slice(piece);
            consumed += piece.len();
        }
    }

    /// Whether no frame has begun that is not finished.
    pub fn is_between_frames(&self) -> bool {
        self.partial.is_empty() && self.data == 0
    }
}

fn parse_header([kind, a, b, c]: [u8; HEADER]) -> Result<(u8, usize), WireError> {
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match kind {
        DATA => Ok((kind, length)),
        READY..=GOAWAY if length <= MAX_CONTROL => Ok((kind, length)),
        READY..=GOAWAY => Err(WireError::Length { kind, length }),
        other => Err(WireError::Type(other)),
    }
}

#[cfg(test)]
mod tests;
