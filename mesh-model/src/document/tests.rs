use super::*;
use crate::object::Object;
use crate::policy::{Action, AuthorizationPolicy, Scope};

fn parse(text: &str) -> Parsed {
    parse_documents(Path::new("mesh.yaml"), text)
}

/// Line, field and message of each problem.
fn problems(parsed: &Parsed) -> Vec<(u32, &str, &str)> {
    parsed.problems.iter().map(|p| (p.origin.line().unwrap_or(0), &*p.field, &*p.message)).collect()
}

fn policies(parsed: &Parsed) -> Vec<&AuthorizationPolicy> {
    let policies = parsed.documents.iter().filter_map(|document| match &document.reading {
        Reading::Good(Object::AuthorizationPolicy(policy)) => Some(&**policy),
        _ => None,
    });
    policies.collect()
}

#[test]
fn documents_know_their_lines_and_a_bad_one_is_alone() {
    let parsed = parse(
        "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: nonsense\n--- # next\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: web\n  namespace: shop\n",
    );
    let lines: Vec<_> = parsed.documents.iter().map(|d| (d.origin.line().unwrap(), d.key.to_string())).collect();
    assert_eq!(lines, [(3, "Namespace shop".to_string()), (8, "Pod default/web".to_string()), (17, "ServiceAccount shop/web".to_string())]);
    assert_eq!(problems(&parsed), [(15, "status.podIPs[1].ip", "\"nonsense\" is not an IP address")]);
    assert!(matches!(&parsed.documents[1].reading, Reading::Cautious(Object::Pod(pod)) if pod.refused.is_some()));
    assert!(!parsed.lost);
}

#[test]
fn a_wrong_type_is_named_with_line_and_field() {
    let parsed =
        parse("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: eighty\n");
    let [(8, "spec.ports[0].port", message)] = problems(&parsed)[..] else { panic!("{parsed:?}") };
    assert!(message.contains("eighty"), "{message}");
    assert_eq!(parsed.documents[0].reading, Reading::Unreadable);
}

#[test]
fn unknown_fields_are_reported_where_they_stand() {
    let parsed = parse("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    imagee: nginx\n");
    let [(8, "spec.containers[0].imagee", message)] = problems(&parsed)[..] else { panic!("{parsed:?}") };
    assert!(message.contains("spelling"), "{message}");
    assert!(matches!(parsed.documents[0].reading, Reading::Good(_)));
}

#[test]
fn an_unknown_field_makes_a_policy_deny_what_it_selects() {
    let parsed = parse(concat!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n",
        "  selector:\n    matchLabels: {app: web}\n  rules:\n  - from:\n    - source:\n        principal: [\"*\"]\n        namespaces: [a]\n",
    ));
    let [(10, "spec.rules[0].from[0].source.principal", message)] = problems(&parsed)[..] else { panic!("{parsed:?}") };
    assert!(message.contains("denies everything"), "{message}");
    let policy = policies(&parsed)[0];
    assert!(policy.refused.as_ref().unwrap().contains("principal"));
    assert_eq!(policy.scope, Scope::Selector([("app".to_string(), "web".to_string())].into()));
}

#[test]
fn yaml_that_is_none_is_alone_and_a_policy_in_it_denies() {
    let text = concat!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p # mine\n  namespace: \"shop\"\nspec:\n  action: [DENY\n  rules: }\n---\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n---\n{{{\n",
    );
    let parsed = parse(text);
    let keys: Vec<_> = parsed.documents.iter().map(|d| d.key.to_string()).collect();
    assert_eq!(keys, ["Namespace a", "AuthorizationPolicy shop/p", "Namespace b"]);
    let policy = policies(&parsed)[0];
    assert!(policy.refused.is_some());
    assert_eq!(policy.scope, Scope::Namespace);
    let lines: Vec<_> = parsed.problems.iter().map(|p| p.origin.line().unwrap()).collect();
    assert!((11..=13).contains(&lines[0]), "{:?}", parsed.problems);
    assert!(lines[1] >= 17, "{:?}", parsed.problems);
    assert!(parsed.lost, "nothing is known of the last document");
}

#[test]
fn a_broken_policy_denies_however_it_is_written() {
    let denied = |text: &str| {
        let parsed = parse(text);
        let denied: Vec<_> = policies(&parsed).iter().filter(|p| p.refused.is_some()).map(|p| p.name.to_string()).collect();
        (denied, parsed.lost)
    };
    let shop = |name: &str| vec![format!("shop/{name}")];
    let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
    assert_eq!(denied(&format!("{head}metadata: {{name: p, namespace: shop}}\nspec: [\n")), (shop("p"), false));
    assert_eq!(denied(&format!("{head}metadata:\n  namespace: 'shop'\n\n  name: p\nspec: [\n")), (shop("p"), false));
    assert_eq!(denied(&format!("{head}metadata:\n  name: p\nspec: [\n")), (vec!["default/p".into()], false));
    assert_eq!(denied(&format!("{head}metadata:\n  name: [p\n  namespace: shop\n")), (shop(""), true));
    assert_eq!(
        denied("{\"kind\": \"AuthorizationPolicy\", \"metadata\": {\"namespace\": \"shop\", \"name\": \"p\"}, \"spec\": [}"),
        (shop(""), true)
    );
    let list =
        "kind: List\nitems:\n- kind: AuthorizationPolicy\n  metadata: {namespace: shop}\n- kind: Pod\n  metadata: {namespace: b}\n  x: [\n";
    assert_eq!(denied(list), (vec!["b/".into(), "shop/".into()], true));
    assert_eq!(denied("kind: Pod\n# kind: AuthorizationPolicy\nmetadata: {name: a}\nspec: [\n"), (vec![], false));
}

