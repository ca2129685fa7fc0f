use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::convert::{Converted, convert};
use crate::traffic::{
    Balancer, ClientCertificate, ConnectionPool, HashKey, HashTable, Keepalive, Origination, OutlierDetection, Trust, Warmup,
};

fn read(spec: Value) -> (Arc<DestinationRule>, Converted) {
    let metadata = json!({"name": "web", "namespace": "shop", "creationTimestamp": "1970-01-01T00:01:00Z"});
    let converted =
        convert(&json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata, "spec": spec}));
    match &converted.reading {
        Reading::Good(Object::DestinationRule(rule)) | Reading::Cautious(Object::DestinationRule(rule)) => (rule.clone(), converted),
        _ => panic!("{converted:?}"),
    }
}

/// Of a host with this `trafficPolicy`, about which nothing is found but that a field of it is not done.
fn policy(policy: Value) -> TrafficPolicy {
    let (rule, converted) = read(json!({"host": "web", "trafficPolicy": policy}));
    let known = |message: &str| message.starts_with("has no effect") || message.starts_with("is not supported");
    assert!(converted.findings.iter().all(|finding| finding.severity == Severity::Warn && known(&finding.message)), "{converted:?}");
    TrafficPolicy::clone(&rule.policy)
}

fn found(converted: &Converted) -> Vec<(Severity, String)> {
    converted.findings.iter().map(|finding| (finding.severity, finding.field.to_string())).collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_manifest_that_must_apply_is_read_in_full() {
    let text = concat!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata:\n  name: hello-world\nspec:\n  host: hello-world\n",
        "  trafficPolicy:\n    connectionPool:\n      http:\n        http1MaxPendingRequests: 100\n        maxRequestsPerConnection: 1\n",
        "    outlierDetection:\n      consecutiveErrors: 5\n      interval: 5s\n      baseEjectionTime: 30s\n",
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: hello-world\n"
    );
    let parsed = crate::document::parse_documents(std::path::Path::new("mesh.yaml"), text);
    let above_info: Vec<_> = parsed.problems.iter().filter(|problem| problem.severity > Severity::Info).collect();
    assert_eq!(above_info, Vec::<&crate::problem::Problem>::new());
    let Reading::Good(Object::DestinationRule(rule)) = &parsed.documents[0].reading else { panic!("{parsed:?}") };
    assert_eq!(&*rule.host, "hello-world.default.svc.cluster.local");
    assert_eq!((rule.policy.pool.max_pending_requests, rule.policy.pool.max_requests_per_connection), (Some(100), Some(1)));
    let outlier = OutlierDetection { consecutive_gateway: 5, consecutive_5xx: 0, interval: 5 * SECOND, ..OutlierDetection::default() };
    assert_eq!(rule.policy.outlier, Some(outlier));
}

#[test]
fn hosts_are_written_out() {
    for (written, full) in [
        ("web", "web.shop.svc.cluster.local"),
        ("Web.Other.svc.cluster.local.", "web.other.svc.cluster.local"),
        ("*.shop.svc.cluster.local", "*.shop.svc.cluster.local"),
        ("web.other", "web.other"),
        ("*", "*"),
        ("api.example.com", "api.example.com"),
    ] {
        assert_eq!(&*read(json!({ "host": written })).0.host, full);
    }
    for bad in [json!("a..b"), json!("w*b.x"), json!("a b"), json!(""), json!(7), json!(null)] {
        let object = json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "DestinationRule", "metadata": {"name": "x"}, "spec": {"host": bad}});
        let converted = convert(&object);
        assert_eq!((&converted.reading, found(&converted)), (&Reading::Unreadable, vec![(Severity::Error, "spec.host".into())]), "{bad}");
    }
}

