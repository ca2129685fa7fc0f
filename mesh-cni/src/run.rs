//! One invocation of the plug-in.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{AskError, ask, ask_until};
use crate::config::{Call, CniError, NetConf, Unreachable, VERSIONS};
use crate::protocol::{Answer, Attachment, Command, Detachment};

/// How long a DEL, CHECK, STATUS or GC may take: none of them waits for a pod.
const SHORT: Duration = Duration::from_secs(5);

/// Does what the runtime asks, and returns what to print on standard output.
pub fn run(get: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<String, CniError> {
    let command = get("CNI_COMMAND").unwrap_or_default();
    match command.as_str() {
        "VERSION" => Ok(versions(input)),
        "ADD" => add(&NetConf::parse(input)?, &Call::read(get)?),
        "CHECK" => check(&NetConf::parse(input)?, &Call::read(get)?),
        "DEL" => {
            del(input, get);
            Ok(String::new())
        }
        "STATUS" => status(&NetConf::parse(input)?),
        "GC" => gc(&NetConf::parse(input)?),
        "" => Err(CniError::new(CniError::ENVIRONMENT, "CNI_COMMAND is not set: this program is run by a container runtime")),
        other => Err(CniError::new(CniError::ENVIRONMENT, format!("CNI_COMMAND \"{other}\" is not known"))),
    }
}

/// An error as the runtime reads it.
pub fn print_error(error: &CniError, input: &[u8]) -> String {
    let version = version_of(input).unwrap_or_else(|| VERSIONS.last().copied().unwrap_or_default().into());
    json!({ "cniVersion": version, "code": error.code, "msg": format!("nodemesh: {}", error.message) }).to_string()
}

fn version_of(input: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(input).ok()?;
    Some(value.get("cniVersion")?.as_str()?.to_owned())
}

fn versions(input: &[u8]) -> String {
    let own = || VERSIONS.last().copied().unwrap_or_default().to_owned();
    json!({ "cniVersion": version_of(input).unwrap_or_else(own), "supportedVersions": VERSIONS }).to_string()
}

fn attachment(conf: &NetConf, call: &Call) -> Result<Option<Attachment>, CniError> {
    let Some(pod) = call.pod.clone() else { return Ok(None) };
    let netns = call.netns.clone().ok_or_else(|| CniError::new(CniError::ENVIRONMENT, "CNI_NETNS is not set"))?;
    Ok(Some(Attachment { pod, container: call.container.clone(), netns, addresses: conf.addresses(&call.ifname)? }))
}

fn add(conf: &NetConf, call: &Call) -> Result<String, CniError> {
    let result = conf.prev_result()?.get().to_owned();
    let socket = conf.socket()?;
    // A container that is no pod of Kubernetes has no identity to give it; what it connects to is judged by the rule for unknown ones.
    let Some(attachment) = attachment(conf, call)? else { return Ok(result) };
    let pod = attachment.pod.clone();
    let deadline = Instant::now() + conf.wait();
    match ask_until(socket, &Command::Add(attachment), deadline) {
        Ok(Answer::Captured | Answer::Outside) => Ok(result),
        Ok(answer) => Err(refused(&format!("pod {pod} is held"), answer)),
        Err(AskError::Unreachable { .. }) if conf.on_unreachable == Unreachable::AllowUnmeshed => Ok(result),
        Err(error) => Err(CniError::new(CniError::TRY_AGAIN, format!("pod {pod} is held: {error}; see the agent's log on this node"))),
    }
}

fn check(conf: &NetConf, call: &Call) -> Result<String, CniError> {
    let socket = conf.socket()?;
    let Some(attachment) = attachment(conf, call)? else { return Ok(String::new()) };
    let pod = attachment.pod.clone();
    match ask(socket, Command::Check(attachment), Instant::now() + SHORT) {
        Ok(Answer::Captured | Answer::Outside) => Ok(String::new()),
        Ok(answer) => Err(refused(&format!("pod {pod} is not as it was set up"), answer)),
        Err(AskError::Unreachable { .. }) if conf.on_unreachable == Unreachable::AllowUnmeshed => Ok(String::new()),
        Err(error) => Err(CniError::new(CniError::TRY_AGAIN, error.to_string())),
    }
}

/// Never fails: a pod's end must not depend on the mesh, and the agent sees by itself that a namespace is gone.
fn del(input: &[u8], get: impl Fn(&str) -> Option<String>) {
    let asked = || -> Option<()> {
        let conf = NetConf::parse(input).ok()?;
        let call = Call::read(get).ok()?;
        let detachment = Detachment { pod: call.pod?, container: call.container };
        ask(conf.socket().ok()?, Command::Del(detachment), Instant::now() + SHORT).ok().map(drop)
    };
    asked();
}

fn status(conf: &NetConf) -> Result<String, CniError> {
    match ask(conf.socket()?, Command::Status, Instant::now() + SHORT) {
        Ok(Answer::Failed(failure)) => Err(CniError::new(CniError::NOT_AVAILABLE, failure.message)),
        Ok(_) => Ok(String::new()),
        Err(_) if conf.on_unreachable == Unreachable::AllowUnmeshed => Ok(String::new()),
        Err(error) => Err(CniError::new(CniError::NOT_AVAILABLE, error.to_string())),
    }
}

fn gc(conf: &NetConf) -> Result<String, CniError> {
    let valid = conf.valid_attachments.iter().map(|attachment| attachment.container_id.clone()).collect();
    match ask(conf.socket()?, Command::Gc(valid), Instant::now() + SHORT) {
        Ok(Answer::Failed(failure)) => Err(CniError::new(CniError::TRY_AGAIN, failure.message)),
        Ok(_) => Ok(String::new()),
        Err(error) => Err(CniError::new(CniError::TRY_AGAIN, error.to_string())),
    }
}

fn refused(what: &str, answer: Answer) -> CniError {
    match answer {
        Answer::Failed(failure) => {
            let code = if failure.again { CniError::TRY_AGAIN } else { CniError::REFUSED };
            CniError::new(code, format!("{what}: {}", failure.message))
        }
        other => CniError::new(CniError::REFUSED, format!("{what}: the agent gave an answer that does not fit, {other:?}")),
    }
}

#[cfg(test)]
mod tests;