#[test]
fn lists_of_objects_are_taken_apart() {
    let parsed = parse(concat!(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: a\n",
        "- apiVersion: v1\n  kind: Pod\n  metadata: {name: web}\n  status:\n    podIP: nonsense\n",
    ));
    let places: Vec<_> = parsed.documents.iter().map(|d| (d.origin.line().unwrap(), d.key.to_string())).collect();
    assert_eq!(places, [(4, "Namespace a".to_string()), (8, "Pod default/web".to_string())]);
    assert_eq!(problems(&parsed)[0].0, 12);
    assert_eq!(parse("apiVersion: v1\nkind: PodList\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: x}}\n").documents.len(), 1);
}

/// As `kubectl get -o yaml` writes them, and thousands of them: finding lines must not read the whole text for each.
#[test]
fn a_long_list_is_read_in_time_with_the_lines_of_its_items() {
    let mut text = "apiVersion: v1\nitems:\n".to_string();
    for i in 0..5000 {
        text += &format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: p{i}\n    annotations:\n      note: |\n        - not an item\n\n  status:\n    podIP: x\n"
        );
    }
    text += "kind: List\nmetadata:\n  resourceVersion: ''\n";
    let parsed = parse(&text);
    assert_eq!((parsed.documents.len(), parsed.problems.len()), (5000, 5000));
    assert_eq!(parsed.documents[4999].origin.line(), Some(3 + 4999 * 10));
    assert_eq!(parsed.problems[4999].origin.line(), Some(3 + 4999 * 10 + 9));
    let json: Vec<_> =
        (0..5000).map(|i| format!("{{kind: Pod, apiVersion: v1, metadata: {{name: p{i}}}, status: {{podIP: x}}}}")).collect();
    let parsed = parse(&format!("\n{{kind: List, items: [{}]}}\n", json.join(",\n")));
    assert_eq!((parsed.documents.len(), parsed.problems[4999].origin.line()), (5000, Some(2)));
}

#[test]
fn json_is_read_too() {
    let parsed = parse("{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n");
    assert_eq!(parsed.documents.len(), 1, "{parsed:?}");
}

#[test]
fn kinds_of_others_are_noted() {
    let parsed = parse(concat!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: web}\n---\n",
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n",
    ));
    assert!(parsed.documents.is_empty());
    let weights: Vec<_> = parsed.problems.iter().map(|p| p.severity).collect();
    assert_eq!(weights, [Severity::Info, Severity::Warn, Severity::Info]);
}

#[test]
fn a_policy_of_an_unknown_version_denies() {
    let parsed = parse("apiVersion: security.istio.io/v9\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: AUDIT}\n");
    assert!(policies(&parsed)[0].refused.is_some());
    assert_eq!(problems(&parsed)[0].1, "apiVersion");
    let parsed = parse("kind: AuthorizationPolicy\nmetadata: {name: p}\n");
    assert!(policies(&parsed)[0].refused.is_some());
    assert_eq!(policies(&parsed)[0].action, Action::Allow);
}

#[test]
fn keys_that_stand_twice_are_an_error() {
    let parsed = parse("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n");
    assert_eq!(parsed.problems.len(), 1, "{parsed:?}");
    let parsed = parse("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    8080: x\n    \"8080\": y\n");
    assert!(parsed.problems[0].message.contains("twice"), "{parsed:?}");
}

#[test]
fn nothing_is_no_document() {
    for text in ["", "\n\n", "---\n---\n", "# only\n# comments\n", "%YAML 1.2\n---\n...\n", "---\n~\n"] {
        let parsed = parse(text);
        assert!(parsed.documents.is_empty() && parsed.problems.is_empty(), "{text:?}: {parsed:?}");
    }
}

mod hostile {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever stands in a file, reading it ends, and says where something is wrong.
        #[test]
        fn any_text_is_read(text in "(---|kind: (Pod|AuthorizationPolicy|Mesh|Service|List)|metadata:|spec:|  name: a|items: \\[|- \\{|[\\[\\]{}:&*!|>'\"%@# \n\ta-c0-9-]|\n){0,60}") {
            let parsed = super::parse(&text);
            for problem in &parsed.problems {
                prop_assert!(problem.origin.line().is_some(), "{problem:?}");
            }
        }
    }
}
