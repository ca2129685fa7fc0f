//! What the chart makes of its values, by a real Helm. Nothing here needs a cluster.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::LazyLock;

use clap::CommandFactory as _;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::command::root;
use crate::go;

const NAMESPACE: &str = "nodemesh-system";

/// Built once, not by each test.
static HELM: LazyLock<()> = LazyLock::new(|| drop(go::HELM.provide().unwrap()));

fn helm() -> std::process::Command {
    LazyLock::force(&HELM);
    super::helm().unwrap()
}

fn chart() -> String {
    root().join("deploy/chart").display().to_string()
}

/// The objects, or what Helm says against the values.
fn render(values: &Value, more: &[&str]) -> Result<Vec<Value>, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{values}").unwrap();
    let mut helm = helm();
    helm.args(["template", "nodemesh", &chart(), "--namespace", NAMESPACE, "--include-crds", "--values"]).arg(file.path()).args(more);
    let output = helm.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    Ok(documents.filter(|object| !object.is_null()).collect())
}

fn defaults() -> Vec<Value> {
    render(&json!({}), &[]).unwrap()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn find<'a>(objects: &'a [Value], kind: &str, wanted: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && name(object) == wanted)
}

fn get<'a>(objects: &'a [Value], kind: &str, wanted: &str) -> &'a Value {
    find(objects, kind, wanted).unwrap_or_else(|| panic!("there is no {kind} {wanted}"))
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|entry| entry.as_str().unwrap()).collect()
}

fn workloads(objects: &[Value]) -> [&Value; 2] {
    [get(objects, "DaemonSet", "mesh-agent"), get(objects, "Deployment", "mesh-control")]
}

fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

fn container(workload: &Value) -> &Value {
    &pod(workload)["containers"][0]
}

fn environment(workload: &Value) -> Vec<(&str, Option<&str>)> {
    container(workload)["env"].as_array().unwrap().iter().map(|v| (v["name"].as_str().unwrap(), v["value"].as_str())).collect()
}

