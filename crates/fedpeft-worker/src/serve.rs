//! From options to a running worker, and back out of it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use fedpeft_bus::RecentBlobs;
use fedpeft_data::Federation;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION,
    presence::{Capabilities, Presence},
};
use fedpeft_registry::Cache;
use fedpeft_runtime::Weights;
use fedpeft_service::{CancellationToken, Context};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    Config,
    client::{self, Shared},
    engine::{Engine, EngineOptions},
    memory::Memory,
    metrics::Metrics,
    presence::Heartbeats,
    roster::{Hosted, Role, roster},
    secure::{Identities, Sessions},
    state::StateFolder,
    task::{AT_ONCE, Keeping, Workshop},
};

/// Tasks that are handed back are saved and settled within this time.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Hosts the clients of `config` until shutdown.
///
/// # Errors
/// One line naming the option, file or service that cannot be used.
pub async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let (clients, data) = hosted(&config).await?;
    clients.iter().try_for_each(|client| context.bus.check_client(&client.id))?;
    let cache = Cache::new(config.cache()?);
    let (keeping, memory) = (keeping(&config, data)?, memory(&config)?);
    let (ort_lib, device, threads) = (config.ort_lib.clone(), config.device, usize::from(config.threads));
    let feature_cache = (config.feature_cache_mib as usize) << 20;
    let weights = if config.pack_weights { Weights::Packed } else { Weights::default() };
    let engine = Engine::start(EngineOptions { ort_lib, device, threads, weights, feature_cache }).await?;
    let trains = clients.iter().filter(|client| client.role == Role::Trains).map(|client| &client.id);
    let roster = config.roster.as_deref().map(|roster| (roster, config.operator.as_deref()));
    let only_secure = config.require_secure_aggregation;
    let identities = Identities::new(trains, config.identities.as_deref(), roster, only_secure)?
        .with_least_noise(config.least_noise_multiplier);
    let presences = presences(&config, &clients, engine.device(), &identities);
    let presences = presences.into_iter().zip(clients.iter().map(|client| client.alone.clone())).collect();
    tracing::info!(clients = clients.len(), device = engine.device(), worker = config.worker(), "hosting");

    let (abort, gone) = (CancellationToken::new(), CancellationToken::new());
    let shared = Arc::new(Shared {
        workshop: Workshop {
            bus: context.bus.clone(),
            recent: RecentBlobs::default(),
            cache,
            engine,
            keeping,
            memory,
            state: config.state()?,
            identities,
            secure: Sessions::default(),
            shutdown: context.shutdown.clone(),
            abort: abort.clone(),
            computing: Semaphore::new(AT_ONCE),
            sending: Semaphore::new(AT_ONCE),
        },
        metrics: Metrics::register(&context.metrics, clients.len())?,
        simulate_faults: config.simulate_faults,
    });
    // Present before the first task is asked for, so that a run that waits for clients sees all of them.
    let heartbeats = Heartbeats::announce(context.bus.clients().await?, presences).await?;
    let heartbeats = tokio::spawn(heartbeats.keep(context.shutdown.clone(), gone.clone()));
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(client::run(client, shared.clone()));
    }
    context.set_ready(true);

    let result = tokio::select! {
        () = context.shutdown.cancelled() => Ok(()),
        result = first_failure(&mut running) => result,
        // Failing every task from here on would help nobody; a supervisor starts a fresh process.
        () = shared.workshop.engine.ended() => Err(anyhow::anyhow!("the computing thread has ended; see the log above")),
    };
    context.set_ready(false);
    context.shutdown.cancel();
    tracing::info!("draining");
    // Tasks in progress are finished, or after a while kept and handed back.
    let drain = Duration::from_secs(u64::from(config.drain_seconds));
    if tokio::time::timeout(drain, drained(&mut running)).await.is_err() {
        abort.cancel();
        if tokio::time::timeout(LAST_STEPS, drained(&mut running)).await.is_err() {
            tracing::warn!("some tasks could not be handed back; the broker delivers them again by itself");
        }
    }
    gone.cancel();
    heartbeats.await.context("heartbeats ended early")?;
    result
}

/// Checkpoints, unless they are switched off.
fn keeping(config: &Config, data: Digest) -> anyhow::Result<Option<Keeping>> {
    if config.checkpoint_seconds == 0 {
        return Ok(None);
    }
    let state = StateFolder::new(config.state()?, u64::from(config.state_mib) << 20);
    Ok(Some(Keeping { state, every: Duration::from_secs(u64::from(config.checkpoint_seconds)), data }))
}

/// What clients keep from round to round, unless there is no folder for it.
fn memory(config: &Config) -> anyhow::Result<Option<Memory>> {
    if config.checkpoint_seconds == 0 && config.state.is_none() {
        return Ok(None);
    }
    let memory = Memory::new(config.state()?);
    if config.memory_days > 0 {
        memory.forget(Duration::from_secs(u64::from(config.memory_days) * 24 * 3600));
    }
    Ok(Some(memory))
}

/// The clients, and what tells their data from other data.
async fn hosted(config: &Config) -> anyhow::Result<(Vec<Hosted>, Digest)> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        let spec = config.data.read()?;
        let federation = Federation::load(&spec)?;
        let data = Digest::of(toml::to_string(&spec).context("the data description cannot be written")?);
        Ok((roster(&config, &federation)?, data))
    })
    .await?
}

fn presences(config: &Config, clients: &[Hosted], device: &str, identities: &Identities) -> Vec<Presence> {
    let worker = config.worker();
    let presence = |client: &Hosted| Presence {
        version: PROTOCOL_VERSION,
        client: client.id.clone(),
        worker: worker.clone(),
        capabilities: Capabilities {
            identity: identities.public(&client.id),
            ..client.capabilities(device, &config.label)
        },
    };
    clients.iter().map(presence).collect()
}

/// Clients run until shutdown: one that ends before has failed.
async fn first_failure(running: &mut JoinSet<Result<(), fedpeft_bus::BusError>>) -> anyhow::Result<()> {
    while let Some(ended) = running.join_next().await {
        ended.context("a client ended unexpectedly")??;
    }
    Ok(())
}

async fn drained(running: &mut JoinSet<Result<(), fedpeft_bus::BusError>>) {
    while running.join_next().await.is_some() {}
}
