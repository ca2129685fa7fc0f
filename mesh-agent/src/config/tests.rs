use super::*;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("mesh-agent").chain(args.iter().copied()))
}

#[test]
fn every_missing_setting_is_named_at_once() {
    let error = parse(&["--node", "n1"]).unwrap().config.required().unwrap_err().to_string();
    for flag in ["--manifests", "--kubernetes", "--ca-address", "--ca-root", "--ca-token-file", "NODEMESH_CA_TOKEN_FILE"] {
        assert!(error.contains(flag), "{flag} in {error}");
    }
}

#[test]
fn a_complete_configuration_is_taken() {
    let cli = parse(&[
        "--node",
        "n1",
        "--manifests",
        "/m",
        "--ca-address",
        "https://a:1,https://b:2",
        "--ca-root",
        "/r",
        "--ca-token-file",
        "/t",
        "--cgroup-root",
        "/c",
    ]);
    let required = cli.unwrap().config.required().unwrap();
    assert_eq!(required.ca.addresses, ["https://a:1", "https://b:2"]);
    assert_eq!(required.pods_cgroup, PathBuf::from("/c/kubepods"));
}

#[test]
fn there_is_exactly_one_source() {
    let source = |args: &[&str]| {
        let rest = ["--ca-address", "https://a:1", "--ca-root", "/r", "--ca-token-file", "/t"];
        parse(&[args, &rest].concat()).unwrap().config.required().map(|required| required.source).map_err(|error| error.to_string())
    };
    assert_eq!(source(&["--manifests", "/m"]), Ok(SourceSettings::Manifests("/m".into())));
    assert_eq!(source(&["--kubernetes"]), Ok(SourceSettings::Kubernetes { kubeconfig: None }));
    let outside = SourceSettings::Kubernetes { kubeconfig: Some("/k".into()) };
    assert_eq!(source(&["--kubernetes", "--kubeconfig", "/k"]), Ok(outside));
    assert!(source(&[]).unwrap_err().contains("neither --manifests (or NODEMESH_MANIFESTS) nor --kubernetes"));
    assert!(source(&["--kubernetes", "--manifests", "/m"]).unwrap_err().contains("both set"));
    assert!(source(&["--kubeconfig", "/k"]).unwrap_err().contains("of no use without --kubernetes"));
    assert!(source(&["--kubeconfig", "/k", "--manifests", "/m"]).unwrap_err().contains("of no use without --kubernetes"));
}

#[test]
fn plaintext_authorities_and_open_admin_ports_are_refused() {
    let config = parse(&["--manifests", "/m", "--ca-address", "http://a:1", "--ca-root", "/r", "--ca-token-file", "/t"]).unwrap().config;
    assert!(config.required().unwrap_err().to_string().contains("https://"));
    assert!(parse(&["--admin-listen", "0.0.0.0:15000"]).is_err());
    assert!(parse(&["--instance", "../x"]).is_err());
}

#[test]
fn a_pods_connections_are_limited_by_flag() {
    assert_eq!(parse(&[]).unwrap().config.max_connections_per_pod, None);
    for (given, limit) in [("0", 0), ("500", 500)] {
        assert_eq!(parse(&["--max-connections-per-pod", given]).unwrap().config.max_connections_per_pod, Some(limit));
    }
    assert!(parse(&["--max-connections-per-pod", "-1"]).is_err() && parse(&["--max-connections-per-pod", "all"]).is_err());
}

#[test]
fn durations_have_units() {
    assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
    for bad in ["", "5", "s", "5d", "-1s", "99999999999999999999s", "18446744073709551615h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_follows_a_handover_is_one_of_two() {
    let after = |args: &[&str]| parse(args).map(|cli| cli.config.after_handover);
    assert_eq!(after(&[]).unwrap(), AfterHandover::Exit);
    assert_eq!(after(&["--after-handover", "stay"]).unwrap(), AfterHandover::Stay);
    assert!(after(&["--after-handover", "linger"]).unwrap_err().to_string().contains("--after-handover"));
    assert_eq!(parse(&[]).unwrap().config.run_dir, std::path::Path::new("/run/nodemesh"));
}

#[test]
fn the_pods_cgroup_is_found_whichever_driver_the_kubelet_has() {
    let root = tempfile::tempdir().unwrap();
    let mut config = parse(&["--node", "n1", "--cgroup-root", root.path().to_str().unwrap()]).unwrap().config;
    assert_eq!(config.pods_cgroup(), root.path().join("kubepods"));
    std::fs::create_dir(root.path().join("kubepods.slice")).unwrap();
    assert_eq!(config.pods_cgroup(), root.path().join("kubepods.slice"));
    std::fs::create_dir(root.path().join("kubepods")).unwrap();
    assert_eq!(config.pods_cgroup(), root.path().join("kubepods"));
    config.pods_cgroup = Some("/elsewhere".into());
    assert_eq!(config.pods_cgroup(), PathBuf::from("/elsewhere"));
}

#[test]
fn the_cni_plug_in_needs_both_directories_and_a_time_that_runtimes_wait() {
    let complete = ["--manifests", "/m", "--ca-address", "https://a:1", "--ca-root", "/r", "--ca-token-file", "/t"];
    let with = |more: &[&str]| parse(&[&complete[..], more].concat()).unwrap().config;
    assert!(with(&[]).required().is_ok());
    assert!(with(&[]).cni_installer(Path::new("/run/s")).is_none());
    for (given, word) in [(["--cni-bin-dir", "/b"], "NODEMESH_CNI_CONF_DIR"), (["--cni-conf-dir", "/c"], "NODEMESH_CNI_BIN_DIR")] {
        let error = with(&given).required().unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("give both or neither"), "{error}");
    }
    let config = with(&["--cni-bin-dir", "/b", "--cni-conf-dir", "/c", "--cni-timeout", "45s", "--cni-on-unreachable", "allow-unmeshed"]);
    assert!(config.required().is_ok());
    let installer = config.cni_installer(Path::new("/run/s")).unwrap();
    for part in ["\"socket\":\"/run/s\"", "\"timeoutSeconds\":45", "\"onUnreachable\":\"allow-unmeshed\""] {
        assert!(installer.entry.contains(part), "{part} in {}", installer.entry);
    }
    for time in ["1s", "1500ms", "201s", "soon"] {
        assert!(parse(&["--cni-timeout", time]).is_err(), "{time}");
    }
}
