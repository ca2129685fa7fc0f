use std::fs;
use std::time::Duration;

use super::*;

const A: &str = "token-of-node-a-0123456789";
const B: &str = "token-of-node-b-0123456789";

fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

fn metadata(values: &[&str]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for value in values {
        metadata.append("authorization", value.parse().unwrap());
    }
    metadata
}

#[test]
fn bearer_tokens() {
    for good in [format!("Bearer {A}"), format!("bearer  {A} "), format!("BEARER {A}")] {
        assert_eq!(bearer(&metadata(&[&good])).unwrap(), A);
    }
    assert_eq!(bearer(&metadata(&[])).unwrap_err().reason(), "no_token");
    let long = format!("Bearer {}", "x".repeat(MAX_TOKEN + 1));
    for bad in ["", "Bearer", "Bearer ", "Bearer short", A, &format!("Basic {A}"), &format!("Bearer {A} {A}"), &long] {
        assert_eq!(bearer(&metadata(&[bad])).unwrap_err().reason(), "token_form", "{bad}");
    }
    let twice = format!("Bearer {A}");
    assert_eq!(bearer(&metadata(&[&twice, &twice])).unwrap_err().reason(), "token_form");
}

#[test]
fn a_directory_with_a_file_a_node_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("node-a"), format!("{A}\n")).unwrap();
    fs::write(dir.path().join(".hidden"), B).unwrap();
    let tokens = NodeTokens::open(dir.path(), soon());
    assert_eq!((tokens.node(A).as_deref(), tokens.node(B), tokens.len()), (Some("node-a"), None, 1));
    assert!(!tokens.refresh(soon()));
    fs::write(dir.path().join("node-b"), B).unwrap();
    assert!(tokens.refresh(soon()));
    assert_eq!(tokens.node(B).as_deref(), Some("node-b"));
    fs::write(dir.path().join("node-b"), "another-token-of-node-b").unwrap();
    assert!(tokens.refresh(soon()));
    assert_eq!(tokens.node(B), None);
    fs::remove_file(dir.path().join("node-a")).unwrap();
    assert!(tokens.refresh(soon()));
    assert_eq!((tokens.node(A), tokens.problems()), (None, Vec::new()));
}

#[test]
fn a_change_right_after_a_look_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node-a");
    fs::write(&path, A).unwrap();
    let tokens = NodeTokens::open(dir.path(), SystemTime::now());
    for _ in 0..50 {
        // Of the same length, within the granularity of file times.
        fs::write(&path, B).unwrap();
        tokens.refresh(SystemTime::now());
        assert!(tokens.node(B).is_some() && tokens.node(A).is_none());
        fs::write(&path, A).unwrap();
        tokens.refresh(SystemTime::now());
        assert!(tokens.node(A).is_some() && tokens.node(B).is_none());
    }
}

#[test]
fn one_file_with_a_line_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    fs::write(&path, format!("# nodes\n\nnode-a {A}\nnode-b\t{B}\nnode-c\nnode-d short\nBad_Name {A}\n")).unwrap();
    let tokens = NodeTokens::open(&path, soon());
    assert_eq!((tokens.node(A).as_deref(), tokens.node(B).as_deref()), (Some("node-a"), Some("node-b")));
    let problems = tokens.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].contains("tokens:5:") && problems[1].contains("tokens:6:") && problems[2].contains("tokens:7:"));
    assert!(!problems.join("").contains(A), "no token is told");
}

#[test]
fn a_token_of_two_nodes_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    for (node, token) in [("node-a", A), ("node-b", A), ("node-c", B)] {
        fs::write(dir.path().join(node), token).unwrap();
    }
    let tokens = NodeTokens::open(dir.path(), soon());
    assert_eq!((tokens.node(A), tokens.node(B).as_deref()), (None, Some("node-c")));
    assert!(tokens.problems()[0].contains("node-a and node-b have the same token"));
}

#[tokio::test]
async fn what_vanishes_locks_nobody_out_and_nothing_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.d");
    let tokens = NodeTokens::open(&path, soon());
    assert_eq!(tokens.authenticate(A, None).await.unwrap_err().reason(), "no_authenticator");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("node-a"), A).unwrap();
    assert!(tokens.refresh(soon()));
    assert_eq!(&*tokens.authenticate(A, None).await.unwrap().node, "node-a");
    assert_eq!(tokens.authenticate(B, None).await.unwrap_err().reason(), "unknown_token");
    fs::remove_dir_all(&path).unwrap();
    assert!(tokens.refresh(soon()));
    assert!(!tokens.refresh(soon()), "told once");
    assert_eq!(&*tokens.authenticate(A, None).await.unwrap().node, "node-a");
    assert!(tokens.problems()[0].contains("cannot be read"));
}
