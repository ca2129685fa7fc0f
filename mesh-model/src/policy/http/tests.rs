use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::{AuthorizationPolicy, Operation, Scope, SetInterner, Source, StringMatch, compile};
use crate::testing::{self, DryRun, Request, Verdict};

fn verdict_of(decision: &Decision<'_>) -> Verdict {
    Verdict {
        allowed: decision.allowed,
        policy: decision.policy.cloned(),
        dry_run: decision.dry_run.map(|denial| match denial {
            DryRunDenial::Policy(policy) => DryRun::Policy(policy.clone()),
            DryRunDenial::NoneAllows => DryRun::NoneAllows,
        }),
        audited: decision.audited.cloned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decision_and_specification_agree(case in testing::request_case()) {
        let policy = HttpPolicy::always(&case.policies);
        for request in &case.requests {
            let decision = policy.decide(&request.facts());
            prop_assert_eq!(verdict_of(&decision), testing::judge_request(&case.policies, request), "{:?}\n{:#?}", request, case.policies);
            let refused = decision.policy.is_some_and(|name| case.policies.policies.iter().any(|p| p.name == *name && p.refused.is_some()));
            let reason = match (decision.allowed, decision.policy) {
                (true, _) => None,
                (false, None) => Some(DenyReason::NoAllowPolicy),
                (false, Some(_)) if refused => Some(DenyReason::InvalidPolicy),
                (false, Some(_)) => Some(DenyReason::DenyPolicy),
            };
            prop_assert_eq!(decision.reason, reason);
        }
    }

    /// A connection is refused only for the sake of all its requests, and what a connection nobody parses may do, a request on it may.
    #[test]
    fn connection_and_requests_agree(case in testing::request_case(), requests in prop::collection::vec(testing::request::request(), 1..20)) {
        let policy = HttpPolicy::always(&case.policies);
        let opaque = compile(&case.policies, &mut SetInterner::default());
        for connection in &case.requests {
            let flow = &connection.flow;
            let open = policy.connection(&connection.facts().connection);
            let opaque = opaque.decide(&flow.facts(), flow.identity.as_ref());
            for request in &requests {
                let request = Request { flow: flow.clone(), ..request.clone() };
                let decision = policy.decide(&request.facts());
                prop_assert!(open == ConnectionDecision::Open || !decision.allowed, "{:?}", request);
                prop_assert!(!opaque.allowed || decision.allowed, "{:?}", request);
            }
        }
    }

    #[test]
    fn without_http_fields_a_request_is_judged_as_its_connection(case in testing::request_case()) {
        let policies = EffectivePolicies { policies: case.policies.policies.iter().map(|p| Arc::new(without_http(p))).collect(), ..case.policies };
        prop_assert_eq!(HttpPolicy::compile(&policies), None);
        let policy = HttpPolicy::always(&policies);
        let opaque = compile(&policies, &mut SetInterner::default());
        for request in &case.requests {
            let decision = policy.decide(&request.facts());
            prop_assert_eq!(verdict_of(&decision), testing::judge(&policies, &request.flow));
            prop_assert_eq!(decision.allowed, opaque.decide(&request.flow.facts(), request.flow.identity.as_ref()).allowed);
            let open = policy.connection(&request.facts().connection) == ConnectionDecision::Open;
            prop_assert_eq!(decision.allowed, open, "nothing is left to the request");
        }
    }
}

fn without_http(policy: &AuthorizationPolicy) -> AuthorizationPolicy {
    let mut policy = policy.clone();
    for rule in &mut policy.rules {
        for source in &mut rule.from {
            *source = Source {
                request_principals: vec![],
                not_request_principals: vec![],
                remote_ip_blocks: vec![],
                not_remote_ip_blocks: vec![],
                ..source.clone()
            };
        }
        for operation in &mut rule.to {
            *operation = Operation { ports: operation.ports.clone(), not_ports: operation.not_ports.clone(), ..Operation::default() };
        }
        rule.when.retain(|condition| !matches!(condition, Condition::Http { .. }));
    }
    policy
}

/// The properties above would hold for cases that all decide alike; they must not.
#[test]
fn random_requests_decide_every_way() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut kinds, mut total) = (BTreeMap::<String, u32>::new(), 0);
    for _ in 0..600 {
        let case = testing::request_case().new_tree(&mut runner).unwrap().current();
        let Some(policy) = HttpPolicy::compile(&case.policies) else { continue };
        for request in &case.requests {
            let decision = policy.decide(&request.facts());
            let open = policy.connection(&request.facts().connection) == ConnectionDecision::Open;
            let kind = format!("{:?}, by a policy: {}, connection open: {open}", decision.reason, decision.policy.is_some());
            *kinds.entry(kind).or_default() += 1;
            total += 1;
        }
    }
    for kind in [
        "None, by a policy: true, connection open: true",
        "None, by a policy: false, connection open: true",
        "Some(DenyPolicy), by a policy: true, connection open: true",
        "Some(DenyPolicy), by a policy: true, connection open: false",
        "Some(NoAllowPolicy), by a policy: false, connection open: true",
        "Some(NoAllowPolicy), by a policy: false, connection open: false",
        "Some(InvalidPolicy), by a policy: true, connection open: false",
    ] {
        assert!(kinds.get(kind).is_some_and(|count| count * 100 > total), "less than 1 in 100 {kind}: {kinds:#?}");
    }
}

