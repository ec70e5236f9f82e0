//! What an edge says of itself upstream: that it has the examples of all its clients.

use std::{collections::BTreeMap, time::Duration};

use fedpeft_bus::{BusError, Records};
use fedpeft_protocol::{
    PROTOCOL_VERSION,
    presence::{Capabilities, Presence},
};
use fedpeft_strategy::accumulator::{MAX_UPDATES, MAX_WEIGHT};
use tokio::time::{Instant, sleep};

use super::Edge;

/// How often its clients are counted.
const LOOK: Duration = Duration::from_secs(1);
/// How often it says so where nothing has changed: a third of the time after which the broker forgets a client.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Renews the presence for ever.
pub(super) async fn keep(edge: &Edge) {
    let mut said: Option<(Presence, Instant)> = None;
    loop {
        match look(edge).await {
            Ok(presence) => {
                let is_news =
                    said.as_ref().is_none_or(|(last, at)| *last != presence || at.elapsed() >= HEARTBEAT);
                if is_news && say(edge, &presence).await {
                    said = Some((presence, Instant::now()));
                }
            }
            // Who cannot see its clients offers none.
            Err(error) => tracing::warn!(%error, "clients not counted"),
        }
        sleep(LOOK).await;
    }
}

/// Withdraws the presence.
pub(super) async fn withdraw(edge: &Edge) {
    let gone = async { upstream(edge).await?.delete(edge.client.as_str()).await };
    if let Err(error) = gone.await {
        tracing::debug!(%error, "presence not withdrawn, it will expire");
    }
}

async fn upstream(edge: &Edge) -> Result<Records<Presence>, BusError> {
    edge.upstream.clients().await
}

async fn say(edge: &Edge, presence: &Presence) -> bool {
    let said = async { upstream(edge).await?.put(edge.client.as_str(), presence).await };
    said.await.inspect_err(|error| tracing::warn!(%error, "heartbeat lost")).is_ok()
}

async fn look(edge: &Edge) -> Result<Presence, BusError> {
    let clients = edge.shop.bus.clients().await?;
    let own = clients.pick(|Presence { version, capabilities, .. }| {
        let Capabilities { trains, aggregates, examples, .. } = capabilities;
        let most = if aggregates { MAX_UPDATES * MAX_WEIGHT } else { MAX_WEIGHT };
        (version == PROTOCOL_VERSION && trains && (1..=most).contains(&examples)).then_some(examples)
    });
    let examples = own.await?;
    let capabilities = Capabilities {
        trains: examples.len() as u64 >= u64::from(edge.rounds.min_clients.max(1)),
        evaluates: false,
        aggregates: true,
        examples: examples.values().fold(0, |sum, examples| sum.saturating_add(*examples)),
        device: "edge".into(),
        free_memory_mib: None,
        labels: BTreeMap::new(),
        identity: None,
    };
    let (client, worker) = (edge.client.clone(), "fedpeft-aggregator".into());
    Ok(Presence { version: PROTOCOL_VERSION, client, worker, capabilities })
}
