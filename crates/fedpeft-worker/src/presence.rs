//! Heartbeats: what makes the aggregator see the hosted clients.

use std::time::Duration;

use fedpeft_bus::{BusError, Records, Revision};
use fedpeft_protocol::presence::Presence;
use fedpeft_service::{CancellationToken, process};
use futures::{StreamExt, stream};
use tokio::time::Instant;

use crate::alone::{Alone, Company};

/// A third of the time after which the broker forgets a client.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pauses between heartbeats differ by up to this share of [`HEARTBEAT`]: workers that were started or cut off
/// together do not stay in step.
const JITTER: f64 = 0.2;
/// Heartbeats on the way at once.
const CONCURRENT: usize = 16;

/// The presence of all clients of a process.
pub(crate) struct Heartbeats {
    records: Records<Presence>,
    clients: Vec<Beating>,
}

/// The presence of one client.
struct Beating {
    presence: Presence,
    /// The last record of it that we wrote; 0 before the first.
    revision: Revision,
    company: Company,
}

impl Beating {
    async fn renew(&mut self, records: &Records<Presence>) -> Result<(), BusError> {
        let (client, sent) = (&self.presence.client, Instant::now());
        let (revision, is_ours) = records.renew(client.as_str(), &self.presence, self.revision).await?;
        self.revision = revision;
        if self.company.note(is_ours, sent) {
            tracing::warn!(
                %client,
                "another process speaks for this client: both do its tasks, and private ones wait; stop one of them, or \
                 give it another --client"
            );
        }
        Ok(())
    }
}

impl Heartbeats {
    /// Puts every client once.
    pub async fn announce(
        records: Records<Presence>,
        clients: Vec<(Presence, Alone)>,
    ) -> Result<Self, BusError> {
        let beating = |(presence, alone)| Beating { presence, revision: 0, company: Company::new(alone) };
        let mut beats = Self { records, clients: clients.into_iter().map(beating).collect() };
        beats.look();
        for client in &mut beats.clients {
            client.renew(&beats.records).await?;
        }
        Ok(beats)
    }

    /// Renews the presence of all clients until `gone`, then withdraws it. From `leaving` on, they are there, for
    /// they may have a task to finish, but take no further part.
    pub async fn keep(mut self, leaving: CancellationToken, gone: CancellationToken) {
        loop {
            let left = leaving.is_cancelled();
            tokio::select! {
                biased;
                () = gone.cancelled() => break,
                () = leaving.cancelled(), if !left => {
                    for client in &mut self.clients {
                        client.presence.capabilities.trains = false;
                        client.presence.capabilities.evaluates = false;
                    }
                }
                () = tokio::time::sleep(pause()) => {}
            }
            self.look();
            tokio::select! {
                biased;
                () = gone.cancelled() => break,
                () = self.beat() => {}
            }
        }
        for client in &self.clients {
            let client = &client.presence.client;
            if let Err(error) = self.records.delete(client.as_str()).await {
                tracing::debug!(%client, %error, "presence not withdrawn, it will expire");
                // Of a broker that is away, the others need not be asked.
                break;
            }
        }
    }

    /// What changes from beat to beat.
    fn look(&mut self) {
        let free = process::available_memory().map(|bytes| bytes >> 20);
        self.clients.iter_mut().for_each(|client| client.presence.capabilities.free_memory_mib = free);
    }

    async fn beat(&mut self) {
        let records = &self.records;
        let beats = stream::iter(&mut self.clients).for_each_concurrent(CONCURRENT, async |client| {
            if let Err(error) = client.renew(records).await {
                tracing::warn!(client = %client.presence.client, %error, "heartbeat lost");
            }
        });
        beats.await;
    }
}

/// Until the next heartbeat.
fn pause() -> Duration {
    HEARTBEAT.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_are_spread_and_never_too_late() {
        let pauses: Vec<Duration> = (0..1000).map(|_| pause()).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least >= HEARTBEAT.mul_f64(0.79) && *most <= HEARTBEAT.mul_f64(1.21), "{least:?} {most:?}");
        assert!(most.saturating_sub(*least) > HEARTBEAT.mul_f64(0.3));
        // Two may be lost.
        assert!(*most * 2 < fedpeft_bus::CLIENT_TTL);
    }
}
