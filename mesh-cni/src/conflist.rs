//! Putting the plug-in into a network configuration and taking it out again: text to text, so that whatever else is in the file stays as
//! it is, byte for byte. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::PLUGIN;

/// Istio's own plug-in, which redirects the same pods.
const ISTIO: &str = "istio-cni";

/// Why a file is left alone.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EditError {
    /// It is no network configuration.
    #[error("it is no network configuration list: {0}")]
    NotUnderstood(String),
    /// There is nothing to stand behind.
    #[error("its list of plug-ins is empty")]
    Empty,
    /// Another mesh is there.
    #[error(
        "Istio's plug-in (istio-cni) is in the list, and both would redirect the same pods; remove it, or set --cni-with-istio=coexist"
    )]
    Istio,
}

/// What to do where Istio's plug-in is in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WithIstio {
    /// Leave the file alone.
    #[default]
    Refuse,
    /// Stand behind it. A pod must then be in one of the meshes only.
    Coexist,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    plugins: &'a RawValue,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
}

/// A plug-in in the text.
struct Element {
    start: usize,
    end: usize,
    kind: String,
}

/// The plug-ins of a list, with where they stand.
fn elements(text: &str) -> Result<Vec<Element>, EditError> {
    let wrong = |error: serde_json::Error| EditError::NotUnderstood(error.to_string());
    let list: List = serde_json::from_str(text).map_err(wrong)?;
    let plugins: Vec<&RawValue> = serde_json::from_str(list.plugins.get()).map_err(wrong)?;
    let read = |raw: &&RawValue| {
        // Both are slices of the text.
        let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let Plugin { kind } = serde_json::from_str(raw.get())?;
        Ok(Element { start, end: start + raw.get().len(), kind })
    };
    plugins.iter().map(read).collect::<Result<_, _>>().map_err(wrong)
}

fn splice(text: &str, from: usize, to: usize, new: &str) -> String {
    let (before, after) = (text.get(..from).unwrap_or_default(), text.get(to..).unwrap_or_default());
    format!("{before}{new}{after}")
}

/// Whether the plug-in is in the list.
pub fn is_in(text: &str) -> bool {
    elements(text).is_ok_and(|elements| elements.iter().any(|element| element.kind == PLUGIN))
}

/// Whether Istio's plug-in is in the list.
pub fn has_istio(text: &str) -> bool {
    elements(text).is_ok_and(|elements| elements.iter().any(|element| element.kind == ISTIO))
}

/// Puts the plug-in, as `entry` (a JSON object), behind all others, or in the place of an earlier entry of its own.
pub fn insert(text: &str, entry: &str, with_istio: WithIstio) -> Result<String, EditError> {
    let elements = elements(text)?;
    if with_istio == WithIstio::Refuse && elements.iter().any(|element| element.kind == ISTIO) {
        return Err(EditError::Istio);
    }
    if let Some(own) = elements.iter().find(|element| element.kind == PLUGIN) {
        return Ok(splice(text, own.start, own.end, entry));
    }
    let last = elements.last().ok_or(EditError::Empty)?;
    Ok(splice(text, last.end, last.end, &format!(",{entry}")))
}

/// Takes every entry of the plug-in out.
pub fn remove(text: &str) -> Result<String, EditError> {
    let mut text = text.to_owned();
    loop {
        let elements = elements(&text)?;
        let Some(at) = elements.iter().position(|element| element.kind == PLUGIN) else { return Ok(text) };
        let Some(own) = elements.get(at) else { return Ok(text) };
        let before = at.checked_sub(1).and_then(|i| elements.get(i));
        text = match (before, elements.get(at + 1)) {
            (Some(before), _) => splice(&text, before.end, own.end, ""),
            (None, Some(next)) => splice(&text, own.start, next.start, ""),
            (None, None) => splice(&text, own.start, own.end, ""),
        };
    }
}

/// A list with the one plug-in of a `.conf` file, and ours behind it.
pub fn from_single(text: &str, entry: &str, with_istio: WithIstio) -> Result<String, EditError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Single {
        #[serde(default)]
        cni_version: String,
        #[serde(default)]
        name: String,
        #[serde(rename = "type")]
        _kind: String,
    }
    let single: Single = serde_json::from_str(text).map_err(|error| EditError::NotUnderstood(error.to_string()))?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let list = format!(
        "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [\n{}\n  ]\n}}\n",
        quoted(&single.cni_version),
        quoted(&single.name),
        text.trim()
    );
    insert(&list, entry, with_istio)
}

/// The plug-in's entry in a list.
pub fn entry(socket: &std::path::Path, on_unreachable: &str, timeout_seconds: u64) -> String {
    serde_json::json!({
        "type": PLUGIN,
        "socket": socket,
        "onUnreachable": on_unreachable,
        "timeoutSeconds": timeout_seconds,
    })
    .to_string()
}

#[cfg(test)]
mod tests;