/// As conversion reads them.
fn policies(specs: &[Value]) -> HttpPolicy {
    let policies = specs.iter().enumerate().map(|(i, spec)| {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": format!("p{i}"), "namespace": "a"},
            "spec": spec,
        });
        match crate::convert::convert(&object).reading {
            crate::convert::Reading::Good(crate::object::Object::AuthorizationPolicy(policy)) => policy,
            other => panic!("{other:?}"),
        }
    });
    HttpPolicy::always(&EffectivePolicies { policies: policies.collect(), ..EffectivePolicies::default() })
}

fn get(path: &str) -> Request {
    Request {
        flow: testing::Flow {
            identity: Some("spiffe://cluster.local/ns/a/sa/alice".parse().unwrap()),
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            port: 80,
        },
        method: "GET".into(),
        host: Some("web.shop:80".into()),
        path: NormalPath::of(path.as_bytes()).unwrap().into_owned(),
        headers: vec![],
        sni: None,
        claims: None,
    }
}

fn to(operation: Value) -> Value {
    json!([{ "to": [{ "operation": operation }] }])
}

fn when(key: &str, values: &str) -> Value {
    json!([{ "when": [{ "key": key, "values": [values] }] }])
}

fn allowed(spec: &Value, request: &Request) -> bool {
    policies(std::slice::from_ref(spec)).decide(&request.facts()).allowed
}

#[test]
fn templates_match_as_istio_documents_them() {
    for (template, path, hit) in [
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/bar/baz", false),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo", false),
        ("/foo/{**}/", "/foo/bar/", true),
        ("/foo/{**}/", "/foo/bar/baz.txt/", true),
        ("/foo/{**}/", "/foo/bar", false),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
        ("/{**}", "/", true),
        ("/{*}/b", "/a/b", true),
        ("/{*}/b", "/a/b/", false),
        ("/caf\u{e9}/{*}", "/caf%C3%A9/x", true),
    ] {
        assert_eq!(allowed(&json!({"rules": to(json!({"paths": [template]}))}), &get(path)), hit, "{template} {path}");
    }
    let nothing_between = |action| allowed(&json!({"action": action, "rules": to(json!({"paths": ["/a/{**}/b"]}))}), &get("/a/b"));
    assert!(!nothing_between("ALLOW") && !nothing_between("DENY"), "never the wider reading");
}

#[test]
fn malformed_templates_and_keys_are_refused() {
    for path in
        ["/*/baz/{*}", "/**/baz/{*}", "/{**}/foo/{*}", "/{**}/{**}", "/foo/{*}.txt", "/foo/{a}", "foo/{*}", "/foo/{*", "/a*b", "/foo}"]
    {
        let spec = json!({"rules": to(json!({"paths": ["/ok", path]}))});
        let policy = policies(&[spec, json!({"rules": [{}]})]);
        let request = get("/ok");
        let decision = policy.decide(&request.facts());
        assert_eq!(decision.reason, Some(DenyReason::InvalidPolicy), "{path}");
        assert!(policy.connection(&request.facts().connection) != ConnectionDecision::Open);
    }
    for key in [
        "request.headers[a b]",
        "request.headers[:path]",
        "request.headers[x",
        "request.auth.claims[a][]",
        "request.auth.claims[a]b]",
        "remote.ip",
    ] {
        assert!(!allowed(&json!({"action": "DENY", "rules": when(key, "x y")}), &get("/")), "{key}");
    }
}

