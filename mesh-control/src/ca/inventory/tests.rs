use std::fs;
use std::time::Duration;

use super::*;

fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

fn pod(name: &str, account: &str, node: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{nodemesh.dev/mesh: {mesh}}}}}\n\
         spec: {{serviceAccountName: {account}, nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{podIP: 10.0.0.{}}}\n---\n",
        name.len()
    )
}

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn reason(inventory: &ManifestInventory, node: &str, identity: &str) -> &'static str {
    inventory.may_sign(node, &id(identity)).map_or_else(|refusal| refusal.reason(), |()| "none")
}

#[test]
fn signs_for_enrolled_pods_of_the_node_only() {
    let dir = tempfile::tempdir().unwrap();
    let text = pod("a", "cart", "node-1", "enabled") + &pod("bb", "web", "node-2", "enabled") + &pod("ccc", "out", "node-1", "disabled");
    fs::write(dir.path().join("pods.yaml"), text).unwrap();
    let inventory = ManifestInventory::open(dir.path(), soon());
    assert_eq!(inventory.identities(), Some(2));
    assert_eq!(reason(&inventory, "node-1", CART), "none");
    assert_eq!(reason(&inventory, "node-2", CART), "not_on_node");
    assert_eq!(reason(&inventory, "", CART), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/shop/sa/web"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/shop/sa/out"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/other/sa/cart"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://elsewhere/ns/shop/sa/cart"), "trust_domain");
}

#[test]
fn follows_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let inventory = ManifestInventory::open(dir.path(), soon());
    assert_eq!(reason(&inventory, "node-1", CART), "not_on_node");
    assert!(!inventory.refresh(soon()));
    fs::write(&path, pod("a", "cart", "node-1", "enabled")).unwrap();
    assert!(inventory.refresh(soon()));
    assert_eq!(reason(&inventory, "node-1", CART), "none");
    assert!(!inventory.refresh(soon()));
    fs::write(&path, "kind: Pod: broken").unwrap();
    inventory.refresh(soon());
    assert_eq!(reason(&inventory, "node-1", CART), "none", "a broken file changes nothing");
    fs::write(&path, pod("a", "cart", "node-2", "enabled")).unwrap();
    inventory.refresh(soon());
    assert_eq!((reason(&inventory, "node-1", CART), reason(&inventory, "node-2", CART)), ("not_on_node", "none"));
    fs::remove_file(&path).unwrap();
    assert!(inventory.refresh(soon()));
    assert_eq!(reason(&inventory, "node-2", CART), "not_on_node");
}

#[test]
fn a_directory_that_vanishes_changes_nothing_and_one_that_never_was_allows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    let inventory = ManifestInventory::open(&path, soon());
    assert_eq!((inventory.identities(), reason(&inventory, "node-1", CART)), (None, "no_inventory"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yml"), pod("a", "cart", "node-1", "enabled")).unwrap();
    assert!(inventory.refresh(soon()));
    fs::remove_dir_all(&path).unwrap();
    assert!(!inventory.refresh(soon()));
    assert_eq!(reason(&inventory, "node-1", CART), "none");
}
