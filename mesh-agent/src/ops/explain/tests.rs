use std::path::Path;

use mesh_model::document::parse_documents;
use mesh_model::policy::SetInterner;
use serde_json::json;

use super::*;
use crate::conn::{ClientAddr, ServerAddr};
use crate::policy::{DenialReason, Peer, Transport, WorkloadPolicy, decide};

/// `labels` has the pod's labels but `app`, which is its name.
fn pod(name: &str, node: &str, ip: &str, labels: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let app = name.trim_end_matches(|c: char| c.is_ascii_digit());
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}, {labels}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {app}, containers: []}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn service(name: &str, ip: &str, app: &str, ports: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{ports}]}}\n"
    )
}

fn object(api: &str, kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!("---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

fn authorization(name: &str, spec: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", name, spec)
}

fn route(name: &str, rules: &str) -> String {
    let spec = format!("{{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop, port: 80}}], rules: [{rules}]}}");
    object("gateway.networking.k8s.io/v1", "HTTPRoute", name, &spec)
}

/// Node n1 has the client, `near` and one of the two pods of `web`; `plain` is not in the mesh.
fn mesh(more: &[String]) -> Snapshot {
    let enrolled =
        |name: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{nodemesh.dev/mesh: enabled}}}}\n");
    let base = [
        enrolled("shop"),
        enrolled("away"),
        pod("shop/client", "n1", "10.0.1.1", ""),
        pod("away/visitor", "n1", "10.0.1.2", ""),
        pod("shop/near", "n1", "10.0.1.3", ""),
        pod("shop/web1", "n2", "10.0.2.1", "version: v1"),
        pod("shop/web2", "n2", "10.0.2.2", "version: v2"),
        pod("shop/plain", "n2", "10.0.2.3", "nodemesh.dev/mesh: disabled"),
        service("shop/web", "10.96.0.1", "web", "{port: 80, name: http, targetPort: 8080}"),
        service("shop/near", "10.96.0.2", "near", "{port: 80, name: http, targetPort: 8080}"),
        service("shop/nobody", "10.96.0.3", "nobody", "{port: 80, targetPort: 8080}"),
        service("shop/plain", "10.96.0.4", "plain", "{port: 80, targetPort: 8080}"),
        service("shop/two", "10.96.0.5", "near", "{port: 80, name: a, targetPort: 8080}, {port: 90, name: b, targetPort: 9090}"),
    ];
    let parsed = parse_documents(Path::new("mesh.yaml"), &(base.concat() + &more.concat()));
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let wrong: Vec<String> = snapshot.problems().iter().map(ToString::to_string).filter(|problem| problem.contains("not read")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    snapshot
}

/// The page's answer; `query` follows `?`.
fn ask(snapshot: &Snapshot, query: &str) -> Result<Value, ActionError> {
    page(snapshot, &Arc::default(), &Query::parse(query).unwrap(), 1_800_000_000)
}

