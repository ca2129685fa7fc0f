#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const FLANNEL: &str = "{\n  \"name\": \"cbr0\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    {\n      \"type\": \"flannel\",\n      \"delegate\": { \"hairpinMode\": true, \"mtu\": 1.50e3 }\n    },\n    {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}}\n  ],\n  \"x-unknown\": [1,2 ]\n}\n";

fn own() -> String {
    entry(std::path::Path::new("/run/nodemesh/default/cni.sock"), "hold", 30)
}

fn kinds(text: &str) -> Vec<String> {
    elements(text).unwrap().into_iter().map(|element| element.kind).collect()
}

#[test]
fn it_stands_last_and_all_else_is_as_it_was() {
    let with = insert(FLANNEL, &own(), WithIstio::Refuse).unwrap();
    assert_eq!(kinds(&with), ["flannel", "portmap", PLUGIN]);
    assert!(with.contains("\"mtu\": 1.50e3") && with.contains("\"x-unknown\": [1,2 ]"));
    assert_eq!(insert(&with, &own(), WithIstio::Refuse).unwrap(), with);
    assert_eq!(remove(&with).unwrap(), FLANNEL);
    assert!(is_in(&with) && !is_in(FLANNEL));
}

#[test]
fn an_entry_of_an_earlier_version_is_replaced_where_it_stands() {
    let old = insert(FLANNEL, r#"{"type":"mesh-cni","socket":"/old"}"#, WithIstio::Refuse).unwrap();
    let with = insert(&old, &own(), WithIstio::Refuse).unwrap();
    assert_eq!(with, insert(FLANNEL, &own(), WithIstio::Refuse).unwrap());
}

#[test]
fn what_is_not_understood_is_left_alone() {
    for text in ["", "{", "[]", "{}", r#"{"plugins":{}}"#, r#"{"plugins":[{"name":"x"}]}"#, r#"{"plugins":[1]}"#] {
        assert!(matches!(insert(text, &own(), WithIstio::Refuse), Err(EditError::NotUnderstood(_))), "{text}");
        assert!(remove(text).is_err(), "{text}");
        assert!(!is_in(text));
    }
    assert_eq!(insert(r#"{"plugins":[]}"#, &own(), WithIstio::Refuse), Err(EditError::Empty));
}

#[test]
fn istio_is_seen() {
    let istio = r#"{"plugins":[{"type":"ptp"},{"type":"istio-cni"}]}"#;
    assert_eq!(insert(istio, &own(), WithIstio::Refuse), Err(EditError::Istio));
    assert_eq!(kinds(&insert(istio, &own(), WithIstio::Coexist).unwrap()), ["ptp", "istio-cni", PLUGIN]);
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let list = from_single(r#"{"cniVersion":"0.4.0","name":"old \"net\"","type":"bridge"}"#, &own(), WithIstio::Refuse).unwrap();
    let value: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&value["cniVersion"], &value["name"]), (&json!("0.4.0"), &json!("old \"net\"")));
    assert_eq!(kinds(&list), ["bridge", PLUGIN]);
    assert!(from_single(r#"{"name":"x"}"#, &own(), WithIstio::Refuse).is_err());
}

fn plugin() -> impl Strategy<Value = Value> {
    ("[a-z]{1,8}", "[ -~]{0,12}", any::<i32>())
        .prop_map(|(kind, text, n)| json!({"type": kind, "a": [n, text.clone()], "plugins": [{"type": text}]}))
}

proptest! {
    #[test]
    fn to_put_in_twice_is_to_put_in_once_and_to_take_out_restores(plugins in prop::collection::vec(plugin(), 1..5), name in "[ -~]{0,8}", pretty: bool) {
        let value = json!({"name": name, "plugins": plugins, "cniVersion": "1.0.0", "zz": {"plugins": []}});
        let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
        let with = insert(&text, &own(), WithIstio::Coexist).unwrap();
        prop_assert_eq!(insert(&with, &own(), WithIstio::Coexist).unwrap(), with.clone());
        prop_assert_eq!(remove(&with).unwrap(), text.clone());
        let read: Value = serde_json::from_str(&with).unwrap();
        let list = read["plugins"].as_array().unwrap();
        prop_assert_eq!(&list[..plugins.len()], &plugins[..]);
        prop_assert_eq!(list.len(), plugins.len() + 1);
    }

    #[test]
    fn no_text_breaks_it(text in "\\PC{0,64}") {
        let _ = (insert(&text, &own(), WithIstio::Refuse), remove(&text), from_single(&text, &own(), WithIstio::Refuse));
    }
}
