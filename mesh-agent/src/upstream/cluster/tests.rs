use std::path::Path;

use mesh_model::document::parse_documents;

use super::*;

/// A client in each of two namespaces and two servers; the DestinationRule is for the one namespace alone.
fn mesh(previous: Option<&Snapshot>, servers: &[u8]) -> Snapshot {
    mesh_and(previous, servers, "")
}

/// With more objects.
fn mesh_and(previous: Option<&Snapshot>, servers: &[u8], more: &str) -> Snapshot {
    let pod = |namespace: &str, name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let mut text = pod("shop", "client", "10.0.1.1") + &pod("away", "visitor", "10.0.1.2");
    for server in servers {
        text += &pod("shop", &format!("web{server}"), &format!("10.0.2.{server}")).replace(&format!("app: web{server}"), "app: web");
    }
    text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\n\
             spec: {host: web, exportTo: ['.'], trafficPolicy: {outlierDetection: {consecutiveGatewayErrors: 2, maxEjectionPercent: 50}}}\n";
    text += more;
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn cluster(clusters: &Clusters, snapshot: &Snapshot, client: &str) -> Arc<Cluster> {
    let client = snapshot.workloads().find(|workload| &*workload.name == client).unwrap();
    let service = NamespacedName { namespace: "shop".into(), name: "web".into() };
    clusters.get(snapshot, client, &ClusterName { service, port: 80, subset: None, v4: true }).unwrap()
}

#[test]
fn what_was_learnt_outlives_a_configuration_that_says_the_same() {
    let clusters = Clusters::default();
    let now = Instant::now();
    let first = mesh(None, &[1, 2]);
    // Another client's policy stands beside it under the same name.
    let visitor = cluster(&clusters, &first, "visitor");
    let before = cluster(&clusters, &first, "client");
    let bad = before.choose(now, Wish::default()).unwrap();
    for _ in 0..2 {
        bad.observe(now, Observation::Status(503));
    }
    assert_eq!(before.counts(now), (1, 1));
    assert_eq!(visitor.counts(now), (2, 0), "who has no such rule ejects nobody");
    // Everything is read anew, and a third server is there.
    let mut snapshot = first;
    for servers in [&[1, 2][..], &[1, 2, 3]] {
        snapshot = mesh(None, servers);
        clusters.slots.write().values_mut().for_each(|slot| slot.version = 0);
        let after = cluster(&clusters, &snapshot, "client");
        assert_eq!(after.counts(now), (servers.len() - 1, 1), "{servers:?}");
        let chosen: Vec<SocketAddr> = (0..20).map(|_| after.choose(now, Wish::default()).unwrap().server.address.0).collect();
        assert!(!chosen.contains(&bad.server.address.0), "{chosen:?}");
    }
    drop(snapshot);
}

#[test]
fn what_was_learnt_outlives_a_configuration_in_which_nobody_asked() {
    let clusters = Clusters::default();
    let now = Instant::now();
    let first = mesh(None, &[1, 2]);
    let bad = cluster(&clusters, &first, "client").choose(now, Wish::default()).unwrap();
    for _ in 0..2 {
        bad.observe(now, Observation::Status(503));
    }
    drop(bad);
    let mut snapshot = first;
    for servers in [&[1, 2][..], &[1, 2, 3]] {
        snapshot = mesh(Some(&snapshot), servers);
        clusters.sweep(&snapshot);
    }
    let after = cluster(&clusters, &snapshot, "client");
    assert_eq!(after.counts(now), (2, 1), "who is ejected stays so");
    assert_eq!(after.members.iter().filter(|member| member.since.is_some()).count(), 1, "who joins later is new");
    drop(after);
    let empty = Snapshot::build(&[], Vec::new(), Some(&snapshot));
    clusters.sweep(&empty);
    assert!(clusters.slots.read().is_empty(), "of what is gone nothing stays");
}

#[test]
fn what_is_under_a_policy_of_the_past_goes_once_there_is_another() {
    let clusters = Clusters::default();
    let first = mesh(None, &[1, 2]);
    cluster(&clusters, &first, "client");
    clusters.slots.write().values_mut().for_each(|slot| slot.version = 0);
    // Read anew, the rule is another value.
    let second = mesh(None, &[1, 2]);
    drop(first);
    clusters.sweep(&second);
    assert_eq!(clusters.slots.read().len(), 1, "nobody has asked yet");
    cluster(&clusters, &second, "client");
    assert_eq!(clusters.slots.read().len(), 2);
    clusters.sweep(&second);
    assert_eq!(clusters.slots.read().len(), 1);
}

/// Two clients and two servers, one of each of either version, and a rule by which versions stay among themselves.
fn versions(previous: Option<&Snapshot>, clients: &[&str], locality: &str) -> Snapshot {
    let pod = |name: &str, app: &str, version: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}, version: {version}, own: {name}}}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let mut text = pod("web1", "web", "v1", "10.0.2.1") + &pod("web2", "web", "v2", "10.0.2.2");
    for (client, number) in clients.iter().zip(1..) {
        text += &pod(client, "client", client.get(..2).unwrap(), &format!("10.0.1.{number}"));
    }
    text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";
    text += &format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{host: web, trafficPolicy: {{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{{locality}}}}}}}}}\n"
    );
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

