use proptest::prelude::*;

use super::*;

fn judge(bytes: &[u8]) -> Result<(), Violation> {
    Guard::default().feed(bytes).map_err(|(_, violation)| violation)
}

#[test]
fn messages_of_every_framing_may_follow_one_another() {
    let fine =
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\r\n\r\nPUT / HTTP/1.1\r\nTransfer-Encoding: \
                 Chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\nGET /last HTTP/1.0\r\n\r\n";
    assert_eq!(judge(fine), Ok(()));
    let switched = b"GET / HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: x\r\n\r\nany\nthing\0";
    assert_eq!(judge(switched), Ok(()));
}

#[test]
fn what_may_be_read_in_two_ways_is_refused() {
    for (head, violation) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", Violation::BareLf),
        ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", Violation::BareLf),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Violation::BareCr),
        ("GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", Violation::Folded),
        ("GET / HTTP/1.1\r\nX : a\r\n\r\n", Violation::Name),
        ("GET / HTTP/1.1\r\nnothing\r\n\r\n", Violation::Name),
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Violation::Length),
        ("POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", Violation::Length),
        ("POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", Violation::Length),
        ("POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", Violation::Length),
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::Encoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", Violation::Encoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::Encoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Violation::Encoding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::Encoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", Violation::Chunk),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n", Violation::Chunk),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n", Violation::Chunk),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", Violation::Chunk),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1234567890abcdef\r\n", Violation::Chunk),
    ] {
        assert_eq!(judge(head.as_bytes()), Err(violation), "{head:?}");
    }
    let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(MAX_HEADERS as usize));
    assert_eq!(judge(long.as_bytes()), Err(Violation::TooLarge));
}

#[tokio::test]
async fn a_reader_sees_no_byte_behind_what_was_wrong() {
    use tokio::io::AsyncReadExt as _;
    let bytes = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nGET /smuggled";
    let mut seen = Vec::new();
    let counters = Arc::new(RequestCounters::default());
    Guarded::new(&bytes[..], Duration::from_secs(30), counters).read_to_end(&mut seen).await.unwrap();
    let text = String::from_utf8(seen).unwrap();
    assert!(text.ends_with("\0\r\n\r\n") && !text.contains("smuggled"), "{text:?}");
    assert!(!text.trim_end_matches("\0\r\n\r\n").ends_with('\n'), "the head has no end: {text:?}");
}

#[tokio::test]
async fn what_comes_before_a_broken_chunk_is_read() {
    use tokio::io::AsyncReadExt as _;
    let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n";
    let mut seen = Vec::new();
    let mut guarded = Guarded::new(&bytes[..], Duration::from_secs(30), Arc::default());
    let failed = guarded.read_to_end(&mut seen).await.unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::InvalidData);
    assert!(seen.ends_with(b"\r\n\r\n3\r\nabcd"), "{:?}", String::from_utf8_lossy(&seen));
}

#[test]
fn a_head_is_as_large_however_it_arrives() {
    let fits = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(MAX_HEADERS as usize - 30));
    let too_large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(MAX_HEADERS as usize));
    for (head, verdict) in [(fits, Ok(())), (too_large, Err(Violation::TooLarge))] {
        for cut in [1, 2, 100, head.len()] {
            let mut guard = Guard::default();
            let fed = head.as_bytes().chunks(cut).try_for_each(|piece| guard.feed(piece).map_err(|(_, violation)| violation));
            assert_eq!(fed, verdict, "in pieces of {cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_not_waited_for() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let limit = Duration::from_secs(30);
    let counters = Arc::new(RequestCounters::default());
    let (mut client, server) = tokio::io::duplex(1 << 10);
    let mut guarded = Guarded::new(server, limit, counters);
    let mut bytes = [0; 100];
    // Nothing, or an empty line, is no head: between two requests there is time.
    client.write_all(b"GET / HTTP/1.1\r\n\r\n\r\n").await.unwrap();
    assert_eq!(guarded.read(&mut bytes).await.unwrap(), 20);
    assert!(tokio::time::timeout(limit * 10, guarded.read(&mut bytes)).await.is_err());
    // A byte now and then does not make more of it.
    let begun = tokio::time::Instant::now();
    let failed = loop {
        assert!(begun.elapsed() <= limit, "it is waited for");
        client.write_all(b"G").await.unwrap();
        assert_eq!(guarded.read(&mut bytes).await.unwrap(), 1);
        if let Ok(read) = tokio::time::timeout(limit / 4, guarded.read(&mut bytes)).await {
            break read.unwrap_err();
        }
    };
    assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn every_reason_is_counted_under_its_name() {
    let counters = RequestCounters::default();
    for violation in [
        Violation::BareLf,
        Violation::BareCr,
        Violation::Folded,
        Violation::Name,
        Violation::Length,
        Violation::Encoding,
        Violation::Chunk,
        Violation::TooLarge,
    ] {
        let before = counters.refusals();
        counters.refused(violation.name());
        assert_eq!(counters.refusals(), before + 1, "{violation}");
    }
}

proptest! {
    #[test]
    fn it_does_not_matter_how_the_bytes_are_cut(
        parts in proptest::collection::vec(prop_oneof![
            Just("GET / HTTP/1.1\r\n"), Just("POST / HTTP/1.0\r\n"), Just("Host: a\r\n"), Just("Content-Length: 3\r\n"), Just("\r\n"),
            Just("Transfer-Encoding: chunked\r\n"), Just("3\r\n"), Just("abc"), Just("0\r\n"), Just("\n"), Just(" x\r\n"), Just("Upgrade: x\r\n"),
            Just("Connection: upgrade\r\n"), Just("\r"),
        ], 0..12),
        cut in 1usize..7,
    ) {
        let bytes = parts.concat().into_bytes();
        let whole = Guard::default().feed(&bytes);
        let mut guard = Guard::default();
        let mut at = 0;
        let mut piecewise = Ok(());
        for piece in bytes.chunks(cut) {
            if let Err((good, violation)) = guard.feed(piece) {
                piecewise = Err((at + good, violation));
                break;
            }
            at += piece.len();
        }
        // The place may be the piece's beginning where a line began in an earlier one.
        prop_assert_eq!(whole.map_err(|(_, violation)| violation), piecewise.map_err(|(_, violation)| violation));
    }

    #[test]
    fn it_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Guard::default().feed(&bytes);
    }
}
