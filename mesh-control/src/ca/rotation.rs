//! Change of the root, in four steps that an operator asks for one by one: prepare, activate, taint, revoke (SPIRE's words for them). Pure: from
//! what a Secret holds to what it holds next.
//!
//! | step     | roots that agents trust | signs | then |
//! |----------|-------------------------|-------|------|
//! | prepare  | old, new                | old   | every agent learns the new root |
//! | activate | old, new                | new   | certificates below both are good |
//! | taint    | new, old                | new   | the roots changed, so every agent renews what it has |
//! | revoke   | new                     | new   | nobody trusts the old root any more |
//!
//! A prepared root that has signed nothing yet can be given up (abort). The old key is gone once the new one signs: nobody can steal it then.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::ByteString;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::hierarchy::{self, HierarchyError, PemText, Signer, make_root};
use super::keeper::PROJECTION;
use super::secret::{self, TLS};
use crate::files;

/// How long it takes at most until every replica signs with what the Secret holds: a few looks at it.
pub const SETTLE: Duration = Duration::from_secs(60);

/// Keys of the Secret beside those of the authority in force.
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.crt";
const STATE: &str = "rotation";

/// What a Secret holds.
pub type Data = BTreeMap<String, ByteString>;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Make a root and have it trusted.
    Prepare,
    /// Sign below it.
    Activate,
    /// Have everything renewed that is below the old one.
    Taint,
    /// Trust the old one no more.
    Revoke,
    /// Give up what was prepared.
    Abort,
}

impl Step {
    const ALL: [(&'static str, Step); 5] = [
        ("prepare", Step::Prepare),
        ("activate", Step::Activate),
        ("taint", Step::Taint),
        ("revoke", Step::Revoke),
        ("abort", Step::Abort),
    ];
}

impl FromStr for Step {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Step::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, step)| step).ok_or(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Step::ALL.into_iter().find(|(_, step)| step == self).map_or("?", |(name, _)| name))
    }
}

/// How far a rotation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// There is one root, or the user's own.
    #[default]
    Idle,
    /// A new root is trusted beside it.
    Prepared,
    /// The new root signs.
    Activated,
    /// All is renewed below the new root.
    Tainted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Idle => "idle",
            Phase::Prepared => "prepared",
            Phase::Activated => "activated",
            Phase::Tainted => "tainted",
        })
    }
}

/// Where a rotation stands: kept in the Secret, shown at the ConfigMap.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// How far it is.
    pub phase: Phase,
    /// Since when, Unix seconds.
    pub since: u64,
    /// Name of the request that brought it there; the same request does nothing a second time.
    pub request: String,
    /// Fingerprint of the root that goes, in lower-case hexadecimal digits of its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// Fingerprint of the root that comes; of the one in force after the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl State {
    /// How long the roots of now have been the Secret's, if a rotation brought them there.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let since = UNIX_EPOCH + Duration::from_secs(self.since);
        (self.since > 0).then(|| now.duration_since(since).unwrap_or_default())
    }

    /// Whether a rotation made that certificate the signing one: then agents have known it for long enough.
    pub fn activated(&self, signer: &CertificateDer<'_>) -> bool {
        let signs = matches!(self.phase, Phase::Activated | Phase::Tainted | Phase::Idle);
        signs && self.new.as_deref() == Some(&fingerprint(signer))
    }
}

/// Why a step is not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not its turn.
    #[error("{step} does not follow: the rotation is {phase}; what follows is {}", next(*phase))]
    Order {
        /// The step.
        step: Step,
        /// How far it is.
        phase: Phase,
    },
    /// Somebody may not have followed yet.
    #[error("{step} is too early by {} s: {why}", left.as_secs().max(1))]
    TooSoon {
        /// The step.
        step: Step,
        /// How long to wait.
        left: Duration,
        /// What for.
        why: &'static str,
    },
    /// Somebody else keeps the authority.
    #[error(
        "{0} is not the mesh's own to change: rotate where it comes from (new root beside the old first, then the new signer, then the old root away)"
    )]
    NotOurs(String),
    /// The Secret can't be understood.
    #[error(transparent)]
    Unreadable(#[from] HierarchyError),
}

const fn next(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "prepare",
        Phase::Prepared => "activate, or abort",
        Phase::Activated => "taint",
        Phase::Tainted => "revoke",
    }
}

/// Where a rotation stands by what a Secret holds. `name` is for messages.
///
/// # Errors
/// Its note is not one.
pub fn state(name: &str, data: &Data) -> Result<State, HierarchyError> {
    let Some(noted) = data.get(STATE).filter(|noted| !noted.0.is_empty()) else { return Ok(State::default()) };
    let wrong = |error: serde_json::Error| {
        let message = format!("is no note of a rotation ({error}): delete this key if none is under way");
        HierarchyError::Content { path: format!("Secret {name}, key {STATE}").into(), message }
    };
    serde_json::from_slice(&noted.0).map_err(wrong)
}

