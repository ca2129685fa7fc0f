use serde_json::json;

use super::*;

#[test]
fn the_charts_definitions_are_what_the_types_say() {
    check().unwrap();
}

#[test]
fn our_own_kind_has_a_structural_schema() {
    let schema = structural::<mesh_model::crd::MeshSpec>().unwrap();
    let text = schema.to_string();
    for alien in ["$ref", "anyOf", "oneOf", "allOf", "nullable", "title", "null"] {
        assert!(!text.contains(&format!("\"{alien}\"")), "{alien}: {schema:#}");
    }
    let mode = &schema["properties"]["mtls"]["properties"]["mode"];
    assert_eq!(mode["enum"], json!(["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]));
    assert_eq!(mode["type"], "string");
    assert!(mode["description"].as_str().unwrap().starts_with("STRICT refuses plaintext"), "{mode}");
    assert_eq!(schema["properties"]["excludedPorts"]["items"]["maximum"], 65535);
}

#[test]
fn what_is_not_structural_is_refused() {
    for alien in [json!({"$ref": "#/a"}), json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), json!({"oneOf": []})] {
        let mut schema = json!({"type": "object", "properties": {"a": alien}});
        assert!(tidy(&mut schema).is_err(), "{schema}");
    }
}