#[test]
fn it_is_told_for_whom_a_rule_is() {
    let exports = |list: Value| read(json!({"host": "web", "exportTo": list})).0.export_to.clone();
    assert_eq!(exports(json!([])), []);
    assert_eq!(exports(json!(["*", "a"])), []);
    assert_eq!(exports(json!([".", "a"])), ["a".into(), "shop".into()]);
    assert_eq!(exports(json!(["Not A Namespace", "a"])), ["shop".into()], "the narrowest reading");
    let (rule, converted) = read(json!({"host": "web", "workloadSelector": {"matchLabels": {"app": "a"}}}));
    assert_eq!((rule.selector.len(), rule.created, converted.findings.len()), (1, Some(60), 0));
    let object = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "x"},
        "spec": {"host": "web", "workloadSelector": {"matchLabels": {"app": 1}}}});
    assert_eq!(convert(&object).reading, Reading::Unreadable, "it must not become a rule for everybody");
}

#[test]
fn pools_and_ejection_are_read() {
    let read = policy(json!({
        "connectionPool": {
            "tcp": {"maxConnections": 10, "connectTimeout": "100ms", "idleTimeout": "1h", "maxConnectionDuration": "1m30s",
                "tcpKeepalive": {"time": "7200s", "interval": "75s", "probes": 9}},
            "http": {"http1MaxPendingRequests": 1, "http2MaxRequests": 2, "maxRequestsPerConnection": 3, "maxRetries": 4,
                "idleTimeout": "0.5s", "maxConcurrentStreams": 5, "h2UpgradePolicy": "UPGRADE"},
        },
        "outlierDetection": {"consecutive5xxErrors": 0, "consecutiveGatewayErrors": "7", "consecutiveLocalOriginFailures": 8,
            "splitExternalLocalOriginErrors": true, "interval": "1s", "baseEjectionTime": "2s", "maxEjectionPercent": 100, "minHealthPercent": 50},
    }));
    let pool = ConnectionPool {
        max_connections: Some(10),
        connect_timeout: Some(SECOND / 10),
        tcp_idle_timeout: Some(3600 * SECOND),
        max_connection_duration: Some(90 * SECOND),
        keepalive: Some(Keepalive { time: Some(7200 * SECOND), interval: Some(75 * SECOND), probes: Some(9) }),
        max_pending_requests: Some(1),
        max_requests: Some(2),
        max_requests_per_connection: Some(3),
        max_retries: Some(4),
        http_idle_timeout: Some(SECOND / 2),
        max_concurrent_streams: Some(5),
        upgrade_to_http2: true,
    };
    assert_eq!(read.pool, pool);
    let outlier = OutlierDetection {
        consecutive_5xx: 0,
        consecutive_gateway: 7,
        consecutive_local: 8,
        split_local_origin: true,
        interval: SECOND,
        base_ejection: 2 * SECOND,
        max_ejection_percent: 100,
        min_health_percent: 50,
    };
    assert_eq!(read.outlier, Some(outlier));
    assert_eq!(policy(json!({"outlierDetection": {}})).outlier, Some(OutlierDetection::default()));
    let nothing = json!({"connectionPool": {"tcp": {"maxConnections": 0, "idleTimeout": "0s"}, "http": {"maxRetries": 0, "useClientProtocol": true, "h2UpgradePolicy": "UPGRADE"}}});
    assert_eq!(policy(nothing), TrafficPolicy::default(), "0 says nothing");
}

