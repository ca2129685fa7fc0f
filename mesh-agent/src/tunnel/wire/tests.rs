//! Frames survive any cutting; arbitrary bytes never panic and never make the decoder grow.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn frames() -> impl Strategy<Value = Frame> {
    let text = "[ -~]{0,60}";
    let address = prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port))),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port))),
    ];
    let maybe = || proptest::option::of(text);
    prop_oneof![
        Just(Frame::Ready),
        (any::<u16>(), any::<bool>(), proptest::option::of(address), maybe(), maybe(), maybe()).prop_map(
            |(port, accept_at_once, client, host, baggage, traceparent)| Frame::Open(Open {
                port,
                accept_at_once,
                client,
                host,
                baggage,
                traceparent
            })
        ),
        maybe().prop_map(|baggage| Frame::Accept { baggage }),
        (100u16..1000, text).prop_map(|(status, reason)| Frame::Refuse { status: StatusCode::from_u16(status).unwrap(), reason }),
        any::<u64>().prop_map(|delivered| Frame::Fin { delivered }),
        Just(Frame::Abort),
        any::<[u8; 8]>().prop_map(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Pong),
        Just(Frame::GoAway),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Frame(Frame),
    Data(Vec<u8>),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    vec(prop_oneof![frames().prop_map(Piece::Frame), vec(any::<u8>(), 0..200).prop_map(Piece::Data)], 0..12)
}

/// Feeds `bytes` cut at `cuts`, and joins data that belongs together.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Piece>, WireError> {
    let mut decoder = Decoder::default();
    let mut found: Vec<Piece> = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for window in cuts.windows(2) {
        let mut input = &bytes[window[0]..window[1]];
        while !input.is_empty() {
            let (consumed, item) = decoder.next(input)?;
            assert!(consumed > 0 && consumed <= input.len());
            match item {
                Some(Item::Data(n)) => {
                    let data = &input[consumed - n..consumed];
                    match found.last_mut() {
                        Some(Piece::Data(last)) => last.extend_from_slice(data),
                        _ => found.push(Piece::Data(data.to_vec())),
                    }
                }
                Some(Item::Frame(frame)) => found.push(Piece::Frame(frame)),
                None => {}
            }
            assert!(decoder.partial.len() <= HEADER + MAX_CONTROL);
            input = &input[consumed..];
        }
    }
    Ok(found)
}

#[test]
fn a_reason_is_bounded_also_where_it_is_no_text() {
    let mut bytes = header(REFUSE, 2 + MAX_TEXT).to_vec();
    bytes.extend(503u16.to_be_bytes());
    bytes.extend([0xff; MAX_TEXT]);
    let found = decode(&bytes, &[]).unwrap();
    let [Piece::Frame(frame @ Frame::Refuse { reason, .. })] = &found[..] else { panic!("{found:?}") };
    assert!(reason.len() <= MAX_TEXT && reason.starts_with(char::REPLACEMENT_CHARACTER));
    let mut again = Vec::new();
    frame.encode(&mut again);
    assert_eq!(decode(&again, &[]).unwrap(), found);
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_however_it_is_cut(pieces in pieces(), cuts in vec(any::<usize>(), 0..20)) {
        let mut bytes = Vec::new();
        let mut expected: Vec<Piece> = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Frame(frame) => {
                    frame.encode(&mut bytes);
                    expected.push(piece.clone());
                }
                Piece::Data(data) => {
                    bytes.extend(data_header(data.len()));
                    bytes.extend(data);
                    match expected.last_mut() {
                        _ if data.is_empty() => {}
                        Some(Piece::Data(last)) => last.extend_from_slice(data),
                        _ => expected.push(piece.clone()),
                    }
                }
            }
        }
        prop_assert_eq!(decode(&bytes, &cuts).unwrap(), expected);
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..2000), cuts in vec(any::<usize>(), 0..8)) {
        // The result does not depend on the cutting, and nothing panics.
        let whole = decode(&bytes, &[]);
        let cut = decode(&bytes, &cuts);
        if let (Ok(whole), Ok(cut)) = (&whole, &cut) {
            prop_assert_eq!(whole, cut);
        } else {
            prop_assert_eq!(whole.is_err(), cut.is_err());
        }
    }

    #[test]
    fn damaged_frames_never_panic(frame in frames(), at in any::<usize>(), value in any::<u8>()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = decode(&bytes, &[at]);
    }
}

#[test]
fn lengths_and_types_that_cannot_be_are_refused_by_the_header_alone() {
    for (head, error) in [
        ([0, 0, 0, 0], WireError::Type(0)),
        ([11, 0, 0, 0], WireError::Type(11)),
        ([OPEN, 0, 0x10, 1], WireError::Length { kind: OPEN, length: 4097 }),
        ([OPEN, 0xff, 0xff, 0xff], WireError::Length { kind: OPEN, length: MAX_DATA }),
    ] {
        assert_eq!(Decoder::default().next(&head), Err(error));
    }
}

#[test]
fn texts_of_a_peer_are_fit_for_a_log() {
    let mut bytes = Vec::new();
    Frame::Refuse { status: StatusCode::UNAUTHORIZED, reason: "a\nb\x1b[31m".into() }.encode(&mut bytes);
    let (_, item) = Decoder::default().next(&bytes).unwrap();
    assert_eq!(item, Some(Item::Frame(Frame::Refuse { status: StatusCode::UNAUTHORIZED, reason: "a b [31m".into() })));
    let mut bytes = Vec::new();
    Frame::Open(Open { host: Some("a\nb".into()), ..Open::default() }).encode(&mut bytes);
    assert_eq!(Decoder::default().next(&bytes), Err(WireError::Field { kind: OPEN, field: FIELD_HOST }));
    let long = Frame::Refuse { status: StatusCode::UNAUTHORIZED, reason: "ä".repeat(5000) };
    let mut bytes = Vec::new();
    long.encode(&mut bytes);
    assert!(bytes.len() <= HEADER + MAX_CONTROL);
    assert!(Decoder::default().next(&bytes).is_ok());
}

#[test]
fn fields_of_later_versions_are_skipped() {
    let mut bytes = Vec::new();
    Frame::Open(Open { port: 80, ..Open::default() }).encode(&mut bytes);
    bytes.extend([200, 0, 3, 1, 2, 3]);
    bytes[3] += 6;
    let (consumed, item) = Decoder::default().next(&bytes).unwrap();
    assert_eq!(consumed, bytes.len());
    assert_eq!(item, Some(Item::Frame(Frame::Open(Open { port: 80, ..Open::default() }))));
}
