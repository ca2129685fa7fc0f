use super::*;

const HYBRID: &str = "\
24 20 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 24 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
";

#[test]
fn depth_counts_from_the_hierarchys_root() {
    let mounts = mounts(HYBRID);
    assert_eq!(mounts, [Mount { at: "/sys/fs/cgroup/unified".into(), root: "/".into() }]);
    let level = |path: &str| level(Path::new(path), &mounts[0], View::Whole);
    assert_eq!(level("/sys/fs/cgroup/unified").unwrap(), 0);
    assert_eq!(level("/sys/fs/cgroup/unified/kubepods/x").unwrap(), 2);
    assert!(level("/elsewhere").is_err());
    assert!(mount_of(Path::new("/elsewhere"), &mounts).is_err());
}

#[test]
fn a_mount_may_show_a_part_of_the_hierarchy() {
    let mount = Mount { at: "/sys/fs/cgroup".into(), root: "/node1".into() };
    assert_eq!(level(Path::new("/sys/fs/cgroup/kubepods"), &mount, View::Whole).unwrap(), 2);
    let own = own("0::/node1/kubepods/burstable/pod1/c\n", &mount, View::Whole).unwrap();
    assert_eq!(own, Path::new("/sys/fs/cgroup/kubepods/burstable/pod1/c"));
    let elsewhere = super::own("0::/node2/kubepods/c\n", &mount, View::Whole).unwrap_err().to_string();
    assert!(elsewhere.contains("--cgroup-root"), "{elsewhere}");
}

#[test]
fn the_last_of_several_mounts_at_one_place_counts() {
    let mount = |at: &str, root: &str| Mount { at: at.into(), root: root.into() };
    let mounts = [mount("/sys/fs/cgroup", "/"), mount("/sys/fs/cgroup", "/../../.."), mount("/other", "/")];
    assert_eq!(mount_of(Path::new("/sys/fs/cgroup/kubepods"), &mounts).unwrap(), &mounts[1]);
}

#[test]
fn in_a_cgroup_namespace_of_its_own_the_agent_is_found_by_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let write = |path: &str, text: String| {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("cgroup.procs", "0\n0\n".into());
    write("kubepods/cgroup.procs", String::new());
    write("kubepods/besteffort/pod1/a/cgroup.procs", "0\n".into());
    write("kubepods/besteffort/pod2/b/cgroup.procs", format!("{}\n", std::process::id()));
    let mount = Mount { at: directory.path().into(), root: "/../../../..".into() };
    let pods = directory.path().join("kubepods");
    assert_eq!(own("0::/\n", &mount, View::Part).unwrap(), pods.join("besteffort/pod2/b"));
    assert_eq!(level(&pods, &mount, View::Part).unwrap(), 1);
    // What has this file is not the hierarchy's root, and how deep it is cannot be told.
    write("cgroup.events", "populated 1\n".into());
    assert!(level(&pods, &mount, View::Part).is_err());
}

#[test]
fn the_own_cgroup_is_found_beside_version_1() {
    let mounts = mounts(HYBRID);
    let own = own("12:cpu:/x\n0::/system.slice/agent.service\n", &mounts[0], View::Whole).unwrap();
    assert_eq!(own, Path::new("/sys/fs/cgroup/unified/system.slice/agent.service"));
    assert!(super::own("12:cpu:/x\n", &mounts[0], View::Whole).is_err());
}

#[test]
fn an_agent_among_others_is_refused() {
    let mounts = mounts(HYBRID);
    let root = Path::new("/sys/fs/cgroup/unified");
    assert!(check_own(root, &root.join("kubepods"), &mounts[0]).unwrap_err().to_string().contains("cgroup of its own"));
    assert!(check_own(&root.join("node"), &root.join("node/pods"), &mounts[0]).is_err());
    assert!(check_own(&root.join("node/agent"), &root.join("node/pods"), &mounts[0]).is_ok());
}
