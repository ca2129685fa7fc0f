//! `/log`: levels of the diagnostic log and of the access log.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ActionError, Query};
use crate::ops::access::{AccessLevel, AccessLog};
use crate::ops::log::LogControl;

pub(super) const USAGE: &str = "?level=off|error|warn|info|debug|trace or target=level,…: diagnostic log; ?access=off|denied|all: access log; \
                                ?level=off|denied|all|default&workload=ns/name: access log of one workload";

pub(super) fn show(log: &LogControl, access: &AccessLog, query: &Query) -> Result<Value, ActionError> {
    if !query.is_empty() {
        return Err(ActionError::BadRequest("GET /log shows the levels; use POST /log?level=… to change them".into()));
    }
    Ok(state(log, access))
}

fn state(log: &LogControl, access: &AccessLog) -> Value {
    let workloads: BTreeMap<String, &str> = access.overrides().iter().map(|(name, level)| (name.to_string(), level.as_str())).collect();
    json!({ "level": log.current(), "access": access.level().as_str(), "workloads": workloads })
}

pub(super) fn change(log: &LogControl, access: &AccessLog, query: &Query) -> Result<Value, ActionError> {
    query.only(&["level", "access", "workload"])?;
    let workload = query.namespaced("workload")?;
    let (level, access_level) = (query.get("level"), query.get("access"));
    match workload {
        // A workload has only its access log: the diagnostic log is about the agent.
        Some(workload) => {
            let ((Some(word), None) | (None, Some(word))) = (level, access_level) else {
                return Err(ActionError::BadRequest("with workload=, give one of level= and access=".into()));
            };
            let level = match word {
                "default" => None,
                word => Some(parse(word, "off, denied, all, default")?),
            };
            access.set_override(workload, level).map_err(|full| ActionError::BadRequest(full.to_string()))?;
        }
        None => {
            if level.is_none() && access_level.is_none() {
                return Err(ActionError::BadRequest("give level= or access=".into()));
            }
            let access_level = access_level.map(|word| parse(word, AccessLevel::NAMES)).transpose()?;
            if let Some(filter) = level {
                log.set(filter).map_err(|error| ActionError::BadRequest(error.to_string()))?;
            }
            if let Some(level) = access_level {
                access.set_level(level);
            }
        }
    }
    Ok(state(log, access))
}

fn parse(word: &str, valid: &str) -> Result<AccessLevel, ActionError> {
    word.parse().map_err(|_| {
        ActionError::BadRequest(format!("access level \"{}\" is not one of: {valid}", word.chars().take(64).collect::<String>()))
    })
}
