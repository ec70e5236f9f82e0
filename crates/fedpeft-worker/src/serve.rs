//! From options to a running worker, and back out of it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use fedpeft_data::Federation;
use fedpeft_protocol::{PROTOCOL_VERSION, presence::Presence};
use fedpeft_registry::Cache;
use fedpeft_service::{CancellationToken, Context};
use tokio::task::JoinSet;

use crate::{
    Config,
    client::{self, Shared},
    engine::{Engine, EngineOptions},
    metrics::Metrics,
    presence,
    roster::{Hosted, roster},
    task::Workshop,
};

/// Hosts the clients of `config` until shutdown.
///
/// # Errors
/// One line naming the option, file or service that cannot be used.
pub async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let clients = hosted(&config).await?;
    clients.iter().try_for_each(|client| context.bus.check_client(&client.id))?;
    let cache = Cache::new(config.cache()?);
    let (ort_lib, device, threads) = (config.ort_lib.clone(), config.device, usize::from(config.threads));
    let engine = Engine::start(EngineOptions { ort_lib, device, threads }).await?;
    let presences = presences(&config, &clients, engine.device());
    tracing::info!(clients = clients.len(), device = engine.device(), worker = config.worker(), "hosting");

    let abort = CancellationToken::new();
    let shared = Arc::new(Shared {
        workshop: Workshop { bus: context.bus.clone(), cache, abort: abort.clone() },
        engine,
        metrics: Metrics::register(&context.metrics, clients.len())?,
        shutdown: context.shutdown.clone(),
    });
    let records = context.bus.clients().await?;
    // Present before the first task is asked for, so that a run that waits for clients sees all of them.
    presence::announce(&records, &presences).await?;
    let heartbeats = tokio::spawn(presence::keep(records, presences, context.shutdown.clone()));
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(client::run(client, shared.clone()));
    }
    context.set_ready(true);

    let result = tokio::select! {
        () = context.shutdown.cancelled() => Ok(()),
        result = first_failure(&mut running) => result,
        // Failing every task from here on would help nobody; a supervisor starts a fresh process.
        () = shared.engine.ended() => Err(anyhow::anyhow!("the computing thread has ended; see the log above")),
    };
    context.shutdown.cancel();
    tracing::info!("draining");
    // Tasks in progress are finished, or after a while handed back.
    let drain = Duration::from_secs(u64::from(config.drain_seconds));
    if tokio::time::timeout(drain, drained(&mut running)).await.is_err() {
        abort.cancel();
        drained(&mut running).await;
    }
    heartbeats.await.context("heartbeats ended early")?;
    result
}

async fn hosted(config: &Config) -> anyhow::Result<Vec<Hosted>> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        let federation = Federation::load(&config.data.read()?)?;
        roster(&config, &federation)
    })
    .await?
}

fn presences(config: &Config, clients: &[Hosted], device: &str) -> Vec<Presence> {
    let worker = config.worker();
    let presence = |client: &Hosted| Presence {
        version: PROTOCOL_VERSION,
        client: client.id.clone(),
        worker: worker.clone(),
        capabilities: client.capabilities(device),
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
