//! A second pair of eyes on the bytes of an HTTP/1 client, before the library that serves them: what RFC 9112 lets a lenient reader repair
//! (bare line feeds, folded headers, a length beside chunks, lengths twice) is refused here, since another reader may repair it differently.
//!
//! The guard follows the framing of every message, so it knows a head from a body. Its state is pure; [`Guarded`] puts it before a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::counters::RequestCounters;
use super::serve::MAX_HEADERS;

/// Longest line of a chunk's size with its extensions.
const MAX_SIZE_LINE: usize = 512;

/// What is wrong with a client's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A line that does not end in CR LF.
    #[error("a line without CR before its LF")]
    BareLf,
    /// A CR that ends no line.
    #[error("a CR without LF")]
    BareCr,
    /// A header that goes on in the next line.
    #[error("a folded header")]
    Folded,
    /// A header without a colon, or with a space before it.
    #[error("a header without a name")]
    Name,
    /// A length that is repeated, or no number.
    #[error("a Content-Length that is repeated or no number")]
    Length,
    /// Anything but `Transfer-Encoding: chunked`, once, in HTTP/1.1, with no length beside it.
    #[error("a Transfer-Encoding that is not chunked alone")]
    Encoding,
    /// The size or the end of a chunk.
    #[error("a chunk that is malformed")]
    Chunk,
    /// More than may be.
    #[error("a head that is too large")]
    TooLarge,
}

impl Violation {
    /// Whether it stands in a body: its request has been begun with.
    fn is_in_body(self) -> bool {
        self == Violation::Chunk
    }

    /// Its name in `nodemesh_http_guard_refusals_total`.
    pub fn name(self) -> &'static str {
        match self {
            Violation::BareLf => "bare_lf",
            Violation::BareCr => "bare_cr",
            Violation::Folded => "folded_header",
            Violation::Name => "header_name",
            Violation::Length => "content_length",
            Violation::Encoding => "transfer_encoding",
            Violation::Chunk => "chunk",
            Violation::TooLarge => "head_too_large",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Lines of a head.
    Head,
    /// Bytes of a body of known length that are to come.
    Body(u64),
    /// The line with a chunk's size.
    Size,
    /// Bytes of a chunk that are to come.
    Data(u64),
    /// The line end behind a chunk.
    DataEnd,
    /// Lines behind the last chunk.
    Trailers,
    /// The client asked to switch to another protocol; what follows may be that.
    Switched,
}

/// The state between two bytes of a client.
#[derive(Debug)]
pub struct Guard {
    state: State,
    /// Of the line that is not complete.
    line: Vec<u8>,
    /// Bytes of the head, or of the trailers.
    size: usize,
    first: bool,
    old: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: [bool; 2],
    /// How many have ended.
    heads: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Guard {
            state: State::Head,
            line: Vec::new(),
            size: 0,
            first: true,
            old: false,
            length: None,
            chunked: false,
            upgrade: [false; 2],
            heads: 0,
        }
    }
}

impl Guard {
    /// Takes the next bytes. An error tells how many of them are still good.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match self.state {
                State::Switched => return Ok(()),
                State::Body(left) | State::Data(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    at += taken;
                    let left = left - taken as u64;
                    self.state = match self.state {
                        State::Data(_) if left == 0 => State::DataEnd,
                        State::Data(_) => State::Data(left),
                        _ if left == 0 => State::Head,
                        _ => State::Body(left),
                    };
                }
                State::Head | State::Trailers | State::Size | State::DataEnd => {
                    let end = memchr::memchr(b'\n', rest);
                    let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
                    self.bounded(part.len(), end.is_some()).map_err(|violation| (at, violation))?;
                    self.line.extend_from_slice(part);
                    let Some(end) = end else { return Ok(()) };
                    // The line's end itself is not handed on if the line is wrong.
                    let line = std::mem::take(&mut self.line);
                    let result = self.line(&line);
                    self.line = line;
                    self.line.clear();
                    result.map_err(|violation| (at + end.saturating_sub(1), violation))?;
                    at += end + 1;
                }
            }
        }
        Ok(())
    }

    /// Counts a part of a line, in a head with the line's end: the sum must not depend on how the bytes arrive.
    fn bounded(&mut self, more: usize, ends: bool) -> Result<(), Violation> {
        match self.state {
            State::Head | State::Trailers => {
                self.size += more + if ends { 2 } else { 0 };
                if self.size > MAX_HEADERS as usize { Err(Violation::TooLarge) } else { Ok(()) }
            }
            _ if self.line.len() + more > MAX_SIZE_LINE => Err(Violation::Chunk),
            _ => Ok(()),
        }
    }

    /// A line without its LF.
    fn line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let in_chunk = matches!(self.state, State::Size | State::DataEnd);
        let Some(line) = line.strip_suffix(b"\r") else { return Err(if in_chunk { Violation::Chunk } else { Violation::BareLf }) };
        if memchr::memchr(b'\r', line).is_some() {
            return Err(if in_chunk { Violation::Chunk } else { Violation::BareCr });
        }
        match self.state {
            State::Size => {
                let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
                let rest = line.get(digits..).unwrap_or_default();
                let rest = rest.iter().position(|b| !matches!(b, b' ' | b'\t')).and_then(|at| rest.get(at..)).unwrap_or_default();
                // Fifteen digits are more than anybody sends, and no overflow.
                if digits == 0 || digits > 15 || !(rest.is_empty() || rest.starts_with(b";")) {
                    return Err(Violation::Chunk);
                }
                let text = std::str::from_utf8(line.get(..digits).unwrap_or_default()).map_err(|_| Violation::Chunk)?;
                self.size = 0;
                self.state = match u64::from_str_radix(text, 16).map_err(|_| Violation::Chunk)? {
                    0 => State::Trailers,
                    size => State::Data(size),
                };
            }
            State::DataEnd if line.is_empty() => self.state = State::Size,
            State::DataEnd => return Err(Violation::Chunk),
            State::Trailers if line.is_empty() => self.begin(State::Head),
            State::Trailers => drop(name_of(line)?),
            _ if self.first => {
                // Empty lines before a request are allowed.
                if !line.is_empty() {
                    self.first = false;
                    self.old = line.ends_with(b"HTTP/1.0");
                }
            }
            _ if line.is_empty() => self.end_of_head()?,
            _ => self.header(line)?,
        }
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = name_of(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).ok().filter(|_| digits && self.length.is_none()).ok_or(Violation::Length)?;
            self.length = Some(text.parse().map_err(|_| Violation::Length)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || self.old || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::Encoding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade[0] = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.upgrade[1] |= value.split(|b| *b == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        }
        if self.chunked && self.length.is_some() { Err(Violation::Encoding) } else { Ok(()) }
    }

    fn end_of_head(&mut self) -> Result<(), Violation> {
        let state = match (self.upgrade, self.chunked, self.length) {
            ([true, true], _, _) => State::Switched,
            (_, true, _) => State::Size,
            (_, false, Some(length)) if length > 0 => State::Body(length),
            (_, false, _) => State::Head,
        };
        self.heads += 1;
        self.begin(state);
        Ok(())
    }

    /// What is known of a head is over with it.
    fn begin(&mut self, state: State) {
        *self = Guard { state, line: std::mem::take(&mut self.line), heads: self.heads, ..Guard::default() };
    }

    /// The number of the head of which some is there and some not. Empty lines are none of it.
    fn unfinished_head(&self) -> Option<u64> {
        let begun = self.state == State::Head && (!self.first || self.line.iter().any(|byte| *byte != b'\r'));
        begun.then_some(self.heads)
    }
}

