//! Whole rounds: sampled, broadcast, answered, folded, durable, acknowledged.

use std::{fmt, time::Duration};

use anyhow::{Result, bail};
use clap::ValueEnum;
use fedpeft_bus::BusError;
use fedpeft_protocol::{
    ModelName, RunId,
    api::{CreateRun, RunRequest},
    run::{EvaluationSpec, ModelRef, RunRecord, RunSpec, RunStatus, RunView},
};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    clients::Crowd,
    figure::Spread,
    reference,
    world::{self, MODEL, World},
};

/// Largest sample of a round.
const LARGEST: u32 = 2048;
const POLL: Duration = Duration::from_millis(100);

/// Whose updates the synthetic ones are like, on a ViT-S with ten classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// Every bias, and the head.
    Bias,
    /// Rank 8 at queries and values, and the head.
    Lora,
}

impl Size {
    fn values(self) -> u64 {
        match self {
            Self::Bias => 55_306,
            Self::Lora => 151_306,
        }
    }
}

/// What rounds of one kind took.
#[derive(Debug, Serialize)]
pub struct Row {
    size: Size,
    clients: u32,
    /// Clients in each round.
    cohort: u32,
    update_bytes: u64,
    /// Seconds of a round.
    round_seconds: Spread,
    /// Seconds that raw JetStream publishing of its updates takes.
    publish_seconds: Spread,
    /// The one over the other.
    ratio: Spread,
    aggregator_peak_bytes: u64,
    broker_peak_bytes: u64,
}

impl Row {
    pub const HEAD: &str = "update      clients  cohort  s per round                s to publish the same      ratio                      aggregator MiB  broker MiB";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:<10}  {:>7}  {:>6}  {:<25}  {:<25}  {:<25}  {:>14.0}  {:>10.0}",
            format!("{:?}", self.size).to_lowercase(),
            self.clients,
            self.cohort,
            self.round_seconds,
            self.publish_seconds,
            self.ratio,
            mib(self.aggregator_peak_bytes),
            mib(self.broker_peak_bytes),
        )
    }
}

/// Measures `rounds` rounds among `clients` clients; the first, in which everything is new, is left out.
pub async fn measure(size: Size, clients: u32, rounds: u32) -> Result<Row> {
    let world = World::start(size.values()).await?;
    let adapter = world::adapter(size.values());
    let (cohort, update_bytes) = (clients.min(LARGEST), adapter.len() as u64);
    let publish_seconds = reference::publishing(&world.url(), cohort, adapter.len()).await?;
    let crowd = Crowd::join(&world.url(), clients, adapter).await?;
    let view = run(&world, cohort, rounds).await?;
    drop(crowd);
    let (aggregator_peak_bytes, broker_peak_bytes) = world.peaks();
    let seconds = view.rounds.iter().skip(1).map(|report| report.seconds.total).collect();
    let round_seconds = Spread::of(seconds);
    let ratio = round_seconds.over(publish_seconds);
    Ok(Row {
        size,
        clients,
        cohort,
        update_bytes,
        round_seconds,
        publish_seconds,
        ratio,
        aggregator_peak_bytes,
        broker_peak_bytes,
    })
}

/// A run to its end.
async fn run(world: &World, cohort: u32, rounds: u32) -> Result<RunView> {
    let run = RunId::new("bench")?;
    let model = ModelRef { name: ModelName::new(MODEL)?, version: None };
    let spec = RunSpec {
        round_deadline_seconds: 600.0,
        evaluation: EvaluationSpec { every: 0, deadline_seconds: 20.0, personal: None },
        quorum: Some(cohort),
        ..RunSpec::new(model, rounds, cohort)
    };
    loop {
        let create = CreateRun { run: Some(run.clone()), spec: spec.clone() };
        match world.bus.request::<_, RunRecord>("runs.create", &create).await {
            Ok(_) => break,
            // The aggregator is still starting.
            Err(BusError::NoService { .. }) => sleep(POLL).await,
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        sleep(POLL).await;
        let view: RunView = world.bus.request("runs.get", &RunRequest { run: run.clone() }).await?;
        match &view.record.status {
            RunStatus::Completed => return Ok(view),
            status if status.is_final() => bail!("the run ended as {status:?}"),
            _ => {}
        }
    }
}
