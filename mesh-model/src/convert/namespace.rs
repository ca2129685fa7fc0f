//! Namespace: whether its pods are in the mesh, and how two of them on one node talk.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use serde_json::Value;

use super::{Input, MESH_LABEL, Reading, SAME_NODE};
use crate::object::{NamespaceObject, Object, Word};
use crate::problem::FieldPath;

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let understood = input.read::<Namespace>().is_some();
    let mesh = mesh_word(input);
    let mut encrypt_same_node = false;
    for place in ["labels", "annotations"] {
        match input.raw(&["metadata", place, SAME_NODE]) {
            None => {}
            Some(Value::String(text)) if text == "kernel" => {}
            Some(Value::String(text)) if text == "encrypt" => encrypt_same_node = true,
            Some(_) => {
                encrypt_same_node = true;
                let at = FieldPath::of("metadata").key(place).key(SAME_NODE);
                input.warn(at, "is neither kernel nor encrypt; taken for encrypt");
            }
        }
    }
    let object = Object::Namespace(Arc::new(NamespaceObject { name: input.name.name.clone(), mesh, encrypt_same_node }));
    if understood && !input.failed() { Reading::Good(object) } else { Reading::Cautious(object) }
}

/// A namespace of which only the name is known.
pub(super) fn unknown(name: &Arc<str>) -> Reading {
    Reading::Cautious(Object::Namespace(Arc::new(NamespaceObject { name: name.clone(), mesh: Word::Nonsense, encrypt_same_node: true })))
}

/// The label `nodemesh.dev/mesh` of a namespace or a pod, however bad the rest of the object is.
pub(super) fn mesh_word(input: &mut Input<'_>) -> Word {
    let word = match (input.raw(&["metadata", "labels"]), input.raw(&["metadata", "labels", MESH_LABEL])) {
        (None | Some(Value::Object(_)), None) => Word::Unsaid,
        (_, Some(Value::String(text))) => Word::parse(Some(text)),
        _ => Word::Nonsense,
    };
    if word == Word::Nonsense {
        let at = FieldPath::of("metadata.labels").key(MESH_LABEL);
        input.warn(at, "is neither enabled nor disabled and does not take anything out of the mesh; write one of them");
    }
    word
}
