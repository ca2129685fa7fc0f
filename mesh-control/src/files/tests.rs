use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn writes_whole_files_with_their_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    write(&path, b"old", PUBLIC).unwrap();
    write(&path, b"new", SECRET).unwrap();
    assert_eq!(read(&path).unwrap(), "new");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    assert!(write(&dir.path().join("absent/key"), b"", SECRET).is_err());
    assert!(read(dir.path()).is_err());
}

#[test]
fn pem_is_what_others_write() {
    for length in [1, 2, 3, 47, 48, 49, 96] {
        let der: Vec<u8> = (0..length).collect();
        let text = pem("CERTIFICATE", &der);
        assert_eq!(crate::ca::testing::certificates(&text).first().unwrap().as_ref(), &*der);
        assert!(text.lines().all(|line| line.len() <= 64) && text.ends_with("-----END CERTIFICATE-----\n"));
    }
}

#[test]
fn lists_what_is_wanted_and_follows_links() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d.yaml")).unwrap();
    for name in ["a.yaml", ".b.yaml", "c.txt"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink("a.yaml", dir.path().join("l.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("n.yaml")).unwrap();
    let listed = list(dir.path(), |name| name.ends_with(".yaml")).unwrap();
    let names: Vec<_> = listed.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.yaml", "l.yaml"]);
    let stamp = &listed[&dir.path().join("a.yaml")];
    assert!(!stamp.settled(SystemTime::now()) && stamp.settled(SystemTime::now() + Duration::from_secs(5)));
    assert!(list(&dir.path().join("absent"), |_| true).is_err());
}
