use std::collections::HashMap;
use std::os::unix::net::UnixStream as Blocking;

use mesh_cni::client::ask;
use mesh_cni::protocol::{Detachment, PodName, receive, send};
use mesh_model::manifests::ManifestSet;
use mesh_model::workload::WorkloadUid;
use tokio::task::LocalSet;

use super::*;
use crate::capture::cni::judge::{Standing, Way};
use crate::ops::metrics::{Format, MetricsConfig};

/// A namespace of this process that is not its network's stands in for a pod's.
fn netns() -> PathBuf {
    format!("/proc/{}/ns/uts", std::process::id()).into()
}

fn mesh(pods: &[&str]) -> Arc<Snapshot> {
    let mut set = ManifestSet::default();
    let pod = |name: &&str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}}}\nspec: {{nodeName: n1, containers: []}}\n---\n"
        )
    };
    set.put(Path::new("a.yaml"), &pods.iter().map(pod).collect::<String>());
    Arc::new(set.snapshot(None))
}

fn named(name: &str) -> PodName {
    PodName { namespace: "shop".into(), name: name.into(), uid: Some(format!("u-{name}").into()) }
}

fn adding(name: &str) -> Command {
    let container = format!("sandbox-{name}").into();
    Command::Add(Attachment { pod: named(name), container, netns: netns(), addresses: vec!["10.1.0.10".parse().unwrap()] })
}

struct Running {
    socket: PathBuf,
    snapshots: watch::Sender<Arc<Snapshot>>,
    standings: watch::Sender<Arc<Standings>>,
    told: mpsc::Receiver<Told>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start(patience: Duration, pods: &[&str]) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        let listener = bind(&socket).unwrap();
        let (snapshots, standings) = (watch::Sender::new(mesh(pods)), watch::Sender::new(Arc::default()));
        let (tell, told) = mpsc::channel(8);
        let (metrics, stop) = (Arc::new(Metrics::new(MetricsConfig::default())), CancellationToken::new());
        let server = Server {
            node: "n1".into(),
            proc: "/proc".into(),
            patience,
            snapshots: snapshots.subscribe(),
            standings: standings.subscribe(),
            told: tell,
            metrics: metrics.clone(),
        };
        drop(tokio::task::spawn_local(server.serve(listener, stop.clone())));
        Running { socket, snapshots, standings, told, metrics, stop, _directory: directory }
    }

    /// Asks as the plug-in does.
    fn ask(&self, command: Command) -> tokio::task::JoinHandle<Result<Answer, String>> {
        let socket = self.socket.clone();
        tokio::task::spawn_blocking(move || {
            ask(&socket, command, Instant::now() + Duration::from_secs(20)).map_err(|error| error.to_string())
        })
    }

    async fn attached(&mut self) -> (WorkloadUid, Attached) {
        loop {
            match self.told.recv().await.unwrap() {
                Told::Taken => {}
                Told::Attached(uid, attached) => return (uid, attached),
                other => panic!("{other:?}"),
            }
        }
    }

    fn stands(&self, name: &str, netns: Option<Inode>, way: Way) {
        let pods = HashMap::from([(WorkloadUid(format!("u-{name}").into()), Standing { netns, way })]);
        self.standings.send_replace(Arc::new(Standings { pods, unwritten: None }));
    }

    fn count(&self, result: &str) -> bool {
        let text = self.metrics.expose(Format::OpenMetrics, Instant::now()).unwrap();
        text.contains(&format!("nodemesh_cni_add_seconds_count{{result=\"{result}\"}} 1"))
    }
}

