use super::{Trace, not_tls};

fn file(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
    bytes.extend([0; 8]);
    bytes.extend(65535u32.to_le_bytes());
    bytes.extend(link.to_le_bytes());
    for frame in frames {
        bytes.extend([0; 8]);
        bytes.extend((frame.len() as u32).to_le_bytes());
        bytes.extend((frame.len() as u32).to_le_bytes());
        bytes.extend(frame);
    }
    bytes
}

/// A cooked v2 frame of 10.0.0.1:40000 → 10.0.0.2:80.
fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0x00];
    bytes.extend([0; 18]);
    let total = (40 + payload.len()) as u16;
    bytes.extend([0x45, 0]);
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(40000u16.to_be_bytes());
    bytes.extend(80u16.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

#[test]
fn a_needle_across_two_segments_out_of_order_is_found() {
    let frames = [frame(99, 2, b""), frame(104, 16, b"ret"), frame(100, 16, b"sec-"), frame(104, 16, b"ret")];
    let trace = Trace::parse(&file(276, &frames)).expect("parses");
    assert!(trace.contains(b"sec-ret"));
    assert!(!trace.contains(b"sec-retret"));
    assert_eq!(trace.plaintext().len(), 1);
    assert_eq!(trace.ports().into_iter().collect::<Vec<_>>(), [80]);
}

#[test]
fn sequence_numbers_may_wrap() {
    let frames = [frame(u32::MAX - 2, 2, b""), frame(u32::MAX - 1, 16, b"ab"), frame(0, 16, b"cd")];
    let trace = Trace::parse(&file(276, &frames)).expect("parses");
    assert!(trace.contains(b"abcd"));
}

#[test]
fn records_of_tls_are_no_plaintext() {
    let hello = [22, 3, 1, 0, 2, 1, 2, 23, 3, 3, 0, 1, 9, 23, 3];
    assert_eq!(not_tls(&hello), None);
    let trace = Trace::parse(&file(276, &[frame(99, 2, b""), frame(100, 24, &hello)])).expect("parses");
    assert!(trace.plaintext().is_empty());
}

#[test]
fn plaintext_after_tls_is_told() {
    assert_eq!(not_tls(b"\x17\x03\x03\x00\x01xGET /"), Some(b"GET /".to_vec()));
    assert!(not_tls(b"GET / HTTP/1.1\r\n").is_some());
    assert!(not_tls(&[22, 3, 3, 0xff, 0xff, 0]).is_some());
}

#[test]
fn a_cut_off_or_foreign_file_is_refused_or_shortened() {
    assert!(Trace::parse(b"nope").is_err());
    assert!(Trace::parse(&file(999, &[])).is_err());
    let mut bytes = file(276, &[frame(1, 16, b"whole"), frame(6, 16, b"cut")]);
    bytes.truncate(bytes.len() - 2);
    assert_eq!(Trace::parse(&bytes).expect("parses").packets(), 1);
    for length in 0..bytes.len() {
        let _ = Trace::parse(&bytes[..length]);
    }
}