#[test]
fn balancers_are_read() {
    let balancer = |load_balancer: Value| policy(json!({ "loadBalancer": load_balancer })).balancer;
    for (name, expected) in [
        ("LEAST_REQUEST", Balancer::LeastRequest),
        ("LEAST_CONN", Balancer::LeastRequest),
        ("UNSPECIFIED", Balancer::LeastRequest),
        ("ROUND_ROBIN", Balancer::RoundRobin),
        ("RANDOM", Balancer::Random),
        ("PASSTHROUGH", Balancer::Passthrough),
    ] {
        assert_eq!(balancer(json!({ "simple": name })), expected);
    }
    let ring = HashTable::Ring { minimum: 1024 };
    let cookie = |ttl| HashKey::Cookie { name: "c".into(), path: "/p".into(), ttl };
    for (hash, key, table) in [
        (json!({"httpHeaderName": "X-User"}), HashKey::Header("x-user".into()), ring),
        (json!({"httpCookie": {"name": "c", "path": "/p", "ttl": "0s"}}), cookie(Some(Duration::ZERO)), ring),
        (json!({"httpCookie": {"name": "c", "path": "/p"}, "minimumRingSize": "7"}), cookie(None), HashTable::Ring { minimum: 7 }),
        (json!({"useSourceIp": true, "ringHash": {"minimumRingSize": 9}}), HashKey::SourceIp, HashTable::Ring { minimum: 9 }),
        (json!({"httpQueryParameterName": "q", "maglev": {}}), HashKey::Query("q".into()), HashTable::Maglev { size: 65537 }),
        (json!({"httpQueryParameterName": "q", "maglev": {"tableSize": 251}}), HashKey::Query("q".into()), HashTable::Maglev { size: 251 }),
    ] {
        assert_eq!(balancer(json!({ "consistentHash": hash })), Balancer::Hash { key, table });
    }
    let near = policy(json!({"loadBalancer": {"warmupDurationSecs": "10s", "localityLbSetting": {"enabled": true,
        "distribute": [{"from": "r/z/*", "to": {"r/z/*": 80, "r/y/*": 20}}], "failoverPriority": ["topology.kubernetes.io/region"]}}}));
    assert_eq!(near.locality.distribute, [("r/z/*".into(), vec![("r/y/*".into(), 20), ("r/z/*".into(), 80)])]);
    assert_eq!((near.locality.enabled, near.locality.failover_priority.len()), (Some(true), 1));
    assert_eq!(near.warmup, Some(Warmup { duration: 10 * SECOND, minimum_percent: 10, aggression: 1.0 }));
    let warm = policy(json!({"loadBalancer": {"warmup": {"duration": "1s", "minimumPercent": 30, "aggression": 1.5},
        "localityLbSetting": {"failover": [{"from": "a", "to": "b"}]}}}));
    assert_eq!(warm.warmup, Some(Warmup { duration: SECOND, minimum_percent: 30, aggression: 1.5 }));
    assert_eq!(warm.locality.failover, [("a".into(), "b".into())]);
}