fn failure(answer: Result<Answer, String>) -> (String, bool) {
    match answer.unwrap() {
        Answer::Failed(failure) => (failure.message.into(), failure.again),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_is_held_until_all_is_done_for_it() {
    let work = async {
        let mut running = Running::start(Duration::from_secs(30), &[]);
        let asked = running.ask(adding("web"));
        // The configuration has it a little later.
        running.snapshots.send_replace(mesh(&["web"]));
        let (uid, attached) = running.attached().await;
        assert_eq!((&*uid.0, &*attached.container, attached.addresses.len()), ("u-web", "sandbox-web", 1));
        let netns = attached.inode();
        running.stands("web", None, Way::Waits("its network namespace".into()));
        running.stands("web", netns.map(|(device, inode)| (device, inode + 1)), Way::Served);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!asked.is_finished());
        running.stands("web", netns, Way::Served);
        assert_eq!(asked.await.unwrap(), Ok(Answer::Captured));
        assert!(running.count("captured"));
        let Command::Add(attachment) = adding("web") else { unreachable!() };
        assert_eq!(running.ask(Command::Check(attachment)).await.unwrap(), Ok(Answer::Captured));
        running.stands("web", netns, Way::Outside);
        assert_eq!(running.ask(adding("web")).await.unwrap(), Ok(Answer::Outside));
        running.attached().await;
        assert_eq!(running.ask(Command::Status).await.unwrap(), Ok(Answer::Done));
        let detachment = Detachment { pod: named("web"), container: "sandbox-web".into() };
        assert_eq!(running.ask(Command::Del(detachment)).await.unwrap(), Ok(Answer::Done));
        assert!(matches!(running.told.recv().await, Some(Told::Ended(container)) if &*container == "sandbox-web"));
        assert_eq!(running.ask(Command::Gc(vec!["a".into()])).await.unwrap(), Ok(Answer::Done));
        assert!(matches!(running.told.recv().await, Some(Told::Left(left)) if left.len() == 1));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_pod_that_cannot_start_is_refused_with_the_reason() {
    let work = async {
        let mut running = Running::start(Duration::from_secs(2), &["web"]);
        running.stands("web", None, Way::Waits("a certificate".into()));
        let (message, again) = failure(running.ask(adding("web")).await.unwrap());
        assert!(message.contains("waits for a certificate") && again, "{message}");
        running.attached().await;
        let (message, again) = failure(running.ask(adding("unknown")).await.unwrap());
        assert!(message.contains("does not have it yet") && again, "{message}");
        // Deleted during the call.
        let asked = running.ask(adding("web"));
        running.attached().await;
        running.snapshots.send_replace(mesh(&[]));
        let (message, again) = failure(asked.await.unwrap());
        assert!(message.contains("deleted") && !again, "{message}");
        // Nobody waits any more.
        running.snapshots.send_replace(mesh(&["web"]));
        let mut stream = Blocking::connect(&running.socket).unwrap();
        send(&mut stream, &Request { version: VERSION, command: adding("web") }).unwrap();
        running.attached().await;
        drop(stream);
        while !running.count("abandoned") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Command::Add(odd) = adding("web") else { unreachable!() };
        let odd = Attachment { container: "../escape".into(), ..odd };
        assert!(!failure(running.ask(Command::Add(odd)).await.unwrap()).1);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn what_is_not_understood_is_answered_and_harms_nobody() {
    let work = async {
        let running = Running::start(Duration::from_secs(30), &[]);
        let said = |bytes: Vec<u8>| {
            let socket = running.socket.clone();
            tokio::task::spawn_blocking(move || {
                let mut stream = Blocking::connect(&socket).unwrap();
                io::Write::write_all(&mut stream, &bytes).unwrap();
                receive::<Answer>(&mut stream).map_err(|error| error.to_string())
            })
        };
        let newer = encode(&serde_json::json!({ "version": VERSION + 1, "command": { "dance": {} } })).unwrap();
        for (bytes, word) in [
            (newer, "one of them is being updated"),
            (encode(&"no question").unwrap(), "not understood"),
            (u32::MAX.to_be_bytes().to_vec(), "at most"),
        ] {
            let (message, again) = failure(said(bytes).await.unwrap());
            assert!(message.contains(word) && again, "{message}");
        }
        // One that says nothing keeps nobody else from an answer.
        let _silent = Blocking::connect(&running.socket).unwrap();
        let (message, _) = failure(running.ask(Command::Status).await.unwrap());
        assert!(message.contains("the agent's start"), "{message}");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn who_waits_at_an_agent_that_is_replaced_asks_the_next() {
    let work = async {
        let mut running = Running::start(Duration::from_secs(30), &["web"]);
        let asked = running.ask(adding("web"));
        running.attached().await;
        let next = bind(&running.socket).unwrap();
        running.stop.cancel();
        assert!(asked.await.unwrap().unwrap_err().contains("did not answer"));
        let again = running.ask(Command::Status);
        let (stream, _) = next.accept().await.unwrap();
        drop(stream);
        assert!(again.await.unwrap().is_err());
        assert_eq!(std::fs::metadata(&running.socket).unwrap().permissions().mode() & 0o777, 0o600);
    };
    LocalSet::new().run_until(work).await;
}

#[test]
fn only_a_namespace_that_is_not_the_nodes_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let pid = std::process::id();
    let proc = Path::new("/proc");
    for (path, word) in [
        (PathBuf::from("run/netns/x"), "no absolute path"),
        (dir.path().join("../file"), "no absolute path"),
        ("/proc/self/ns/net".into(), "no process"),
        (format!("/proc/{pid}/ns/net").into(), "the node's own"),
        (file, "mountPropagation"),
        (dir.path().join("gone"), "No such file"),
    ] {
        let error = open(&path, proc).unwrap_err().to_string();
        assert!(error.contains(word), "{}: {error}", path.display());
    }
    let (path, file) = open(&netns(), proc).unwrap();
    assert_eq!(path, netns());
    assert!(inode(&file).is_ok());
    // The runtime's /proc is seen elsewhere.
    std::fs::create_dir_all(dir.path().join("7/ns")).unwrap();
    std::os::unix::fs::symlink(netns(), dir.path().join("7/ns/net")).unwrap();
    assert_eq!(open(Path::new("/proc/7/ns/net"), dir.path()).unwrap().0, dir.path().join("7/ns/net"));
}
