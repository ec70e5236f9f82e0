//! Adapters that do not fit a message: 1.2 MB, where the broker takes messages of 1 MiB.

use std::time::Duration;

use async_nats::jetstream::{self, stream::DiscardPolicy};
use fedpeft_bus::{Bus, BusConfig, RecentBlobs};
use fedpeft_codec::{decode, encode};
use fedpeft_protocol::{
    Digest, ledger,
    round::{ByteKind, ClientOutcome, Direction, Payload},
    run::{ModeSpec, RunSpec, StalenessSpec},
};
use fedpeft_testkit::{Proxy, Way};

use crate::federation::{Federation, Player, assert_close, mean, spec};

const VALUES: u64 = 300_000;
const SIZE: u64 = VALUES * 4;

async fn players(federation: &mut Federation, names: &[&str]) -> Vec<Player> {
    let mut players = Vec::new();
    for name in names {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    players
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_adapter_travels_through_the_object_stores_both_ways() {
    let mut federation = Federation::start(VALUES).await;
    let mut players = players(&mut federation, &["a", "b"]).await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 2)).await.unwrap();
    for player in &mut players {
        let task = player.task().await;
        assert!(matches!(task.adapter, Payload::Blob { size: SIZE, .. }));
        let stored = player.upload(&task, &player.train(&player.global(&task).await)).await;
        let payload = Payload::Blob { digest: stored.digest, size: stored.size };
        let mut update = player.update_with(&task, 10, payload);
        if player.id.as_str() == "a" {
            update.fetched = vec![stored.measured.transfer(Direction::Up, ByteKind::Adapter)];
        }
        player.send(&task, &update).await;
    }
    let view = federation.completed("r").await;
    let global = decode(&federation.initial(), &federation.layout).unwrap();
    let expected = mean(&[(&players[0], 10), (&players[1], 10)], &global);
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &expected);
    // Whether the client says so or not, its upload is counted.
    for client in &view.rounds[0].clients {
        assert!(client.bytes_up > SIZE && client.bytes_up < SIZE + 30_000, "{client:?}");
        assert!(matches!(client.outcome, ClientOutcome::Accepted { .. }));
    }
    assert_eq!(federation.uploads().await, 0, "uploads go with their round");
}

/// Nine times 960 kB is more than tasks of one round hold: the broker has the adapter once.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_fits_a_message_goes_to_many_as_a_blob() {
    let mut federation = Federation::start(240_000).await;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut players = players(&mut federation, &names).await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 9)).await.unwrap();
    let mut tasks = Vec::new();
    for player in &mut players {
        tasks.push(player.task().await);
    }
    let recent = RecentBlobs::default();
    let mut fetched = 0;
    for (player, task) in players.iter().zip(&tasks) {
        let Payload::Blob { digest, size } = &task.adapter else { panic!("{:?}", task.adapter.size()) };
        let (bytes, measured) = recent.get(&federation.bus, digest, *size).await.unwrap();
        fetched += usize::from(measured.is_some());
        let global = decode(&bytes, &federation.layout).unwrap();
        let trained = Payload::inline(encode(&player.train(&global)));
        player.send(task, &player.update_with(task, 10, trained)).await;
    }
    assert_eq!(fetched, 1);
    let view = federation.completed("r").await;
    let global = decode(&federation.initial(), &federation.layout).unwrap();
    let weighed: Vec<_> = players.iter().map(|player| (player, 10)).collect();
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &mean(&weighed, &global));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_are_refused_by_name_and_forgotten_with_their_round() {
    let mut federation = Federation::start(VALUES).await;
    let names = ["far", "good", "lost", "nan", "silent", "size"];
    let mut players = players(&mut federation, &names).await;
    let _service = federation.aggregator().await;
    let wanted = RunSpec { max_update_norm: Some(1e3), quorum: Some(1), ..spec(1, 6) };
    federation.create("r", wanted).await.unwrap();
    let mut global = Vec::new();
    let mut silent = None;
    for player in &mut players {
        let task = player.task().await;
        global = player.global(&task).await;
        let mut values = player.train(&global);
        let stored = match player.id.as_str() {
            "silent" => {
                silent = Some(task);
                continue;
            }
            "far" => {
                values[7] = 2e3;
                player.upload(&task, &values).await
            }
            "nan" => {
                values[299_999] = f32::NAN;
                player.upload(&task, &values).await
            }
            "size" => player.upload(&task, &values[1..]).await,
            _ => player.upload(&task, &values).await,
        };
        let digest = if player.id.as_str() == "lost" { Digest::of("nowhere") } else { stored.digest };
        player.send(&task, &player.update_with(&task, 40, Payload::Blob { digest, size: stored.size })).await;
    }
    federation.leave("silent").await;
    let view = federation.completed("r").await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &mean(&[(&players[1], 40)], &global));
    for (name, expected) in [
        ("far", "L2 norm of 2"),
        ("lost", "not in the blob store"),
        ("nan", "value 0 of tensor head.bias is NaN"),
        ("size", "1199996 bytes"),
    ] {
        let reason = federation.refusal("r", name).await;
        assert!(reason.contains(expected), "{name}: {reason}");
    }
    // What "lost" uploaded and did not name is left to the age limit: ten chunks, their claim and their metadata.
    assert_eq!(federation.uploads().await, SIZE.div_ceil(128 * 1024) + 2);
    // A late upload goes as soon as it is refused.
    let (player, task) = (&players[4], silent.unwrap());
    player.send(&task, &player.uploaded(&task, 40).await).await;
    assert!(federation.refusal("r", "silent").await.contains("too late"));
    let waiting = async {
        while federation.uploads().await != SIZE.div_ceil(128 * 1024) + 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it goes");
}

