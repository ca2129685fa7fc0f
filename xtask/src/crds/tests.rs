use serde_json::json;

use super::*;

#[test]
fn the_charts_definitions_are_what_the_types_say() {
    check().unwrap();
}

#[test]
fn our_own_kinds_have_a_structural_schema() {
    let schema = structural::<mesh_model::crd::MeshSpec>().unwrap();
    let limits = structural::<mesh_model::crd::RateLimitSpec>().unwrap();
    for schema in [&schema, &limits] {
        for alien in ["$ref", "anyOf", "oneOf", "allOf", "nullable", "title", "null"] {
            assert!(!schema.to_string().contains(&format!("\"{alien}\"")), "{alien}: {schema:#}");
        }
    }
    let limit = &limits["properties"]["limits"]["items"];
    assert_eq!((&limits["required"], &limit["required"]), (&json!(["limits"]), &json!(["requests"])));
    assert_eq!(limit["properties"]["unit"]["enum"], json!(["second", "minute", "hour"]));
    assert_eq!(limits["properties"]["selector"]["properties"]["matchLabels"]["additionalProperties"], json!({"type": "string"}));
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

#[test]
fn every_kind_of_istios_that_is_read_is_defined_in_each_version() {
    let read: Vec<_> = mesh_model::object::Kind::ALL
        .into_iter()
        .filter(|kind| kind.api_versions().iter().any(|version| version.contains("istio.io/")))
        .map(|kind| (kind.name(), kind.api_versions().to_vec()))
        .collect();
    assert_eq!(read.len(), ISTIO.len());
    for (kind, versions) in read {
        let istio = ISTIO.iter().find(|istio| istio.kind == kind).unwrap_or_else(|| panic!("{kind} is not defined"));
        let served: Vec<_> = istio.versions.iter().map(|version| format!("{}/{version}", istio.group)).collect();
        assert_eq!(served, versions, "{kind}");
        let definition = istio.definition();
        let stored: Vec<_> =
            definition["spec"]["versions"].as_array().unwrap().iter().filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
        assert_eq!(stored, ["v1"], "{kind}");
    }
}

#[test]
fn definitions_of_istios_kinds_keep_fields_that_are_not_known() {
    for istio in &ISTIO {
        for version in istio.definition()["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"]["properties"];
            for part in ["spec", "status"] {
                assert_eq!(schema[part]["x-kubernetes-preserve-unknown-fields"], true, "{}: {part}", istio.kind);
            }
        }
    }
}
