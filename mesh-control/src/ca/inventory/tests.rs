use std::path::Path;

use mesh_model::manifests::ManifestSet;

use super::*;

fn pod(name: &str, account: &str, node: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{nodemesh.dev/mesh: {mesh}}}}}\n\
         spec: {{serviceAccountName: {account}, nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{podIP: 10.0.0.{}}}\n---\n",
        name.len()
    )
}

fn snapshot(text: &str) -> Snapshot {
    let mut set = ManifestSet::default();
    set.put(Path::new("pods.yaml"), text);
    set.snapshot(None)
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn reason(inventory: &MeshInventory, node: &str, identity: &str) -> &'static str {
    inventory.may_sign(node, &identity.parse().unwrap()).map_or_else(|refusal| refusal.reason(), |()| "none")
}

#[test]
fn signs_for_enrolled_pods_of_the_node_only() {
    let text = pod("a", "cart", "node-1", "enabled") + &pod("bb", "web", "node-2", "enabled") + &pod("ccc", "out", "node-1", "disabled");
    let inventory = MeshInventory::new(&snapshot(&text));
    assert_eq!(inventory.identities(), 2);
    assert_eq!(reason(&inventory, "node-1", CART), "none");
    assert_eq!(reason(&inventory, "node-2", CART), "not_on_node");
    assert_eq!(reason(&inventory, "", CART), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/shop/sa/web"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/shop/sa/out"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://cluster.local/ns/other/sa/cart"), "not_on_node");
    assert_eq!(reason(&inventory, "node-1", "spiffe://elsewhere/ns/shop/sa/cart"), "trust_domain");
}

#[test]
fn one_account_may_be_on_many_nodes_and_moves_with_its_pods() {
    let inventory = MeshInventory::new(&snapshot(&(pod("a", "cart", "node-1", "enabled") + &pod("bb", "cart", "node-2", "enabled"))));
    assert_eq!((reason(&inventory, "node-1", CART), reason(&inventory, "node-2", CART)), ("none", "none"));
    inventory.take(&snapshot(&pod("bb", "cart", "node-2", "enabled")));
    assert_eq!((reason(&inventory, "node-1", CART), reason(&inventory, "node-2", CART)), ("not_on_node", "none"));
}

#[test]
fn pods_that_cannot_be_served_have_no_identity() {
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: h, namespace: shop, labels: {nodemesh.dev/mesh: enabled}}\n\
                spec: {serviceAccountName: cart, nodeName: node-1, hostNetwork: true, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.9}\n---\n";
    let over = pod("a", "cart", "node-1", "enabled").replace("status: {", "status: {phase: Succeeded, ");
    let broken = pod("a", "cart", "node-1", "enabled").replace("podIP: 10.0.0.1", "podIP: nonsense");
    for text in [host, &over, &broken] {
        let inventory = MeshInventory::new(&snapshot(text));
        assert_eq!((inventory.identities(), reason(&inventory, "node-1", CART)), (0, "not_on_node"), "{text}");
    }
}

#[test]
fn the_trust_domain_is_the_meshs() {
    let text =
        "apiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: prod.example}\n---\n".to_owned();
    let inventory = MeshInventory::new(&snapshot(&(text + &pod("a", "cart", "node-1", "enabled"))));
    assert_eq!(reason(&inventory, "node-1", CART), "trust_domain");
    assert_eq!(reason(&inventory, "node-1", "spiffe://prod.example/ns/shop/sa/cart"), "none");
}

#[test]
fn before_the_first_snapshot_nothing_is_known() {
    let inventory = MeshInventory::new(&Snapshot::default());
    assert_eq!(reason(&inventory, "node-1", CART), "not_read");
    let mut changes = inventory.changes();
    inventory.take(&snapshot(&pod("a", "cart", "node-1", "enabled")));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(reason(&inventory, "node-1", CART), "none");
}
