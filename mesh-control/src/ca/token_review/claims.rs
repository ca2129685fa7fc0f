//! What a token says of itself. Unverified: good for refusing early and for naming a reason, never for accepting.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::{ReviewSettings, TokenRefusal};

/// Claims of a JSON Web Token (RFC 7519, 4.1).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audience,
    exp: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Audience::Many(Vec::new())
    }
}

impl Claims {
    /// Of a token in the compact form: three parts in base64url, the second a JSON object.
    pub(super) fn read(token: &str) -> Option<Claims> {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return None };
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// Refuses what no signature could make acceptable.
    pub(super) fn plausible(&self, settings: &ReviewSettings) -> Result<(), TokenRefusal> {
        let ours = |audience: &String| **audience == *settings.audience;
        let meant = match &self.aud {
            Audience::One(one) => ours(one),
            Audience::Many(many) => many.iter().any(ours),
        };
        if !meant {
            return Err(TokenRefusal::Audience(settings.audience.clone()));
        }
        let wanted = username(settings);
        if self.sub != wanted {
            let found: String = self.sub.chars().take(300).collect();
            return Err(TokenRefusal::NotAgent { found: found.into(), wanted: wanted.into() });
        }
        Ok(())
    }

    /// How long it is still valid, by its own word; nothing if it does not say.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        let end = self.exp.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        end.and_then(|end| end.duration_since(now).ok()).unwrap_or_default()
    }

    /// Whether its end is over.
    pub(super) fn expired(&self, now: SystemTime) -> bool {
        self.exp.is_some() && self.left(now).is_zero()
    }
}

/// The agents' service account, as Kubernetes names a user.
pub(super) fn username(settings: &ReviewSettings) -> String {
    format!("system:serviceaccount:{}:{}", settings.namespace, settings.service_account)
}
