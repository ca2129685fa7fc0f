//! Manifests that are wrong, incomplete, or gone: what can't be understood denies what it is about and is named, all else goes on.

use std::fs;
use std::time::Duration;

use mesh_lab::PodSpec;
use mesh_lab::manifests::{authorization_policy, peer_authentication};
use mesh_lab::peer::End;
use mesh_lab::process::wait_until;
use serde_json::{Value, json};

use crate::world::{Cluster, LIMIT, OUTSIDE, SOON, at, ground, text};

/// A file with a document that can't be read, one that can't be understood, and good ones around them.
const MIXED: &str = r#"# Lines are counted from here.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: good-one }
spec:
  action: DENY
  selector: { matchLabels: { app: store } }
  rules:
    - to: [{ operation: { ports: ["7001"] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: misspelt }
spec:
  action: ALLOW
  selector: { matchLabels: { app: api } }
  rules:
    - from:
        - source:
            principal: [cluster.local/ns/shop/sa/default]
---
kind: [this is not
---
apiVersion: v1
kind: Gadget
metadata: { name: unknown }
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: front }
spec:
  clusterIP: 10.96.0.60
  selector: { app: store }
  colour: red
  ports: [{ name: tcp, port: 80, targetPort: 7000 }]
"#;

fn problems(cluster: &Cluster, node: &str) -> Vec<String> {
    let all = cluster.admin(node, "/problems");
    all.as_array().expect("a list").iter().map(|problem| problem.as_str().map_or_else(|| problem.to_string(), str::to_owned)).collect()
}

fn put(cluster: &Cluster, name: &str, content: &str) {
    cluster.changed(|| cluster.world.manifests().put_text(name, content).unwrap());
}

#[test]
fn what_is_not_understood_denies_what_it_selects_and_is_named() {
    let pods = [
        ("n1", PodSpec::new("shop", "client")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new("shop", "api")),
        ("n2", PodSpec::new("shop", "store")),
    ];
    let cluster = ground("config", &pods).start();
    let [client, api, store] = ["client", "api", "store"].map(|name| cluster.pod(name));
    let servers = [api.serve("echo", 7000).unwrap(), store.serve("echo", 7000).unwrap(), store.serve("echo", 7001).unwrap()];
    let reaches = |to| client.connect(to, "x").unwrap();
    assert_eq!(reaches(at(&api, 7000)).received, "x");
    let accepted = servers[0].accepted();
    assert!(problems(&cluster, "n2").is_empty());

    put(&cluster, "mixed", MIXED);
    // The misspelt policy denies what it selects, and nothing else.
    let report = reaches(at(&api, 7000));
    assert_eq!((report.received_bytes, report.end), (0, End::Reset), "{report:?}");
    let line = cluster.access_of("n2", "inbound", &report);
    assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("invalid_policy", "shop/misspelt"), "{line}");
    assert_eq!(servers[0].accepted(), accepted);
    // The documents before and after the broken ones are in force.
    assert_eq!(reaches(at(&store, 7000)).received, "x");
    assert_eq!(reaches(at(&store, 7001)).received_bytes, 0);
    assert_eq!(reaches("10.96.0.60:80".parse().unwrap()).received, "x");
    assert_eq!(servers[2].accepted(), 0);

    // Each problem with file, line, object, field.
    let line = |of: &str| MIXED.lines().position(|line| line.contains(of)).expect("a line of the file") + 1;
    let at_line = |of: &str| format!("mixed.yaml:{}:", line(of));
    let (misspelt, garbled, gadget, colour) = (at_line("principal:"), at_line("[this is not"), at_line("kind: Gadget"), at_line("colour:"));
    // A list that is not closed is noticed a line later.
    let garbled = garbled.replace(&line("[this is not").to_string(), &(line("[this is not") + 1).to_string());
    // A document as a whole is named by its first line.
    let gadget = gadget.replace(&line("kind: Gadget").to_string(), &(line("kind: Gadget") - 1).to_string());
    for node in ["n1", "n2"] {
        let all = problems(&cluster, node);
        let is = |parts: &[&str]| all.iter().any(|problem| parts.iter().all(|part| problem.contains(part)));
        for parts in [
            &[&*misspelt, "AuthorizationPolicy shop/misspelt", "spec.rules[0].from[0].source.principal", "denies"][..],
            &[&*garbled, "not valid YAML"],
            &[&*gadget, "Gadget"],
            &[&*colour, "Service shop/front", "spec.colour"],
        ] {
            assert!(is(parts), "{node} says nothing of {parts:?}: {all:#?}");
        }
        cluster.wait_sum(node, "nodemesh_config_problems", &[], all.len() as f64);
        let entry = log_entry(&cluster, node, "spec.rules[0].from[0].source.principal").expect("a line of the log");
        assert!(text(&entry, "file").ends_with("mixed.yaml") && entry["line"] == line("principal:"), "{entry}");
        assert_eq!((text(&entry, "object"), text(&entry, "level")), ("AuthorizationPolicy shop/misspelt", "ERROR"), "{entry}");
    }
    // A policy that can't even be parsed as its kind, and others of the kind of mistakes that people make.
    let deny_all = |name: &str, content: &str, field: &str| {
        put(&cluster, "mixed", content);
        let report = reaches(at(&api, 7000));
        assert_eq!(report.received_bytes, 0, "{name}: {report:?}");
        let line = cluster.access_of("n2", "inbound", &report);
        assert!(matches!(text(&line, "outcome"), "invalid_policy" | "no_allow_policy"), "{name}: {line}");
        let all = problems(&cluster, "n2");
        assert!(all.iter().any(|problem| problem.contains("mixed.yaml:") && problem.contains(field)), "{name}: {all:#?}");
    };
    let policy = |spec: Value| {
        let object = json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "namespace": "shop", "name": "p" }, "spec": spec });
        serde_json::to_string_pretty(&object).unwrap()
    };
    deny_all("an action that is none", &policy(json!({ "action": "ALOW", "rules": [{}] })), "spec.action");
    deny_all("CUSTOM", &policy(json!({ "action": "CUSTOM", "provider": { "name": "x" }, "rules": [{}] })), "spec.action");
    deny_all(
        "a range that is none",
        &policy(json!({ "rules": [{ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }] })),
        "ipBlocks[0]",
    );
    deny_all("rules that are no list", &policy(json!({ "action": "DENY", "rules": "all" })), "spec.rules");
    deny_all(
        "a port that is a word",
        &policy(json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": ["http"] } }] }] })),
        "ports[0]",
    );
    // In dry run it is no more than a note.
    let mut dry: Value = serde_json::from_str(&policy(json!({ "action": "ALOW" }))).unwrap();
    dry["metadata"]["annotations"] = json!({ "istio.io/dry-run": "true" });
    put(&cluster, "mixed", &dry.to_string());
    assert_eq!(reaches(at(&api, 7000)).received, "x");

    // A mode that can't be read is the strictest.
    let plain = |expected: &str| {
        let outsider = cluster.pod("outsider").connect(at(&api, 7000), "x").unwrap();
        assert_eq!(outsider.received, expected, "{outsider:?}");
        outsider
    };
    plain("x");
    cluster.apply("mixed", &[peer_authentication("shop", "odd", "STRIKT")]);
    let refused = plain("");
    let line = cluster.access_of("n2", "inbound", &refused);
    assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("mtls_required", "shop/odd"), "{line}");
    assert_eq!(reaches(at(&api, 7000)).received, "x");

    // Mended, everything is as before, and the pages say so.
    cluster.withdraw("mixed");
    assert_eq!(reaches(at(&api, 7000)).received, "x");
    plain("x");
    assert!(problems(&cluster, "n2").is_empty());
    cluster.wait_sum("n2", "nodemesh_config_problems", &[], 0.0);
    vanishing_directory(&cluster);
}

