//! HTTP/2 (RFC 9113) byte by byte, for tests that send what no library would: frames are written as they are told and read as they come.

/// With what a client begins (3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (6).
pub mod kind {
    /// Bytes of a body.
    pub const DATA: u8 = 0;
    /// A head, or trailers.
    pub const HEADERS: u8 = 1;
    /// The end of a stream before its time.
    pub const RST_STREAM: u8 = 3;
    /// Settings of the sender.
    pub const SETTINGS: u8 = 4;
    /// A question whether the peer lives.
    pub const PING: u8 = 6;
    /// No more streams, and why.
    pub const GOAWAY: u8 = 7;
    /// Room for bytes of bodies.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a head.
    pub const CONTINUATION: u8 = 9;
}

/// DATA and HEADERS: no more of this direction.
pub const END_STREAM: u8 = 1;
/// HEADERS and CONTINUATION: the block is complete.
pub const END_HEADERS: u8 = 4;

/// Error codes (7).
pub mod code {
    /// A window was overstepped.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// The peer asks for too much.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The bytes of a frame. Of the payload's length the lowest three bytes count.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[high, middle, low, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// The beginning of a connection, with these settings (identifier and value).
pub fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    [PREFACE, &frame(kind::SETTINGS, 0, 0, &payload)].concat()
}

/// A block of headers, each spelt out and none remembered (RFC 7541, 6.2.2).
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A number with a prefix of seven bits (RFC 7541, 5.1).
fn length(into: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 127;
    if length < PREFIX {
        into.push(length as u8);
        return;
    }
    into.push(PREFIX as u8);
    let mut rest = length - PREFIX;
    while rest >= 128 {
        into.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    into.push(rest as u8);
}

/// A request's headers in one frame, of at most 16384 bytes.
pub fn request(stream: u32, flags: u8, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "a.example"), (":path", path)];
    frame(kind::HEADERS, flags | END_HEADERS, stream, &block(&[&pseudo[..], more].concat()))
}

/// The whole frames in some bytes.
pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some(([high, middle, low, kind, flags, a, b, c, d], rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([*a, *b, *c, *d]);
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload: payload.to_vec() });
        bytes = rest;
    }
    frames
}

/// The error code of the first GOAWAY that tells of an error.
pub fn goaway(frames: &[Frame]) -> Option<u32> {
    let codes = frames.iter().filter(|frame| frame.kind == kind::GOAWAY).filter_map(|frame| {
        let code = frame.payload.get(4..8)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    });
    codes.into_iter().find(|code| *code != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = [frame(kind::PING, 0, 0, &[7; 8]), request(3, END_STREAM, "GET", "/", &[("x", &"y".repeat(300))])].concat();
        let found = frames(&bytes);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].kind, found[1].flags, found[1].stream), (kind::HEADERS, END_STREAM | END_HEADERS, 3));
        // 300 is 127 and 173, which is 45 and 1 times 128.
        assert!(found[1].payload.windows(5).any(|window| window == [1, b'x', 127, 173, 1]));
        assert_eq!(frames(&bytes[..bytes.len() - 1]).len(), 1, "half a frame is none");
    }

    #[test]
    fn an_orderly_goaway_is_no_error() {
        let of = |code: u32| frames(&frame(kind::GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat()));
        assert_eq!((goaway(&of(0)), goaway(&of(11)), goaway(&[])), (None, Some(11), None));
    }
}
