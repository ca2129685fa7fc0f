use std::fs;
use std::os::unix::fs::symlink;

use mesh_model::workload::{PodNetwork, WorkloadUid};

use super::*;

/// Long enough for a loaded machine; nothing waits this long when all is well.
const LIMIT: Duration = Duration::from_secs(20);

fn quick() -> Timing {
    Timing { rescan: Duration::from_millis(200), grace: Duration::from_millis(300), ..Timing::default() }
}

fn namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n"
    )
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.service_accounts().iter().map(|account| account.name.to_string()).collect()
}

struct Followed {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(directory: &Path, timing: Timing) -> Followed {
    let manifests = Manifests::open(directory, timing).await.unwrap();
    Followed { snapshots: manifests.subscribe(), task: tokio::spawn(manifests.follow()) }
}

impl Followed {
    async fn until(&mut self, what: &str, wanted: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let found = timeout(LIMIT, self.snapshots.wait_for(wanted)).await.map(|snapshot| snapshot.unwrap().clone());
        found.unwrap_or_else(|_| panic!("{what} never came: {:#?}", self.snapshots.borrow()))
    }

    async fn until_names(&mut self, wanted: &[&str]) -> Arc<Snapshot> {
        self.until(&format!("{wanted:?}"), |snapshot| names(snapshot) == wanted).await
    }
}

fn problems(snapshot: &Snapshot) -> String {
    snapshot.problems().iter().map(|problem| format!("{problem}\n")).collect()
}

#[tokio::test]
async fn reads_what_is_there_before_it_returns() {
    let directory = tempfile::tempdir().unwrap();
    for (file, name) in [("a.yaml", "a"), ("b.yml", "b"), (".hidden.yaml", "h"), ("notes.txt", "n")] {
        fs::write(directory.path().join(file), namespace(name)).unwrap();
    }
    fs::write(directory.path().join("c.json"), r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "c"}}"#).unwrap();
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    let manifests = Manifests::open(directory.path(), Timing::default()).await.unwrap();
    let snapshot = manifests.subscribe().borrow().clone();
    assert_eq!(names(&snapshot), ["a", "b", "c"]);
    assert_eq!((snapshot.version(), problems(&snapshot)), (1, String::new()));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere");
    let error = Manifests::open(&missing, Timing::default()).await.unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test]
async fn follows_files_as_they_come_change_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yaml"), namespace("a")).unwrap();
    // Only notifications can be this fast.
    let mut followed = follow(directory.path(), Timing { rescan: Duration::from_secs(3600), ..Timing::default() }).await;
    fs::write(file("b.yaml"), namespace("b")).unwrap();
    followed.until_names(&["a", "b"]).await;
    fs::write(file("b.yaml"), namespace("c")).unwrap();
    followed.until_names(&["a", "c"]).await;
    fs::rename(file("b.yaml"), file("d.yaml")).unwrap();
    fs::remove_file(file("a.yaml")).unwrap();
    let last = followed.until_names(&["c"]).await;
    assert!(last.version() > 1);
    assert_eq!(problems(&last), "");
}

#[tokio::test]
async fn reading_is_no_reason_to_read_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), namespace("a")).unwrap();
    let (mut watch, mut events) = DirectoryWatch::new(directory.path());
    let metadata = fs::metadata(directory.path()).unwrap();
    assert!(watch.renew(Some((metadata.dev(), metadata.ino()))));
    let mut reader = Reader::new(directory.path(), Duration::ZERO);
    assert!(reader.scan(Look::Closely).unwrap());
    assert!(!reader.scan(Look::Closely).unwrap());
    assert!(timeout(Duration::from_millis(200), events.recv()).await.is_err(), "our own reading woke us");
    fs::write(directory.path().join("a.yaml"), namespace("b")).unwrap();
    assert!(timeout(LIMIT, events.recv()).await.is_ok());
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let version = |number: &str, name: &str| {
        fs::create_dir(path(number)).unwrap();
        fs::write(path(number).join("mesh.yaml"), namespace(name)).unwrap();
    };
    version("..1", "first");
    symlink("..1", path("..data")).unwrap();
    symlink("..data/mesh.yaml", path("mesh.yaml")).unwrap();
    let mut followed = follow(directory.path(), quick()).await;
    followed.until_names(&["first"]).await;
    version("..2", "second");
    symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    fs::remove_dir_all(path("..1")).unwrap();
    followed.until_names(&["second"]).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_leaves_all_in_force_and_may_come_back() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("manifests");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), namespace("a")).unwrap();
    let mut followed = follow(&directory, Timing { rescan: Duration::from_secs(3600), ..quick() }).await;
    fs::rename(&directory, parent.path().join("elsewhere")).unwrap();
    let gone = followed.until("the problem", |snapshot| problems(snapshot).contains("stays in force")).await;
    assert_eq!(names(&gone), ["a"]);
    assert!(problems(&gone).contains("manifests"), "{}", problems(&gone));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("b.yaml"), namespace("b")).unwrap();
    let back = followed.until_names(&["b"]).await;
    assert_eq!(problems(&back), "");
    // The new directory is watched like the old one, even if it has the old one's inode.
    for name in ["x", "y"] {
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("b.yaml"), namespace(name)).unwrap();
        followed.until_names(&[name]).await;
    }
    fs::write(directory.join("b.yaml"), namespace("b")).unwrap();
    fs::write(directory.join("c.yaml"), namespace("c")).unwrap();
    followed.until_names(&["b", "c"]).await;
}

