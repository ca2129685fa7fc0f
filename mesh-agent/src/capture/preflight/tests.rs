use super::*;

#[test]
fn every_lack_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let places = Places {
        btf: dir.path().join("vmlinux"),
        cgroup_root: dir.path().into(),
        pods_cgroup: dir.path().into(),
        bpffs: dir.path().into(),
        status: write("status", "Name:\tx\nCapEff:\t0000000000000000\n"),
        release: write("release", "5.10.0-9-amd64\n"),
    };
    let lacks = check(&places);
    let text: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    for part in ["5.10.0-9-amd64", "CONFIG_DEBUG_INFO_BTF", "cgroup v2", "bpf filesystem", "CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        assert!(text.iter().any(|t| t.contains(part)), "{part} in {text:#?}");
    }
}

#[test]
fn releases_and_capabilities_are_read() {
    assert_eq!(version("6.18.44-fc-v657\n"), Some((6, 18)));
    assert_eq!(version("nonsense"), None);
    assert_eq!(effective("CapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    assert!(missing(u64::MAX).is_empty());
    assert_eq!(missing(1 << 39 | 1 << 12).len(), 1);
}
