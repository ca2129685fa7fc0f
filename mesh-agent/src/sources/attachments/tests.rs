use super::*;

fn uid(text: &str) -> WorkloadUid {
    WorkloadUid(text.into())
}

/// A namespace is a file here, told apart by its inode as the real ones are.
fn attached(directory: &Path, container: &str) -> Attached {
    let path = directory.join(container);
    fs::write(&path, "").unwrap();
    let netns = File::open(&path).unwrap();
    Attached { container: container.into(), path, netns, addresses: vec!["10.1.0.10".parse().unwrap(), "fd00::10".parse().unwrap()] }
}

fn known(attachments: &Attachments) -> Vec<String> {
    let mut known: Vec<String> = attachments.iter().map(|(uid, attached)| format!("{uid}={}", attached.container)).collect();
    known.sort();
    known
}

#[test]
fn the_next_agent_knows_what_is_still_so() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("run/attached");
    let mut first = Attachments::new(state.clone());
    for (pod, container) in [("u-1", "a1"), ("shop/web", "b2"), ("u-3", "c3"), ("u-4", "d4"), ("u-5", "e5")] {
        assert!(first.insert(uid(pod), attached(dir.path(), container)).is_none());
    }
    // A sandbox that was made anew, one that ended, one that the runtime does not know any more.
    assert_eq!(first.insert(uid("u-1"), attached(dir.path(), "a9")).map(|old| old.container), Some("a1".into()));
    assert_eq!(first.retain(|_, attached| &*attached.container != "c3").len(), 1);
    fs::remove_file(dir.path().join("d4")).unwrap();
    // Another namespace under the name of one that is gone.
    fs::rename(dir.path().join("e5"), dir.path().join("old")).unwrap();
    fs::write(dir.path().join("e5"), "").unwrap();
    fs::write(state.join("f6.json"), "{").unwrap();
    fs::write(state.join(".g7.new"), "left half written").unwrap();

    let mut second = Attachments::new(state.clone());
    second.load();
    assert_eq!(known(&second), ["shop/web=b2", "u-1=a9"]);
    assert_eq!(second.get(&uid("u-1")).unwrap().addresses, first.get(&uid("u-1")).unwrap().addresses);
    let mut files: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["a9.json", "b2.json"], "nothing is left of the others");
    fs::remove_file(dir.path().join("b2")).unwrap();
    assert_eq!(second.retain_there().len(), 1);
    assert_eq!(known(&second), ["u-1=a9"]);
}

#[test]
fn what_cannot_be_kept_is_known_as_long_as_the_agent_runs() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the directory would have to be.
    fs::write(dir.path().join("run"), "").unwrap();
    let mut attachments = Attachments::new(dir.path().join("run/attached"));
    attachments.insert(uid("u-1"), attached(dir.path(), "a1"));
    assert_eq!(known(&attachments), ["u-1=a1"]);
}

#[test]
fn a_container_is_named_so_that_it_can_be_a_file() {
    for good in ["a", "0a1B", "cni-1.2_3"] {
        assert!(is_container(good), "{good}");
    }
    for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", &"a".repeat(129)] {
        assert!(!is_container(bad), "{bad}");
    }
}
