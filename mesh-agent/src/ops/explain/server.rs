//! What the policies of an endpoint's pod say.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use mesh_model::jwt::{FixedKeys, KeyRing};
use mesh_model::policy::http::asks_http;
use mesh_model::policy::request_authentication::KeyLocation;
use mesh_model::policy::{Action, SetInterner};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::find::{full_name, some};
use super::hop::Hop;
use super::question::Question;
use super::{At, Endpoint, Object, Step, Verdict, value};
use crate::conn::ServerAddr;
use crate::inbound::judge;
use crate::outcome::{DenyReason, Outcome};
use crate::policy::decide::decide_opening;
use crate::policy::{KeyStore, Peer, Permit, Transport, WorkloadPolicy, decide};

/// An endpoint that is reached, and what its policies then say.
pub(super) fn endpoint(snapshot: &Snapshot, hop: Hop<'_>, request: Option<&Parts>, question: &Question) -> Endpoint {
    let Hop { address, workload, encryption, reason, judged } = hop;
    let mut steps = vec![Step::good(At::Encryption, format!("{}: {reason}", encryption.words()))];
    match (workload, judged) {
        (Some(workload), Some((peer, transport))) => {
            let server = Server { snapshot, workload, address: ServerAddr(address), peer, transport, keys: &question.keys };
            server.judge(request, question.now, &mut steps);
        }
        _ => steps.push(Step::good(At::Policy, "no policy of the mesh holds on this way")),
    }
    Endpoint { encryption: Some(encryption), ..with(address, workload.map(|workload| &**workload), steps) }
}

/// An endpoint that is not reached.
pub(super) fn unreachable(snapshot: &Snapshot, address: SocketAddr, outcome: &Outcome, answered: bool) -> Endpoint {
    let workload = snapshot.workload_at(address.ip()).map(|workload| &**workload);
    with(address, workload, vec![Step::failed(At::Encryption, outcome, answered)])
}

fn with(address: SocketAddr, workload: Option<&Workload>, steps: Vec<Step>) -> Endpoint {
    let verdict = value::chain(&steps, std::iter::empty());
    let node = workload.and_then(|workload| some(&workload.node));
    Endpoint { address, pod: workload.map(full_name), node, encryption: None, verdict, steps }
}

struct Server<'s> {
    snapshot: &'s Snapshot,
    workload: &'s Workload,
    address: ServerAddr,
    peer: Peer,
    transport: Transport,
    keys: &'s KeyStore,
}

impl Server<'_> {
    fn judge(&self, request: Option<&Parts>, now: u64, steps: &mut Vec<Step>) {
        let policy = WorkloadPolicy::of(self.snapshot, self.workload, &mut SetInterner::default()).keyed(&|place| self.ring(place));
        if !policy.asks_http() {
            steps.push(self.whole(&policy).unwrap_or_else(|outcome| self.denied(&outcome, false)));
            return;
        }
        if let Err(denial) = decide_opening(&policy, &self.peer, self.address, self.transport) {
            steps.push(self.denied(&judge::denied(denial), false));
            return;
        }
        let who = format!("HTTP is taken apart by the server's agent: {} it{}", self.askers(), self.issuers());
        match request {
            Some(request) => {
                steps.push(Step::good(At::Protocol, who));
                let judged = judge::request(&policy, &self.peer, self.address, self.transport, &mut request.clone(), now);
                steps.push(match judged {
                    Ok(permit) => allowed(&permit),
                    Err(outcome) => self.denied(&outcome, true),
                });
            }
            None => {
                let whole = match self.whole(&policy) {
                    Ok(_) => "is allowed".to_owned(),
                    Err(outcome) => format!("is refused: {outcome}"),
                };
                let reason = format!("{who}, so each request is judged by itself, and what is no HTTP {whole}");
                steps.push(Step::unknown(At::Policy, reason).mend("give --method and --path to ask about a request"));
            }
        }
    }

    fn whole(&self, policy: &WorkloadPolicy) -> Result<Step, Outcome> {
        decide(policy, &self.peer, self.address, self.transport).map(|permit| allowed(&permit)).map_err(judge::denied)
    }

    /// With the policies that could have allowed it, where it is for want of one.
    fn denied(&self, outcome: &Outcome, answered: bool) -> Step {
        let step = Step::failed(At::Policy, outcome, answered);
        if !matches!(outcome, Outcome::PolicyDenied { reason: DenyReason::NoAllowPolicy, .. }) {
            return step;
        }
        let effective = self.snapshot.policies_for(self.workload);
        let allows = effective.policies.iter().filter(|policy| policy.action == Action::Allow && !policy.dry_run);
        let names: Vec<String> = allows.map(|policy| policy.name.to_string()).collect();
        Step { reason: format!("{}; ALLOW policies of the pod: {}", step.reason, names.join(", ")), ..step }
    }

    /// The keys of a place, if this agent has them.
    fn ring(&self, place: &KeyLocation) -> Arc<dyn KeyRing> {
        match self.keys.find(place) {
            Some(slot) => slot,
            None => {
                let why = format!("no policy of this node's pods needs them; ask the agent of node {}", self.workload.node);
                Arc::new(FixedKeys::Err(why.into()))
            }
        }
    }

    /// By which keys tokens are judged that do not stand in the policies.
    fn issuers(&self) -> String {
        let policies = self.snapshot.authentication_for(self.workload);
        let rules = policies.iter().flat_map(|policy| &policy.rules);
        let said = rules.filter_map(|rule| {
            let place = rule.location()?;
            Some(match self.ring(&place).keys() {
                Ok(keys) => format!("; tokens of {} are judged by the keys of {place}, {} of them", rule.issuer, keys.len()),
                Err(why) => format!("; the keys of {place}, for tokens of {}, are not here: {why}", rule.issuer),
            })
        });
        said.collect()
    }

    /// Who asks for HTTP.
    fn askers(&self) -> String {
        let effective = self.snapshot.policies_for(self.workload);
        let policies = effective.policies.iter().filter(|policy| asks_http(policy)).map(|policy| ("AuthorizationPolicy", &policy.name));
        let tokens = self.snapshot.authentication_for(self.workload);
        let tokens = tokens.iter().map(|policy| ("RequestAuthentication", &policy.name));
        let names: Vec<String> = policies.chain(tokens).map(|(kind, name)| format!("{kind} {name}")).collect();
        let ask = if names.len() == 1 { "asks for" } else { "ask for" };
        format!("{} {ask}", names.join(", "))
    }
}

/// What a permit says; itself it goes no further.
fn allowed(permit: &Permit) -> Step {
    let step = match permit.policy() {
        Some(policy) => {
            Step::good(At::Policy, "an ALLOW policy matches, and no DENY policy").by(Object::new("AuthorizationPolicy", policy))
        }
        None => Step::good(At::Policy, "no ALLOW policy is about the pod, and no DENY policy matches"),
    };
    let audited = permit.audited().map(|policy| format!("; AUDIT policy {policy} notes it"));
    let dry_run = permit.dry_run().map(|dry_run| format!("; {dry_run}"));
    let reason = format!("{}{}{}", step.reason, audited.unwrap_or_default(), dry_run.unwrap_or_default());
    Step { reason, verdict: Verdict::Allowed, ..step }
}
