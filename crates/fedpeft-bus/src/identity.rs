//! Who we are, as our credentials say. `fedpeft auth` notes a role in them; others say nothing, and their holders
//! see the broker as everybody does.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::BusError;

/// What credentials say of their holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Name, and last token of the inbox prefix.
    pub name: String,
    /// Role.
    pub role: String,
    /// Clients it speaks for.
    clients: Vec<String>,
}

impl Identity {
    /// Subjects of replies begin with this: permissions grant each holder its own.
    pub fn inbox(&self) -> String {
        format!("_INBOX_{}", self.name)
    }

    /// Whether the broker is seen through the gates for clients.
    pub fn is_client(&self) -> bool {
        self.role == "client"
    }

    /// Whether it may act for a client.
    pub fn speaks_for(&self, client: &str) -> bool {
        self.clients.iter().any(|own| own == client)
    }

    /// Whether the role may make streams.
    pub fn makes_streams(&self) -> bool {
        !matches!(self.role.as_str(), "client" | "exporter")
    }
}

/// Reads a credentials file; its text, and the identity that `fedpeft auth` noted in it.
pub(crate) async fn read(path: &Path) -> Result<(String, Option<Identity>), BusError> {
    let fail = |reason: String| BusError::Credentials { path: path.to_owned(), reason };
    let text = tokio::fs::read_to_string(path).await.map_err(|error| fail(error.to_string()))?;
    let identity = token(&text).and_then(parse);
    Ok((text, identity))
}

/// The user's token: the line after the first marker.
fn token(creds: &str) -> Option<&str> {
    creds.lines().skip_while(|line| !line.contains("BEGIN NATS USER JWT")).nth(1).map(str::trim)
}

/// Not verified: the broker does that. A wrong identity gets us nowhere.
fn parse(token: &str) -> Option<Identity> {
    #[derive(Deserialize)]
    struct Claims {
        name: String,
        nats: Nats,
    }
    #[derive(Deserialize)]
    struct Nats {
        #[serde(default)]
        tags: Vec<String>,
    }
    let body = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&body).ok()?;
    let tags = claims.nats.tags;
    let role = tags.iter().find_map(|tag| tag.strip_prefix("role:"))?.to_owned();
    let clients = tags.iter().filter_map(|tag| tag.strip_prefix("client:")).map(str::to_owned).collect();
    let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let named = !claims.name.is_empty() && claims.name.bytes().all(token);
    named.then_some(Identity { name: claims.name, role, clients })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creds(claims: &str) -> String {
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims));
        format!("-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n")
    }

    #[test]
    fn roles_are_found_and_foreign_credentials_have_none() {
        let find = |claims: &str| token(&creds(claims)).and_then(parse);
        let found = find(r#"{"name": "hospital-a", "nats": {"tags": ["client:x", "role:client"]}}"#).unwrap();
        assert_eq!((found.inbox().as_str(), found.is_client()), ("_INBOX_hospital-a", true));
        assert!(found.speaks_for("x") && !found.speaks_for("X"));
        for foreign in
            [r#"{"name": "a", "nats": {}}"#, r#"{"name": "a.>", "nats": {"tags": ["role:x"]}}"#, "x"]
        {
            assert_eq!(find(foreign), None, "{foreign}");
        }
        assert_eq!(token("no markers"), None);
    }
}
