//! Key sets of issuers (RFC 7517).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;
use serde_json::Value;

/// Largest key set that is read, in bytes.
pub const MAX_JWKS: usize = 1 << 20;
/// Largest key set after [`reduce`], in bytes.
pub const MAX_REDUCED: usize = 128 * 1024;
/// How many keys of a set are tried.
const MAX_KEYS: usize = 64;

/// An issuer's public keys, parsed once.
#[derive(Clone, Debug)]
pub struct Jwks {
    keys: Vec<Key>,
    /// What was left out, and why.
    skipped: Vec<String>,
}

/// Why a text is no [`Jwks`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JwksError {
    /// It is larger than `MAX_JWKS`.
    #[error("the key set has more than {MAX_JWKS} bytes")]
    TooLong,
    /// It is no JSON of the form `{"keys": […]}`.
    #[error("it is no JSON Web Key Set: {0}")]
    Malformed(String),
    /// It is larger than `MAX_REDUCED` though nothing is in it but keys.
    #[error("the keys that can be used have more than {MAX_REDUCED} bytes")]
    TooMuch,
    /// None of its keys can be used.
    #[error("none of its keys can be used: {0}")]
    NoKey(String),
}

#[derive(Clone, Debug)]
struct Key {
    id: Option<String>,
    /// What it may be used with.
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

#[derive(Deserialize)]
struct SetWire {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct KeyWire {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Members of a key that its use depends on.
const MEMBERS: [&str; 10] = ["kty", "kid", "alg", "use", "key_ops", "crv", "n", "e", "x", "y"];

/// The same keys without what nobody reads: certificates, private parts that do not belong there, keys of other uses. Two sets that decide
/// alike are mostly the same text then.
pub fn reduce(text: &[u8]) -> Result<String, JwksError> {
    let set = read(text)?;
    let (mut kept, mut skipped) = (Vec::new(), Vec::new());
    for (i, value) in set.keys.into_iter().enumerate().take(MAX_KEYS) {
        match key(value.clone()) {
            Ok(_) => kept.push(value),
            Err(why) => skipped.push(format!("keys[{i}]: {why}")),
        }
    }
    if kept.is_empty() {
        return Err(JwksError::NoKey(skipped.join("; ")));
    }
    for members in kept.iter_mut().filter_map(Value::as_object_mut) {
        members.retain(|name, _| MEMBERS.contains(&name.as_str()));
    }
    let text = serde_json::json!({ "keys": kept }).to_string();
    if text.len() > MAX_REDUCED { Err(JwksError::TooMuch) } else { Ok(text) }
}

/// What is said of the form names no content: it may be that of something else than a key set.
fn read(text: &[u8]) -> Result<SetWire, JwksError> {
    if text.len() > MAX_JWKS {
        return Err(JwksError::TooLong);
    }
    serde_json::from_slice(text).map_err(|error| {
        let what = if error.is_data() { "it has not the form {\"keys\": [{…}]}" } else { "it is not JSON" };
        JwksError::Malformed(format!("{what} (line {}, column {})", error.line(), error.column()))
    })
}

const RSA: &[Algorithm] = &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

impl Jwks {
    /// From JSON. A key that cannot be used to check signatures (of another type or use, or malformed) is left out.
    pub fn parse(text: &[u8]) -> Result<Jwks, JwksError> {
        // Tells the library which of its providers is meant, should another crate have switched on a second one; once is enough.
        let _ = crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let set = read(text)?;
        let mut jwks = Jwks { keys: Vec::new(), skipped: Vec::new() };
        for (i, value) in set.keys.into_iter().enumerate() {
            let key = if i < MAX_KEYS { key(value) } else { Err("there are too many keys before it".into()) };
            match key {
                Ok(key) => jwks.keys.push(key),
                Err(why) => jwks.skipped.push(format!("keys[{i}]: {why}")),
            }
        }
        if jwks.keys.is_empty() { Err(JwksError::NoKey(jwks.skipped.join("; "))) } else { Ok(jwks) }
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that were left out, and why, for the log.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Whether one of the keys made the signature (base64url): those with the token's `kid`, or any where none has it.
    pub(super) fn verify(&self, algorithm: Algorithm, id: Option<&str>, signed: &[u8], signature: &str) -> bool {
        let named = |key: &&Key| id.is_some() && key.id.as_deref() == id;
        let any = !self.keys.iter().any(|key| named(&key));
        let candidates = self.keys.iter().filter(|key| (any || named(key)) && key.algorithms.contains(&algorithm));
        let mut made = candidates.filter(|key| crypto::verify(signature, signed, &key.key, algorithm).is_ok_and(|made| made));
        made.next().is_some()
    }
}

fn key(value: Value) -> Result<Key, String> {
    let wire: KeyWire = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if wire.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err("it is not for signatures (`use`)".into());
    }
    if wire.key_ops.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("it is not for checking signatures (`key_ops`)".into());
    }
    let bytes = |field: Option<&String>, name: &str| {
        let text = field.ok_or_else(|| format!("`{name}` is missing"))?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| format!("`{name}` is not base64url"))
    };
    let (family, key): (&'static [Algorithm], _) = match (wire.kty.as_str(), wire.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (bytes(wire.n.as_ref(), "n")?, bytes(wire.e.as_ref(), "e")?);
            let bits = n.iter().skip_while(|byte| **byte == 0).count() * 8;
            if !(2048..=8192).contains(&bits) {
                return Err(format!("an RSA key of {bits} bits is not accepted: 2048 to 8192 are"));
            }
            (RSA, DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let (family, length): (&'static [Algorithm], _) =
                if curve == "P-256" { (&[Algorithm::ES256], 32) } else { (&[Algorithm::ES384], 48) };
            let (x, y) = (bytes(wire.x.as_ref(), "x")?, bytes(wire.y.as_ref(), "y")?);
            if x.len() != length || y.len() != length {
                return Err(format!("the coordinates of a {curve} key have {length} bytes"));
            }
            (family, DecodingKey::from_ec_der(&[&[4][..], &x, &y].concat()))
        }
        ("OKP", Some("Ed25519")) => {
            let x = bytes(wire.x.as_ref(), "x")?;
            if x.len() != 32 {
                return Err("an Ed25519 key has 32 bytes".into());
            }
            (&[Algorithm::EdDSA], DecodingKey::from_ed_der(&x))
        }
        (kind, curve) => return Err(format!("{kind} {} is not accepted", curve.unwrap_or_default())),
    };
    let algorithms = match wire.alg {
        None => family,
        Some(name) => {
            let one = name.parse::<Algorithm>().ok().and_then(|algorithm| family.iter().position(|known| *known == algorithm));
            one.and_then(|at| family.get(at..=at)).ok_or_else(|| format!("its `alg` {name} is not one of its type that is accepted"))?
        }
    };
    Ok(Key { id: wire.kid, algorithms, key })
}
