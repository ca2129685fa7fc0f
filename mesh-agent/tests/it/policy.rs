//! AuthorizationPolicy and PeerAuthentication, as Istio means them, on both ways that a connection can take: across nodes, judged by the
//! server's agent, and inside a node, judged by the kernel. And what an operator sees of it.

use std::fmt::Write as _;

use mesh_lab::manifests::{authorization_policy, peer_authentication, service};
use mesh_lab::peer::{Client, End, Report, Server};
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec};
use serde_json::{Value, json};

use crate::world::{Cluster, LIMIT, OUTSIDE, SOON, at, ground, text};

/// Who calls: two of the shop's on the other node, one of another namespace there, two of the shop's on the server's own node, and one from
/// outside the mesh.
const CLIENTS: [&str; 6] = ["web", "batch", "tool", "web2", "batch2", "outsider"];
const ALL: &str = "web batch tool web2 batch2 outsider";
const MESHED: &str = "web batch tool web2 batch2";
const NOBODY: &str = "";

fn cluster(name: &str) -> Cluster {
    let account = |name: &str, account: &str| PodSpec::new("shop", name).service_account(account);
    let pods = [
        ("n1", account("web", "web")),
        ("n1", account("batch", "batch")),
        ("n1", PodSpec::new("lab", "tool").service_account("tool")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", account("web2", "web")),
        ("n2", account("batch2", "batch")),
        ("n2", account("api", "api").label("tier", "back")),
        ("n2", account("db", "db").label("tier", "store")),
    ];
    let ground = ground(name, &pods);
    ground.put("service", &[service("shop", "front", &["10.96.0.50"], "api", &[("tcp", 80, 7000), ("other", 81, 7001)])]);
    ground.start()
}

/// The application servers: an echo at two ports of `api` and one of `db`.
struct Servers {
    all: Vec<(&'static str, u16, Server)>,
}

impl Servers {
    fn start(cluster: &Cluster) -> Self {
        let start = |(pod, port): (&'static str, u16)| (pod, port, cluster.pod(pod).serve("echo", port).unwrap());
        Servers { all: [("api", 7000), ("api", 7001), ("db", 7000)].into_iter().map(start).collect() }
    }

    fn of(&self, pod: &str, port: u16) -> &Server {
        &self.all.iter().find(|(name, at, _)| (*name, *at) == (pod, port)).expect("a server").2
    }
}

/// One configuration, and whom it lets where.
struct Case {
    what: &'static str,
    objects: Vec<Value>,
    expected: Vec<(&'static str, u16, &'static str)>,
}

fn case(what: &'static str, objects: &[Value], expected: &[(&'static str, u16, &'static str)]) -> Case {
    Case { what, objects: objects.to_vec(), expected: expected.to_vec() }
}

/// A policy of the shop named `p` for the pod `api`.
fn on_api(action: &str, rules: Value) -> Value {
    authorization_policy("shop", "p", &[("app", "api")], action, &rules)
}

fn from(field: &str, values: &[&str]) -> Value {
    json!([{ "from": [{ "source": { field: values } }] }])
}

fn to(field: &str, values: &[&str]) -> Value {
    json!([{ "to": [{ "operation": { field: values } }] }])
}

fn when(key: &str, field: &str, values: &[&str]) -> Value {
    json!([{ "when": [{ "key": key, field: values }] }])
}

fn with(mut object: Value, at: &str, value: Value) -> Value {
    let (parent, key) = at.rsplit_once('/').expect("a path");
    object.pointer_mut(parent).expect("its parent")[key] = value;
    object
}

const BATCH: &str = "cluster.local/ns/shop/sa/batch";
const WEB: &str = "cluster.local/ns/shop/sa/web";

fn sources() -> Vec<Case> {
    let api = |allowed| vec![("api", 7000, allowed)];
    let allow = |what, rules: Value, allowed| case(what, &[on_api("ALLOW", rules)], &api(allowed));
    let deny = |what, rules: Value, allowed| case(what, &[on_api("DENY", rules)], &api(allowed));
    vec![
        allow("ALLOW by principal", from("principals", &[WEB]), "web web2"),
        deny("DENY by principal", from("principals", &[BATCH]), "web tool web2 outsider"),
        allow("ALLOW by prefix of the principal", from("principals", &["cluster.local/ns/shop/*"]), "web batch web2 batch2"),
        allow("ALLOW by suffix of the principal", from("principals", &["*/sa/tool"]), "tool"),
        allow("ALLOW by presence of a principal", from("principals", &["*"]), MESHED),
        deny("DENY by presence of a principal", from("principals", &["*"]), "outsider"),
        allow("ALLOW notPrincipals: the absent matches", from("notPrincipals", &[BATCH]), "web tool web2 outsider"),
        deny("DENY notPrincipals: the absent matches", from("notPrincipals", &[BATCH]), "batch batch2"),
        allow("ALLOW by namespace", from("namespaces", &["lab"]), "tool"),
        deny("DENY notNamespaces", from("notNamespaces", &["shop"]), "web batch web2 batch2"),
        allow("ALLOW by service account, namespace given", from("serviceAccounts", &["shop/web"]), "web web2"),
        allow("ALLOW by service account of its own namespace", from("serviceAccounts", &["batch", "lab/tool"]), "batch tool batch2"),
        deny("DENY notServiceAccounts", from("notServiceAccounts", &["web", "batch"]), "web batch web2 batch2"),
        allow("ALLOW by ipBlocks", from("ipBlocks", &["10.10.1.0/24"]), "web batch tool outsider"),
        deny("DENY notIpBlocks", from("notIpBlocks", &["10.10.1.0/24"]), "web batch tool outsider"),
        allow(
            "ALLOW: fields of a source are joined by AND",
            json!([{ "from": [{ "source": { "namespaces": ["shop"], "notPrincipals": [BATCH] } }] }]),
            "web web2",
        ),
        allow(
            "ALLOW: sources are joined by OR",
            json!([{ "from": [{ "source": { "namespaces": ["lab"] } }, { "source": { "principals": [BATCH] } }] }]),
            "batch tool batch2",
        ),
        allow("ALLOW by a condition on the namespace", when("source.namespace", "values", &["lab"]), "tool"),
        deny(
            "DENY by a condition that excludes",
            when("source.principal", "notValues", &[WEB, "cluster.local/ns/lab/sa/tool"]),
            "web tool web2",
        ),
    ]
}

fn operations_and_scopes() -> Vec<Case> {
    let db = || authorization_policy("shop", "p", &[("app", "db")], "DENY", &from("principals", &["*"]));
    let root = |selector: &[(&str, &str)]| authorization_policy("nodemesh-system", "p", selector, "DENY", &from("principals", &[BATCH]));
    let service = |name: &str| {
        let mut policy = authorization_policy("shop", "p", &[], "DENY", &from("principals", &[BATCH]));
        policy["spec"]["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": name }]);
        policy
    };
    let both = |first, second| vec![("api", 7000, first), ("api", 7001, second)];
    let rest = "web tool web2 outsider";
    vec![
        case("no policy", &[], &[("api", 7000, ALL), ("api", 7001, ALL), ("db", 7000, ALL)]),
        case("ALLOW by port", &[on_api("ALLOW", to("ports", &["7000"]))], &both(ALL, NOBODY)),
        case("DENY notPorts", &[on_api("DENY", to("notPorts", &["7000"]))], &both(ALL, NOBODY)),
        case("ALLOW by a condition on the port", &[on_api("ALLOW", when("destination.port", "values", &["7001"]))], &both(NOBODY, ALL)),
        case(
            "ALLOW: from and to are joined by AND",
            &[on_api(
                "ALLOW",
                json!([{ "from": [{ "source": { "principals": [WEB] } }], "to": [{ "operation": { "ports": ["7000"] } }] }]),
            )],
            &both("web web2", NOBODY),
        ),
        case("ALLOW with a field of HTTP never matches", &[on_api("ALLOW", to("methods", &["GET"]))], &both(NOBODY, NOBODY)),
        case(
            "DENY with a field of HTTP matches by the rest",
            &[on_api(
                "DENY",
                json!([{ "from": [{ "source": { "principals": [BATCH] } }], "to": [{ "operation": { "paths": ["/admin"], "ports": ["7000"] } }] }]),
            )],
            &both(rest, ALL),
        ),
        case(
            "DENY with a condition of HTTP alone matches all",
            &[on_api("DENY", when("request.headers[x]", "values", &["y"]))],
            &both(NOBODY, NOBODY),
        ),
        case("ALLOW with no rules allows nobody", &[on_api("ALLOW", json!([]))], &both(NOBODY, NOBODY)),
        case("ALLOW with an empty rule allows all", &[on_api("ALLOW", json!([{}]))], &both(ALL, ALL)),
        case("DENY with no rules denies nobody", &[on_api("DENY", json!([]))], &both(ALL, ALL)),
        case(
            "DENY wins over ALLOW",
            &[
                authorization_policy("shop", "a", &[], "ALLOW", &from("namespaces", &["shop"])),
                authorization_policy("shop", "b", &[("tier", "back")], "DENY", &from("principals", &[BATCH])),
            ],
            &[("api", 7000, "web web2"), ("db", 7000, "web batch web2 batch2")],
        ),
        case("by selector", &[db()], &[("api", 7000, ALL), ("db", 7000, "outsider")]),
        case("by targetRefs", &[service("front")], &[("api", 7000, rest), ("db", 7000, ALL)]),
        case("by targetRefs to a Service that is not there", &[service("absent")], &[("api", 7000, ALL), ("db", 7000, ALL)]),
        case(
            "of another namespace",
            &[authorization_policy("lab", "p", &[], "DENY", &json!([{}]))],
            &[("api", 7000, ALL), ("db", 7000, ALL)],
        ),
        case(
            "of the whole namespace",
            &[authorization_policy("shop", "p", &[], "DENY", &from("principals", &[BATCH]))],
            &[("api", 7000, rest), ("db", 7000, rest)],
        ),
        case("of the root namespace", &[root(&[])], &[("api", 7000, rest), ("db", 7000, rest)]),
        case("of the root namespace, by selector", &[root(&[("app", "db")])], &[("api", 7000, ALL), ("db", 7000, rest)]),
        case(
            "dry run denies nothing",
            &[with(on_api("DENY", json!([{}])), "/metadata/annotations", json!({ "istio.io/dry-run": "true" }))],
            &[("api", 7000, ALL)],
        ),
        case("AUDIT denies nothing", &[on_api("AUDIT", json!([{}]))], &[("api", 7000, ALL)]),
        case("CUSTOM is not understood and denies", &[on_api("CUSTOM", json!([{}]))], &[("api", 7000, NOBODY), ("db", 7000, ALL)]),
    ]
}

/// Plaintext or not, by the modes of PeerAuthentication. Those of the mesh are never asked for plaintext.
fn transports() -> Vec<Case> {
    let mode = |name: &str, mode: &str| peer_authentication("shop", name, mode);
    let of_api = |object: Value| with(object, "/spec/selector", json!({ "matchLabels": { "app": "api" } }));
    let port = |mode: &str| {
        of_api(with(peer_authentication("shop", "ports", mode), "/spec/portLevelMtls", json!({ "7001": { "mode": "PERMISSIVE" } })))
    };
    let strict_mesh = peer_authentication("nodemesh-system", "default", "STRICT");
    let three = |a, b, c| vec![("api", 7000, a), ("api", 7001, b), ("db", 7000, c)];
    vec![
        case("STRICT of the namespace", &[mode("default", "STRICT")], &three(MESHED, MESHED, MESHED)),
        case("PERMISSIVE of the namespace", &[mode("default", "PERMISSIVE")], &three(ALL, ALL, ALL)),
        case("DISABLE of the namespace", &[mode("default", "DISABLE")], &three(ALL, ALL, ALL)),
        case("STRICT of the mesh", std::slice::from_ref(&strict_mesh), &three(MESHED, MESHED, MESHED)),
        case("the namespace's word before the mesh's", &[strict_mesh.clone(), mode("default", "PERMISSIVE")], &three(ALL, ALL, ALL)),
        case(
            "the workload's word before the namespace's",
            &[mode("default", "STRICT"), of_api(mode("own", "PERMISSIVE"))],
            &three(ALL, ALL, MESHED),
        ),
        case("UNSET leaves it to those above", &[strict_mesh, mode("default", "UNSET")], &three(MESHED, MESHED, MESHED)),
        case("STRICT but for a port", &[port("STRICT")], &three(MESHED, ALL, ALL)),
    ]
}

/// Whether a client gets through. What is neither a yes nor a clean no is an error.
fn call(client: &Pod, to: &Pod, port: u16) -> Result<bool, String> {
    let report = client
        .peer(&["connect", &at(to, port).to_string(), "--send", "x", "--half-close", "--timeout", "5"], LIMIT)
        .expect("the peer program runs");
    match (&*report.received, report.end) {
        ("x", End::Eof) => Ok(true),
        // Inside a node connect() itself fails; across nodes the connection is reset.
        ("", End::NotConnected | End::Reset) => Ok(false),
        _ => Err(format!("{report:?}")),
    }
}

/// Puts each case in force and asks everybody; all that is not as expected, at the end.
fn judge(cluster: &Cluster, servers: &Servers, cases: Vec<Case>) {
    let mut wrong = String::new();
    let mut before: Option<Vec<Value>> = None;
    for case in cases {
        // Equal configurations are no news that one could wait for.
        if before.as_ref() != Some(&case.objects) && !(before.is_none() && case.objects.is_empty()) {
            cluster.apply("policies", &case.objects);
        }
        before = Some(case.objects);
        for (name, port, allowed) in &case.expected {
            let (pod, server) = (cluster.pod(name), servers.of(name, *port));
            let accepted = server.accepted();
            let asked: Vec<_> = std::thread::scope(|scope| {
                let ask = |client: &'static str| {
                    let (client, pod) = (cluster.pod(client), &pod);
                    scope.spawn(move || call(&client, pod, *port))
                };
                let started: Vec<_> = CLIENTS.into_iter().map(|client| (client, ask(client))).collect();
                started.into_iter().map(|(client, thread)| (client, thread.join().unwrap())).collect()
            });
            for (client, got) in &asked {
                let wanted = allowed.split(' ').any(|one| one == *client);
                if *got != Ok(wanted) {
                    let _ = writeln!(wrong, "{}: {client} → {name}:{port} is {got:?}, not {wanted}", case.what);
                }
            }
            // Before any byte of a denied connection: not even the connection itself.
            let reached = server.accepted() - accepted;
            let wanted = asked.iter().filter(|(_, got)| *got == Ok(true)).count();
            if reached != wanted {
                let _ = writeln!(wrong, "{}: {reached} connections reached {name}:{port}, {wanted} were allowed", case.what);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn policies_mean_what_istio_says_across_nodes_and_inside_one() {
    let cluster = cluster("policy");
    let servers = Servers::start(&cluster);
    judge(&cluster, &servers, operations_and_scopes());
    judge(&cluster, &servers, sources());
    judge(&cluster, &servers, transports());
}

/// A connection that goes on, and whom it is of.
fn tick(cluster: &Cluster, client: &str, to: &str) -> Client {
    let ticking = cluster.pod(client).spawn_peer(&["tick", to, "--interval", "20", "--timeout", "5"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 2).unwrap_or_else(|error| panic!("{client}: {error}: {}", ticking.process.log()));
    ticking
}

fn goes_on(what: &str, ticking: &Client) {
    let ticks = ticking.ticks();
    wait_until("more rounds", SOON, || ticking.ticks() > ticks + 1)
        .unwrap_or_else(|error| panic!("{what}: {error}: {}", ticking.process.log()));
}

#[test]
fn denials_are_named_counted_and_reach_live_connections() {
    let cluster = cluster("live");
    let servers = Servers::start(&cluster);
    let api = at(&cluster.pod("api"), 7000).to_string();

    // What operators see of a denial, at both nodes and in the kernel.
    cluster.apply("policies", &[authorization_policy("shop", "no-batch", &[("app", "api")], "DENY", &from("principals", &[BATCH]))]);
    let across = cluster.pod("batch").connect(api.parse().unwrap(), "secret").unwrap();
    assert_eq!((across.received_bytes, across.end), (0, End::Reset), "{across:?}");
    let line = cluster.access_of("n2", "inbound", &across);
    let fields = ["outcome", "policy", "source_workload", "destination_workload", "flags"].map(|field| text(&line, field));
    assert_eq!(fields, ["policy_denied", "shop/no-batch", "shop/batch", "shop/api", "DENY"], "{line}");
    assert!(text(&line, "reason").contains("shop/no-batch"), "{line}");
    let line = cluster.access_of("n1", "outbound", &across);
    assert_eq!((text(&line, "outcome"), text(&line, "flags")), ("denied_by_peer", "DENY"), "{line}");
    assert!(text(&line, "reason").contains("401"), "{line}");
    // The other node's agent is told no more than that: policies are no matter of the caller's.
    let inside = cluster.pod("batch2").connect(api.parse().unwrap(), "secret").unwrap();
    assert!(!inside.connected, "{inside:?}");
    let line = cluster.access("n2", &[("direction", "local"), ("source_workload", "shop/batch2"), ("outcome", "policy_denied")]);
    assert_eq!((text(&line, "policy"), text(&line, "destination_workload")), ("shop/no-batch", "shop/api"), "{line}");
    assert_eq!(servers.of("api", 7000).accepted(), 0);
    let denied = [("source_workload", "batch"), ("response_flags", "DENY")];
    cluster.wait_sum("n2", "istio_tcp_connections_closed_total", &[&denied[..], &[("reporter", "destination")]].concat(), 1.0);
    cluster.wait_sum("n1", "istio_tcp_connections_closed_total", &[&denied[..], &[("reporter", "source")]].concat(), 1.0);
    cluster.wait_sum("n2", "nodemesh_policy_decisions_total", &[("decision", "deny"), ("reason", "policy_denied")], 1.0);
    cluster.wait_sum("n2", "nodemesh_kernel_refusals_total", &[("reason", "policy_denied")], 1.0);

    // Nobody is allowed by an ALLOW policy: no policy is to blame, and the line says so.
    cluster.apply("policies", &[on_api("ALLOW", from("namespaces", &["lab"]))]);
    let report = cluster.pod("web").connect(api.parse().unwrap(), "x").unwrap();
    let line = cluster.access_of("n2", "inbound", &report);
    assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("no_allow_policy", ""), "{line}");

    // Dry run: allowed, and noted on both ways.
    let before = cluster.sum("n2", "nodemesh_policy_dry_run_denials_total", &[]);
    let dry = with(
        authorization_policy("shop", "maybe", &[("app", "api")], "DENY", &from("principals", &[WEB])),
        "/metadata/annotations",
        json!({ "nodemesh.dev/dry-run": "true" }),
    );
    cluster.apply("policies", &[dry]);
    let report = cluster.pod("web").connect(api.parse().unwrap(), "x").unwrap();
    assert_eq!(report.received, "x");
    let line = cluster.access_of("n2", "inbound", &report);
    assert!(text(&line, "dry_run").contains("shop/maybe"), "{line}");
    assert_eq!(cluster.pod("web2").connect(api.parse().unwrap(), "x").unwrap().received, "x");
    cluster.access("n2", &[("direction", "local"), ("source_workload", "shop/web2"), ("dry_run", "shop/maybe")]);
    cluster.wait_sum("n2", "nodemesh_policy_dry_run_denials_total", &[], before + 2.0);

    // AUDIT: allowed, and noted.
    cluster.apply("policies", &[authorization_policy("shop", "watched", &[("app", "api")], "AUDIT", &from("principals", &[WEB]))]);
    assert_eq!(cluster.pod("web").connect(api.parse().unwrap(), "x").unwrap().received, "x");
    let noted = |line: &str| line.contains("AUDIT") && line.contains("shop/watched");
    wait_until("the note of the AUDIT policy", SOON, || cluster.agent("n2").log().lines().any(noted)).unwrap();

    live_connections(&cluster, &api);
}

fn ended(what: &str, ticking: Client) -> Report {
    let report: Report = ticking.finish(SOON).unwrap_or_else(|error| panic!("{what} goes on: {error:#}"));
    assert!(report.ticks > 2 && report.end == End::Reset, "{what}: {report:?}");
    report
}

/// A policy that is edited ends those it no longer allows, and nobody else.
fn live_connections(cluster: &Cluster, api: &str) {
    cluster.withdraw("policies");
    let start = |client| tick(cluster, client, api);
    let [web, batch, web2, batch2, outsider] = ["web", "batch", "web2", "batch2", "outsider"].map(start);
    let by_service = tick(cluster, "batch", "10.96.0.50:80");
    cluster.apply("policies", &[authorization_policy("shop", "edited", &[("app", "api")], "DENY", &from("principals", &[BATCH]))]);
    ended("batch", batch);
    ended("batch by the Service", by_service);
    ended("batch2", batch2);
    let line = cluster.access("n2", &[("direction", "inbound"), ("outcome", "policy_revoked"), ("source_workload", "shop/batch")]);
    assert_eq!((text(&line, "policy"), text(&line, "flags")), ("shop/edited", "DENY"), "{line}");
    assert!(text(&line, "reason").contains("shop/edited"), "{line}");
    cluster.access("n1", &[("direction", "outbound"), ("source_workload", "shop/batch"), ("outcome", "server_reset")]);
    let of_batch2 = cluster.pod("batch2").ipv4().to_string();
    let revoked = |line: &str| line.contains("no longer allow") && line.contains(&of_batch2) && line.contains("shop/edited");
    wait_until("the log of what the kernel had let go", SOON, || cluster.agent("n2").log().lines().any(revoked)).unwrap();
    for (what, ticking) in [("web", &web), ("web2", &web2), ("outsider", &outsider)] {
        goes_on(what, ticking);
    }
    // The transport is part of it.
    cluster.apply("modes", &[peer_authentication("shop", "strict", "STRICT")]);
    let report = ended("outsider", outsider);
    let line = cluster.access_of("n2", "inbound", &report);
    assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("mtls_required", "shop/strict"), "{line}");
    goes_on("web", &web);
    goes_on("web2", &web2);
    // A policy that is withdrawn lets everybody in again, and the edit of an unrelated one disturbs nobody.
    cluster.apply("unrelated", &[authorization_policy("lab", "x", &[], "DENY", &json!([{}]))]);
    cluster.withdraw("policies");
    goes_on("web", &web);
    let report = cluster.pod("batch").connect(api.parse().unwrap(), "x").unwrap();
    assert_eq!(report.received, "x", "{report:?}");
}
