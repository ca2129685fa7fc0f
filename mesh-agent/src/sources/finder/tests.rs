use std::fs;
use std::os::unix::fs::symlink;

use mesh_model::manifests::ManifestSet;

use super::*;

const UID: &str = "0b2f2b1c-6a0e-4a9b-9d7c-1f2e3d4c5b6a";

/// A process as /proc shows it; its namespace is a file, told apart by its inode as the real ones are.
fn process(proc: &Path, pid: u32, cgroup: &str, start: u64, netns: &Path) {
    let directory = proc.join(pid.to_string());
    fs::create_dir_all(directory.join("ns")).unwrap();
    fs::write(directory.join("cgroup"), cgroup).unwrap();
    fs::write(directory.join("stat"), format!("{pid} (x) S 1 2 3 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 {start} 1 2")).unwrap();
    let _ = fs::remove_file(directory.join("ns/net"));
    symlink(netns, directory.join("ns/net")).unwrap();
}

fn mesh(pod: bool) -> Arc<Snapshot> {
    let mut set = ManifestSet::default();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: {UID}}}\n\
         spec: {{nodeName: n1, serviceAccountName: web, containers: []}}\nstatus: {{phase: Running, podIP: 10.1.0.10}}\n"
    );
    set.put(Path::new("a.yaml"), if pod { &text } else { "" });
    Arc::new(set.snapshot(None))
}

fn ground(directory: &Path, networks: watch::Sender<Arc<PodNetworks>>) -> Ground {
    let (proc, kept) = (directory.join("proc"), directory.join("kept"));
    Ground { node: "n1".into(), proc, kept, count: Gauge::default(), networks }
}

async fn path(paths: &mut watch::Receiver<Arc<PodNetworks>>, wanted: impl Fn(Option<u64>) -> bool) -> Option<PathBuf> {
    let uid = WorkloadUid(UID.into());
    let ino = |paths: &PodNetworks| paths.get(&uid).and_then(|network| fs::metadata(&network.netns).ok()).map(|metadata| metadata.ino());
    let wait = paths.wait_for(|paths| wanted(ino(paths)));
    let found = tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the search ends").unwrap();
    found.get(&uid).map(|network| network.netns.clone())
}

#[tokio::test]
async fn the_namespace_of_a_pods_first_process_is_held_open_as_long_as_the_pod_lives() {
    let dir = tempfile::tempdir().unwrap();
    let proc = dir.path().join("proc");
    let namespaces = ["host", "pod", "inner", "other", "anew"].map(|name| {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        path
    });
    let ino = |index: usize| fs::metadata(&namespaces[index]).unwrap().ino();
    let [host, pod, inner, other, anew] = &namespaces;
    process(&proc, 1, "0::/init.scope\n", 1, host);
    process(&proc, 10, "0::/kubepods/besteffort/pod11111111-1111-1111-1111-111111111111/a\n", 5, other);
    fs::write(proc.join("cpuinfo"), "no process").unwrap();

    let (snapshots, receiver) = watch::channel(mesh(true));
    let networks = watch::Sender::new(Arc::<PodNetworks>::default());
    let mut paths = networks.subscribe();
    let (_tell, told) = mpsc::channel(8);
    let finder = tokio::spawn(Finder::new(ground(dir.path(), networks)).follow(receiver, told));
    // The pod's own processes come later: first its maker, still in the host's namespace, then a container's that made one for itself.
    let cgroup = format!("0::/kubepods/besteffort/pod{UID}/a\n");
    process(&proc, 30, &cgroup, 20, host);
    process(&proc, 40, &cgroup, 40, inner);
    process(&proc, 31, &cgroup, 30, pod);
    let first = path(&mut paths, |at| at == Some(ino(1))).await.unwrap();
    // It stays known when its processes have ended, and whatever becomes of their numbers.
    fs::remove_dir_all(proc.join("31")).unwrap();
    fs::remove_dir_all(proc.join("40")).unwrap();
    process(&proc, 31, "0::/kubepods/besteffort/pod11111111-1111-1111-1111-111111111111/b\n", 60, other);
    assert_eq!(fs::metadata(&first).unwrap().ino(), ino(1));
    // A sandbox that is made anew has another.
    process(&proc, 50, &cgroup, 70, anew);
    path(&mut paths, |at| at == Some(ino(4))).await.unwrap();
    snapshots.send_replace(mesh(false));
    assert_eq!(path(&mut paths, |at| at.is_none()).await, None);
    drop(snapshots);
    finder.await.unwrap();
}

#[tokio::test]
async fn the_runtimes_word_comes_first_and_outlives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let proc = dir.path().join("proc");
    let namespaces = ["host", "first", "second"].map(|name| {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        path
    });
    let [host, first, second] = &namespaces;
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    process(&proc, 1, "0::/init.scope\n", 1, host);
    let uid = WorkloadUid(UID.into());
    let attached = |container: &str, path: &Path| {
        let netns = File::open(path).unwrap();
        Told::Attached(
            uid.clone(),
            Attached { container: container.into(), path: path.into(), netns, addresses: vec!["10.1.0.10".parse().unwrap()] },
        )
    };
    let start = |snapshot| {
        let (snapshots, receiver) = watch::channel(snapshot);
        let networks = watch::Sender::new(Arc::<PodNetworks>::default());
        let (tell, told) = mpsc::channel(8);
        let ground = ground(dir.path(), networks.clone());
        let count = ground.count.clone();
        (snapshots, networks.subscribe(), tell, tokio::spawn(Finder::new(ground).follow(receiver, told)), count)
    };
    let (snapshots, mut paths, tell, finder, count) = start(mesh(true));
    tell.send(Told::Taken).await.unwrap();
    tell.send(attached("one", first)).await.unwrap();
    path(&mut paths, |at| at == Some(ino(first))).await.unwrap();
    assert_eq!(paths.borrow()[&uid].addresses, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(count.get(), 1);
    // A sandbox that is made anew while the last process of the one before still runs.
    process(&proc, 30, &format!("0::/kubepods/besteffort/pod{UID}/a\n"), 20, first);
    tell.send(attached("two", second)).await.unwrap();
    path(&mut paths, |at| at == Some(ino(second))).await.unwrap();
    tell.send(Told::Ended("one".into())).await.unwrap();
    drop(snapshots);
    finder.await.unwrap();

    // The next agent knows it without a process, once it is the one that is told.
    let (snapshots, mut paths, tell, finder, count) = start(mesh(true));
    tell.send(Told::Taken).await.unwrap();
    path(&mut paths, |at| at == Some(ino(second))).await.unwrap();
    // Its end is told, and its last process does not bring it back.
    process(&proc, 30, &format!("0::/kubepods/besteffort/pod{UID}/a\n"), 20, second);
    tell.send(Told::Left(HashSet::from(["other".into()]))).await.unwrap();
    assert_eq!(path(&mut paths, |at| at.is_none()).await, None);
    tokio::time::sleep(FIRST * 4).await;
    assert!(paths.borrow().is_empty());
    assert_eq!(count.get(), 0);
    // A pod that left the configuration is not taken up.
    snapshots.send_replace(mesh(false));
    tell.send(attached("three", first)).await.unwrap();
    drop(snapshots);
    finder.await.unwrap();
    assert_eq!(count.get(), 0);
    assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), 0);
}
