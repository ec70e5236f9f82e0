//! Heartbeats: what makes the aggregator see the hosted clients.

use std::time::Duration;

use fedpeft_bus::{BusError, Records};
use fedpeft_protocol::presence::Presence;
use fedpeft_service::CancellationToken;
use futures::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval};

/// A third of the time after which the broker forgets a client.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Heartbeats on the way at once.
const CONCURRENT: usize = 16;

/// Renews the presence of all clients until `leave`, then withdraws it.
pub(crate) async fn keep(records: Records<Presence>, clients: Vec<Presence>, leave: CancellationToken) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = leave.cancelled() => break,
            _ = ticks.tick() => beat(&records, &clients).await,
        }
    }
    for client in &clients {
        if let Err(error) = records.delete(client.client.as_str()).await {
            tracing::debug!(client = %client.client, %error, "presence not withdrawn, it will expire");
        }
    }
}

/// Puts every client once.
pub(crate) async fn announce(records: &Records<Presence>, clients: &[Presence]) -> Result<(), BusError> {
    for client in clients {
        records.put(client.client.as_str(), client).await?;
    }
    Ok(())
}

async fn beat(records: &Records<Presence>, clients: &[Presence]) {
    let beats = stream::iter(clients).for_each_concurrent(CONCURRENT, async |client| {
        if let Err(error) = records.put(client.client.as_str(), client).await {
            tracing::warn!(client = %client.client, %error, "heartbeat lost");
        }
    });
    beats.await;
}
