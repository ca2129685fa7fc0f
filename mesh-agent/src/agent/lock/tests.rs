use super::*;

#[tokio::test]
async fn one_holds_it_and_says_who_and_the_next_gets_it_when_it_is_let_go() {
    let run_dir = tempfile::tempdir().unwrap();
    let directory = directory(run_dir.path(), "one").unwrap();
    assert_eq!(WriterLock::holder(&directory), None);
    let held = WriterLock::try_take(&directory).unwrap().expect("it is free");
    assert_eq!(WriterLock::holder(&directory), Some(std::process::id()));
    assert!(WriterLock::try_take(&directory).unwrap().is_none());
    assert!(WriterLock::take(&directory, Duration::ZERO).await.unwrap().is_none());
    drop(held);
    assert!(WriterLock::take(&directory, Duration::ZERO).await.unwrap().is_some());
}

#[test]
fn instances_do_not_know_each_other() {
    let run_dir = tempfile::tempdir().unwrap();
    let one = directory(run_dir.path(), "one").unwrap();
    let other = directory(run_dir.path(), "other").unwrap();
    let _one = WriterLock::try_take(&one).unwrap().expect("it is free");
    assert!(WriterLock::try_take(&other).unwrap().is_some());
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_flag() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = directory(file.path(), "one").unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()) && error.contains("--run-dir"), "{error}");
}

#[test]
fn a_lock_whose_file_was_removed_is_not_held_by_the_next() {
    let run_dir = tempfile::tempdir().unwrap();
    let path = directory(run_dir.path(), "one").unwrap();
    let first = WriterLock::try_take(&path).unwrap().expect("it is free");
    std::fs::write(path.join("cni.sock"), "").unwrap();
    first.remove(&path).unwrap();
    assert!(!path.exists());
    let path = directory(run_dir.path(), "one").unwrap();
    let _held = WriterLock::try_take(&path).unwrap().expect("it is free");
    assert!(WriterLock::try_take(&path).unwrap().is_none());
}