/// A line of the diagnostic log about a field.
fn log_entry(cluster: &Cluster, node: &str, field: &str) -> Option<Value> {
    let mut found = None;
    let _ = wait_until("a line of the log", SOON, || {
        let log = cluster.agent(node).log();
        let mut entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        found = entries.find(|entry| text(entry, "field") == field);
        found.is_some()
    });
    found
}

/// A directory that is gone changes nothing; one that is back is followed again.
fn vanishing_directory(cluster: &Cluster) {
    let (client, api) = (cluster.pod("client"), cluster.pod("api"));
    let to = at(&api, 7000);
    let directory = cluster.world.manifests().directory().to_owned();
    let aside = directory.with_extension("aside");
    let in_force = || {
        let page = cluster.admin("n2", "/config");
        let mut names: Vec<String> =
            ["services", "workloads"].iter().flat_map(|part| page[part].as_array().unwrap()).map(Value::to_string).collect();
        names.sort();
        (names, page["mesh"].clone())
    };
    let ticking = client.spawn_peer(&["tick", &to.to_string(), "--interval", "20"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 2).unwrap();
    cluster.apply("deny", &[authorization_policy("shop", "p", &[("app", "store")], "DENY", &json!([{}]))]);
    let before = in_force();

    fs::rename(&directory, &aside).unwrap();
    let complained = |node: &str| {
        cluster.agent(node).log().lines().any(|line| {
            line.contains("manifest") && line.contains(&*directory.to_string_lossy()) && (line.contains("ERROR") || line.contains("WARN"))
        })
    };
    wait_until("the log of the lost directory", LIMIT, || complained("n1") && complained("n2"))
        .unwrap_or_else(|error| panic!("{error}:\n{}", cluster.agent("n2").log()));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.connect(to, "x").unwrap().received, "x");
    assert_eq!(client.connect(at(&cluster.pod("store"), 7000), "x").unwrap().received_bytes, 0, "the policy went with its file");
    assert_eq!(in_force(), before, "what is in force changed");
    let lost = problems(cluster, "n2");
    assert!(lost.iter().any(|problem| problem.contains(&*directory.to_string_lossy())), "{lost:#?}");
    let ticks = ticking.ticks();
    wait_until("more rounds", SOON, || ticking.ticks() > ticks).unwrap();

    // Back, under another inode, with a change in it.
    let fresh = directory.with_extension("fresh");
    fs::create_dir(&fresh).unwrap();
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), fresh.join(entry.file_name())).unwrap();
    }
    fs::remove_file(fresh.join("deny.yaml")).unwrap();
    cluster.changed(|| fs::rename(&fresh, &directory).unwrap());
    assert_eq!(client.connect(at(&cluster.pod("store"), 7000), "x").unwrap().received, "x");
    let ticks = ticking.ticks();
    wait_until("more rounds", SOON, || ticking.ticks() > ticks).unwrap();
    // And it is followed again.
    cluster.apply("deny", &[authorization_policy("shop", "p", &[("app", "store")], "DENY", &json!([{}]))]);
    assert_eq!(client.connect(at(&cluster.pod("store"), 7000), "x").unwrap().received_bytes, 0);
}
