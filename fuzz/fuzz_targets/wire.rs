//! The frames between agents: decoded alike however the bytes are cut, within bounds, and what was decoded is encoded to the same again.
#![no_main]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use libfuzzer_sys::fuzz_target;
use mesh_agent::tunnel::wire::{Decoder, Frame, HEADER, Item, MAX_CONTROL, MAX_TEXT, WireError};

#[derive(PartialEq, Debug)]
enum Piece {
    Frame(Frame),
    /// Bytes of the application, joined where they follow one another.
    Data(Vec<u8>),
}

fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Piece>, Option<WireError>) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    let mut silent = 0;
    for mut input in parts {
        while !input.is_empty() {
            let (consumed, item) = match decoder.next(input) {
                Ok(next) => next,
                Err(error) => return (found, Some(error)),
            };
            assert!(consumed > 0 && consumed <= input.len());
            // What brings nothing is held: no more than a frame.
            silent = if decoder.is_between_frames() || item.is_some() { 0 } else { silent + consumed };
            assert!(silent <= HEADER + MAX_CONTROL);
            match item {
                Some(Item::Data(length)) => {
                    assert!(length > 0 && length <= consumed);
                    let data = &input[consumed - length..consumed];
                    match found.last_mut() {
                        Some(Piece::Data(last)) => last.extend_from_slice(data),
                        _ => found.push(Piece::Data(data.to_vec())),
                    }
                }
                Some(Item::Frame(frame)) => found.push(Piece::Frame(frame)),
                None => {}
            }
            input = &input[consumed..];
        }
    }
    (found, None)
}

fn text_is_bounded(frame: &Frame) -> bool {
    let short = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= MAX_TEXT && !text.chars().any(char::is_control));
    match frame {
        Frame::Open(open) => short(&open.host) && short(&open.baggage) && short(&open.traceparent),
        Frame::Accept { baggage } => short(baggage),
        Frame::Refuse { reason, .. } => short(&Some(reason.clone())),
        _ => true,
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let (whole, error) = decode(std::iter::once(bytes));
    let pieces = decode(bytes.chunks(usize::from(*cut).max(1)));
    assert_eq!((&whole, &error), (&pieces.0, &pieces.1));
    for piece in &whole {
        let Piece::Frame(frame) = piece else { continue };
        assert!(text_is_bounded(frame), "{frame:?}");
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        assert!(encoded.len() <= HEADER + MAX_CONTROL);
        assert_eq!(decode(std::iter::once(&*encoded)), (vec![Piece::Frame(frame.clone())], None));
    }
});