/// Crashes at every stage of buffered rounds whose updates are uploads, and kept.
#[tokio::test(flavor = "multi_thread")]
async fn large_buffered_rounds_survive_crashes_to_the_byte() {
    let mut results = Vec::new();
    for stormy in [false, true] {
        let mut federation = Federation::start(VALUES).await;
        let mut players = players(&mut federation, &["a", "b", "slow"]).await;
        let mut service = Some(federation.aggregator().await);
        let mode = ModeSpec::Buffered { buffer: 2, max_staleness: 3, staleness: StalenessSpec::default() };
        let wanted = RunSpec { mode, keep_updates: true, max_update_norm: Some(1e4), ..spec(2, 3) };
        federation.create("r", wanted).await.unwrap();
        let slow_task = players[2].task().await;
        for (at, examples) in [(0, 10), (1, 30)] {
            let task = players[at].task().await;
            let update = players[at].uploaded(&task, examples).await;
            players[at].send(&task, &update).await;
            if stormy && at == 0 {
                // Accepted, and to be folded again from its upload.
                let accepted = |kind: &fedpeft_protocol::event::EventKind| kind.name() == "update_accepted";
                federation.events_until("r", accepted).await;
                service.take().unwrap().kill().await;
                service = Some(federation.aggregator().await);
            }
        }
        let second = players[0].task().await;
        assert_eq!((second.round, slow_task.round), (2, 1));
        // The upload of a carried client comes before a crash, and its update after it.
        let slow = players[2].uploaded(&slow_task, 20).await;
        if stormy {
            service.take().unwrap().kill().await;
            service = Some(federation.aggregator().await);
        }
        players[2].send(&slow_task, &slow).await;
        let task = players[1].task().await;
        players[1].send(&task, &players[1].uploaded(&task, 30).await).await;
        let view = federation.completed("r").await;
        assert_eq!(ledger::check(&view).unwrap().updates, 4);
        for client in view.rounds.iter().flat_map(|report| &report.clients) {
            if let ClientOutcome::Accepted { digest, .. } = client.outcome {
                assert!(federation.bus.has_blob(&digest).await.unwrap(), "kept on request");
            }
        }
        assert_eq!(federation.uploads().await, 0);
        results.push(view.rounds.iter().map(|report| report.adapter).collect::<Vec<_>>());
        service.unwrap().stop().await;
    }
    assert_eq!(results[0], results[1], "the same bytes, with and without crashes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_costs_the_aggregator_a_window() {
    // 12 MB.
    let mut federation = Federation::start(10 * VALUES).await;
    let mut players = players(&mut federation, &["a"]).await;
    let proxy = Proxy::start(&federation.nats.url()).await;
    let config = BusConfig { server: proxy.url(), creds: None, tls: Default::default(), name: "test".into() };
    let bus = Bus::connect(&config).await.unwrap();
    let _service = federation.aggregator_on(&bus, None).await;
    federation.create("r", spec(1, 1)).await.unwrap();
    let task = players[0].task().await;
    let update = players[0].uploaded(&task, 40).await;
    let before = proxy.passed(Way::Down);
    proxy.cut_after(Way::Down, 5 * SIZE);
    players[0].send(&task, &update).await;
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].clients[0].outcome.word(), "accepted");
    // Up to 32 chunks are on their way when it breaks.
    let came = proxy.passed(Way::Down) - before;
    assert!(came > 10 * SIZE && came < 10 * SIZE + 33 * 128 * 1024, "{came}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_folder_that_cannot_be_used_pauses_the_round() {
    let mut federation = Federation::start(VALUES).await;
    let mut players = players(&mut federation, &["a"]).await;
    let folder = federation.nats.folder().join("spool");
    let _service = federation.aggregator_on(&federation.nats.bus().await, Some(folder.clone())).await;
    let error = federation.create("r", spec(1, 1)).await.unwrap_err().to_string();
    assert!(error.contains("spool") && error.contains("--spool"), "{error}");
    std::fs::create_dir(&folder).unwrap();
    federation.create("r", spec(1, 1)).await.unwrap();
    let task = players[0].task().await;
    std::fs::remove_dir(&folder).unwrap();
    players[0].send(&task, &players[0].uploaded(&task, 40).await).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!federation.view("r").await.record.status.is_final());
    std::fs::create_dir(&folder).unwrap();
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].clients[0].outcome.word(), "accepted");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "its files have no names");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_pauses_the_round_and_loses_nothing() {
    let mut federation = Federation::start(VALUES).await;
    let mut players = players(&mut federation, &["a"]).await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 1)).await.unwrap();
    let task = players[0].task().await;
    let update = players[0].uploaded(&task, 40).await;
    let broker = jetstream::new(async_nats::connect(federation.nats.url()).await.unwrap());
    let stream = broker.get_stream("OBJ_fedpeft-blobs").await.unwrap();
    let config = stream.cached_info().config.clone();
    assert_eq!(config.discard, DiscardPolicy::New);
    // Room for half an adapter.
    let max_bytes = (stream.cached_info().state.bytes + SIZE / 2) as i64;
    broker.update_stream(jetstream::stream::Config { max_bytes, ..config.clone() }).await.unwrap();
    players[0].send(&task, &update).await;
    let accepted = |kind: &fedpeft_protocol::event::EventKind| kind.name() == "update_accepted";
    federation.events_until("r", accepted).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!federation.view("r").await.record.status.is_final());
    assert!(federation.uploads().await > 0, "it can be folded again");
    broker.update_stream(config).await.unwrap();
    let view = federation.completed("r").await;
    assert_eq!(ledger::check(&view).unwrap().updates, 1);
    assert_eq!(federation.uploads().await, 0);
}
