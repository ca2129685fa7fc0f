#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use super::*;

const ENTRY: &str = r#"{"type":"mesh-cni","socket":"/s"}"#;
const BRIDGE: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"k\",\n \"plugins\":[{\"type\":\"bridge\"}]}";

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_file_that_the_runtime_picks_is_chained_and_restored() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let put = || install(directory.path(), ENTRY, WithIstio::Refuse);
    assert_eq!(put().unwrap(), Done::Waiting);
    fs::write(at("20-other.conflist"), BRIDGE).unwrap();
    fs::write(at("10-net.conflist"), BRIDGE).unwrap();
    fs::set_permissions(at("10-net.conflist"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(put().unwrap(), Done::Written(at("10-net.conflist")));
    assert_eq!(put().unwrap(), Done::Unchanged(at("10-net.conflist")));
    assert!(is_in(&fs::read_to_string(at("10-net.conflist")).unwrap()));
    assert_eq!(fs::metadata(at("10-net.conflist")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(at("20-other.conflist")).unwrap(), BRIDGE);
    // The network plug-in writes its file anew.
    fs::write(at("10-net.conflist"), BRIDGE).unwrap();
    assert_eq!(put().unwrap(), Done::Written(at("10-net.conflist")));
    // Another one takes its place.
    fs::write(at("05-new.conflist"), BRIDGE).unwrap();
    assert_eq!(put().unwrap(), Done::Written(at("05-new.conflist")));
    assert_eq!(uninstall(directory.path()).unwrap(), [at("05-new.conflist"), at("10-net.conflist")]);
    assert!(["05-new.conflist", "10-net.conflist"].iter().all(|name| fs::read_to_string(at(name)).unwrap() == BRIDGE));
    assert_eq!(names(directory.path()), ["05-new.conflist", "10-net.conflist", "20-other.conflist"]);
}

#[test]
fn a_single_plugin_is_kept_and_stood_in_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let put = || install(directory.path(), ENTRY, WithIstio::Refuse);
    let single = r#"{"cniVersion":"0.4.0","name":"old","type":"bridge"}"#;
    fs::write(at("10-net.conf"), single).unwrap();
    assert_eq!(put().unwrap(), Done::Written(at(LIST)));
    assert_eq!(put().unwrap(), Done::Unchanged(at(LIST)));
    assert_eq!(fs::read_to_string(at("10-net.conf")).unwrap(), single);
    // A list comes in its stead: the runtime must not go on with the old one.
    fs::write(at("09-net.conflist"), BRIDGE).unwrap();
    assert_eq!(put().unwrap(), Done::Written(at("09-net.conflist")));
    assert_eq!(names(directory.path()), ["09-net.conflist", "10-net.conf"]);
    fs::remove_file(at("09-net.conflist")).unwrap();
    put().unwrap();
    fs::remove_file(at("10-net.conf")).unwrap();
    assert_eq!(put().unwrap(), Done::Waiting);
    assert!(names(directory.path()).is_empty());
    fs::write(at("00-a.conf"), single).unwrap();
    assert!(matches!(put(), Err(InstallError::Order(_))));
}

#[test]
fn what_is_not_understood_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("10-net.conflist");
    for text in ["{\"plugins\": [", r#"{"plugins":[{"type":"istio-cni"}]}"#] {
        fs::write(&file, text).unwrap();
        let error = install(directory.path(), ENTRY, WithIstio::Refuse).unwrap_err().to_string();
        assert!(error.contains("10-net.conflist is left as it is"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(uninstall(directory.path()).unwrap(), Vec::<PathBuf>::new());
    }
    assert_eq!(names(directory.path()), ["10-net.conflist"]);
}

#[test]
fn somebody_elses_change_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("10-net.conflist");
    fs::write(&file, "newer").unwrap();
    assert_eq!(replace(&file, Some("older"), "ours", &file).unwrap(), Done::Raced(file.clone()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
    assert_eq!(names(directory.path()), ["10-net.conflist"]);
}

#[test]
fn the_binary_is_replaced_in_one_step() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    let bin = directory.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(&from, "one").unwrap();
    assert!(install_binary(&from, &bin).unwrap());
    assert!(!install_binary(&from, &bin).unwrap());
    fs::write(&from, "two").unwrap();
    assert!(install_binary(&from, &bin).unwrap());
    assert_eq!(fs::metadata(bin.join(PLUGIN)).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(names(&bin), [PLUGIN]);
    uninstall_binary(&bin).unwrap();
    uninstall_binary(&bin).unwrap();
    assert!(names(&bin).is_empty());
}