#[test]
fn tls_is_read_or_refused() {
    let tls = |tls: Value| policy(json!({ "tls": tls })).tls;
    assert_eq!(tls(json!({"mode": "ISTIO_MUTUAL"})), TlsMode::Mesh);
    assert_eq!(tls(json!({"mode": "DISABLE"})), TlsMode::Disable);
    assert_eq!(tls(json!({"mode": "SIMPLE", "caCertificates": "system"})), TlsMode::Originate(Origination::default()));
    let all = json!({"mode": "MUTUAL", "sni": "S.example", "subjectAltNames": ["a", "spiffe://b/c", "::1"], "caCertificates": "/ca",
        "clientCertificate": "/c", "privateKey": "/k"});
    let origination = Origination {
        sni: Some("s.example".into()),
        subject_alt_names: vec!["a".into(), "spiffe://b/c".into(), "::1".into()],
        trust: Trust::File("/ca".into()),
        client: Some(ClientCertificate::Files { certificate: "/c".into(), key: "/k".into() }),
    };
    assert_eq!(tls(all), TlsMode::Originate(origination));
    let by_name = |client| TlsMode::Originate(Origination { trust: Trust::Credential("c".into()), client, ..Origination::default() });
    assert_eq!(tls(json!({"mode": "SIMPLE", "credentialName": "c"})), by_name(None));
    assert_eq!(tls(json!({"mode": "MUTUAL", "credentialName": "c"})), by_name(Some(ClientCertificate::Credential("c".into()))));
    let (rule, converted) = read(json!({"host": "web", "trafficPolicy": {"tls":
        {"mode": "SIMPLE", "caCertificates": "/ca", "subjectAltNames": ["a"], "insecureSkipVerify": true}}}));
    assert_eq!(rule.policy.tls, TlsMode::Originate(Origination { trust: Trust::Anybody, ..Origination::default() }));
    assert_eq!(found(&converted), [(Severity::Warn, "spec.trafficPolicy.tls.insecureSkipVerify".into())]);
    for (bad, field) in [
        (json!({"mode": "SIMPLE", "credentialName": "../other/c"}), "credentialName"),
        (json!({"mode": "SIMPLE", "credentialName": ".."}), "credentialName"),
        (json!({"mode": "SIMPLE", "credentialName": "c", "caCertificates": "/ca"}), "credentialName"),
        (json!({"mode": "MUTUAL", "credentialName": "c", "clientCertificate": "/c", "privateKey": "/k"}), "credentialName"),
        (json!({"mode": "SIMPLE", "caCertificates": "ca.pem"}), "caCertificates"),
        (json!({"mode": "SIMPLE", "sni": "a b"}), "sni"),
        (json!({"mode": "SIMPLE", "subjectAltNames": ["a b"]}), "subjectAltNames[0]"),
        (json!({"mode": "SIMPLE", "caCrl": "/crl"}), "caCrl"),
        (json!({"mode": "MUTUAL", "clientCertificate": "/c"}), "privateKey"),
        (json!({"mode": "TLS"}), "mode"),
        (json!({"mode": "SIMPLE", "subjectAltNames": "a"}), "subjectAltNames"),
    ] {
        let (rule, converted) = read(json!({"host": "web", "trafficPolicy": {"tls": bad}}));
        let TlsMode::Refuse(reason) = &rule.policy.tls else { panic!("{rule:?}") };
        assert!(reason.contains(field), "{reason}");
        assert!(matches!(converted.reading, Reading::Good(_)), "an earlier version must not stand in");
        let errors: Vec<_> = found(&converted).into_iter().filter(|(severity, _)| *severity == Severity::Error).collect();
        assert_eq!(errors, [(Severity::Error, format!("spec.trafficPolicy.tls.{field}"))]);
    }
}

#[test]
fn subsets_override_their_host_group_by_group_and_ports_inherit_nothing() {
    let (rule, converted) = read(json!({
        "host": "web",
        "trafficPolicy": {
            "connectionPool": {"http": {"http2MaxRequests": 1}}, "loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {},
            "portLevelSettings": [{"port": {"number": 80}, "connectionPool": {"http": {"http2MaxRequests": 80}}}],
        },
        "subsets": [
            {"name": "plain", "labels": {"version": "v1"}},
            {"name": "own", "labels": {"version": "v2"}, "trafficPolicy": {
                "connectionPool": {"tcp": {"maxConnections": 2}},
                "portLevelSettings": [{"port": {"number": 81}, "loadBalancer": {"simple": "ROUND_ROBIN"}}],
            }},
        ],
    }));
    assert_eq!(converted.findings, []);
    assert_eq!((rule.ports[&80].pool.max_requests, &rule.ports[&80].balancer), (Some(80), &Balancer::LeastRequest));
    let plain = &rule.subsets["plain"];
    assert!(Arc::ptr_eq(&plain.policy, &rule.policy) && Arc::ptr_eq(&plain.ports[&80], &rule.ports[&80]));
    assert_eq!(plain.labels["version"], "v1");
    let own = &rule.subsets["own"];
    assert_eq!(
        own.policy.pool,
        ConnectionPool { max_connections: Some(2), ..ConnectionPool::default() },
        "the group is replaced as a whole"
    );
    assert_eq!((&own.policy.balancer, own.policy.outlier.is_some()), (&Balancer::Random, true));
    assert_eq!((own.ports[&80].pool.max_connections, &own.ports[&80].balancer), (Some(2), &Balancer::LeastRequest));
    assert_eq!((own.ports[&81].pool.max_connections, &own.ports[&81].balancer), (None, &Balancer::RoundRobin));
}

