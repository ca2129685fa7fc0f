use super::*;

const HYBRID: &str = "\
24 20 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 24 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
";

#[test]
fn depth_counts_from_the_mounts_root() {
    let mounts = mounts(HYBRID);
    assert_eq!(mounts, [Mount { at: "/sys/fs/cgroup/unified".into(), root: "/".into() }]);
    assert_eq!(level(Path::new("/sys/fs/cgroup/unified"), &mounts).unwrap(), 0);
    assert_eq!(level(Path::new("/sys/fs/cgroup/unified/kubepods/x"), &mounts).unwrap(), 2);
    assert!(level(Path::new("/elsewhere"), &mounts).is_err());
}

#[test]
fn the_own_cgroup_is_found_beside_version_1() {
    let own = own("12:cpu:/x\n0::/system.slice/agent.service\n", &mounts(HYBRID)).unwrap();
    assert_eq!(own, Path::new("/sys/fs/cgroup/unified/system.slice/agent.service"));
    assert!(super::own("12:cpu:/x\n", &mounts(HYBRID)).is_err());
}

#[test]
fn an_agent_among_others_is_refused() {
    let mounts = mounts(HYBRID);
    let root = Path::new("/sys/fs/cgroup/unified");
    assert!(check_own(root, &root.join("kubepods"), &mounts).unwrap_err().to_string().contains("cgroup of its own"));
    assert!(check_own(&root.join("node"), &root.join("node/pods"), &mounts).is_err());
    assert!(check_own(&root.join("node/agent"), &root.join("node/pods"), &mounts).is_ok());
}