/// Name and value of a header line.
fn name_of(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return Err(Violation::Folded);
    }
    let colon = memchr::memchr(b':', line).filter(|colon| *colon > 0).ok_or(Violation::Name)?;
    let (name, value) = line.split_at(colon);
    if name.last().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return Err(Violation::Name);
    }
    Ok((name, value.get(1..).unwrap_or_default().trim_ascii()))
}

/// What is read in place of what was wrong in a head.
enum Poison {
    /// The rest of what the library sees an error in, and answers 400 to: no message may have a NUL.
    Nul(&'static [u8]),
    /// A line without end, to which the library answers 431 once it is too long for it as well.
    Endless,
    /// An error: a body has no end then, and its request is broken off.
    Error(Violation),
}

impl Poison {
    fn of(violation: Violation) -> Poison {
        match violation {
            Violation::TooLarge => Poison::Endless,
            violation if violation.is_in_body() => Poison::Error(violation),
            _ => Poison::Nul(b"\0\r\n\r\n"),
        }
    }

    fn read(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        match self {
            Poison::Error(violation) => return Err(io::Error::new(io::ErrorKind::InvalidData, *violation)),
            Poison::Nul(rest) => {
                let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
                buf.put_slice(now);
                *rest = later;
            }
            Poison::Endless => {
                let room = buf.initialize_unfilled();
                room.fill(b'y');
                let length = room.len();
                buf.advance(length);
            }
        }
        Ok(())
    }
}

/// A stream of which every byte that is read was looked at.
pub struct Guarded<T> {
    stream: T,
    guard: Guard,
    /// Once something was wrong.
    poison: Option<Poison>,
    /// For a head, from its first byte to its last.
    head_timeout: Duration,
    /// The head that is waited for.
    waiting: Option<(u64, Pin<Box<Sleep>>)>,
    counters: Arc<RequestCounters>,
}

impl<T> Guarded<T> {
    /// From its first byte on.
    pub fn new(stream: T, head_timeout: Duration, counters: Arc<RequestCounters>) -> Guarded<T> {
        Guarded { stream, guard: Guard::default(), poison: None, head_timeout, waiting: None, counters }
    }

    /// Nothing more has come: an error if a head has been coming for too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(head) = self.guard.unfinished_head() else {
            self.waiting = None;
            return Poll::Pending;
        };
        let limit = self.head_timeout;
        if self.waiting.as_ref().is_none_or(|(of, _)| *of != head) {
            self.waiting = Some((head, Box::pin(tokio::time::sleep(limit))));
        }
        if let Some((_, sleep)) = &mut self.waiting {
            ready!(sleep.as_mut().poll(cx));
        }
        self.counters.refused("head_timeout");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.poison.is_none() {
            let before = buf.filled().len();
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Ready(result) => result?,
                Poll::Pending => return this.wait(cx),
            }
            let new = buf.filled().get(before..).unwrap_or_default();
            let Err((good, violation)) = this.guard.feed(new) else { return Poll::Ready(Ok(())) };
            this.counters.refused(violation.name());
            buf.set_filled(before + good);
            this.poison = Some(Poison::of(violation));
            // What came before it is read first, so that a request is one however its bytes arrive.
            if good > 0 && violation.is_in_body() {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(this.poison.as_mut().map_or(Ok(()), |poison| poison.read(buf)))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
