use std::fs;

use super::*;
use crate::ops::metrics::{Format, MetricsConfig};
use crate::ops::ready::Readiness;

fn node() -> Node {
    Node { name: "n1".into(), proc: "/proc".into(), kept: "/nowhere".into() }
}

#[tokio::test]
async fn a_directory_is_read_and_shown_in_the_metrics() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n").unwrap();
    let (metrics, readiness, mut tasks) = (Metrics::new(MetricsConfig::default()), Readiness::new(), JoinSet::new());
    let waiting = readiness.block("the configuration");
    let settings = SourceSettings::Manifests(directory.path().into());
    let configuration = start(&settings, node(), mpsc::channel(1).1, &mut tasks, &metrics, &waiting).await.unwrap();
    assert!(configuration.first.node("n1").is_some());
    let text = metrics.expose(Format::OpenMetrics, Instant::now()).unwrap();
    assert!(text.contains("nodemesh_config_source_connected{source=\"manifests\"} 1"), "{text}");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("config");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\nusers: [{{name: u, user: {{token: secret}}}}]\n"
    );
    fs::write(&kubeconfig, text).unwrap();
    let (metrics, readiness, mut tasks) = (Metrics::new(MetricsConfig::default()), Readiness::new(), JoinSet::new());
    let waiting = readiness.block("the configuration");
    let settings = SourceSettings::Kubernetes { kubeconfig: Some(kubeconfig) };
    let told = async {
        while !readiness.awaited()[0].contains("Connection refused") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = start(&settings, node(), mpsc::channel(1).1, &mut tasks, &metrics, &waiting) => panic!("nothing was there to read"),
        () = told => {}
    }
    let awaited = readiness.awaited()[0].clone();
    assert!(awaited.contains("the first list of Namespace, Node, Pod") && awaited.contains(&address.to_string()), "{awaited}");
    let text = metrics.expose(Format::OpenMetrics, Instant::now()).unwrap();
    assert!(text.contains("nodemesh_config_source_connected{source=\"kubernetes\"} 0"), "{text}");
    assert!(text.contains("nodemesh_config_source_errors_total{source=\"kubernetes\",kind=\"Pod\",reason=\"unreachable\"}"), "{text}");
}
