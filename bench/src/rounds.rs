//! Whole rounds: sampled, broadcast, answered, folded, durable, acknowledged.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use fedpeft_bus::BusError;
use fedpeft_protocol::{
    ModelName, RunId,
    api::CreateRun,
    round::{PhaseSeconds, RoundReport},
    run::{EvaluationSpec, ModelRef, RunRecord, RunSpec, RunStatus},
};
use tokio::time::sleep;

use crate::{
    clients::Crowd,
    figure::{Figure, Section, Spread},
    reference,
    world::{self, MODEL, World},
};

const POLL: Duration = Duration::from_millis(200);

/// Every so many looks, one for a run that failed.
const SELDOM: u32 = 50;

/// Whose updates the synthetic ones are like, on a ViT-S with ten classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Every bias, and the head.
    Bias,
    /// Rank 8 at queries and values, and the head.
    Lora,
}

impl Size {
    pub fn values(self) -> u64 {
        match self {
            Self::Bias => 55_306,
            Self::Lora => 151_306,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bias => "bias",
            Self::Lora => "LoRA",
        })
    }
}

/// How often a round of so many clients is measured, and raw publishing of as many updates: before the rounds, and as often
/// after them.
fn times(clients: u32, quick: bool) -> (u32, usize) {
    match (clients, quick) {
        (..=100, false) => (8, 3),
        (..=1000, false) => (5, 2),
        (_, false) => (3, 1),
        (..=100, true) => (3, 1),
        (_, true) => (2, 1),
    }
}

/// Measures rounds of `clients` clients; the first, in which everything is new, is left out.
pub async fn measure(size: Size, clients: u32, quick: bool) -> Result<Vec<Figure>> {
    let (rounds, repetitions) = times(clients, quick);
    let world = World::start(size.values()).await?;
    let adapter = world::adapter(size.values());
    let url = world.broker.url();
    let publishing = async || reference::publishing(&url, clients, adapter.len(), repetitions).await;
    let before = publishing().await?;
    let mut crowd = Crowd::join(&url, clients, adapter.clone()).await.context("the clients cannot join")?;
    let reports = tokio::select! {
        reports = run(&world, clients, rounds + 1) => reports?,
        failure = crowd.failure() => return Err(failure),
    };
    drop(crowd);
    let (aggregator, broker) = world.peaks();
    // A disk is not what it was a minute ago: both meet it in the same mood.
    let publishing = Spread::of([before, publishing().await?].concat());
    let figure = |what: &str| Figure::new(Section::Rounds, size.to_string(), what).at(f64::from(clients));
    let of = |phase: fn(&PhaseSeconds) -> f64| {
        Spread::of(reports.iter().skip(1).map(|report| phase(&report.seconds)).collect())
    };
    let mib = |bytes: u64| Spread::one(bytes as f64 / f64::from(1 << 20));
    Ok(vec![
        figure("round").is(of(|seconds| seconds.total), "s").beside("raw publishing", publishing),
        figure("select").is(of(|seconds| seconds.select), "s"),
        figure("broadcast").is(of(|seconds| seconds.broadcast), "s"),
        figure("collect").is(of(|seconds| seconds.collect), "s"),
        figure("aggregate").is(of(|seconds| seconds.aggregate), "s"),
        figure("aggregator").is(mib(aggregator), "MiB"),
        figure("broker").is(mib(broker), "MiB"),
    ])
}

/// A run to its end.
async fn run(world: &World, cohort: u32, rounds: u32) -> Result<Vec<RoundReport>> {
    let (run, bus) = (RunId::new("bench")?, &world.broker.bus);
    let model = ModelRef { name: ModelName::new(MODEL)?, version: None };
    let spec = RunSpec {
        round_deadline_seconds: 600.0,
        evaluation: EvaluationSpec { every: 0, deadline_seconds: 20.0, personal: None },
        quorum: Some(cohort),
        ..RunSpec::new(model, rounds, cohort)
    };
    loop {
        let create = CreateRun { run: Some(run.clone()), spec: spec.clone() };
        match bus.request::<_, RunRecord>("runs.create", &create).await {
            Ok(_) => break,
            // The aggregator is still starting.
            Err(BusError::NoService { .. }) => sleep(POLL).await,
            Err(error) => return Err(error.into()),
        }
    }
    let (records, reports) = (bus.runs().await?, bus.round_reports().await?);
    for look in 1.. {
        sleep(POLL).await;
        // A look at the record of an open round takes its cohort: that there are reports is told by less.
        let is_last = reports.keys(run.as_str()).await?.len() >= rounds as usize;
        if !is_last && look % SELDOM != 0 {
            continue;
        }
        match records.get(run.as_str()).await?.map(|(record, _)| record.status) {
            Some(RunStatus::Completed) => break,
            Some(status) if status.is_final() => bail!("the run ended as {status:?}"),
            _ => {}
        }
    }
    let mut reports = reports.list_as(run.as_str(), |entry| entry.value).await?;
    reports.sort_by_key(|report| report.round);
    if let Some(report) = reports.iter().find(|report| report.clients.len() != cohort as usize) {
        bail!("round {} had {} of {cohort} clients", report.round, report.clients.len());
    }
    Ok(reports)
}
