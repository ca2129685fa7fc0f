//! `meshctl explain`: would it be allowed, by what, and where would it go. An agent answers, by the code that decides about traffic; any agent
//! knows the whole mesh.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::agent::{OTHER_VERSION, admin};
use crate::cluster::{self, Cluster, Target};
use crate::output::{Colour, Output, paint, printable};

/// About whom and what.
#[derive(clap::Args)]
pub struct Arguments {
    /// The client: a pod or what it belongs to (Deployment, StatefulSet, …), or an address outside.
    #[arg(value_name = "NAMESPACE/NAME|IP")]
    source: String,
    /// The server: a Service, a pod or what it belongs to, an address and port, or a host outside that a ServiceEntry names, as
    /// `https://api.example.com`. Before a name pod/, workload/ or service/ says which is meant of several.
    #[arg(value_name = "NAMESPACE/NAME[:PORT]|IP:PORT|HOST:PORT")]
    destination: String,
    /// Port of the Service or pod.
    #[arg(long)]
    port: Option<u16>,
    /// Method of the request that is asked about; without method, path and header it is the connection.
    #[arg(long)]
    method: Option<String>,
    /// Path of the request, with its query.
    #[arg(long)]
    path: Option<String>,
    /// A header of the request as name:value; again for more. `host` is what was dialled, unless it is given.
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// Server name of a TLS connection.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
}

/// What became of a question, as an exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is allowed.
    Allowed = 0,
    /// It is denied, or there is nowhere for it to go.
    Refused = 1,
    /// It cannot be told.
    Unknown = 2,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Allowed,
    Denied,
    Nowhere,
    Unknown,
}

#[derive(Deserialize)]
struct Explanation {
    verdict: Verdict,
    summary: String,
    source: Party,
    destination: Party,
    request: Option<Request>,
    steps: Vec<Step>,
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Party {
    kind: String,
    name: String,
    pod: Option<String>,
    node: Option<String>,
    identity: Option<String>,
    port: Option<u16>,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    path: String,
    host: String,
}

#[derive(Deserialize, PartialEq, Eq)]
struct Step {
    at: String,
    verdict: Verdict,
    object: Option<Object>,
    reason: String,
    mend: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    namespace: String,
    name: String,
    rule: Option<usize>,
    rule_name: Option<String>,
}

#[derive(Deserialize)]
struct Backend {
    target: String,
    weight: Option<u32>,
    percent: f64,
    steps: Vec<Step>,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    address: String,
    pod: Option<String>,
    node: Option<String>,
    steps: Vec<Step>,
}

/// Asks and shows.
///
/// # Errors
/// The API server's or the agent's: also that it knows no such pod, with names that are like it.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<Answer> {
    let cluster = target.connect().await?;
    let value = admin(&cluster, &any_agent(&cluster).await?, &arguments.page()).await?;
    let explanation = Explanation::deserialize(&value).context(OTHER_VERSION)?;
    output.show(&value, || render(&explanation, output.colours))?;
    Ok(match explanation.verdict {
        Verdict::Allowed => Answer::Allowed,
        Verdict::Denied | Verdict::Nowhere => Answer::Refused,
        Verdict::Unknown => Answer::Unknown,
    })
}

/// One that is ready, if there is one.
async fn any_agent(cluster: &Cluster) -> Result<String> {
    let mut pods = cluster.pods(cluster::AGENT).await?;
    pods.sort_by_key(|pod| !cluster::is_ready(pod));
    let pod = pods.into_iter().next().context("no agent runs: is the mesh installed?")?;
    pod.metadata.name.context("a pod without a name")
}

impl Arguments {
    /// The page that answers.
    fn page(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("from", &self.source).append_pair("to", &self.destination);
        if let Some(port) = self.port {
            query.append_pair("port", &port.to_string());
        }
        for (name, value) in [("method", &self.method), ("path", &self.path), ("sni", &self.sni)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        for header in &self.header {
            query.append_pair("header", header);
        }
        format!("/explain?{}", query.finish())
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        match (self.rule, &self.rule_name) {
            (Some(rule), Some(name)) => write!(f, " rule {rule} ({name})"),
            (Some(rule), None) => write!(f, " rule {rule}"),
            (None, _) => Ok(()),
        }
    }
}

impl Verdict {
    fn word(self) -> (&'static str, Colour) {
        match self {
            Verdict::Allowed => ("ok", Colour::Green),
            Verdict::Denied => ("DENIED", Colour::Red),
            Verdict::Nowhere => ("NOWHERE", Colour::Red),
            Verdict::Unknown => ("OPEN", Colour::Yellow),
        }
    }

    /// The answer as a whole.
    fn title(self) -> &'static str {
        match self {
            Verdict::Allowed => "ALLOWED",
            Verdict::Unknown => "CANNOT TELL",
            other => other.word().0,
        }
    }
}

fn render(explanation: &Explanation, colours: bool) -> String {
    let Explanation { verdict, summary, source, destination, request, steps, backends } = explanation;
    let title = paint(verdict.title(), verdict.word().1, colours);
    let mut text = format!("{title}: {}\n{} → {}", printable(summary), party(source), party(destination));
    if let Some(Request { method, path, host }) = request {
        text += &printable(&format!(", {method} {path} (host {host})"));
    }
    text.push('\n');
    lines(&mut text, "  ", steps, colours);
    for backend in backends {
        let share = match backend.weight {
            Some(weight) => format!(", weight {weight}: {:.1} %", backend.percent).replace(".0 %", " %"),
            None => String::new(),
        };
        text += &format!("  to {}\n", printable(&format!("{}{share}", backend.target)));
        lines(&mut text, "    ", &backend.steps, colours);
        let mut left: &[Endpoint] = &backend.endpoints;
        // Endpoints that follow one another and fare alike have their lines in common.
        while let Some((first, _)) = left.split_first() {
            let alike = left.iter().take_while(|other| other.steps == first.steps).count();
            let (group, rest) = left.split_at_checked(alike).unwrap_or((left, &[]));
            for Endpoint { address, pod, node, .. } in group {
                let pod = pod.as_ref().map(|pod| format!(" {pod}")).unwrap_or_default();
                let node = node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
                text += &format!("    at {}\n", printable(&format!("{address}{pod}{node}")));
            }
            lines(&mut text, "      ", &first.steps, colours);
            left = rest;
        }
    }
    text
}

fn party(party: &Party) -> String {
    let port = party.port.map(|port| format!(":{port}")).unwrap_or_default();
    let more: Vec<&str> = [&party.pod, &party.node, &party.identity].into_iter().filter_map(|text| text.as_deref()).collect();
    let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
    printable(&format!("{} {}{port}{more}", party.kind, party.name))
}

fn lines(text: &mut String, indent: &str, steps: &[Step], colours: bool) {
    for step in steps {
        let (word, colour) = step.verdict.word();
        let padding = " ".repeat(8_usize.saturating_sub(word.len()));
        let object = step.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
        let told = printable(&format!("{:<11}{object}{}", step.at, step.reason));
        *text += &format!("{indent}{}{padding}{told}\n", paint(word, colour, colours));
        if let Some(mend) = &step.mend {
            *text += &format!("{indent}{:19}→ {}\n", "", printable(mend));
        }
    }
}

#[cfg(test)]
mod tests;
