//! Clients that train nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use fedpeft_bus::{Bus, BusError, RecentBlobs, Tasks};
use fedpeft_protocol::{
    ClientId, PROTOCOL_VERSION,
    presence::{Capabilities, Presence},
    round::{Outcome, Payload, Update},
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::world::connect;

/// Clients that share one connection, as those of one worker do.
const PER_CONNECTION: u32 = 250;
/// Clients that publish at once.
pub const AT_ONCE: usize = 64;
/// Examples of each client.
pub const EXAMPLES: u64 = 100;
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A crowd of clients. They leave when it is dropped.
pub struct Crowd {
    tasks: JoinSet<Result<(), BusError>>,
}

impl Crowd {
    /// `count` clients that answer every task with `adapter`. All are present, and listen.
    pub async fn join(server: &str, count: u32, adapter: Bytes) -> Result<Self> {
        // Its digest is computed once.
        let adapter = Payload::inline(adapter);
        let (mut tasks, publishing) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
        let names: Vec<ClientId> =
            (0..count).map(|number| ClientId::new(format!("c{number:05}"))).collect::<Result<_, _>>()?;
        for share in names.chunks(PER_CONNECTION as usize) {
            let (bus, recent) = (connect(server).await?, Arc::new(RecentBlobs::default()));
            let opening = share.iter().cloned().map(|client| {
                let bus = bus.clone();
                async move { Ok::<_, BusError>((bus.tasks(&client).await?, client)) }
            });
            let opening = stream::iter(opening.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
            for (inbox, client) in opening.try_collect::<Vec<_>>().await? {
                let answer = (adapter.clone(), publishing.clone());
                let serving = serve((bus.clone(), recent.clone()), inbox, client, answer);
                tasks.spawn(serving);
            }
            announce(&bus, share).await?;
            let (bus, share) = (bus.clone(), share.to_vec());
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(HEARTBEAT).await;
                    announce(&bus, &share).await?;
                }
            });
        }
        Ok(Self { tasks })
    }

    /// Returns when a client has failed, and why.
    pub async fn failure(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error.into(),
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) => anyhow!("a client has left"),
            None => std::future::pending().await,
        }
    }
}

async fn announce(bus: &Bus, clients: &[ClientId]) -> Result<(), BusError> {
    let records = bus.clients().await?;
    let announcing = clients.iter().cloned().map(|client| {
        let capabilities = Capabilities {
            trains: true,
            evaluates: false,
            aggregates: false,
            examples: EXAMPLES,
            device: "cpu".into(),
            free_memory_mib: None,
            labels: BTreeMap::new(),
            identity: None,
        };
        let (version, worker) = (PROTOCOL_VERSION, "bench".to_owned());
        let presence = Presence { version, client, worker, capabilities };
        let records = &records;
        async move { records.put(presence.client.as_str(), &presence).await.map(drop) }
    });
    stream::iter(announcing).buffer_unordered(AT_ONCE).try_collect().await
}

async fn serve(
    (bus, recent): (Bus, Arc<RecentBlobs>),
    mut tasks: Tasks,
    client: ClientId,
    (adapter, publishing): (Payload, Arc<Semaphore>),
) -> Result<(), BusError> {
    loop {
        let delivery = tasks.next().await?;
        if let Ok(task) = &delivery.result {
            if let Payload::Blob { digest, size } = &task.adapter {
                recent.get(&bus, digest, *size).await?;
            }
            let outcome = Outcome::Trained {
                examples: EXAMPLES,
                steps: 1,
                loss: 1.0,
                seconds: 0.0,
                adapter: adapter.clone(),
                personal: None,
                control: None,
                epsilon: None,
            };
            let (version, epoch, name) = (PROTOCOL_VERSION, task.epoch, task.task.clone());
            let update = Update { version, epoch, task: name, outcome, fetched: Vec::new() };
            // It is never closed.
            let _turn = publishing.acquire().await;
            bus.publish_update(&task.run, task.round, &client, &update).await?;
        }
    }
}
