use std::path::Path;

use mesh_model::document::parse_documents;

use super::*;

fn snapshot(text: &str) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

/// Two pods behind a Service each.
fn shop() -> Snapshot {
    let pod = |name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let service = |name: &str, ip: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  clusterIP: {ip}\n  selector: {{app: {app}}}\n  ports: [{{port: 80, targetPort: 7000}}]\n"
        )
    };
    snapshot(
        &[pod("web", "10.0.0.1"), pod("db", "10.0.0.2"), service("front", "10.96.0.1", "web"), service("store", "10.96.0.2", "db")]
            .concat(),
    )
}

#[test]
fn a_claimed_service_is_one_of_those_of_whom_is_called() {
    let snapshot = shop();
    let claim = |host: &str, server: &str| {
        claimed_service(&snapshot, host, server.parse().unwrap(), "cluster.local").map(|service| service.host.to_string())
    };
    let host = "front.shop.svc.cluster.local";
    assert_eq!(claim(host, "10.0.0.1:7000").as_deref(), Some(host));
    assert_eq!(claim(host, "[::ffff:10.0.0.1]:7000").as_deref(), Some(host));
    assert_eq!(claim("store.shop.svc.cluster.local", "10.0.0.2:7000").as_deref(), Some("store.shop.svc.cluster.local"));
    // Another port, another pod, another's Service, one that does not exist.
    for (host, server) in [
        (host, "10.0.0.1:7001"),
        (host, "10.0.0.1:80"),
        (host, "10.0.0.2:7000"),
        ("store.shop.svc.cluster.local", "10.0.0.1:7000"),
        ("absent.shop.svc.cluster.local", "10.0.0.1:7000"),
    ] {
        assert_eq!(claim(host, server), None, "{host} at {server}");
    }
}

#[test]
fn a_host_is_read_as_it_is_written() {
    let name = NamespacedName { namespace: "shop".into(), name: "front-1".into() };
    for domain in ["cluster.local", "x"] {
        assert_eq!(service_of_host(&service_ref(&name, domain).host, domain), Some(name.clone()));
    }
    let long = format!("{}.shop.svc.cluster.local", "a".repeat(64));
    for bad in [
        "",
        ".",
        "front",
        "front.shop",
        "front.shop.svc",
        "front.shop.svc.cluster.local.",
        "front.shop.svc.cluster.local:80",
        "front.shop.svc.other.local",
        "Front.shop.svc.cluster.local",
        "a.front.shop.svc.cluster.local",
        "front..svc.cluster.local",
        ".shop.svc.cluster.local",
        ".svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "fro/nt.shop.svc.cluster.local",
        "frönt.shop.svc.cluster.local",
        long.as_str(),
    ] {
        assert_eq!(service_of_host(bad, "cluster.local"), None, "{bad}");
    }
}
