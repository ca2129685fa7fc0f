use super::*;

const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nstatus: {podIP: 10.0.0.1}\n";
const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
const ALLOW: &str = concat!(
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n",
    "spec: {rules: [{from: [{source: {namespaces: [a]}}]}]}\n"
);

fn file() -> &'static Path {
    Path::new("mesh.yaml")
}

fn join(documents: &[&str]) -> String {
    documents.join("---\n")
}

struct Shop {
    pods: usize,
    services: usize,
    /// Of each policy, whether it is refused.
    policies: Vec<bool>,
    problems: Vec<String>,
}

fn shop(set: &ManifestSet) -> Shop {
    let snapshot = set.snapshot(None);
    let workload = snapshot.workloads().next().cloned();
    Shop {
        pods: snapshot.workloads().len(),
        services: snapshot.services().len(),
        policies: workload.map_or(Vec::new(), |w| snapshot.policies_for(&w).policies.iter().map(|p| p.refused.is_some()).collect()),
        problems: snapshot.problems().iter().map(ToString::to_string).collect(),
    }
}

fn set() -> ManifestSet {
    let mut set = ManifestSet::default();
    set.put(file(), &join(&[WEB, SERVICE, ALLOW]));
    let shop = shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies, shop.problems), (1, 1, vec![false], vec![]));
    set
}

#[test]
fn a_document_that_breaks_keeps_its_object_and_a_policy_denies() {
    let mut set = set();
    set.put(file(), &join(&[WEB, &SERVICE.replace("80", "eighty"), &ALLOW.replace("namespaces", "namespace")]));
    let shop = shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies), (1, 1, vec![true]));
    assert!(shop.problems.iter().any(|p| p.contains("Service shop/web") && p.contains("stays in force")), "{:?}", shop.problems);
    // And the version that stays is still there when the file changes again without being mended.
    set.put(file(), &join(&[WEB, &SERVICE.replace("80", "eighty-one"), ALLOW]));
    let shop = self::shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies), (1, 1, vec![false]));
}

#[test]
fn a_document_without_a_readable_name_keeps_all_that_the_file_had() {
    let mut set = set();
    set.put(file(), &join(&[&ALLOW.replace("ALLOW", "x"), "{{{\n"]));
    let shop = shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies), (1, 1, vec![false]));
    assert!(shop.problems.iter().any(|p| p.contains("Pod shop/web, Service shop/web")), "{:?}", shop.problems);
    set.put(file(), WEB);
    assert_eq!((self::shop(&set).services, self::shop(&set).policies.len()), (0, 0), "mended: what is not there is gone");
}

#[test]
fn a_policy_that_is_no_yaml_denies() {
    let mut set = set();
    set.put(file(), &join(&[WEB, SERVICE, &ALLOW.replace("[a]", "[a")]));
    let shop = shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies), (1, 1, vec![true]));
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing_and_one_that_is_gone_does() {
    let mut set = set();
    set.unreadable(file(), &"permission denied");
    let shop = shop(&set);
    assert_eq!((shop.pods, shop.services, shop.policies, shop.problems.len()), (1, 1, vec![false], 1));
    set.remove(file());
    let shop = self::shop(&set);
    assert_eq!((shop.pods, shop.services, shop.problems.len()), (0, 0, 0));
}

/// The files below the samples' directory, of which people copy theirs.
fn samples() -> Vec<std::path::PathBuf> {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn nothing_is_wrong_with_the_samples_alone_or_together() {
    let files = samples();
    for wanted in ["destination-rule.yaml", "policy/no-client.yaml", "http/route.yaml", "http/tokens.yaml"] {
        assert!(files.iter().any(|file| file.ends_with(wanted)), "{wanted} is not among {files:?}");
    }
    let mut set = ManifestSet::default();
    let mut addresses = 1..;
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        // Each Service with the address that an API server gives it.
        let parts: Vec<_> = text.split("\n  ports: [{ port: 80").collect();
        let mut whole = parts[0].to_owned();
        for part in &parts[1..] {
            whole.push_str(&format!("\n  clusterIP: 10.96.0.{}\n  ports: [{{ port: 80{part}", addresses.next().unwrap()));
        }
        set.put(file, &whole);
    }
    let snapshot = set.snapshot(None);
    let wrong: Vec<_> = snapshot.problems().iter().filter(|problem| problem.severity > Severity::Info).map(ToString::to_string).collect();
    assert_eq!(wrong, Vec::<String>::new());
    for service in ["hello-world", "hello-flaky"] {
        let name = crate::service::NamespacedName { namespace: "default".into(), name: service.into() };
        assert!(snapshot.routes(&name, 80).is_some(), "{service} has no route");
    }
}
