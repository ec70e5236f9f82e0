//! The connection.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectErrorKind, ConnectOptions, Event, jetstream};
use tokio::sync::watch;

use crate::BusError;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct BusConfig {
    /// Address, `nats://host:port`; several may be joined by commas.
    pub server: String,
    /// Credentials file, as `nsc` writes it.
    pub creds: Option<PathBuf>,
    /// Name of the connection, shown by the broker's monitoring.
    pub name: String,
}

/// A connection to the broker. Clones share it.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) js: jetstream::Context,
    pub(crate) server: Arc<str>,
    /// Counts connections: readers replace their consumers as soon as it changes, for a consumer that was
    /// open over a reconnect may be gone and say so only by its silence.
    pub(crate) connections: watch::Receiver<u64>,
}

/// A broker that accepts the connection but says nothing is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to reconnect: short, for a round's deadline keeps running meanwhile.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

impl Bus {
    /// Connects, or says in one line why not. Once connected, a lost connection is restored for ever.
    pub async fn connect(config: &BusConfig) -> Result<Self, BusError> {
        let (count, connections) = watch::channel(0);
        let mut options = ConnectOptions::new()
            .name(&config.name)
            .connection_timeout(CONNECT_TIMEOUT)
            .reconnect_delay_callback(|attempt| {
                let doubling = Duration::from_millis(50 << attempt.min(5));
                doubling.min(MAX_RECONNECT_DELAY)
            })
            .event_callback(move |event| {
                log(&event);
                if matches!(event, Event::Connected) {
                    count.send_modify(|count| *count += 1);
                }
                std::future::ready(())
            });
        if let Some(path) = &config.creds {
            options = options
                .credentials_file(path)
                .await
                .map_err(|error| BusError::Credentials { path: path.clone(), reason: error.to_string() })?;
        }
        let addresses: Vec<&str> = config.server.split(',').map(str::trim).collect();
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect(addresses));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refusal(&config.server, &error)),
            Err(_) => {
                return Err(BusError::Unreachable {
                    server: config.server.clone(),
                    reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
                });
            }
        };
        let js = jetstream::new(client.clone());
        Ok(Self { client, js, server: config.server.as_str().into(), connections })
    }

    /// Address this bus was connected to.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether the connection is up at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Largest message the broker takes, headers included.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Sends what is buffered and closes the subscriptions.
    pub async fn drain(&self) {
        if let Err(error) = self.client.drain().await {
            tracing::debug!(%error, "connection was not drained");
        }
    }
}

fn refusal(server: &str, error: &async_nats::ConnectError) -> BusError {
    let reason = match std::error::Error::source(error) {
        Some(source) => format!("{}: {source}", error.kind()),
        None => error.kind().to_string(),
    };
    let server = server.to_owned();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            BusError::Refused { server, reason }
        }
        _ => BusError::Unreachable { server, reason },
    }
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to the NATS server"),
        Event::Disconnected => tracing::warn!("connection to the NATS server lost, reconnecting"),
        Event::Closed | Event::Draining => tracing::debug!(%event, "NATS connection"),
        other => tracing::warn!(event = %other, "NATS connection"),
    }
}