#[tokio::test]
async fn a_broken_file_keeps_what_it_had_until_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut followed = follow(directory.path(), quick()).await;
    for (text, complaint) in [(&b"{{{ no yaml"[..], "not valid YAML"), (b"\xff\xfe\x00", "not UTF-8")] {
        fs::write(&file, text).unwrap();
        let broken = followed.until(complaint, |snapshot| problems(snapshot).contains(complaint)).await;
        assert_eq!(names(&broken), ["a"]);
    }
    fs::write(&file, namespace("b")).unwrap();
    assert_eq!(problems(&*followed.until_names(&["b"]).await), "");
}

#[tokio::test]
async fn an_emptied_file_has_a_moment_to_be_filled() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut reader = Reader::new(directory.path(), Duration::from_secs(3600));
    assert!(reader.scan(Look::Closely).unwrap());
    fs::write(&file, "").unwrap();
    assert!(!reader.scan(Look::Closely).unwrap());
    assert!(reader.unsettled());
    assert_eq!(names(&reader.set.snapshot(None)), ["a"]);
    fs::write(&file, namespace("a")).unwrap();
    assert!(!reader.scan(Look::Closely).unwrap(), "the same text again");
    assert!(!reader.unsettled());
    fs::write(&file, "").unwrap();
    assert!(!reader.scan(Look::Closely).unwrap());
    reader.grace = Duration::ZERO;
    assert!(reader.scan(Look::Closely).unwrap());
    assert_eq!(names(&reader.set.snapshot(None)), Vec::<String>::new());
}

#[test]
fn a_brief_look_finds_a_change_of_the_same_size() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut reader = Reader::new(directory.path(), Duration::ZERO);
    assert!(reader.scan(Look::Closely).unwrap());
    fs::write(&file, namespace("b")).unwrap();
    assert!(reader.scan(Look::Briefly).unwrap());
    assert!(!reader.scan(Look::Briefly).unwrap());
}

#[test]
fn a_pipe_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("mkfifo").arg(directory.path().join("a.yaml")).status().unwrap();
    assert!(status.success());
    let mut reader = Reader::new(directory.path(), Duration::ZERO);
    assert!(reader.scan(Look::Closely).unwrap());
    assert!(problems(&reader.set.snapshot(None)).contains("not a regular file"));
}

#[tokio::test]
async fn a_pods_network_comes_from_the_node_where_no_file_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u-web}\nspec: {nodeName: n1, containers: []}\n";
    fs::write(directory.path().join("a.yaml"), pod).unwrap();
    let networks = watch::Sender::new(Arc::<PodNetworks>::default());
    // Nothing but the news itself lets the directory be looked at again.
    let timing = Timing { rescan: Duration::from_secs(3600), ..Timing::default() };
    let manifests = Manifests::open(directory.path(), timing).await.unwrap().with_networks(Some(networks.subscribe()));
    let mut followed = Followed { snapshots: manifests.subscribe(), task: tokio::spawn(manifests.follow()) };
    let uid = WorkloadUid("u-web".into());
    let network = PodNetwork { netns: "/proc/self/fd/9".into(), addresses: vec!["10.0.0.9".parse().unwrap()] };
    networks.send_replace(Arc::new(PodNetworks::from([(uid.clone(), network.clone())])));
    let has =
        |snapshot: &Arc<Snapshot>| snapshot.workload(&uid).is_some_and(|pod| pod.addresses == network.addresses && pod.netns.is_some());
    followed.until("its network", has).await;
    networks.send_replace(Arc::default());
    followed.until("its end", |snapshot| !has(snapshot)).await;
}
