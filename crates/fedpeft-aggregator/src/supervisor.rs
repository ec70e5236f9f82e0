//! The aggregator process: serves the control API, and drives every run that nobody else drives.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fedpeft_bus::{Bus, BusError, Service};
use fedpeft_privacy::{NoiseError, NoiseSecret};
use fedpeft_protocol::{Digest, RunId, run::RunStatus};
use fedpeft_service::{CancellationToken, now_ms};
use serde::{Deserialize, de::IgnoredAny};
use tokio::{sync::Notify, task::JoinSet, time::sleep};

use crate::{
    api,
    drive::{self, Workshop},
    edge::{Edge, EdgeOptions},
    lease::{self, Held, STANDBY},
    spool::Spool,
    stop::Stop,
    sweep,
};

/// How often runs without an owner are looked for: the longest that a run waits beyond the end of its last
/// owner's lease.
const SCAN: Duration = Duration::from_secs(2);

/// What an aggregator has beside the bus.
#[derive(Default)]
pub struct Options {
    /// Folder for nameless files of adapters that do not fit a message. Default: `$TMPDIR`, else `/var/tmp`.
    pub spool: Option<PathBuf>,
    /// What noise and samples of private rounds are drawn by. Default: a secret of this process alone.
    pub noise_secret: Option<NoiseSecret>,
    /// Makes it an edge as well, that works for an aggregator upstream. Default: none.
    pub edge: Option<EdgeOptions>,
}

/// An aggregator that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control API is not on the bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// There is no secret to draw noise by.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

/// The aggregator service. Dropping it ends it as a crash would.
pub struct Aggregator {
    shop: Workshop,
    /// Name in leases, unique per process and start.
    owner: String,
    /// The control API changed a run.
    changed: Arc<Notify>,
    service: Service,
    driven: BTreeMap<RunId, CancellationToken>,
    drivers: JoinSet<RunId>,
    edge: Option<Edge>,
}

/// What of a run's record says whether it is driven.
#[derive(Deserialize)]
struct Head {
    run: RunId,
    status: RunStatus,
    #[serde(default)]
    upstream: Option<IgnoredAny>,
}

impl Aggregator {
    /// Puts the control API on the bus.
    pub async fn start(bus: &Bus, options: Options) -> Result<Self, StartError> {
        let changed = Arc::new(Notify::new());
        let spool = Spool::new(options.spool.unwrap_or_else(Spool::default_folder));
        let secret = match options.noise_secret {
            Some(secret) => secret,
            None => NoiseSecret::random()?,
        };
        let shop = Workshop { bus: bus.clone(), spool, secret };
        let service = api::serve(bus, &shop.spool, &changed).await?;
        let owner = owner();
        let edge = options.edge.map(|options| Edge::new(shop.clone(), owner.clone(), options));
        let (driven, drivers) = (BTreeMap::new(), JoinSet::new());
        Ok(Self { shop, owner, changed, service, driven, drivers, edge })
    }

    /// Drives runs until `shutdown` is cancelled, then gives their leases back.
    ///
    /// # Errors
    /// The upstream broker of an edge lets it have no tasks.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), BusError> {
        let (bus, edge) = (self.shop.bus.clone(), self.edge.take());
        let supervised = Box::pin(self.supervise(shutdown.clone()));
        let working = async {
            match edge {
                Some(edge) => {
                    // One of the two does not go on without the other.
                    let ended = Box::pin(edge.run(shutdown.clone())).await;
                    shutdown.cancel();
                    ended
                }
                None => Ok(()),
            }
        };
        tokio::select! {
            ((), worked) = async { tokio::join!(supervised, working) } => worked,
            () = sweep::keep(&bus) => Ok(()),
        }
    }

    async fn supervise(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.scan(&shutdown).await {
                tracing::warn!(%error, "runs not listed, trying again");
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.changed.notified() => {}
                Some(ended) = self.drivers.join_next() => self.forget(ended),
                () = sleep(SCAN) => {}
            }
        }
        self.service.stop().await;
        // Drivers hear of the shutdown themselves and give their leases back.
        while self.drivers.join_next().await.is_some() {}
    }

    /// Starts to drive the active runs that are not driven here, and stops those that were cancelled.
    async fn scan(&mut self, shutdown: &CancellationToken) -> Result<(), BusError> {
        for entry in self.shop.bus.runs_as::<Head>().await?.list_top().await? {
            let record = entry.value;
            match self.driven.get(&record.run) {
                Some(driver) if record.status == RunStatus::Cancelled => driver.cancel(),
                // Those of an edge are driven by their tasks.
                None if !record.status.is_final() && record.upstream.is_none() => {
                    let stop = shutdown.child_token();
                    self.driven.insert(record.run.clone(), stop.clone());
                    let (shop, owner) = (self.shop.clone(), self.owner.clone());
                    self.drivers.spawn(async move {
                        own(&shop, &record.run, &owner, &stop).await;
                        record.run
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn forget(&mut self, ended: Result<RunId, tokio::task::JoinError>) {
        match ended {
            Ok(run) => {
                self.driven.remove(&run);
            }
            Err(error) => tracing::error!(%error, "driver broke off"),
        }
    }
}

/// Drives a run for as long as its lease can be held.
async fn own(shop: &Workshop, run: &RunId, owner: &str, stop: &CancellationToken) {
    let bus = &shop.bus;
    let held = match lease::hold(bus, run, owner, stop, Box::pin(drive::to_the_end(shop, run))).await {
        Ok(Held::Elsewhere) => return sleep(STANDBY).await,
        Ok(held) => held,
        Err(error) => {
            tracing::warn!(%run, %error, "lease not acquired, trying again");
            return sleep(SCAN).await;
        }
    };
    if let Err(error) = tidy(bus, run).await {
        tracing::debug!(%run, %error, "tasks not purged");
    }
    match held {
        Held::Done(Err(Stop::Fenced)) => tracing::info!(%run, "run changed by another process, left to it"),
        Held::Done(Err(error)) => {
            tracing::warn!(%run, %error, "run interrupted, going on from its durable state");
            sleep(error.pause()).await;
        }
        _ => {}
    }
}

/// A run that was ended by somebody else may have sent tasks since.
async fn tidy(bus: &Bus, run: &RunId) -> Result<(), BusError> {
    let mark = bus.task_mark().await?;
    match bus.runs().await?.get(run.as_str()).await? {
        Some((record, _)) if record.status.is_final() => bus.purge_tasks(run, mark).await,
        _ => Ok(()),
    }
}

/// A name that no other process or start has.
fn owner() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let unique = Digest::of(format!("{host}/{}/{}/{count}", std::process::id(), now_ms()));
    format!("aggregator-{}", unique.short())
}
