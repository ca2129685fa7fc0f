//! What plug-in and agent say to one another: one request and one answer a connection, each a length (u32, big endian) and that many
//! bytes of JSON.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol. Plug-in and agent are updated one after the other: a request of another version is refused by name.
pub const VERSION: u32 = 1;
/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most bytes of a pod's UID.
const MAX_UID: usize = 64;

/// What a plug-in asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub command: Command,
}

/// The question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// A pod has got its network: answered once it may run.
    Add(Attachment),
    /// Whether a pod is as ADD left it.
    Check(Attachment),
    /// A pod's network is about to be taken down.
    Del(Detachment),
    /// Whether the agent can take pods.
    Status,
    /// All attachments of the network that are still valid, by container; what is known of others may go.
    Gc(Vec<Box<str>>),
}

/// A pod's network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod.
    pub pod: PodName,
    /// The runtime's name for the sandbox.
    pub container: Box<str>,
    /// Path of the namespace, as the runtime sees it.
    pub netns: PathBuf,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// A pod's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detachment {
    /// The pod.
    pub pod: PodName,
    /// The runtime's name for the sandbox.
    pub container: Box<str>,
}

/// A pod, as the runtime names it (`CNI_ARGS`).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Box<str>,
    /// `K8S_POD_NAME`.
    pub name: Box<str>,
    /// `K8S_POD_UID`; a runtime older than the variable does not give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Box<str>>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The pod is in the mesh and served.
    Captured,
    /// The pod is not in the mesh, and the kernel knows that.
    Outside,
    /// It is done (what is not about a pod's way in).
    Done,
    /// It is not so, and why.
    Failed(Failure),
}

/// Why not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For the operator.
    pub message: Box<str>,
    /// Whether it may go better later with the same question.
    pub again: bool,
}

/// Whether a pod's UID can be a file's name: letters, digits and `-`.
pub fn is_uid(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_UID && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A message's bytes with its length before them.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message of the plug-in is too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

/// The length that a header tells; an error if it is more than [`MAX_MESSAGE`].
pub fn length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes; at most {MAX_MESSAGE} are taken")));
    }
    Ok(length)
}

/// Reads a message's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a message.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads a message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; length(header)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests;
