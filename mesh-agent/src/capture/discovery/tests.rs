use super::*;

const UID: &str = "0b2f2b1c-6a0e-4a9b-9d7c-1f2e3d4c5b6a";

#[test]
fn cgroups_of_every_kind_are_read() {
    for text in [
        // cgroup v2, systemd driver (containerd).
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b2f2b1c_6a0e_4a9b_9d7c_1f2e3d4c5b6a.slice/cri-containerd-ab12.scope\n",
        // cgroup v2, systemd driver, guaranteed class.
        "0::/kubepods.slice/kubepods-pod0b2f2b1c_6a0e_4a9b_9d7c_1f2e3d4c5b6a.slice/crio-ab12.scope\n",
        // cgroup v2, cgroupfs driver.
        "0::/kubepods/besteffort/pod0b2f2b1c-6a0e-4a9b-9d7c-1f2e3d4c5b6a/ab12\n",
        // cgroup v1 with an unused v2 hierarchy.
        "12:cpuset:/node1/kubepods/burstable/pod0b2f2b1c-6a0e-4a9b-9d7c-1f2e3d4c5b6a/ab12\n1:name=systemd:/\n0::/\n",
        // Seen from a cgroup namespace, below a path with a colon (containerd's systemd driver of old).
        "0::/../../kubepods-pod0b2f2b1c_6a0e_4a9b_9d7c_1f2e3d4c5b6a.slice:cri-containerd:ab12/../kubepods/pod0b2f2b1c-6a0e-4a9b-9d7c-1f2e3d4c5b6a/x\n",
    ] {
        assert_eq!(pod_of(text).as_deref(), Some(UID), "{text}");
    }
    let of_manifest = "0::/kubepods/burstable/pod6a1f0d2c3b4e5f60718293a4b5c6d7e8/ab12\n";
    assert_eq!(pod_of(of_manifest).as_deref(), Some("6a1f0d2c3b4e5f60718293a4b5c6d7e8"));
}

#[test]
fn other_cgroups_name_no_pod() {
    for text in [
        "",
        "0::/\n",
        "0::/system.slice/podman.service\n",
        "0::/user.slice/user-0.slice/session-1.scope\n",
        "0::/kubepods.slice/kubepods-burstable.slice\n",
        "0::/kubepods/podding/ab12\n",
        "0::/system.slice/other-pod0b2f2b1c_6a0e_4a9b_9d7c_1f2e3d4c5b6a.slice\n",
        "no colons at all",
    ] {
        assert_eq!(pod_of(text), None, "{text}");
    }
}

#[test]
fn a_start_is_found_behind_any_name() {
    let rest = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 12345 99";
    assert_eq!(started(&format!("42 (pause) {rest}")), Some(4711));
    assert_eq!(started(&format!("42 (a) b (c) {rest}")), Some(4711));
    assert_eq!(started("42 (pause) S 1"), None);
    assert_eq!(started(""), None);
}