fn asked(snapshot: &Snapshot, query: &str) -> Value {
    ask(snapshot, query).unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// `kind namespace/name` of the object of the first step at a place, in all that there is.
fn object_at(answer: &Value, at: &str) -> Option<String> {
    let backends = || answer["backends"].as_array().unwrap().iter();
    let endpoints = || backends().flat_map(|backend| backend["endpoints"].as_array().unwrap());
    let steps = answer["steps"].as_array().unwrap().iter();
    let steps = steps.chain(backends().flat_map(|b| b["steps"].as_array().unwrap()));
    let mut steps = steps.chain(endpoints().flat_map(|e| e["steps"].as_array().unwrap())).filter(|step| step["at"] == at);
    let object = steps.find_map(|step| step.get("object").cloned())?;
    Some(format!("{} {}/{}", text(&object["kind"]), text(&object["namespace"]), text(&object["name"])))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn encryptions(answer: &Value) -> Vec<&str> {
    let endpoints = answer["backends"].as_array().unwrap().iter().flat_map(|backend| backend["endpoints"].as_array().unwrap());
    endpoints.map(|endpoint| text(&endpoint["encryption"])).collect()
}

#[test]
fn what_nothing_forbids_is_allowed_and_encrypted_across_nodes() {
    let answer = asked(&mesh(&[]), "from=shop/client&to=shop/web");
    assert_eq!((text(&answer["verdict"]), encryptions(&answer)), ("allowed", vec!["mutualTls"; 2]), "{answer:#}");
    assert_eq!(answer["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!(answer["destination"]["port"], 80);
    assert_eq!(answer["backends"][0]["endpoints"][0]["node"], "n2");
}

#[test]
fn two_pods_of_a_node_talk_in_its_kernel_unless_something_asks_for_more() {
    let query = "from=shop/client&to=shop/near";
    assert_eq!(encryptions(&asked(&mesh(&[]), query)), ["kernel"]);
    let settings = "---\napiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {sameNode: encrypt}\n".to_owned();
    let http = authorization("shop/h", "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}");
    let rule = object("networking.istio.io/v1", "DestinationRule", "shop/near", "{host: near.shop.svc.cluster.local, trafficPolicy: {}}");
    for more in [settings, http, rule] {
        let answer = asked(&mesh(&[more]), &format!("{query}&path=/"));
        assert_eq!((text(&answer["verdict"]), encryptions(&answer)), ("allowed", vec!["mutualTlsWithinNode"]), "{answer:#}");
    }
}

#[test]
fn a_denial_names_its_policy_and_mend() {
    let deny = authorization("shop/no-client", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}");
    let answer = asked(&mesh(&[deny]), "from=shop/client&to=shop/web");
    assert_eq!(text(&answer["verdict"]), "denied", "{answer:#}");
    assert_eq!(object_at(&answer, "policy").as_deref(), Some("AuthorizationPolicy shop/no-client"));
    let step = &answer["backends"][0]["endpoints"][0]["steps"][1];
    assert!(text(&step["mend"]).contains("shop/no-client"), "{step:#}");
    assert!(text(&answer["summary"]).contains("policy"), "{answer:#}");
}

#[test]
fn where_no_allow_policy_matches_those_that_could_are_named() {
    let only = authorization("shop/only-admin", "{rules: [{from: [{source: {serviceAccounts: [admin]}}]}]}");
    let answer = asked(&mesh(&[only]), "from=shop/client&to=shop/web");
    assert_eq!((text(&answer["verdict"]), object_at(&answer, "policy")), ("denied", None), "{answer:#}");
    assert!(text(&answer["summary"]).contains("shop/only-admin"), "{answer:#}");
}

#[test]
fn requests_are_judged_by_what_they_show_and_as_they_are_forwarded() {
    let allow = authorization("shop/get", "{rules: [{to: [{operation: {methods: [GET], paths: [/public/*]}}]}]}");
    let snapshot = mesh(&[allow]);
    for (query, verdict) in [
        ("&method=GET&path=/public/a", "allowed"),
        ("&path=/public/x/../y", "allowed"),
        ("&path=/public/../secret", "denied"),
        ("&method=POST&path=/public/a", "denied"),
        ("&path=/public/%2573ecret", "allowed"),
        ("&path=/public/%25zz", "nowhere"),
        ("", "unknown"),
    ] {
        let answer = asked(&snapshot, &format!("from=shop/client&to=shop/web{query}"));
        assert_eq!(text(&answer["verdict"]), verdict, "{query}: {answer:#}");
        if verdict == "allowed" {
            assert_eq!(object_at(&answer, "policy").as_deref(), Some("AuthorizationPolicy shop/get"));
        }
    }
    // What the rule makes of the path is what the server's agent sees.
    let rule = "{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /public/z}}}], \
                backendRefs: [{name: web, port: 80}]}";
    let allow = authorization("shop/get", "{rules: [{to: [{operation: {paths: [/public/*]}}]}]}");
    let answer = asked(&mesh(&[allow, route("shop/rewrite", rule)]), "from=shop/client&to=shop/web&path=/other");
    assert_eq!(text(&answer["verdict"]), "allowed", "{answer:#}");
    assert_eq!(object_at(&answer, "filter").as_deref(), Some("HTTPRoute shop/rewrite"));
}

#[test]
fn the_rule_and_the_weights_of_its_backends_are_told() {
    let rules = "{matches: [{path: {type: PathPrefix, value: /api}}], \
                 backendRefs: [{name: web, port: 80, weight: 3}, {name: near, port: 80, weight: 1}]}";
    let snapshot = mesh(&[route("shop/web", rules)]);
    let answer = asked(&snapshot, "from=shop/client&to=shop/web&path=/api/x");
    assert_eq!((text(&answer["verdict"]), object_at(&answer, "route")), ("allowed", Some("HTTPRoute shop/web".into())), "{answer:#}");
    let shares: Vec<(&str, f64)> =
        answer["backends"].as_array().unwrap().iter().map(|b| (text(&b["target"]), b["percent"].as_f64().unwrap())).collect();
    assert_eq!(shares, [("Service shop/web:80", 75.0), ("Service shop/near:80", 25.0)]);
    let answer = asked(&snapshot, "from=shop/client&to=shop/web&path=/other");
    assert_eq!(text(&answer["verdict"]), "nowhere", "{answer:#}");
    assert!(text(&answer["summary"]).contains("404") && text(&answer["summary"]).contains("HTTPRoute shop/web"), "{answer:#}");
    // Without a request nobody can say which rule holds.
    assert_eq!(text(&asked(&snapshot, "from=shop/client&to=shop/web")["verdict"]), "unknown");
}

#[test]
fn a_backend_that_is_not_there_is_said() {
    let snapshot = mesh(&[route("shop/web", "{backendRefs: [{name: gone, port: 80}]}")]);
    let answer = asked(&snapshot, "from=shop/client&to=shop/web&path=/");
    assert_eq!(text(&answer["verdict"]), "nowhere", "{answer:#}");
    assert!(text(&answer["summary"]).contains("gone") && text(&answer["summary"]).contains("500"), "{answer:#}");
    let half = mesh(&[route("shop/web", "{backendRefs: [{name: gone, port: 80}, {name: near, port: 80}]}")]);
    assert_eq!(text(&asked(&half, "from=shop/client&to=shop/web&path=/")["verdict"]), "unknown");
    let empty = asked(&mesh(&[]), "from=shop/client&to=shop/nobody");
    assert_eq!(text(&empty["verdict"]), "nowhere", "{empty:#}");
}

#[test]
fn a_consumer_route_is_for_its_own_namespace() {
    let routes = [
        route("shop/web", "{backendRefs: [{name: web, port: 80}]}"),
        route("away/web", "{filters: [{type: RequestRedirect, requestRedirect: {hostname: else.example}}]}"),
    ];
    let snapshot = mesh(&routes);
    let own = asked(&snapshot, "from=away/visitor&to=shop/web&path=/x");
    assert_eq!((text(&own["verdict"]), object_at(&own, "route")), ("allowed", Some("HTTPRoute away/web".into())), "{own:#}");
    assert!(own["steps"].to_string().contains("http://else.example/x"), "{own:#}");
    let other = asked(&snapshot, "from=shop/client&to=shop/web&path=/x");
    assert_eq!(object_at(&other, "route").as_deref(), Some("HTTPRoute shop/web"));
}

#[test]
fn a_destination_rule_and_its_subset_are_told() {
    let spec = "{host: web.shop.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}";
    let rule = object("networking.istio.io/v1", "DestinationRule", "shop/web", spec);
    let answer = asked(&mesh(&[rule]), "from=shop/client&to=shop/web&path=/");
    assert_eq!(object_at(&answer, "traffic").as_deref(), Some("DestinationRule shop/web"), "{answer:#}");
    let of = |tls: &str| {
        let spec = format!("{{host: web.shop.svc.cluster.local, trafficPolicy: {{tls: {{mode: SIMPLE{tls}}}}}}}");
        let rule = object("networking.istio.io/v1", "DestinationRule", "shop/web", &spec);
        asked(&mesh(&[rule]), "from=shop/client&to=shop/web&path=/")
    };
    let answer = of("");
    assert_eq!(text(&answer["verdict"]), "allowed", "{answer:#}");
    assert!(answer.to_string().contains("TLS is begun towards the server"), "{answer:#}");
    assert_eq!(text(&of(", caCrl: /crl")["verdict"]), "nowhere", "what cannot be verified");
}

#[test]
fn the_services_own_policy_is_told_where_requests_are_seen() {
    let targets = "targetRefs: [{group: '', kind: Service, name: web}]";
    let policy =
        |spec: &str| object("gateway.networking.x-k8s.io/v1alpha1", "XBackendTrafficPolicy", "shop/web", &format!("{{{targets}, {spec}}}"));
    let budget = policy("retryConstraint: {budget: {percent: 7}}");
    let answer = asked(&mesh(std::slice::from_ref(&budget)), "from=shop/client&to=shop/web&path=/");
    assert_eq!(object_at(&answer, "traffic"), None, "nobody looks into the connection: {answer:#}");
    let answer =
        asked(&mesh(&[budget, route("shop/web", "{backendRefs: [{name: web, port: 80}]}")]), "from=shop/client&to=shop/web&path=/");
    assert_eq!(object_at(&answer, "traffic").as_deref(), Some("XBackendTrafficPolicy shop/web"), "{answer:#}");
    assert!(answer.to_string().contains("7%"), "{answer:#}");
    let session = policy("sessionPersistence: {type: Cookie}");
    let answer = asked(&mesh(&[session]), "from=shop/client&to=shop/web&path=/");
    assert!(answer["steps"].to_string().contains("keeps sessions"), "{answer:#}");
    assert_eq!(object_at(&answer, "traffic").as_deref(), Some("XBackendTrafficPolicy shop/web"), "{answer:#}");
}

#[test]
fn plaintext_from_outside_is_refused_where_strict_holds() {
    let query = "from=shop/plain&to=shop/web";
    let answer = asked(&mesh(&[]), query);
    assert_eq!((text(&answer["verdict"]), encryptions(&answer)), ("allowed", vec!["plaintext"; 2]), "{answer:#}");
    let strict = object("security.istio.io/v1", "PeerAuthentication", "shop/default", "{mtls: {mode: STRICT}}");
    let snapshot = mesh(&[strict]);
    for query in [query, "from=192.0.2.7&to=10.0.2.1:8080"] {
        let answer = asked(&snapshot, query);
        assert_eq!(text(&answer["verdict"]), "denied", "{answer:#}");
        assert_eq!(object_at(&answer, "policy").as_deref(), Some("PeerAuthentication shop/default"));
    }
    // From the mesh it is encrypted, towards the outside it is not.
    assert_eq!(text(&asked(&snapshot, "from=shop/client&to=shop/web")["verdict"]), "allowed");
    let outside = asked(&snapshot, "from=shop/client&to=shop/plain");
    assert_eq!((text(&outside["verdict"]), encryptions(&outside)), ("allowed", vec!["plaintext"]), "{outside:#}");
}

#[test]
fn unknown_names_are_answered_with_those_that_are_alike() {
    let snapshot = mesh(&[]);
    let error = |query: &str| ask(&snapshot, query).unwrap_err();
    let of = |query: &str| match error(query) {
        ActionError::NotFound(text) => text,
        other => panic!("{query}: {other:?}"),
    };
    assert!(of("from=shop/cliemt&to=shop/web").contains("shop/client"));
    assert!(of("from=shop/visitor&to=shop/web").contains("away/visitor"));
    assert!(of("from=shop/client&to=shop/wep").contains("shop/web"));
    assert!(of("from=shop/client&to=shop/web:81").contains("only: 80"));
    for wrong in [
        "to=shop/web",
        "from=shop/client",
        "from=client&to=shop/web",
        "from=shop/client&to=shop/two",
        "from=shop/client&to=10.0.2.1",
        "from=shop/client&to=shop/web&path=x",
        "from=shop/client&to=shop/web&method=A%20B",
        "from=shop/client&to=shop/web&header=x",
        "from=shop/client&to=shop/web&port=http",
        "from=shop/client&from=shop/client&to=shop/web",
        "from=shop/client&to=shop/web&colour=red",
    ] {
        assert!(matches!(error(wrong), ActionError::BadRequest(_)), "{wrong}: {:?}", error(wrong));
    }
    let answer = asked(&snapshot, "from=shop/client&to=shop/web&header=a:1&header=b:2&header=host:other.example:9");
    assert_eq!(answer["request"], json!({ "method": "GET", "path": "/", "host": "other.example" }));
    assert_eq!(asked(&snapshot, "from=shop/client&to=shop/web1")["destination"]["port"], 8080);
}

/// What `Connection` names is of the client's own hop: nobody looks at it and no server gets it.
#[test]
fn what_connection_names_counts_for_nothing() {
    let allow = authorization("shop/role", "{rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]}");
    let to_near = "{matches: [{headers: [{name: X-Role, value: admin}]}], backendRefs: [{name: near, port: 80}]}";
    for (more, from, to, without) in [
        (&allow, "10.9.9.9", "shop/web1:8080", "denied"),
        (&allow, "shop/client", "shop/web", "denied"),
        (&route("shop/web", to_near), "shop/client", "shop/web", "nowhere"),
    ] {
        let snapshot = mesh(std::slice::from_ref(more));
        let verdict = |headers: &str| text(&asked(&snapshot, &format!("from={from}&to={to}{headers}"))["verdict"]).to_owned();
        assert_eq!(verdict("&header=x-role:admin"), "allowed", "{from} {to}");
        assert_eq!(verdict("&header=x-role:admin&header=connection:X-Role"), without, "{from} {to}");
    }
}

/// The kernel hands over every connection to a Service that any client has a rule for; the agent brings it on by a tunnel or not at all.
#[test]
fn what_only_other_clients_have_a_rule_for_goes_by_the_agent() {
    let rule = |service: &str| {
        let spec = format!("{{host: {service}.shop.svc.cluster.local, trafficPolicy: {{}}}}");
        object("networking.istio.io/v1", "DestinationRule", &format!("away/{service}"), &spec)
    };
    let snapshot = mesh(&[rule("near"), rule("plain")]);
    let near = asked(&snapshot, "from=shop/client&to=shop/near");
    assert_eq!((text(&near["verdict"]), encryptions(&near)), ("allowed", vec!["mutualTlsWithinNode"]), "{near:#}");
    assert_eq!(object_at(&near, "traffic"), None);
    let plain = asked(&snapshot, "from=shop/client&to=shop/plain");
    assert_eq!((text(&plain["verdict"]), encryptions(&plain)), ("allowed", vec!["plaintext"]), "{plain:#}");
}

#[test]
fn it_agrees_with_what_the_data_path_decides() {
    let policies = [
        authorization("shop/no-visitor", "{action: DENY, rules: [{from: [{source: {namespaces: [away]}}]}]}"),
        authorization("shop/clients", "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}"),
        object("security.istio.io/v1", "PeerAuthentication", "shop/near", "{selector: {matchLabels: {app: near}}, mtls: {mode: STRICT}}"),
        authorization("shop/broken", "{selector: {matchLabels: {version: v2}}, action: CUSTOM}"),
    ];
    let snapshot = mesh(&policies);
    for client in ["shop/client", "away/visitor", "shop/near", "shop/plain"] {
        for server in ["shop/web1", "shop/web2", "shop/near"] {
            let of = |name: &str| snapshot.workloads().find(|w| format!("{}/{}", w.namespace, w.name) == name).unwrap();
            let (from, to) = (of(client), of(server));
            if from.uid == to.uid {
                continue;
            }
            let policy = WorkloadPolicy::of(&snapshot, to, &mut SetInterner::default());
            let (identity, transport) =
                if from.enrolled { (Some(from.identity.clone()), Transport::Tunnel) } else { (None, Transport::Plaintext) };
            let peer = Peer { identity, address: ClientAddr((from.addresses[0], 0).into()) };
            let decided = decide(&policy, &peer, ServerAddr((to.addresses[0], 8080).into()), transport);
            let answer = asked(&snapshot, &format!("from={client}&to=pod/{server}&port=8080"));
            let policy = object_at(&answer, "policy").map(|object| object.split(' ').nth(1).unwrap().to_owned());
            match decided {
                Ok(permit) => {
                    assert_eq!(text(&answer["verdict"]), "allowed", "{client} {server} {answer:#}");
                    assert_eq!(policy, permit.policy().map(ToString::to_string));
                }
                Err(denial) => {
                    assert_eq!(text(&answer["verdict"]), "denied", "{client} {server} {answer:#}");
                    assert_eq!(policy, denial.policy.map(|policy| policy.to_string()), "{client} {server}");
                    assert!(denial.reason != DenialReason::NoIdentity);
                }
            }
        }
    }
}

#[test]
fn hosts_outside_have_their_entry_or_the_mesh_s_word() {
    let only = |mode: &str| {
        format!(
            "---\napiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
        )
    };
    let entry = |name: &str, spec: &str| {
        object("networking.istio.io/v1", "ServiceEntry", name, &format!("{{ports: [{{number: 443, name: tls, protocol: TLS}}], {spec}}}"))
    };
    let entries = [
        entry("shop/named", "hosts: [a.example.com], resolution: DNS, exportTo: [.]"),
        entry("shop/fixed", "hosts: [b.example.com], resolution: STATIC, addresses: [192.0.2.7], endpoints: [{address: 198.51.100.1}]"),
    ];
    let snapshot = mesh(&[entries.concat(), only("REGISTRY_ONLY")]);
    let answer = asked(&snapshot, "from=shop/client&to=https://a.example.com/x");
    assert_eq!((text(&answer["verdict"]), text(&answer["destination"]["name"])), ("unknown", "shop/a.example.com"), "{answer:#}");
    assert!(text(&answer["summary"]).contains("a.example.com:443"), "{answer:#}");
    for to in ["b.example.com:443", "192.0.2.7:443"] {
        let answer = asked(&snapshot, &format!("from=shop/client&to={to}"));
        assert_eq!((text(&answer["verdict"]), encryptions(&answer)), ("allowed", vec!["plaintext"]), "{answer:#}");
    }
    let missing = ask(&snapshot, "from=away/visitor&to=https://a.example.com").unwrap_err();
    assert!(missing.to_string().contains("namespace away"), "{missing}");
    let answer = asked(&snapshot, "from=shop/client&to=192.0.2.8:443");
    assert_eq!(text(&answer["verdict"]), "denied", "{answer:#}");
    assert!(text(&answer["summary"]).contains("REGISTRY_ONLY"), "{answer:#}");
    let answer = asked(&mesh(&[only("ALLOW_ANY")]), "from=shop/client&to=192.0.2.8:443");
    assert_eq!((text(&answer["verdict"]), encryptions(&answer)), ("allowed", vec!["plaintext"]), "{answer:#}");
}
