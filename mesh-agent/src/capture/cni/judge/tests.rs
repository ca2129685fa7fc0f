use std::path::Path;

use mesh_model::manifests::ManifestSet;

use super::*;

const STATIC: &str = "0123456789abcdef0123456789abcdef";

fn mesh() -> Snapshot {
    let mut set = ManifestSet::default();
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {nodemesh.dev/mesh: enabled}}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u-web}\nspec: {nodeName: n1, containers: []}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: far, namespace: shop, uid: u-far}\nspec: {nodeName: n2, containers: []}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: plain, namespace: shop}\nspec: {nodeName: n1, containers: []}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: odd, namespace: shop, uid: u-odd}\n\
        spec: {nodeName: n1, containers: []}\nstatus: {podIP: nonsense}\n";
    set.put(Path::new("a.yaml"), text);
    set.snapshot(None)
}

fn pod(name: &str, uid: Option<&str>) -> PodName {
    PodName { namespace: "shop".into(), name: name.into(), uid: uid.map(Into::into) }
}

#[test]
fn a_pod_is_the_one_of_its_uid() {
    let mesh = mesh();
    let found = |name: &str, uid: Option<&str>| find(&mesh, "n1", &pod(name, uid)).map(|uid| uid.to_string());
    assert_eq!(found("web", Some("u-web")).as_deref(), Ok("u-web"));
    assert_eq!(found("web", None).as_deref(), Ok("u-web"), "a runtime that tells no UID");
    assert_eq!(found("web", Some(STATIC)).as_deref(), Ok("u-web"), "a pod of the kubelet's own files");
    assert_eq!(found("plain", Some("u-unsaid")).as_deref(), Ok("shop/plain"), "a manifest that gives none");
    assert_eq!(found("odd", Some("u-odd")).as_deref(), Ok("u-odd"), "one that is held");
    for (name, uid, word) in [
        ("web", Some("u-earlier"), "does not have it yet"),
        ("new", None, "does not have it yet"),
        ("web", Some("u-far"), "for pod shop/far"),
        ("far", Some("u-far"), "on node \"n2\""),
    ] {
        let awaited = found(name, uid).unwrap_err();
        assert!(awaited.contains(word), "{name} {uid:?}: {awaited}");
    }
}

#[test]
fn a_pod_may_start_once_all_of_it_is_done_for_this_namespace() {
    let uid = WorkloadUid("u-web".into());
    let at = |netns: Option<Inode>, way: Way, unwritten: Option<&str>| Standings {
        pods: HashMap::from([(uid.clone(), Standing { netns, way })]),
        unwritten: unwritten.map(Into::into),
    };
    let netns = (4, 77);
    assert_eq!(judge(&at(Some(netns), Way::Served, None), &uid, netns), Ok(Answer::Captured));
    assert_eq!(judge(&at(Some(netns), Way::Outside, None), &uid, netns), Ok(Answer::Outside));
    for (standings, word) in [
        (at(Some(netns), Way::Served, Some("a full map")), "a full map"),
        (at(Some(netns), Way::Outside, Some("a full map")), "a full map"),
        (at(Some(netns), Way::Waits("a certificate".into()), None), "a certificate"),
        // The sandbox before this one was served.
        (at(Some((4, 78)), Way::Served, None), "its network namespace"),
        (at(Some((4, 78)), Way::Outside, None), "its network namespace"),
        (at(None, Way::Waits("its network namespace".into()), None), "its network namespace"),
        (Standings::default(), "control loop"),
    ] {
        let awaited = judge(&standings, &uid, netns).unwrap_err();
        assert!(awaited.contains(word), "{standings:?}: {awaited}");
    }
}
