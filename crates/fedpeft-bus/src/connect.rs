//! The connection.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::watch;

use fedpeft_protocol::{ClientId, subject};

use crate::{
    BusError, Tls,
    identity::{self, Identity},
    tls,
};

/// How to reach the broker.
#[derive(Debug, Clone, Default)]
pub struct BusConfig {
    /// Address, `nats://host:port` or `tls://host:port`; several may be joined by commas.
    pub server: String,
    /// Credentials file, as `nsc` writes it.
    pub creds: Option<PathBuf>,
    /// Encryption.
    pub tls: Tls,
    /// Name of the connection, shown by the broker's monitoring.
    pub name: String,
}

/// A connection to the broker. Clones share it.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) js: jetstream::Context,
    pub(crate) server: Arc<str>,
    /// Who we are, where `fedpeft auth` issued our credentials.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Counts connections: readers replace their consumers as soon as it changes, for a consumer that was
    /// open over a reconnect may be gone and say so only by its silence.
    pub(crate) connections: watch::Receiver<u64>,
    /// The last thing that the broker forbade.
    forbidden: watch::Receiver<String>,
}

/// A broker that accepts the connection but says nothing is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to reconnect: short, for a round's deadline keeps running meanwhile.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

impl Bus {
    /// Connects, or says in one line why not. Once connected, a lost connection is restored for ever.
    pub async fn connect(config: &BusConfig) -> Result<Self, BusError> {
        let (count, connections) = watch::channel(0);
        let (forbid, forbidden) = watch::channel(String::new());
        let mut options = ConnectOptions::new()
            .name(&config.name)
            .connection_timeout(CONNECT_TIMEOUT)
            .reconnect_delay_callback(|attempt| {
                let doubling = Duration::from_millis(50 << attempt.min(5));
                doubling.min(MAX_RECONNECT_DELAY)
            })
            .event_callback(move |event| {
                log(&event);
                match event {
                    Event::Connected => count.send_modify(|count| *count += 1),
                    Event::ServerError(ServerError::Other(text))
                        if text.to_lowercase().contains("permissions") =>
                    {
                        forbid.send_replace(text.to_lowercase());
                    }
                    _ => {}
                }
                std::future::ready(())
            });
        let mut identity = None;
        if let Some(path) = &config.creds {
            let (text, found) = identity::read(path).await?;
            let unusable =
                |_| BusError::Credentials { path: path.clone(), reason: "they hold no user".into() };
            options = options.credentials(&text).map_err(unusable)?;
            if let Some(identity) = &found {
                options = options.custom_inbox_prefix(identity.inbox());
            }
            identity = found.map(Arc::new);
        }
        options = config.tls.apply(options).await?;
        let addresses: Vec<&str> = config.server.split(',').map(str::trim).collect();
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect(addresses));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refusal(config, &error)),
            Err(_) => {
                return Err(BusError::Unreachable {
                    server: without_secrets(&config.server),
                    reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
                });
            }
        };
        let js = match &identity {
            Some(identity) if identity.is_client() => {
                jetstream::with_prefix(client.clone(), subject::CLIENT_API)
            }
            _ => jetstream::new(client.clone()),
        };
        let server = without_secrets(&config.server).into();
        Ok(Self { client, js, server, identity, connections, forbidden })
    }

    /// Address this bus was connected to, without passwords.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether our credentials speak for a client, as far as they tell; the broker has the last word.
    pub fn check_client(&self, client: &ClientId) -> Result<(), BusError> {
        match &self.identity {
            Some(identity) if !identity.speaks_for(client.as_str()) => {
                Err(BusError::Forbidden { what: format!("acting for client {client}") })
            }
            _ => Ok(()),
        }
    }

    /// Whether our credentials are those of clients.
    pub(crate) fn is_client(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.is_client())
    }

    /// What the subjects of JetStream's API begin with, as we see them.
    pub(crate) fn api(&self) -> &'static str {
        if self.is_client() { subject::CLIENT_API } else { "$JS.API" }
    }

    /// Whether the connection is up at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Largest message the broker takes, headers included.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Returns once the broker forbids a publish to `subject`, counted from the call and not from the first poll; it
    /// says so beside the connection's other traffic, and the publish itself is never answered.
    pub(crate) fn forbids(&self, subject: &str) -> impl Future<Output = ()> + use<> {
        let quoted = format!("\"{}\"", subject.to_lowercase());
        let mut forbidden = self.forbidden.clone();
        forbidden.mark_unchanged();
        async move {
            while forbidden.changed().await.is_ok() {
                if forbidden.borrow_and_update().contains(&quoted) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        }
    }

    /// A token that nobody else has.
    pub(crate) fn unique(&self) -> String {
        let inbox = self.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// Sends what is buffered and closes the subscriptions.
    pub async fn drain(&self) {
        if let Err(error) = self.client.drain().await {
            tracing::debug!(%error, "connection was not drained");
        }
    }
}

/// Addresses as they may be shown: without the user and password that may be in them.
fn without_secrets(server: &str) -> String {
    let bare = |address: &str| {
        let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
    };
    server.split(',').map(|address| bare(address.trim())).collect::<Vec<_>>().join(",")
}

fn refusal(config: &BusConfig, error: &async_nats::ConnectError) -> BusError {
    let server = without_secrets(&config.server);
    if let Some((reason, cure)) = tls::cure(error, &config.tls) {
        return BusError::Tls { server, reason, cure };
    }
    let reason = match std::error::Error::source(error) {
        Some(source) => format!("{}: {source}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            BusError::Refused { server, reason }
        }
        // The library calls it a matter of the network when credentials end between two words of the broker.
        _ if says_no(error) => BusError::Refused { server, reason },
        ConnectErrorKind::Tls => BusError::Tls { server, reason, cure: "check its TLS setup" },
        _ => BusError::Unreachable { server, reason },
    }
}

fn says_no(error: &async_nats::ConnectError) -> bool {
    let said = std::error::Error::source(error).and_then(|source| source.downcast_ref::<ServerError>());
    matches!(said, Some(ServerError::Other(text)) if text.to_lowercase().contains("authentication"))
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to the NATS server"),
        Event::Disconnected => tracing::warn!("connection to the NATS server lost, reconnecting"),
        Event::Closed | Event::Draining => tracing::debug!(%event, "NATS connection"),
        other => tracing::warn!(event = %other, "NATS connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn addresses_are_shown_without_passwords() {
        for (given, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("tls://me:s3cret@a:1, token@b", "tls://a:1,b"),
            ("me:p@ss@a:1", "a:1"),
        ] {
            assert_eq!(without_secrets(given), shown);
        }
    }
}
