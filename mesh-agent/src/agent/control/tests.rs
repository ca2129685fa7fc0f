use std::path::Path;

use mesh_model::document::parse_documents;

use super::*;

fn with_nodes(count: usize) -> Snapshot {
    let node = |number| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{number}}}\n");
    let parsed = parse_documents(Path::new("mesh.yaml"), &(1..=count).map(node).collect::<String>());
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

#[test]
fn a_name_that_no_node_has_is_said_with_those_that_nodes_have() {
    assert_eq!(misnamed(&with_nodes(2), "n2"), None);
    assert_eq!(misnamed(&with_nodes(0), "n2"), None, "nobody describes nodes");
    let said = misnamed(&with_nodes(2), "ip-10-0-0-1.internal").unwrap();
    assert!(said.starts_with("no Node is named ip-10-0-0-1.internal, only n1, n2: give --node"), "{said}");
    assert!(misnamed(&with_nodes(9), "x").unwrap().contains("n5, ...: give"));
}
