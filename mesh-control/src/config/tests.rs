use super::*;

fn config(arguments: &[&str]) -> Result<Config, Vec<String>> {
    let flags = Flags::try_parse_from(std::iter::once(&"mesh-control").chain(arguments)).unwrap();
    Config::from_flags(flags).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults() {
    let config = config(&["--node-tokens", "/t", "--manifests", "/m"]).unwrap();
    assert_eq!(config.listen.to_string(), "[::]:15012");
    assert_eq!(config.admin.to_string(), "127.0.0.1:15014");
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(config.lifetimes, Lifetimes { default: day, max: day });
    assert_eq!(config.names.len(), 4);
    assert_eq!(config.source, CaSource::default());
}

#[test]
fn every_wrong_setting_is_named_at_once() {
    let errors = config(&[
        "--listen",
        "15012",
        "--admin",
        "x",
        "--dns-names",
        "a..b",
        "--ca-cert",
        "c",
        "--root-cert",
        "r",
        "--default-lifetime",
        "1y",
        "--max-lifetime",
        "1s",
        "--log-level",
        "loud",
        "--log-format",
        "xml",
    ])
    .unwrap_err();
    let named: Vec<&str> = errors.iter().map(|error| error.split([' ', ':']).next().unwrap()).collect();
    for setting in [
        "--listen",
        "--admin",
        "--node-tokens",
        "--manifests",
        "--dns-names",
        "--ca-cert",
        "--default-lifetime",
        "--max-lifetime",
        "--log-level",
        "--log-format",
    ] {
        assert!(named.contains(&setting), "{setting}: {errors:#?}");
    }
}

#[test]
fn files_go_together() {
    let base = ["--node-tokens", "/t", "--manifests", "/m"];
    let with = |more: &[&str]| config(&[&base[..], more].concat());
    assert!(with(&["--ca-cert", "c", "--ca-key", "k"]).unwrap().source.files.is_some());
    assert!(with(&["--ca-key", "k"]).unwrap_err()[0].contains("--ca-cert"));
    assert!(with(&["--cert-chain", "c"]).unwrap_err()[0].contains("of no use"));
    assert!(with(&["--default-lifetime", "2h", "--max-lifetime", "1h"]).unwrap_err()[0].contains("longer"));
}

#[test]
fn there_is_exactly_one_source() {
    let mesh = |more: &[&str]| config(&[&["--node-tokens", "/t"], more].concat()).map(|config| config.mesh);
    assert_eq!(mesh(&["--manifests", "/m"]), Ok(SourceSettings::Manifests("/m".into())));
    assert_eq!(mesh(&["--kubernetes", "--kubeconfig", "/k"]), Ok(SourceSettings::Kubernetes { kubeconfig: Some("/k".into()) }));
    assert!(mesh(&[]).unwrap_err()[0].contains("--kubernetes (or NODEMESH_CONTROL_KUBERNETES=true)"));
    assert!(mesh(&["--kubernetes", "--manifests", "/m"]).unwrap_err()[0].contains("both set"));
}

#[test]
fn durations() {
    for (text, seconds) in [("20s", 20), ("1h30m", 5400), ("2d", 172_800), ("90m", 5400)] {
        assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    for bad in ["", "h", "10", "1w", "-1h", "1.5h", "99999999999999999999s", "9999999999999999999d"] {
        assert_eq!(duration(bad), None, "{bad}");
    }
}

#[test]
fn every_flag_is_an_environment_variable() {
    use clap::CommandFactory;
    for argument in Flags::command().get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
        let name = format!("NODEMESH_CONTROL_{}", argument.get_id().as_str().to_uppercase());
        assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(&*name));
    }
}

#[test]
fn in_a_cluster_the_api_server_judges_tokens() {
    let review = config(&["--kubernetes"]).unwrap();
    let AgentProof::TokenReview(settings) = review.agents else { panic!("{:?}", review.agents) };
    assert_eq!((&*settings.audience, &*settings.namespace, &*settings.service_account), ("nodemesh-ca", "nodemesh-system", "mesh-agent"));
    assert_eq!(review.service.patience, PATIENCE);
    assert_eq!(config(&["--kubernetes", "--node-tokens", "/t"]).unwrap().agents, AgentProof::NodeTokens("/t".into()));
    let wrong = config(&["--kubernetes", "--agent-namespace", "A", "--token-audience", ""]).unwrap_err();
    assert!(wrong.iter().any(|error| error.starts_with("--agent-namespace")), "{wrong:?}");
    assert!(wrong.iter().any(|error| error.starts_with("--token-audience")), "{wrong:?}");
}
