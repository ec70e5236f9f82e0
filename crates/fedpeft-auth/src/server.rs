//! The configuration of `nats-server`: `nats.conf` is the operator's to edit, `accounts.conf`, which it includes,
//! is ours to rewrite. Neither holds a secret.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What the configuration says beside the accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Address for clients, `host:port`.
    pub listen: String,
    /// Folder of the JetStream store.
    pub store: PathBuf,
    /// Most bytes of all streams on disk; three quarters of what is free where absent.
    pub max_store: Option<u64>,
    /// Encryption.
    pub tls: Option<ServerTls>,
}

/// How the server encrypts, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerTls {
    /// Its certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities whose certificates clients must show (mTLS); they need none where absent.
    pub client_ca: Option<PathBuf>,
}

/// `nats.conf`
pub(crate) fn main(settings: &Settings) -> String {
    let mut text = format!(
        "# Made by `fedpeft auth init`, yours to edit.\n\
         # Start the server with: nats-server --config THIS_FILE\n\n\
         listen: {}\n\njetstream {{\n  store_dir: {}\n",
        quoted(&settings.listen),
        quoted(&settings.store.display().to_string()),
    );
    if let Some(most) = settings.max_store {
        text += &format!("  max_file_store: {most}\n");
    }
    text += "}\n\n";
    if let Some(tls) = &settings.tls {
        let file = |name: &str, path: &Path| format!("  {name}: {}\n", quoted(&path.display().to_string()));
        text += "tls {\n";
        text += &file("cert_file", &tls.cert);
        text += &file("key_file", &tls.key);
        if let Some(ca) = &tls.client_ca {
            text += &file("ca_file", ca);
            text += "  verify: true\n";
        }
        text += "  min_version: \"1.2\"\n  timeout: 5\n}\n\n";
    }
    text + "# Who may do what. `fedpeft auth` rewrites it.\ninclude \"accounts.conf\"\n"
}

/// `accounts.conf`: accounts that the server begins with. Later ones are pushed to it and kept in `resolver`.
pub(crate) fn accounts(
    operator: &str,
    system: &str,
    accounts: &[(String, String)],
    resolver: &Path,
) -> String {
    let preload: String = accounts.iter().map(|(key, token)| format!("  {key}: {token}\n")).collect();
    format!(
        "# Written by `fedpeft auth`: do not edit.\n\n\
         operator: {operator}\n\nsystem_account: {system}\n\n\
         resolver {{\n  type: full\n  dir: {}\n  allow_delete: false\n  interval: \"2m\"\n}}\n\n\
         resolver_preload {{\n{preload}}}\n",
        quoted(&resolver.display().to_string()),
    )
}

/// A string of the server's configuration language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
