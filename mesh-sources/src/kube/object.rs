//! Objects as they come from the API server: any JSON, so that none can break the list or the watch that it comes in.
//!
//! What is large and of no use to a mesh is dropped while the text is read, before it takes any memory: who owns which field, and what
//! only a kubelet needs to know. Of security objects everything is kept: a field that is not known must show.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope, Resource};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

/// A way to a field; `*` is every element of a list.
type Path = &'static [&'static str];

/// What is dropped of an object.
pub(super) trait Trim: Send + Sync + 'static {
    /// The ways to it.
    const DROPPED: &'static [Path];
}

const MANAGED_FIELDS: Path = &["metadata", "managedFields"];
/// A copy of the object as `kubectl apply` was given it.
const LAST_APPLIED: Path = &["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"];

/// Drops what every object has.
pub(super) enum Bookkeeping {}

impl Trim for Bookkeeping {
    const DROPPED: &'static [Path] = &[MANAGED_FIELDS, LAST_APPLIED];
}

/// Drops what only a kubelet needs to know of a pod, environment variables and their secrets among it.
pub(super) enum OfPod {}

impl Trim for OfPod {
    const DROPPED: &'static [Path] = &[
        MANAGED_FIELDS,
        LAST_APPLIED,
        &["spec", "affinity"],
        &["spec", "containers", "*", "args"],
        &["spec", "containers", "*", "command"],
        &["spec", "containers", "*", "env"],
        &["spec", "containers", "*", "envFrom"],
        &["spec", "containers", "*", "lifecycle"],
        &["spec", "containers", "*", "livenessProbe"],
        &["spec", "containers", "*", "readinessProbe"],
        &["spec", "containers", "*", "resources"],
        &["spec", "containers", "*", "securityContext"],
        &["spec", "containers", "*", "startupProbe"],
        &["spec", "containers", "*", "volumeMounts"],
        &["spec", "ephemeralContainers"],
        &["spec", "initContainers"],
        &["spec", "tolerations"],
        &["spec", "topologySpreadConstraints"],
        &["spec", "volumes"],
        &["status", "containerStatuses"],
        &["status", "ephemeralContainerStatuses"],
        &["status", "initContainerStatuses"],
    ];
}

/// Drops the images that a node has.
pub(super) enum OfNode {}

impl Trim for OfNode {
    const DROPPED: &'static [Path] =
        &[MANAGED_FIELDS, LAST_APPLIED, &["status", "images"], &["status", "volumesAttached"], &["status", "volumesInUse"]];
}

/// An object, be it as malformed as it may.
pub(super) struct Raw<T> {
    /// What came, without what is dropped.
    pub(super) value: Value,
    /// What the watch itself needs of it, as far as it could be read.
    meta: ObjectMeta,
    trim: PhantomData<fn() -> T>,
}

impl<T> Clone for Raw<T> {
    fn clone(&self) -> Self {
        Raw { value: self.value.clone(), meta: self.meta.clone(), trim: PhantomData }
    }
}

impl<T> fmt::Debug for Raw<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Raw").field(&self.meta.namespace).field(&self.meta.name).finish()
    }
}

impl<'de, T: Trim> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Kept { dropped: Cow::Borrowed(T::DROPPED) }.deserialize(deserializer)?;
        let text = |key: &str| value.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_str).map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Raw { value, meta, trim: PhantomData })
    }
}

impl<T> Resource for Raw<T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Reads any JSON except what is dropped.
struct Kept<'p> {
    /// Ways from here.
    dropped: Cow<'p, [Path]>,
}

impl Kept<'_> {
    /// What is dropped below a step; `None` if all of it is.
    fn below(&self, step: &str) -> Option<Kept<'static>> {
        let mut dropped = Vec::new();
        for path in self.dropped.iter() {
            match path.split_first() {
                Some((first, [])) if *first == step => return None,
                Some((first, rest)) if *first == step => dropped.push(rest),
                _ => {}
            }
        }
        Some(Kept { dropped: Cow::Owned(dropped) })
    }
}

impl<'de> DeserializeSeed<'de> for Kept<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.dropped.is_empty() { Value::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Kept<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.below(&key) {
                Some(kept) => drop(object.insert(key, map.next_value_seed(kept)?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        let Some(each) = self.below("*") else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Array(values));
        };
        while let Some(value) = list.next_element_seed(Kept { dropped: Cow::Borrowed(&each.dropped) })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trimmed<T: Trim>(value: &Value) -> Value {
        serde_json::from_str::<Raw<T>>(&value.to_string()).unwrap().value
    }

    #[test]
    fn nothing_but_what_is_named_is_dropped() {
        let pod = json!({
            "metadata": {
                "name": "a", "managedFields": [{"x": [1, 2]}], "resourceVersion": "7",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "b": "c"},
            },
            "spec": {
                "volumes": [{}], "nodeName": "n",
                "containers": [{"name": "c", "env": [{"name": "S", "value": "secret"}], "ports": [{"containerPort": 80}]}, {"name": "d"}],
            },
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{}], "n": [1, -1, 1.5, null, true, "x"]},
        });
        let wanted = json!({
            "metadata": {"name": "a", "resourceVersion": "7", "annotations": {"b": "c"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}, {"name": "d"}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "n": [1, -1, 1.5, null, true, "x"]},
        });
        assert_eq!(trimmed::<OfPod>(&pod), wanted);
        let policy = json!({"metadata": {"managedFields": []}, "spec": {"volumes": 1, "containers": [{"env": 2}]}, "status": 3});
        assert_eq!(trimmed::<Bookkeeping>(&policy), json!({"metadata": {}, "spec": policy["spec"], "status": 3}));
    }

    #[test]
    fn whatever_comes_can_be_read() {
        for odd in
            [json!(null), json!("text"), json!(1), json!([1]), json!({"metadata": 5}), json!({"metadata": {"name": {}, "labels": 1}})]
        {
            assert_eq!(trimmed::<OfPod>(&odd), odd);
        }
        let raw: Raw<OfPod> = serde_json::from_str(r#"{"metadata": {"resourceVersion": "7", "name": 5}}"#).unwrap();
        assert_eq!((raw.meta().resource_version.as_deref(), raw.meta().name.as_deref()), (Some("7"), None));
    }
}