#[test]
fn each_client_goes_by_its_own_labels_whoever_asks_first() {
    let by_version = "enabled: true, failoverPriority: [version]";
    for order in [["v1-a", "v2-a"], ["v2-a", "v1-a"]] {
        let clusters = Clusters::default();
        let snapshot = versions(None, &["v1-a", "v2-a", "v2-b", "v3-a"], by_version);
        for client in order {
            let near = cluster(&clusters, &snapshot, client);
            let chosen: Vec<String> =
                (0..20).map(|_| near.choose(Instant::now(), Wish::default()).unwrap().server.address.0.to_string()).collect();
            let own = if client.starts_with("v1") { "10.0.2.1:8080" } else { "10.0.2.2:8080" };
            assert_eq!(chosen, vec![own; 20], "{client}");
        }
        let alike = cluster(&clusters, &snapshot, "v2-b");
        assert!(Arc::ptr_eq(&alike, &cluster(&clusters, &snapshot, "v2-a")), "labels that the rule does not name make no difference");
        drop(alike);
        let third = cluster(&clusters, &snapshot, "v3-a");
        assert_eq!(clusters.slots.read().len(), 3);
        assert_eq!(clusters.all().len(), 1, "they count the same things, which are told once");
        // Nobody is of the third version any more.
        let fewer = versions(Some(&snapshot), &["v1-a", "v2-a"], by_version);
        clusters.sweep(&fewer);
        assert_eq!(clusters.slots.read().len(), 3, "it is in use");
        drop(third);
        clusters.sweep(&fewer);
        assert_eq!(clusters.slots.read().len(), 2);
        assert!(clusters.slots.read().keys().all(|key| key.2["version"] != "v3"));
    }
    let clusters = Clusters::default();
    let snapshot = versions(None, &["v1-a", "v2-a"], "enabled: true");
    assert!(Arc::ptr_eq(&cluster(&clusters, &snapshot, "v1-a"), &cluster(&clusters, &snapshot, "v2-a")), "where no label counts");
}

#[test]
fn what_is_not_there_is_told() {
    let snapshot = mesh(None, &[1]);
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let name = |service: &str, subset: Option<&str>| ClusterName {
        service: NamespacedName { namespace: "shop".into(), name: service.into() },
        port: 80,
        subset: subset.map(Arc::from),
        v4: true,
    };
    let clusters = Clusters::default();
    assert!(matches!(clusters.get(&snapshot, client, &name("nobody", None)), Err(Missing::Service { .. })));
    assert!(matches!(clusters.get(&snapshot, client, &name("web", Some("v9"))), Err(Missing::Subset { .. })));
}

#[test]
fn clusters_of_a_service_share_its_retry_budget() {
    let budgeted = |percent: u32, previous: Option<&Snapshot>| {
        let policy = format!(
            "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: web}}], retryConstraint: {{budget: {{percent: {percent}}}}}}}\n"
        );
        mesh_and(previous, &[1], &policy)
    };
    let clusters = Clusters::default();
    let none = mesh(None, &[1]);
    assert!(cluster(&clusters, &none, "client").budget.is_none());
    let first = budgeted(20, Some(&none));
    let budget = cluster(&clusters, &first, "client").budget.clone().unwrap();
    assert!(Arc::ptr_eq(&budget, cluster(&clusters, &first, "visitor").budget.as_ref().unwrap()), "clients with policies of their own too");
    // What says the same goes on counting; what says something else begins anew; none is none.
    let second = budgeted(20, Some(&first));
    assert!(Arc::ptr_eq(&budget, cluster(&clusters, &second, "client").budget.as_ref().unwrap()));
    let third = budgeted(50, Some(&second));
    let changed = cluster(&clusters, &third, "client").budget.clone().unwrap();
    assert!(!Arc::ptr_eq(&budget, &changed) && changed.settings().percent == 50);
    let fourth = mesh(Some(&third), &[1]);
    assert!(cluster(&clusters, &fourth, "client").budget.is_none());
    clusters.sweep(&fourth);
    assert!(clusters.budgets.lock().is_empty());
}