#[test]
fn lint_finds_nothing() {
    for strict in [json!({}), everything()] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{strict}").unwrap();
        let output = helm().args(["lint", "--strict", &chart(), "--values"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Values that turn on what is off and turn off nothing.
fn everything() -> Value {
    json!({
        "images": {
            "agent": {"digest": format!("sha256:{}", "ab".repeat(32)), "pullPolicy": "Always"},
            "control": {"repository": "registry.example:5000/mesh/control", "tag": "v9"},
        },
        "imagePullSecrets": ["registry"],
        "mesh": {"mtls": "STRICT", "sameNode": "encrypt", "excludedPorts": [22, 9100], "excludedCidrs": ["10.0.0.0/8", "fd00::/8"],
                 "tracing": {"endpoint": "http://collector.observability:4317", "sampling": 2.5}},
        "agent": {"workers": 4, "podsCgroup": "/sys/fs/cgroup/kubepods.slice", "podAnnotations": {"a": "b"}},
        "control": {"replicas": 3, "tolerations": [{"key": "x", "operator": "Exists"}], "podAnnotations": {"a": "b"}},
        "metrics": {"podMonitor": {"enabled": true, "interval": "30s", "labels": {"release": "prometheus"}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
        "resourceQuota": {"enabled": true},
        "crds": {"istio": "always"},
    })
}

#[test]
fn the_version_is_the_workspaces() {
    let text = std::fs::read_to_string(root().join("deploy/chart/Chart.yaml")).unwrap();
    let chart: Value = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION"))));
}

/// The rules that a service account has: (namespace or none for the cluster, rule).
fn rules<'a>(objects: &'a [Value], account: &str) -> Vec<(Option<&'a str>, &'a Value)> {
    let mut found = Vec::new();
    for binding in objects.iter().filter(|object| object["kind"] == "ClusterRoleBinding" || object["kind"] == "RoleBinding") {
        if !binding["subjects"].as_array().unwrap().iter().any(|s| s["name"] == account && s["namespace"] == NAMESPACE) {
            continue;
        }
        let role = get(objects, binding["roleRef"]["kind"].as_str().unwrap(), binding["roleRef"]["name"].as_str().unwrap());
        let place = (binding["kind"] == "RoleBinding").then(|| binding["metadata"]["namespace"].as_str().unwrap());
        found.extend(role["rules"].as_array().unwrap().iter().map(|rule| (place, rule)));
    }
    found
}

/// Group and plural of a kind.
fn plural(kind: mesh_model::object::Kind) -> (String, String) {
    let group = kind.api_versions()[0].rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let plural = match kind.name().to_lowercase() {
        name if name.ends_with('y') => format!("{}ies", &name[..name.len() - 1]),
        name if name.ends_with("sh") => format!("{name}es"),
        name => format!("{name}s"),
    };
    (group, plural)
}

#[test]
fn the_agent_only_reads_and_only_what_it_follows() {
    let objects = defaults();
    let rules = rules(&objects, "mesh-agent");
    let mut readable = BTreeSet::new();
    for (place, rule) in &rules {
        assert_eq!(*place, None);
        assert_eq!(list(&rule["verbs"]), ["get", "list", "watch"], "{rule}");
        for group in list(&rule["apiGroups"]) {
            readable.extend(list(&rule["resources"]).iter().map(|resource| (group.to_owned(), (*resource).to_owned())));
        }
    }
    let followed: BTreeSet<_> = mesh_model::object::Kind::ALL.into_iter().map(plural).collect();
    assert_eq!(readable, followed);
}

#[test]
fn nobody_reads_secrets_of_the_cluster_or_makes_tokens() {
    let objects = render(&everything(), &[]).unwrap();
    for account in ["mesh-agent", "mesh-control"] {
        let rules = rules(&objects, account);
        assert!(!rules.is_empty());
        for (place, rule) in rules {
            let (groups, resources, verbs) = (list(&rule["apiGroups"]), list(&rule["resources"]), list(&rule["verbs"]));
            for word in groups.iter().chain(&resources).chain(&verbs) {
                assert!(!word.contains('*'), "{account}: {rule}");
            }
            for power in ["bind", "escalate", "impersonate", "delete", "deletecollection"] {
                assert!(!verbs.contains(&power), "{account}: {rule}");
            }
            assert!(
                !resources.contains(&"serviceaccounts/token") && !resources.iter().any(|r| r.starts_with("pods/")),
                "{account}: {rule}"
            );
            if resources.contains(&"secrets") {
                assert_eq!((place, &rule["resourceNames"]), (Some(NAMESPACE), &json!(["nodemesh-ca"])), "{account}");
            }
            if verbs.contains(&"create") {
                assert!(["tokenreviews", "xmeshes"].iter().any(|one| resources == [*one]), "{account}: {rule}");
            }
            let writes = verbs.contains(&"update") || verbs.contains(&"patch");
            if writes && place.is_none() {
                assert!(resources.iter().all(|resource| resource.ends_with("/status")), "{account}: {rule}");
            }
            if writes && place.is_some() {
                assert!(!list(&rule["resourceNames"]).is_empty(), "{account}: {rule}");
            }
        }
    }
}

#[test]
fn the_agent_has_its_capabilities_and_no_others() {
    let security = &container(workloads(&defaults())[0])["securityContext"].clone();
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let wanted = ["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "PERFMON", "SYS_ADMIN", "SYS_PTRACE"];
    assert_eq!(list(&security["capabilities"]["add"]), wanted);
    assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&json!(false), &json!(true)));
    assert_eq!(security["appArmorProfile"], json!({"type": "Unconfined"}));

    let privileged = render(&json!({"agent": {"privileged": true}}), &[]).unwrap();
    let security = &container(workloads(&privileged)[0])["securityContext"];
    assert_eq!((&security["privileged"], &security["capabilities"]), (&json!(true), &Value::Null));

    let old = render(&json!({}), &["--kube-version", "1.28.0"]).unwrap();
    assert_eq!(container(workloads(&old)[0])["securityContext"]["appArmorProfile"], Value::Null, "a field that 1.28 does not know");
    assert!(find(&old, "ValidatingAdmissionPolicy", "nodemesh-system-protected-namespaces").is_none());
}

#[test]
fn the_agent_can_be_replaced_by_one_that_starts_beside_it() {
    let objects = defaults();
    let agent = workloads(&objects)[0];
    assert_eq!(agent["spec"]["updateStrategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    assert_eq!(pod(agent)["hostNetwork"], json!(true));
    assert_eq!(pod(agent)["dnsPolicy"], "ClusterFirstWithHostNet");
    assert_eq!(container(agent)["ports"], Value::Null, "the scheduler would keep a second agent off the node");
    assert_eq!(pod(agent)["priorityClassName"], "system-node-critical");
    assert_eq!(pod(agent)["tolerations"], json!([{"operator": "Exists"}]));
    for drain in [1, 30, 600] {
        let objects = render(&json!({"agent": {"drainSeconds": drain}}), &[]).unwrap();
        let agent = workloads(&objects)[0];
        assert!(environment(agent).contains(&("NODEMESH_DRAIN_TIME", Some(&*format!("{drain}s")))));
        assert!(pod(agent)["terminationGracePeriodSeconds"].as_i64().unwrap() > drain);
    }
}

#[test]
fn the_control_plane_has_no_privilege() {
    let objects = defaults();
    let control = workloads(&objects)[1];
    let (all, own) = (&pod(control)["securityContext"], &container(control)["securityContext"]);
    assert_eq!(
        (&all["runAsNonRoot"], &all["runAsUser"], &all["seccompProfile"]["type"]),
        (&json!(true), &json!(65532), &json!("RuntimeDefault"))
    );
    assert_eq!((&own["allowPrivilegeEscalation"], &own["readOnlyRootFilesystem"]), (&json!(false), &json!(true)));
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}));
    for volume in pod(control)["volumes"].as_array().unwrap() {
        assert_eq!(volume["hostPath"], Value::Null);
    }
    assert_eq!(control["spec"]["replicas"], 2);
    assert_eq!(pod(control)["topologySpreadConstraints"].as_array().unwrap().len(), 2);
    assert_eq!(get(&objects, "PodDisruptionBudget", "mesh-control")["spec"]["minAvailable"], 1);
}

#[test]
fn what_is_referred_to_exists() {
    for values in [json!({}), everything(), json!({"cni": {"enabled": false}, "networkPolicy": {"enabled": false}})] {
        let objects = render(&values, &[]).unwrap();
        for workload in workloads(&objects) {
            let spec = pod(workload);
            get(&objects, "ServiceAccount", spec["serviceAccountName"].as_str().unwrap());
            let labels = workload["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            let mut selectors = vec![&workload["spec"]["selector"]["matchLabels"]];
            selectors
                .extend(spec["topologySpreadConstraints"].as_array().into_iter().flatten().map(|c| &c["labelSelector"]["matchLabels"]));
            for kind in ["PodDisruptionBudget", "NetworkPolicy", "PodMonitor"] {
                if let Some(object) = find(&objects, kind, name(workload)) {
                    let selector = if kind == "NetworkPolicy" { "podSelector" } else { "selector" };
                    selectors.push(&object["spec"][selector]["matchLabels"]);
                }
            }
            for selector in selectors {
                let selector = selector.as_object().unwrap();
                assert!(!selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selector:?}");
            }
            let volumes: BTreeSet<_> = spec["volumes"].as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
            let mounts = container(workload)["volumeMounts"].as_array().unwrap();
            assert_eq!(volumes, mounts.iter().map(|mount| mount["name"].as_str().unwrap()).collect(), "{}", name(workload));
            let paths: BTreeSet<_> = mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
            assert_eq!(paths.len(), mounts.len());
            for volume in spec["volumes"].as_array().unwrap() {
                if let Some(wanted) = volume["configMap"]["name"].as_str() {
                    get(&objects, "ConfigMap", wanted);
                }
            }
        }
        for service in objects.iter().filter(|object| object["kind"] == "Service") {
            let declared: Vec<_> =
                container(workloads(&objects)[1])["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
            assert!(service["spec"]["ports"].as_array().unwrap().iter().all(|port| declared.contains(&&port["targetPort"])), "{service}");
        }
        let role = get(&objects, "Role", "mesh-control");
        for rule in role["rules"].as_array().unwrap() {
            let kind = match list(&rule["resources"])[0] {
                "secrets" => "Secret",
                "configmaps" => "ConfigMap",
                "leases" => "Lease",
                other => panic!("{other}"),
            };
            for named in list(&rule["resourceNames"]) {
                get(&objects, kind, named);
            }
        }
        for object in &objects {
            let wanted = if object["kind"] == "CustomResourceDefinition" || object["metadata"]["namespace"].is_null() {
                None
            } else {
                Some(NAMESPACE)
            };
            assert_eq!(object["metadata"]["namespace"].as_str(), wanted, "{}", object["kind"]);
        }
    }
}

#[test]
fn programs_know_the_settings_that_they_are_given() {
    let known = |command: clap::Command| -> BTreeSet<String> {
        command.get_arguments().filter_map(|argument| argument.get_env()).map(|env| env.to_string_lossy().into_owned()).collect()
    };
    let agent = known(mesh_agent::config::Cli::command());
    let control = known(mesh_control::config::Flags::command());
    for objects in [defaults(), render(&everything(), &[]).unwrap()] {
        for (workload, known) in workloads(&objects).into_iter().zip([&agent, &control]) {
            for (variable, _) in environment(workload) {
                assert!(known.contains(variable), "{} knows no {variable}", name(workload));
            }
        }
    }
}

#[test]
fn values_reach_their_objects() {
    let objects = render(&everything(), &[]).unwrap();
    let [agent, control] = workloads(&objects);
    assert_eq!(container(agent)["image"], format!("docker.io/nodemesh/agent@sha256:{}", "ab".repeat(32)));
    assert_eq!(container(control)["image"], "registry.example:5000/mesh/control:v9");
    assert_eq!(pod(agent)["imagePullSecrets"], json!([{"name": "registry"}]));
    assert!(environment(agent).contains(&("NODEMESH_PODS_CGROUP", Some("/sys/fs/cgroup/kubepods.slice"))));
    assert!(environment(agent).contains(&("NODEMESH_WORKERS", Some("4"))));
    let mesh = get(&objects, "Mesh", "default");
    let converted = mesh_model::convert::convert(mesh);
    assert_eq!(converted.findings, [], "the agent itself reads it");
    assert_eq!(mesh["spec"]["excludedPorts"], json!([22, 9100]));
    assert_eq!(mesh["spec"]["rootNamespace"], NAMESPACE);
    assert_eq!(mesh["spec"]["tracing"], json!({"endpoint": "http://collector.observability:4317", "sampling": 2.5}));
    assert_eq!(get(&defaults(), "Mesh", "default")["spec"]["tracing"], Value::Null);
    assert_eq!(get(&objects, "PodMonitor", "mesh-agent")["spec"]["podMetricsEndpoints"][0]["portNumber"], 15020);
    let policy = get(&objects, "NetworkPolicy", "mesh-control");
    assert_eq!(policy["spec"]["ingress"][1]["from"].as_array().unwrap().len(), 1);
    get(&objects, "ResourceQuota", "nodemesh-critical");
    let protected = get(&objects, "ValidatingAdmissionPolicy", "nodemesh-system-protected-namespaces");
    let names = list(&protected["spec"]["matchConstraints"]["resourceRules"][0]["resourceNames"]);
    assert_eq!(names, ["kube-system", "kube-public", "kube-node-lease", NAMESPACE]);

    let roots = render(&json!({"control": {"jwks": {"refresh": "5m", "rootsConfigMap": "issuers"}}}), &[]).unwrap();
    let control = workloads(&roots)[1];
    assert!(environment(control).contains(&("NODEMESH_CONTROL_JWKS_REFRESH", Some("5m"))));
    let (_, file) = environment(control).into_iter().find(|(variable, _)| *variable == "NODEMESH_CONTROL_JWKS_ROOTS").unwrap();
    let mount = container(control)["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "jwks-roots").unwrap();
    assert_eq!(file.unwrap(), format!("{}/ca.crt", mount["mountPath"].as_str().unwrap()));
    let volume = pod(control)["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "jwks-roots").unwrap();
    // The authority of the mesh starts without it.
    assert_eq!(volume["configMap"], json!({"name": "issuers", "optional": true}));

    let without = render(&json!({"mesh": {"create": false}, "cni": {"enabled": false}, "crds": {"istio": "never"}}), &[]).unwrap();
    assert!(find(&without, "Mesh", "default").is_none());
    assert!(!environment(workloads(&without)[0]).iter().any(|(variable, _)| variable.contains("CNI")));
    let definitions: Vec<_> = without.iter().filter(|object| object["kind"] == "CustomResourceDefinition").map(name).collect();
    assert_eq!(definitions, ["meshes.nodemesh.dev", "ratelimits.nodemesh.dev"]);
}

#[test]
fn definitions_of_all_groups_are_there() {
    let objects = defaults();
    for wanted in [
        "meshes.nodemesh.dev",
        "ratelimits.nodemesh.dev",
        "authorizationpolicies.security.istio.io",
        "peerauthentications.security.istio.io",
        "requestauthentications.security.istio.io",
        "virtualservices.networking.istio.io",
        "destinationrules.networking.istio.io",
        "serviceentries.networking.istio.io",
    ] {
        let definition = get(&objects, "CustomResourceDefinition", wanted);
        for version in definition["spec"]["versions"].as_array().unwrap() {
            assert_eq!(version["subresources"], json!({"status": {}}), "{wanted}");
        }
        let kept = &definition["metadata"]["annotations"]["helm.sh/resource-policy"];
        assert_eq!(*kept == json!("keep"), wanted.contains("istio"), "{wanted}: {kept}");
    }
}

#[test]
fn the_control_plane_writes_the_status_of_what_it_answers() {
    let objects = defaults();
    let mut written = BTreeSet::new();
    for (place, rule) in rules(&objects, "mesh-control") {
        if place.is_none() && list(&rule["verbs"]) == ["patch"] {
            written.extend(list(&rule["resources"]).into_iter().map(|resource| resource.trim_end_matches("/status").to_owned()));
        }
    }
    let answered = mesh_control::status::conditions::KINDS.into_iter().chain(mesh_control::status::routes::KINDS);
    let answered = answered.chain(mesh_control::status::backends::KINDS);
    let answered = answered.map(|kind| plural(kind).1).chain(["xmeshes".to_owned()]);
    assert_eq!(written, answered.collect());
}

#[test]
fn bad_values_are_refused_with_a_word_on_what_is_right() {
    let cases = [
        (json!({"mesh": {"mtl": "STRICT"}}), "additional properties 'mtl' not allowed"),
        (json!({"mesh": {"mtls": "strict"}}), "/mesh/mtls"),
        (json!({"agent": {"drainSeconds": "30s"}}), "/agent/drainSeconds"),
        (json!({"agent": {"capabilities": ["BPF"]}}), "/agent/capabilities"),
        (json!({"images": {"agent": {"digest": "latest"}}}), "/images/agent/digest"),
        (json!({"crds": {"istio": "maybe"}}), "/crds/istio"),
        (json!({"mesh": {"tracing": {"endpoint": "https://collector"}}}), "/mesh/tracing/endpoint"),
        (json!({"control": {"jwks": {"refresh": "often"}}}), "/control/jwks/refresh"),
        (json!({"mesh": {"mtls": "STRICT"}, "cni": {"enabled": false}}), "Enable the plug-in, or set mesh.mtls: PERMISSIVE"),
        (json!({"mesh": {"mtls": "STRICT", "unknownPods": "pass"}}), "Set mesh.unknownPods: deny"),
        (json!({"control": {"replicas": 1}}), "Use 2 replicas, or set control.podDisruptionBudget: false"),
    ];
    for (values, words) in cases {
        let said = render(&values, &[]).expect_err(&values.to_string());
        assert!(said.contains(words), "{values}: {said}");
    }
    render(&json!({"control": {"replicas": 1, "podDisruptionBudget": false}}), &[]).unwrap();
}
