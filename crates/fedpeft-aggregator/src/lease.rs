//! Ownership of a run: a record that vanishes unless its owner renews it.
//!
//! The lease says who *should* drive a run; it is no lock, for its owner may sleep through its end. What such
//! an owner still writes is refused by the compare-and-set on the run record, which the next owner changes
//! first of all.

use std::{future::Future, time::Duration};

use fedpeft_bus::{Bus, BusError, LEASE_TTL, Lease as Value, Records, Revision};
use fedpeft_protocol::RunId;
use fedpeft_service::CancellationToken;
use tokio::time::{Instant, sleep, timeout_at};

const RENEWAL: Duration = Duration::from_secs(3);
/// How often the end of another owner's lease is looked for.
pub(crate) const STANDBY: Duration = Duration::from_millis(500);

/// What came of work on a run.
pub(crate) enum Held<T> {
    /// It came to its end.
    Done(T),
    /// It was left in the middle: the lease was lost, or this process is to stop.
    Left,
    /// Another owner holds the lease, or one that has just died.
    Elsewhere,
}

/// Does `work` on a run for as long as its lease can be held, and `stop` does not come.
pub(crate) async fn hold<T>(
    bus: &Bus,
    run: &RunId,
    owner: &str,
    stop: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<Held<T>, BusError> {
    let Some(mut lease) = Lease::acquire(bus, run, owner).await? else { return Ok(Held::Elsewhere) };
    let held = tokio::select! {
        done = work => Held::Done(done),
        () = lease.keep() => {
            tracing::warn!(%run, "lease lost, run left to its next owner");
            Held::Left
        }
        () = stop.cancelled() => {
            tracing::info!(%run, "run no longer driven here");
            Held::Left
        }
    };
    lease.release().await;
    Ok(held)
}

/// The lease of one run, held.
struct Lease {
    records: Records<Value>,
    run: RunId,
    value: Value,
    revision: Revision,
}

impl Lease {
    /// Takes the lease, unless somebody holds it.
    async fn acquire(bus: &Bus, run: &RunId, owner: &str) -> Result<Option<Self>, BusError> {
        let records = bus.leases().await?;
        let value = Value { owner: owner.to_owned() };
        match records.create(run.as_str(), &value).await {
            Ok(revision) => Ok(Some(Self { records, run: run.clone(), value, revision })),
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews the lease for as long as that works; returns when it is lost.
    async fn keep(&mut self) {
        let mut ends = Instant::now() + LEASE_TTL;
        loop {
            sleep(RENEWAL).await;
            let asked = Instant::now();
            let renewal = self.records.update(self.run.as_str(), &self.value, self.revision);
            match timeout_at(ends, renewal).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    ends = asked + LEASE_TTL;
                }
                Ok(Err(error)) if error.is_conflict() => return,
                Ok(Err(error)) => tracing::debug!(run = %self.run, %error, "lease not renewed yet"),
                Err(_) => return,
            }
        }
    }

    /// Gives the lease back, so that the next owner need not wait for its end.
    async fn release(self) {
        let key = self.run.as_str();
        let released = match self.records.get(key).await {
            Ok(Some((holder, _))) if holder == self.value => self.records.delete(key).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::debug!(run = %self.run, %error, "lease not released, it will expire");
        }
    }
}