/// A client of `shop`, with hosts outside.
fn outside(previous: Option<&Snapshot>) -> Snapshot {
    let entry = |name: &str, more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [{name}.example.com], ports: [{{number: 80, name: http, targetPort: 8080}}], {more}}}\n"
        )
    };
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop}\nspec: {nodeName: n1, containers: []}\n\
                    status: {podIP: 10.0.1.1}\n"
        .to_owned();
    text += &entry("dns", "resolution: DNS");
    text += &entry("any", "resolution: NONE");
    text += &entry("parts", "resolution: STATIC, endpoints: [{address: 192.0.2.1, labels: {v: a}}, {address: 192.0.2.2, labels: {v: b}}]");
    text += "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: parts, namespace: shop}\n\
             spec: {host: parts.example.com, subsets: [{name: b, labels: {v: b}}]}\n";
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

#[test]
fn endpoints_of_hosts_outside_are_what_their_entry_says() {
    let names: Arc<Names> = Arc::default();
    let clusters = Clusters::new(names.clone());
    let (snapshot, now) = (outside(None), Instant::now());
    let client = snapshot.workloads().next().unwrap();
    let get = |host: &str, subset: Option<&str>| {
        let service = NamespacedName { namespace: "shop".into(), name: host.into() };
        clusters.get(&snapshot, client, &ClusterName { service, port: 80, subset: subset.map(Arc::from), v4: true }).unwrap()
    };
    let chosen = |cluster: &Arc<Cluster>| {
        let wish = Wish { dialled: Some("198.51.100.9:80".parse().unwrap()), ..Wish::default() };
        cluster.choose(now, wish).map(|chosen| chosen.server.address.0.to_string())
    };
    assert_eq!(chosen(&get("any.example.com", None)).as_deref(), Some("198.51.100.9:8080"), "what was dialled");
    assert_eq!(chosen(&get("parts.example.com", Some("b"))).as_deref(), Some("192.0.2.2:8080"));

    let before = get("dns.example.com", None);
    assert!(before.is_empty() && chosen(&before).is_none());
    let known = |ip: &str| [("dns.example.com".into(), crate::names::Known { addresses: [ip.parse().unwrap()].into(), since: now })].into();
    names.publish(known("192.0.2.7"), std::collections::HashSet::new());
    let first = get("dns.example.com", None);
    assert_eq!(chosen(&first).as_deref(), Some("192.0.2.7:8080"));
    names.publish(known("192.0.2.7"), std::collections::HashSet::new());
    assert!(Arc::ptr_eq(&first, &get("dns.example.com", None)), "the same answer changes nothing");
    names.publish(known("192.0.2.8"), std::collections::HashSet::new());
    assert_eq!(chosen(&get("dns.example.com", None)).as_deref(), Some("192.0.2.8:8080"));
}

/// The host of a ServiceEntry of `shop`, on a port that speaks TLS.
fn secure(extra: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop}}\n\
         spec: {{hosts: [api.example.com], resolution: STATIC, {extra} ports: [{{number: 443, name: tls, protocol: HTTPS}}], \
         endpoints: [{{address: 192.0.2.1}}]}}\n"
    )
}

#[test]
fn a_host_that_a_namespace_does_not_know_is_not_there_for_it_whoever_routes_there() {
    let clusters = Clusters::default();
    let name = ClusterName {
        service: NamespacedName { namespace: "shop".into(), name: "api.example.com".into() },
        port: 443,
        subset: None,
        v4: true,
    };
    let asked = |snapshot: &Snapshot, client: &str| {
        let client = snapshot.workloads().find(|workload| &*workload.name == client).unwrap();
        assert_eq!(clusters.get(snapshot, client, &name).is_ok(), Found::of(snapshot, client, &name).is_ok());
        clusters.get(snapshot, client, &name).is_ok()
    };
    let private = mesh_and(None, &[1], &secure("exportTo: ['.'],"));
    // The first makes the cluster, which they would share.
    assert!(asked(&private, "client") && !asked(&private, "visitor"));
    assert!(asked(&mesh_and(None, &[1], &secure("")), "visitor"));
}

#[test]
fn requests_to_a_port_that_speaks_tls_wait_for_a_rule_that_begins_it() {
    let refusal = |rules: &str, client: &str| {
        let snapshot = mesh_and(None, &[1], &(secure("") + rules));
        let client = snapshot.workloads().find(|workload| &*workload.name == client).unwrap();
        let service = NamespacedName { namespace: "shop".into(), name: "api.example.com".into() };
        let name = ClusterName { service, port: 443, subset: None, v4: true };
        let cluster = Clusters::default().get(&snapshot, client, &name).unwrap();
        assert!(cluster.refusal().is_none(), "bytes that are TLS already may go there");
        cluster.refusal_of_requests().map(|outcome| outcome.to_string())
    };
    assert!(refusal("", "client").unwrap().contains("no DestinationRule for this client begins it"));
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: shop}\n\
                spec: {host: api.example.com, exportTo: ['.'], trafficPolicy: {tls: {mode: SIMPLE}}}\n";
    assert_eq!(refusal(rule, "client"), None);
    assert!(refusal(rule, "visitor").is_some(), "the rule is not for its namespace");
}
