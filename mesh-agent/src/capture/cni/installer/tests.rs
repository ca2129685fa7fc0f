use std::fs;

use super::*;
use mesh_cni::conflist::entry;

const NETWORK: &str = "{\"cniVersion\": \"1.0.0\", \"name\": \"net\", \"plugins\": [{\"type\": \"bridge\"}]}";
const LIMIT: Duration = Duration::from_secs(20);

fn installer(directory: &Path) -> Installer {
    let places = Places { binaries: directory.join("bin"), configurations: directory.join("conf") };
    for place in [&places.binaries, &places.configurations] {
        fs::create_dir_all(place).unwrap();
    }
    fs::write(directory.join("mesh-cni"), "a program").unwrap();
    let entry = entry(Path::new("/run/nodemesh/default/cni.sock"), "hold", 30);
    Installer { places, binary: directory.join("mesh-cni"), entry, with_istio: WithIstio::Refuse }
}

async fn until(states: &mut watch::Receiver<State>, wanted: impl Fn(&State) -> bool) -> State {
    tokio::time::timeout(LIMIT, states.wait_for(wanted)).await.expect("it comes to it").unwrap().clone()
}

async fn is_in(file: &Path) {
    let looking = async {
        while !fs::read_to_string(file).is_ok_and(|text| mesh_cni::conflist::is_in(&text)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.expect("the plug-in is in the file");
}

#[tokio::test]
async fn the_plug_in_is_kept_on_the_node_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let installer = installer(dir.path());
    let places = installer.places.clone();
    let (states, mut seen) = watch::channel(State::default());
    let (readiness, stop) = (Readiness::new(), CancellationToken::new());
    let keeping = tokio::spawn(installer.keep(readiness.clone(), states, stop.clone()));
    until(&mut seen, |state| *state == State::Waiting).await;
    assert_eq!(fs::read_to_string(places.binaries.join("mesh-cni")).unwrap(), "a program");
    let file = places.configurations.join("10-net.conflist");
    fs::write(&file, NETWORK).unwrap();
    until(&mut seen, |state| *state == State::Installed(file.clone())).await;
    // The network's own installer writes its file anew.
    fs::write(&file, NETWORK).unwrap();
    is_in(&file).await;
    // As does one that replaces the directory.
    fs::remove_dir_all(&places.configurations).unwrap();
    until(&mut seen, |state| *state == State::Waiting).await;
    fs::create_dir(&places.configurations).unwrap();
    fs::write(&file, NETWORK).unwrap();
    is_in(&file).await;

    // Another mesh: the file is left alone, and the agent says so without being any less ready.
    let istio = NETWORK.replace("{\"type\": \"bridge\"}", "{\"type\": \"bridge\"}, {\"type\": \"istio-cni\"}");
    fs::write(&file, &istio).unwrap();
    let failed = until(&mut seen, |state| matches!(state, State::Failed(_))).await;
    assert!(failed.describe()["error"].as_str().unwrap().contains("--cni-with-istio=coexist"), "{failed:?}");
    assert!(readiness.is_ready());
    assert!(readiness.remarks()[0].contains("istio-cni"), "{:?}", readiness.remarks());
    assert_eq!(fs::read_to_string(&file).unwrap(), istio);
    fs::write(&file, NETWORK).unwrap();
    until(&mut seen, |state| *state == State::Installed(file.clone())).await;
    assert_eq!(readiness.remarks(), [""; 0]);

    stop.cancel();
    keeping.await.unwrap();
    assert!(mesh_cni::conflist::is_in(&fs::read_to_string(&file).unwrap()), "a node without an agent holds new pods");
    assert_eq!(remove(&places).unwrap(), std::slice::from_ref(&file));
    assert_eq!(fs::read_to_string(&file).unwrap(), NETWORK);
    assert!(!places.binaries.join("mesh-cni").exists());
    assert_eq!(remove(&places).unwrap(), [""; 0].map(PathBuf::from));
}