#[test]
fn another_spelling_walks_past_no_denial() {
    let deny = |operation| json!({"action": "DENY", "rules": to(operation)});
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = get("/admin/x");
        change(&mut request);
        request
    };
    assert!(!allowed(&deny(json!({"paths": ["/admin/*"]})), &get("/a/..//%61dmin/x")));
    assert!(!allowed(&deny(json!({"paths": ["/%61dmin//x"]})), &get("/admin/x")), "what a policy writes in full is normalised too");
    assert!(!allowed(&deny(json!({"methods": ["GET"]})), &with(&|r| r.method = "get".into())));
    for host in ["web.shop", "WEB.shop:80", "web.shop.", "web.shop.:80"] {
        assert!(!allowed(&deny(json!({"hosts": ["Web.Shop"]})), &with(&|r| r.host = Some(host.into()))), "{host}");
    }
    let header = json!({"action": "DENY", "rules": when("request.headers[X-Role]", "root")});
    let lines = |values: &[&str]| with(&|r| r.headers = values.iter().map(|v| ("x-role".into(), (*v).into())).collect());
    assert!(!allowed(&header, &lines(&["root"])) && !allowed(&header, &lines(&["user", "root"])) && allowed(&header, &lines(&["user"])));
    let allow = json!({"rules": when("request.headers[X-Role]", "root")});
    assert!(allowed(&allow, &lines(&["root"])) && !allowed(&allow, &lines(&["user", "root"])));
}

#[test]
fn tokens_are_asked_as_istio_asks() {
    let token = |payload: Value| Request { claims: payload.as_object().cloned().map(Claims::new), ..get("/") };
    let none = get("/");
    let alice = token(
        json!({"iss": "i", "sub": "alice", "aud": ["x", "y"], "azp": "p", "scope": "read write", "n": {"groups": ["g"]}, "t": "a b"}),
    );
    let demand = json!({"action": "DENY", "rules": [{"from": [{"source": {"notRequestPrincipals": ["*"]}}]}]});
    assert!(!allowed(&demand, &none) && allowed(&demand, &alice) && !allowed(&demand, &token(json!({"iss": "i"}))));
    for (key, value, hit) in [
        ("request.auth.principal", "i/alice", true),
        ("request.auth.principal", "i/*", true),
        ("request.auth.audiences", "y", true),
        ("request.auth.audiences", "z", false),
        ("request.auth.presenter", "p", true),
        ("request.auth.claims[scope]", "write", true),
        ("request.auth.claims[scope]", "read write", false),
        ("request.auth.claims[t]", "a", false),
        ("request.auth.claims[n][groups]", "g", true),
        ("request.auth.claims[n]", "*", false),
        ("request.auth.claims[absent]", "*", false),
    ] {
        let spec = json!({"rules": when(key, value)});
        assert_eq!(allowed(&spec, &alice), hit, "{key} {value}");
        assert!(!allowed(&spec, &none), "{key} {value}");
    }
    let unknown_name = when("connection.sni", "x");
    assert!(!allowed(&json!({"rules": unknown_name}), &none) && !allowed(&json!({"action": "DENY", "rules": unknown_name}), &none));
}

#[test]
fn equal_policies_are_equal() {
    let spec = json!({"rules": to(json!({"paths": ["/a/{*}"]}))});
    let one = || policies(std::slice::from_ref(&spec));
    assert_eq!(one(), one());
    assert_ne!(one(), policies(&[json!({"rules": to(json!({"paths": ["/a/{**}"]}))})]));
    let source = Source { request_principals: vec![StringMatch::Present], ..Source::default() };
    let policy = AuthorizationPolicy {
        name: NamespacedName { namespace: "a".into(), name: "p".into() },
        action: Action::Allow,
        dry_run: false,
        scope: Scope::Namespace,
        rules: vec![Rule { from: vec![source], ..Rule::default() }],
        refused: None,
    };
    assert!(HttpPolicy::compile(&EffectivePolicies { policies: vec![Arc::new(policy)], ..EffectivePolicies::default() }).is_some());
}
