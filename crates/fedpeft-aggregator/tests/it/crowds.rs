//! Rounds of so many clients that what is said of all of them does not fit a message.

use fedpeft_bus::Bus;
use fedpeft_protocol::{
    ClientId, PROTOCOL_VERSION,
    event::EventKind,
    presence::Presence,
    round::{ClientOutcome, Outcome, Payload, Update},
    run::RunStatus,
    subject,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::federation::{Federation, capabilities, client, run_id, spec};

const CLIENTS: u32 = 600;
const AT_ONCE: usize = 64;

/// Clients with names as long as they may be.
fn names() -> Vec<ClientId> {
    (0..CLIENTS).map(|number| client(&format!("{number:04}-{}", "x".repeat(59)))).collect()
}

async fn join(bus: &Bus, clients: &[ClientId]) {
    let records = bus.clients().await.unwrap();
    let joining = clients.iter().cloned().map(|client| {
        let (version, worker, capabilities) = (PROTOCOL_VERSION, "crowd".into(), capabilities(10));
        let presence = Presence { version, client, worker, capabilities };
        let records = &records;
        async move { records.put(presence.client.as_str(), &presence).await.map(drop) }
    });
    stream::iter(joining).buffer_unordered(AT_ONCE).try_collect::<()>().await.unwrap();
}

/// Answers of clients, which know the names of their tasks.
async fn answer(bus: &Bus, adapter: &bytes::Bytes, clients: &[ClientId], epoch: u64) {
    let run = run_id("crowd");
    let answering = clients.iter().map(|client| {
        let task = subject::task_id(&run, 1, client, "train", epoch);
        let outcome = Outcome::Trained {
            examples: 10,
            steps: 1,
            loss: 0.5,
            seconds: 0.1,
            adapter: Payload::inline(adapter.clone()),
            personal: None,
            control: None,
            epsilon: None,
        };
        let update = Update { version: PROTOCOL_VERSION, epoch, task, outcome, fetched: vec![] };
        let (bus, run) = (bus.clone(), run.clone());
        let client = client.clone();
        async move { bus.publish_update(&run, 1, &client, &update).await.map(drop) }
    });
    let answering: Vec<_> = answering.collect();
    stream::iter(answering).buffer_unordered(AT_ONCE).try_collect::<()>().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_whose_clients_fit_no_message_survives_its_owner_and_its_report_is_whole() {
    let federation = Federation::start_small(10, "96KB").await;
    let clients = names();
    join(&federation.bus, &clients).await;
    let service = federation.aggregator().await;
    let before = federation.blobs().await.len();
    federation.create("crowd", spec(1, CLIENTS)).await.unwrap();
    let open = federation.until("crowd", |record| record.open.is_some()).await.open.unwrap();
    assert_eq!((open.cohort.as_slice(), open.examples.len()), (clients.as_slice(), clients.len()));
    let (early, late) = clients.split_at(250);
    answer(&federation.bus, &federation.initial(), early, open.epoch).await;
    // The cohort is durable: who takes over has the same.
    service.stop().await;
    answer(&federation.bus, &federation.initial(), late, open.epoch).await;
    let _service = federation.aggregator().await;
    let ended = federation.until("crowd", |record| record.status.is_final()).await;
    assert_eq!((ended.status, ended.round), (RunStatus::Completed, 1));

    let (report, _) = federation.bus.round_reports().await.unwrap().get("crowd.1").await.unwrap().unwrap();
    assert_eq!(report.clients.len(), clients.len());
    assert!(report.clients.iter().all(|client| matches!(client.outcome, ClientOutcome::Accepted { .. })));
    let told = federation.events("crowd").await.into_iter().find_map(|kind| match kind {
        EventKind::RoundClosed { report } => Some(report),
        _ => None,
    });
    assert_eq!(*told.unwrap(), report);
    let view = federation.view("crowd").await;
    assert_eq!(view.record.ledger, report.ledger);
    assert!(view.rounds[0].clients.is_empty() && view.rounds[0].bytes_up > 0);
    // Of what did not fit, the report alone is left, beside the adapter, which did not change; it is compressed.
    let blobs = federation.blobs().await;
    assert_eq!(blobs.len(), before + 2, "{blobs:?}");
    assert!(blobs.iter().all(|size| *size < 10_000), "{blobs:?}");
}