/// What the Secret `name` holds after a step, and where the rotation stands then.
///
/// # Errors
/// Nothing is changed, and why.
pub fn step(name: &str, data: &Data, step: Step, request: &str, now: SystemTime) -> Result<(Data, State), Refused> {
    let before = state(name, data)?;
    let since = UNIX_EPOCH + Duration::from_secs(before.since);
    let wait = |time: Duration, why| match time.checked_sub(now.duration_since(since).unwrap_or_default()) {
        Some(left) if !left.is_zero() => Err(Refused::TooSoon { step, left, why }),
        _ => Ok(()),
    };
    let own = Own::read(name, data)?;
    let mut data = data.clone();
    let (phase, old, new) = match (step, before.phase) {
        (Step::Prepare, Phase::Idle) => {
            let made = make_root(now).map_err(HierarchyError::from)?;
            let roots: Vec<_> = own.roots.iter().chain([&made.certificate]).collect();
            put(&mut data, TLS.roots, &bundle(&roots));
            put(&mut data, NEXT_CERTIFICATE, &bundle(&[&made.certificate]));
            put(&mut data, NEXT_KEY, &made.key.serialize_pem());
            (Phase::Prepared, Some(fingerprint(&own.signer.certificate)), Some(fingerprint(&made.certificate)))
        }
        (Step::Activate, Phase::Prepared) => {
            wait(PROJECTION, "agents may not know the new root yet")?;
            let coming = one(name, &data, NEXT_CERTIFICATE)?;
            for (from, to) in [(NEXT_CERTIFICATE, TLS.certificate), (NEXT_KEY, TLS.key)] {
                let value = data.remove(from).unwrap_or_default();
                data.insert(to.to_owned(), value);
            }
            put(&mut data, PREVIOUS, &bundle(&[&own.signer.certificate]));
            // What was kept must be an authority.
            Own::read(name, &data)?;
            (Phase::Activated, Some(fingerprint(&own.signer.certificate)), Some(fingerprint(&coming)))
        }
        (Step::Taint, Phase::Activated) => {
            wait(SETTLE, "a replica may sign below the old root still")?;
            let previous = one(name, &data, PREVIOUS)?;
            let others = own.roots.iter().filter(|root| **root != own.signer.certificate && **root != previous);
            let roots: Vec<_> = [&own.signer.certificate].into_iter().chain(others).chain([&previous]).collect();
            put(&mut data, TLS.roots, &bundle(&roots));
            (Phase::Tainted, before.old, before.new)
        }
        (Step::Revoke, Phase::Tainted) => {
            wait(PROJECTION, "agents may not have renewed all certificates yet")?;
            let previous = one(name, &data, PREVIOUS)?;
            put(&mut data, TLS.roots, &bundle(&own.without(&previous)));
            data.remove(PREVIOUS);
            (Phase::Idle, None, Some(fingerprint(&own.signer.certificate)))
        }
        (Step::Abort, Phase::Prepared) => {
            let prepared = one(name, &data, NEXT_CERTIFICATE)?;
            put(&mut data, TLS.roots, &bundle(&own.without(&prepared)));
            data.remove(NEXT_CERTIFICATE);
            data.remove(NEXT_KEY);
            (Phase::Idle, None, Some(fingerprint(&own.signer.certificate)))
        }
        (step, phase) => return Err(Refused::Order { step, phase }),
    };
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let after = State { phase, since, request: request.to_owned(), old, new };
    put(&mut data, STATE, &serde_json::to_string(&after).unwrap_or_default());
    Ok((data, after))
}

/// A root of ours, as it is kept.
struct Own {
    signer: Signer,
    roots: Vec<CertificateDer<'static>>,
}

impl Own {
    fn read(name: &str, data: &Data) -> Result<Own, Refused> {
        let ours = || Refused::NotOurs(format!("the authority in Secret {name}"));
        let pem = secret::read(name, data)?.ok_or_else(ours)?;
        let given = hierarchy::given(&pem)?;
        // An intermediate of somebody else's, or the form of Istio's cacerts.
        if !given.may_have_intermediate || !data.contains_key(TLS.certificate) {
            return Err(ours());
        }
        Ok(Own { signer: given.signer, roots: given.roots })
    }

    fn without(&self, root: &CertificateDer<'_>) -> Vec<&CertificateDer<'static>> {
        self.roots.iter().filter(|other| *other != root).collect()
    }
}

fn one(name: &str, data: &Data, key: &str) -> Result<CertificateDer<'static>, HierarchyError> {
    let place = format!("Secret {name}, key {key}");
    let text = data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned()).unwrap_or_default();
    Ok(hierarchy::certificates(&PemText { place: place.into(), text })?.swap_remove(0))
}

fn put(data: &mut Data, key: &str, text: &str) {
    data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
}

fn bundle(certificates: &[&CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| files::pem("CERTIFICATE", certificate)).collect()
}

/// SHA-256 of a certificate, in lower-case hexadecimal digits.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    digest(&SHA256, certificate).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
