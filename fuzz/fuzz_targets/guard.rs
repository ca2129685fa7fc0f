//! What may be read in two ways: the guard refuses the same messages as a second reader who has all bytes at once, however they arrive, and
//! hands on no byte behind what is wrong.
//!
//! The first byte is how the rest is cut, the next two how many `y` each byte 1 stands for: long heads from short inputs.
#![no_main]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_agent::route::guard::{Guard, Guarded, Violation};
use mesh_agent::route::serve::MAX_HEADERS;
use tokio::io::{AsyncRead, ReadBuf};

/// In place of a head that is wrong.
const POISON: &[u8] = b"\0\r\n\r\n";
/// Longest line of a chunk's size, its CR counted.
const SIZE_LINE: usize = 512;

struct Reader<'a> {
    rest: &'a [u8],
    /// Of the head or trailers that are read.
    size: usize,
}

impl<'a> Reader<'a> {
    /// The next line without its end; `Ok(None)` if it has none yet.
    fn line(&mut self, in_chunk: bool) -> Result<Option<&'a [u8]>, Violation> {
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(self.rest.len());
        if in_chunk && length > SIZE_LINE {
            return Err(Violation::Chunk);
        }
        self.size += length + if end.is_some() { 2 } else { 0 };
        if !in_chunk && self.size > MAX_HEADERS as usize {
            return Err(Violation::TooLarge);
        }
        let Some(end) = end else { return Ok(None) };
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        match line.split_last() {
            Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some(line)),
            Some((b'\r', _)) => Err(if in_chunk { Violation::Chunk } else { Violation::BareCr }),
            _ => Err(if in_chunk { Violation::Chunk } else { Violation::BareLf }),
        }
    }

    fn skip(&mut self, length: u64) -> bool {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let there = self.rest.len() >= length;
        self.rest = self.rest.get(length..).unwrap_or_default();
        there
    }
}

/// Name in lower case, and value.
fn field(line: &[u8]) -> Result<(String, String), Violation> {
    let text: String = line.iter().map(|byte| char::from(*byte)).collect();
    if text.starts_with([' ', '\t']) {
        return Err(Violation::Folded);
    }
    let (name, value) = text.split_once(':').ok_or(Violation::Name)?;
    if name.is_empty() || name.ends_with([' ', '\t']) {
        return Err(Violation::Name);
    }
    let blank = |c: char| c.is_ascii_whitespace();
    Ok((name.to_ascii_lowercase(), value.trim_matches(blank).to_ascii_lowercase()))
}

/// Reads messages to the end, or to what is wrong.
fn model(bytes: &[u8]) -> Result<(), Violation> {
    let mut reader = Reader { rest: bytes, size: 0 };
    macro_rules! line {
        ($in_chunk:expr) => {
            match reader.line($in_chunk)? {
                Some(line) => line,
                None => return Ok(()),
            }
        };
    }
    loop {
        reader.size = 0;
        let mut first = line!(false);
        while first.is_empty() {
            first = line!(false);
        }
        let (mut lengths, mut codings, mut upgrade, mut named) = (Vec::new(), Vec::new(), false, false);
        loop {
            let line = line!(false);
            if line.is_empty() {
                break;
            }
            let (name, value) = field(line)?;
            match name.as_str() {
                "content-length" => {
                    let good = (1..=18).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit());
                    if !good || !lengths.is_empty() {
                        return Err(Violation::Length);
                    }
                    lengths.push(value.parse::<u64>().unwrap());
                }
                "transfer-encoding" => {
                    if value != "chunked" || !codings.is_empty() || first.ends_with(b"HTTP/1.0") {
                        return Err(Violation::Encoding);
                    }
                    codings.push(value);
                }
                "upgrade" => upgrade = true,
                "connection" => named |= value.split(',').any(|word| word.trim_matches(|c: char| c.is_ascii_whitespace()) == "upgrade"),
                _ => {}
            }
            if !lengths.is_empty() && !codings.is_empty() {
                return Err(Violation::Encoding);
            }
        }
        if upgrade && named {
            return Ok(());
        }
        if codings.is_empty() {
            if !reader.skip(lengths.first().copied().unwrap_or(0)) {
                return Ok(());
            }
            continue;
        }
        loop {
            let line: String = line!(true).iter().map(|byte| char::from(*byte)).collect();
            let size = line.split(';').next().unwrap().trim_end_matches([' ', '\t']);
            if !(1..=15).contains(&size.len()) || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(Violation::Chunk);
            }
            let size = u64::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            if !reader.skip(size) {
                return Ok(());
            }
            // Behind a chunk nothing but the line's end.
            if !line!(true).is_empty() {
                return Err(Violation::Chunk);
            }
        }
        reader.size = 0;
        loop {
            let line = line!(false);
            if line.is_empty() {
                break;
            }
            field(line)?;
        }
    }
}

/// All that a reader behind the guard gets, and whether that ends with an error.
fn read_all(bytes: &[u8], cut: usize) -> (Vec<u8>, bool) {
    let mut stream = Guarded::new(bytes, Duration::MAX, Arc::default());
    let mut context = Context::from_waker(Waker::noop());
    let mut read = Vec::new();
    let mut room = vec![0; cut];
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut stream).poll_read(&mut context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return (read, false),
            // In place of a head that is too large there is a line without end.
            Poll::Ready(Ok(())) if read.len() > bytes.len() + POISON.len() => return (read, false),
            Poll::Ready(Ok(())) => read.extend_from_slice(buffer.filled()),
            Poll::Ready(Err(_)) | Poll::Pending => return (read, true),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let [cut, high, low, short @ ..] = input else { return };
    let cut = usize::from(*cut).max(1);
    let padding = vec![b'y'; usize::from(u16::from_be_bytes([*high, *low])) / short.iter().filter(|byte| **byte == 1).count().max(1)];
    let bytes: Vec<u8> = short.iter().flat_map(|byte| if *byte == 1 { padding.clone() } else { vec![*byte] }).collect();

    let whole = Guard::default().feed(&bytes);
    assert_eq!(whole.map_err(|(_, violation)| violation), model(&bytes), "in one piece");
    let mut guard = Guard::default();
    let pieces = bytes.chunks(cut).try_for_each(|piece| guard.feed(piece).map_err(|(_, violation)| violation));
    assert_eq!(pieces, model(&bytes), "in pieces of {cut}");

    let (read, failed) = read_all(&bytes, cut);
    match (whole, failed) {
        (Ok(()), failed) => assert!(!failed && read == bytes),
        // Of a body nothing behind what is wrong; the request it belongs to is broken off.
        (Err((_, Violation::Chunk)), failed) => assert!(failed && bytes.starts_with(&read)),
        (Err((_, Violation::TooLarge)), failed) => {
            let same = read.iter().zip(&bytes).take_while(|(read, came)| read == came).count();
            assert!(!failed && read[same..].iter().all(|byte| *byte == b'y'));
        }
        // Of a head the beginning, and then what no reader takes for a head.
        (Err(_), failed) => {
            let good = read.strip_suffix(POISON).unwrap();
            assert!(!failed && bytes.starts_with(good) && good.len() < bytes.len());
        }
    }
});
