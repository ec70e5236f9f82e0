//! NATS JWTs, version 2: claims in JSON, signed by an nkey (Ed25519), as
//! <https://docs.nats.io/running-a-nats-service/nats_admin/security/jwt> describes and `nats-server` reads them.
//! Only what FedPEFT issues is here.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use data_encoding::BASE32_NOPAD;
use nkeys::KeyPair;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha512_256};

use crate::AuthError;

const VERSION: u32 = 2;
/// No limit, in NATS' way of counting.
pub(crate) const UNLIMITED: i64 = -1;

/// Seconds since the Unix epoch.
pub(crate) type Seconds = u64;

/// Standard claims; the order of fields is that of NATS' own encoder.
#[derive(Debug, Clone, Serialize)]
struct Standard<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<Seconds>,
    #[serde(skip_serializing_if = "str::is_empty")]
    jti: &'a str,
    iat: Seconds,
    iss: &'a str,
    name: &'a str,
    sub: &'a str,
}

#[derive(Serialize)]
struct Signed<'a> {
    #[serde(flatten)]
    standard: Standard<'a>,
    nats: Nats<'a>,
}

#[derive(Serialize)]
struct Nats<'a> {
    #[serde(flatten)]
    body: &'a Body,
    version: u32,
}

/// What a token says beyond its standard claims.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Body {
    Operator(Operator),
    Account(Box<Account>),
    User(User),
}

/// Who vouches for accounts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Operator {
    pub signing_keys: Vec<String>,
    pub system_account: String,
    /// Identity keys sign nothing but their own claims.
    pub strict_signing_key_usage: bool,
}

/// A space of subjects.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Account {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Import>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    pub limits: Limits,
    pub signing_keys: Vec<SigningKey>,
    /// Users by key, with the time up to which what was issued to them is void.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub revocations: BTreeMap<String, Seconds>,
    pub default_permissions: Permissions,
}

/// A service or a stream of another account that is seen here, a service under a local subject.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Import {
    pub name: String,
    pub subject: String,
    pub account: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_subject: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A service or a stream that other accounts may import.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Export {
    pub name: String,
    pub subject: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_type: Option<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Limits {
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    pub imports: i64,
    pub exports: i64,
    pub wildcards: bool,
    pub conn: i64,
    pub leaf: i64,
    pub mem_storage: i64,
    pub disk_storage: i64,
    pub streams: i64,
    pub consumer: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subs: UNLIMITED,
            data: UNLIMITED,
            payload: UNLIMITED,
            imports: UNLIMITED,
            exports: UNLIMITED,
            wildcards: true,
            conn: UNLIMITED,
            leaf: 0,
            mem_storage: 0,
            disk_storage: 0,
            streams: 0,
            consumer: 0,
        }
    }
}

/// A key that signs users of an account: any, or those of one role with the permissions of its template.
#[derive(Debug, Clone)]
pub(crate) enum SigningKey {
    Plain(String),
    Scoped { key: String, role: &'static str, template: Template },
}

impl Serialize for SigningKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Scope<'a> {
            kind: &'static str,
            key: &'a str,
            role: &'static str,
            template: &'a Template,
        }
        match self {
            Self::Plain(key) => serializer.serialize_str(key),
            Self::Scoped { key, role, template } => {
                Scope { kind: "user_scope", key, role, template }.serialize(serializer)
            }
        }
    }
}

/// What every user of a role may do. Subjects may hold `{{name()}}` and `{{tag(x)}}` of the user.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Template {
    #[serde(flatten)]
    pub permissions: Permissions,
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    pub allowed_connection_types: Vec<&'static str>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Permissions {
    #[serde(rename = "pub")]
    pub publish: Allow,
    #[serde(rename = "sub")]
    pub subscribe: Allow,
    /// Leave to answer requests, wherever the reply is wanted.
    #[serde(rename = "resp", skip_serializing_if = "Option::is_none")]
    pub responses: Option<Responses>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Allow {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Responses {
    /// Replies to one request.
    pub max: i64,
    /// Nanoseconds after the request.
    pub ttl: u64,
}

/// A holder of credentials. Of a scoped key it has no permissions of its own, and NATS refuses it if it claims any.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct User {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    pub issuer_account: String,
    #[serde(rename = "pub")]
    pub publish: Allow,
    #[serde(rename = "sub")]
    pub subscribe: Allow,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub limits: Option<UserLimits>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct UserLimits {
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
}

/// A token about `subject`, called `name`, signed by `issuer`.
pub(crate) fn sign(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    issued: Seconds,
    expires: Option<Seconds>,
    body: &Body,
) -> Result<String, AuthError> {
    let issuer_key = issuer.public_key();
    let standard = Standard { exp: expires, jti: "", iat: issued, iss: &issuer_key, name, sub: subject };
    // The token's id is a hash of its standard claims without the id.
    let id = BASE32_NOPAD.encode(&Sha512_256::digest(json(&standard)?));
    let signed =
        Signed { standard: Standard { jti: &id, ..standard }, nats: Nats { body, version: VERSION } };
    let header = URL_SAFE_NO_PAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let unsigned = format!("{header}.{}", URL_SAFE_NO_PAD.encode(json(&signed)?));
    let signature = issuer.sign(unsigned.as_bytes()).map_err(AuthError::key)?;
    Ok(format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, AuthError> {
    serde_json::to_vec(value).map_err(|error| AuthError::Encode(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_signed_over_what_they_say() {
        let (issuer, user) = (KeyPair::new_account(), KeyPair::new_user());
        let body = Body::User(User {
            tags: vec!["client:a".into()],
            issuer_account: "A".into(),
            publish: Allow::default(),
            subscribe: Allow::default(),
            limits: None,
        });
        let token = sign(&issuer, &user.public_key(), "a", 7, Some(9), &body).unwrap();
        let (unsigned, signature) = token.rsplit_once('.').unwrap();
        issuer.verify(unsigned.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(unsigned.split_once('.').unwrap().1).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!((&claims["iss"], &claims["exp"]), (&issuer.public_key().into(), &9.into()));
        assert_eq!((&claims["nats"]["type"], &claims["nats"]["version"]), (&"user".into(), &2.into()));
        assert_eq!(claims["jti"].as_str().unwrap().len(), 52);
        // Permissions of its own would make the user of a scoped key invalid.
        assert!(claims["nats"].get("subs").is_none() && claims["nats"]["pub"] == serde_json::json!({}));
    }
}
