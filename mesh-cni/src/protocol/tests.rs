#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use super::*;

fn add() -> Request {
    Request {
        version: VERSION,
        command: Command::Add(Attachment {
            pod: PodName { namespace: "shop".into(), name: "cart-0".into(), uid: Some("0f3a".into()) },
            container: "c1".into(),
            netns: "/run/netns/cni-1".into(),
            addresses: vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        }),
    }
}

#[test]
fn what_is_sent_is_received() {
    let mut bytes = Vec::new();
    send(&mut bytes, &add()).unwrap();
    assert_eq!(receive::<Request>(&mut bytes.as_slice()).unwrap(), add());
    for answer in [Answer::Captured, Answer::Outside, Answer::Done, Answer::Failed(Failure { message: "no".into(), again: true })] {
        let mut bytes = Vec::new();
        send(&mut bytes, &answer).unwrap();
        assert_eq!(receive::<Answer>(&mut bytes.as_slice()).unwrap(), answer);
    }
}

/// Plug-in and agent of different builds meet: the form on the wire is part of the contract.
#[test]
fn the_form_of_a_request_is_fixed() {
    let text = String::from_utf8(encode(&add()).unwrap()[4..].to_vec()).unwrap();
    assert_eq!(
        text,
        r#"{"version":1,"command":{"add":{"pod":{"namespace":"shop","name":"cart-0","uid":"0f3a"},"container":"c1","netns":"/run/netns/cni-1","addresses":["10.1.0.7","fd00::7"]}}}"#
    );
}

#[test]
fn a_message_that_is_too_long_is_not_read() {
    let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'{'];
    assert!(receive::<Request>(&mut bytes).unwrap_err().to_string().contains("at most"));
    assert!(send(&mut Vec::new(), &"x".repeat(MAX_MESSAGE)).is_err());
}

#[test]
fn a_message_that_ends_early_is_an_error() {
    let whole = encode(&add()).unwrap();
    for end in 0..whole.len() {
        assert!(receive::<Request>(&mut &whole[..end]).is_err());
    }
}

#[test]
fn a_uid_is_no_path() {
    assert!(is_uid("7f1b0a52-9f6b-4b62-8a41-6c3c7f0d5b11"));
    assert!(is_uid("4d1c0e0f5e0d7a3b8f4e2a1b0c9d8e7f"), "a static pod's");
    for bad in ["", "..", "a/b", "a.b", &"a".repeat(65)] {
        assert!(!is_uid(bad), "{bad}");
    }
}