#[test]
fn a_mistake_costs_its_own_field() {
    let good = json!({"http": {"http2MaxRequests": 9}});
    for (bad, field, severity) in [
        (json!({"connectionPool": {"tcp": {"maxConnections": -1}}}), "connectionPool.tcp.maxConnections", Severity::Error),
        (json!({"connectionPool": {"tcp": {"maxConnections": 1.5}}}), "connectionPool.tcp.maxConnections", Severity::Error),
        (json!({"connectionPool": {"tcp": {"connectTimeout": "5"}}}), "connectionPool.tcp.connectTimeout", Severity::Error),
        (json!({"connectionPool": {"tcp": {"connectTimeout": 5}}}), "connectionPool.tcp.connectTimeout", Severity::Error),
        (json!({"connectionPool": {"tcp": {"connectTimeout": "0s"}}}), "connectionPool.tcp.connectTimeout", Severity::Error),
        (json!({"connectionPool": {"http": {"h2UpgradePolicy": "MAYBE"}}}), "connectionPool.http.h2UpgradePolicy", Severity::Error),
        (json!({"connectionPool": {"http": {"colour": 1}}}), "connectionPool.http.colour", Severity::Warn),
        (json!({"connectionPool": 7}), "connectionPool", Severity::Error),
        (json!({"outlierDetection": {"maxEjectionPercent": 101}}), "outlierDetection.maxEjectionPercent", Severity::Error),
        (
            json!({"outlierDetection": {"splitExternalLocalOriginErrors": "yes"}}),
            "outlierDetection.splitExternalLocalOriginErrors",
            Severity::Error,
        ),
        (json!({"loadBalancer": {"simple": "BEST"}}), "loadBalancer.simple", Severity::Error),
        (json!({"loadBalancer": {"consistentHash": {}}}), "loadBalancer.consistentHash", Severity::Error),
        (
            json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "maglev": {"tableSize": 100}}}}),
            "loadBalancer.consistentHash.maglev.tableSize",
            Severity::Error,
        ),
        (json!({"loadBalancer": {"simple": "RANDOM", "warmup": {"duration": "1s"}}}), "loadBalancer.warmup", Severity::Warn),
        (
            json!({"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "a", "to": {"a": 50}}]}}}),
            "loadBalancer.localityLbSetting.distribute[0].to",
            Severity::Error,
        ),
        (json!({"portLevelSettings": [{"port": {}}]}), "portLevelSettings[0].port", Severity::Error),
        (json!({"tunnel": {"protocol": "CONNECT"}}), "tunnel", Severity::Warn),
        (json!({"proxyProtocol": {}}), "proxyProtocol", Severity::Warn),
        (json!({"retryBudget": {}}), "retryBudget", Severity::Warn),
    ] {
        let (rule, converted) = read(
            json!({"host": "web", "trafficPolicy": bad, "subsets": [{"name": "s", "labels": {}, "trafficPolicy": {"connectionPool": good}}]}),
        );
        assert_eq!(found(&converted), [(severity, format!("spec.trafficPolicy.{field}"))], "{bad}: {converted:?}");
        assert_eq!(rule.subsets["s"].policy.pool.max_requests, Some(9));
        assert_eq!(matches!(converted.reading, Reading::Good(_)), severity == Severity::Warn);
    }
}

#[test]
fn durations_are_protobufs_or_gos() {
    let read = super::super::fields::duration;
    for (text, nanoseconds) in [
        ("5s", 5_000_000_000),
        ("0.5s", 500_000_000),
        (".5s", 500_000_000),
        ("100ms", 100_000_000),
        ("1m30s", 90_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0", 0),
        ("1.000000001s", 1_000_000_001),
        ("3µs", 3_000),
    ] {
        assert_eq!(read(text).map(|d| d.as_nanos()), Ok(nanoseconds), "{text}");
    }
    for text in ["", "5", "s", ".s", "5 s", "-1s", "1d", "1.2.3s", "999999999999999h", "1s30"] {
        assert!(read(text).is_err(), "{text}");
    }
}
