//! Runs whose adapters are encoded on their way.

use bytes::Bytes;
use fedpeft_codec::{Base, Codec, Pipeline, Seed, decode, encode};
use fedpeft_protocol::{
    Digest, ledger,
    round::{ClientOutcome, MemoryTask, Payload, Task, Work},
    run::{AggregationSpec, PrivacySpec, RunSpec},
};

use crate::federation::{Federation, Player, mean, spec};

fn pipeline(text: &str) -> Pipeline {
    text.parse().unwrap()
}

async fn players(federation: &mut Federation, names: &[&str]) -> Vec<Player> {
    let mut players = Vec::new();
    for name in names {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    players
}

/// The digest of what a client sent in a round.
fn sent(view: &fedpeft_protocol::run::RunView, round: usize, at: usize) -> Digest {
    match view.rounds[round].clients[at].outcome {
        ClientOutcome::Accepted { digest, .. } => digest,
        _ => panic!("{:?}", view.rounds[round].clients[at]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_are_decoded_before_they_are_folded() {
    let mut federation = Federation::start(2000).await;
    let mut players = players(&mut federation, &["a", "b"]).await;
    let _service = federation.aggregator().await;
    let uplink = pipeline("delta,int8,zstd");
    let wanted = RunSpec { uplink, keep_updates: true, max_update_norm: Some(1e3), ..spec(2, 2) };
    federation.create("r", wanted).await.unwrap();
    let mut global = decode(&federation.initial(), &federation.layout).unwrap();
    for round in 1..=2 {
        let expected = mean(&[(&players[0], 10), (&players[1], 30)], &global);
        for (player, examples) in players.iter_mut().zip([10, 30]) {
            let task = player.task().await;
            assert_eq!(player.global(&task).await, global, "the downlink is plain");
            let update = player.trained(&task, examples).await;
            player.send(&task, &update).await;
        }
        let round = global_after(&federation, round).await;
        // Changes are at most 1 in magnitude here, a step is 1/127 of that.
        assert!(round.iter().zip(&expected).all(|(found, wanted)| (found - wanted).abs() < 2.0 / 127.0));
        assert_ne!(round, expected);
        global = round;
    }
    let view = federation.completed("r").await;
    assert_eq!(ledger::check(&view).unwrap().updates, 4);
    // What is kept and named is what was sent.
    let (kept, _) = federation.bus.get_blob(&sent(&view, 0, 0), 8000).await.unwrap();
    assert!(kept.starts_with(b"FPC") && kept.len() < 2100, "{}", kept.len());
    assert!(view.rounds[0].clients.iter().all(|client| client.bytes_up < 3000));
}

/// The global adapter after a round.
async fn global_after(federation: &Federation, round: u32) -> Vec<f32> {
    let record = federation.until("r", |record| record.round >= round).await;
    decode(&federation.adapter(&record.adapter).await, &federation.layout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_are_refused_by_name() {
    let mut federation = Federation::start(100).await;
    let names = ["base", "bomb", "good", "none", "other", "plain"];
    let mut players = players(&mut federation, &names).await;
    let _service = federation.aggregator().await;
    let uplink = pipeline("delta,int8,zstd");
    federation.create("r", RunSpec { uplink, quorum: Some(1), ..spec(1, 6) }).await.unwrap();
    let mut global = Vec::new();
    for player in &mut players {
        let task = player.task().await;
        global = player.global(&task).await;
        let values = player.train(&global);
        let encoded = |text: &str, base: &[f32]| {
            let codec = Codec::new(pipeline(text), &federation.layout);
            codec.encode(&values, Some(&Base::new(base)), Seed::new(7, 1, "x")).unwrap()
        };
        let bytes = match player.id.as_str() {
            "base" => encoded("delta,int8,zstd", &vec![0.5; 100]),
            "bomb" => bomb(&encoded("delta,int8,zstd", &global)),
            "none" => Bytes::new(),
            "other" => encoded("delta,int4,zstd", &global),
            "plain" => encode(&values),
            _ => encoded("delta,int8,zstd", &global),
        };
        player.send(&task, &player.update_with(&task, 40, Payload::inline(bytes))).await;
    }
    let view = federation.completed("r").await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    let expected = players[2].train(&global);
    assert!(found.iter().zip(&expected).all(|(found, wanted)| (found - wanted).abs() < 1.0 / 50.0));
    for (name, expected) in [
        ("base", "changes to another adapter"),
        ("bomb", "expands to more than its layout allows"),
        ("none", "fewer than 44 bytes"),
        ("other", "encoded as delta,int4,zstd, the run asks for delta,int8,zstd"),
        ("plain", "does not begin with FPC"),
    ] {
        let reason = federation.refusal("r", name).await;
        assert!(reason.contains(expected), "{name}: {reason}");
    }
}

/// An honest header before a frame of 64 MiB of zeros.
fn bomb(honest: &[u8]) -> Bytes {
    let zeros = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    [&honest[..44], &zeros].concat().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_make_of_the_downlink_is_the_global_adapter() {
    let mut federation = Federation::start(2000).await;
    let mut players = players(&mut federation, &["a", "b"]).await;
    let _service = federation.aggregator().await;
    let downlink = pipeline("fp16");
    // Updates are clipped around the adapter that they began with, and are changes to it.
    let mut wanted = RunSpec { uplink: pipeline("delta"), downlink, ..spec(2, 2) };
    wanted.aggregation = AggregationSpec::ClippedMean { norm: 1e6 };
    federation.create("r", wanted).await.unwrap();
    let halved = |values: &[f32]| {
        let codec = Codec::new(downlink, &federation.layout);
        codec.decode(&codec.encode(values, None, Seed::new(0, 0, "")).unwrap(), None).unwrap()
    };
    let mut global = halved(&decode(&federation.initial(), &federation.layout).unwrap());
    let created = federation.view("r").await.record;
    assert_eq!(decode(&federation.adapter(&created.adapter).await, &federation.layout).unwrap(), global);
    for round in 1..=2 {
        for player in &mut players {
            let task = player.task().await;
            assert_eq!((task.round, task.adapter.size()), (round, 44 + 4000));
            assert_eq!(player.global(&task).await, global);
            player.send(&task, &player.trained(&task, 10).await).await;
        }
        let next = global_after(&federation, round).await;
        assert_eq!(halved(&next), next, "every value is one of half precision");
        let expected = mean(&[(&players[0], 10), (&players[1], 10)], &global);
        assert!(next.iter().zip(&expected).all(|(found, wanted)| (found - wanted).abs() < 1e-3));
        global = next;
    }
    let view = federation.completed("r").await;
    ledger::check(&view).unwrap();
    assert!(view.rounds[0].clients.iter().all(|client| client.bytes_down < 5000));
}

/// Adapters of 1.2 MB do not fit a message of 1 MiB: decoded they lie in files, and a crash changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn large_adapters_are_decoded_into_files() {
    let mut results = Vec::new();
    for crashes in [false, true] {
        let mut federation = Federation::start(300_000).await;
        let mut players = players(&mut federation, &["a", "b"]).await;
        let mut service = Some(federation.aggregator().await);
        let wanted = RunSpec { uplink: pipeline("delta"), downlink: pipeline("bf16"), ..spec(2, 2) };
        federation.create("r", wanted).await.unwrap();
        for round in 0..2 {
            for (at, player) in players.iter_mut().enumerate() {
                let task = player.task().await;
                assert!(matches!(task.adapter, Payload::Message { .. }), "600 KB fit a message");
                let update = player.uploaded(&task, 10).await;
                player.send(&task, &update).await;
                if crashes && round == 0 && at == 0 {
                    let accepted =
                        |kind: &fedpeft_protocol::event::EventKind| kind.name() == "update_accepted";
                    federation.events_until("r", accepted).await;
                    service.take().unwrap().kill().await;
                    service = Some(federation.aggregator().await);
                }
            }
        }
        let view = federation.completed("r").await;
        assert_eq!(ledger::check(&view).unwrap().updates, 4);
        assert_eq!(federation.uploads().await, 0);
        results.push(view.rounds.iter().map(|report| report.adapter).collect::<Vec<_>>());
        service.unwrap().stop().await;
    }
    assert_eq!(results[0], results[1], "the same bytes, with and without crashes");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_error_feedback_are_told_which_update_counts() {
    let mut federation = Federation::start(100).await;
    let mut players = players(&mut federation, &["a", "b"]).await;
    let _service = federation.aggregator().await;
    let uplink = pipeline("delta,topk=0.2");
    federation.create("r", RunSpec { uplink, ..spec(2, 2) }).await.unwrap();
    let counted = |task: &Task| match &task.work {
        Work::Train { memory: Some(MemoryTask { counted, .. }), uplink: asked, .. } if *asked == uplink => {
            *counted
        }
        work => panic!("{work:?}"),
    };
    let mut first = Vec::new();
    for player in &mut players {
        let task = player.task().await;
        assert_eq!(counted(&task), None);
        let update = player.trained(&task, 10).await;
        first.push(update.payloads().next().unwrap().digest());
        player.send(&task, &update).await;
    }
    for (player, first) in players.iter_mut().zip(first) {
        let task = player.task().await;
        assert_eq!(counted(&task), Some(first));
        player.send(&task, &player.trained(&task, 10).await).await;
    }
    federation.completed("r").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_that_make_no_sense_are_refused_when_a_run_is_created() {
    let mut federation = Federation::start(100).await;
    federation.join("a", 40).await;
    let _service = federation.aggregator().await;
    let delta = RunSpec { downlink: pipeline("delta,int8"), ..spec(1, 1) };
    let error = federation.create("r", delta).await.unwrap_err().to_string();
    assert!(error.contains("downlink") && error.contains("delta"), "{error}");
    let privacy: PrivacySpec = serde_json::from_value(serde_json::json!({
        "epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0, "population": 100
    }))
    .unwrap();
    let forgetful = RunSpec { uplink: pipeline("delta,topk=0.1"), privacy: Some(privacy), ..spec(1, 1) };
    let error = federation.create("r", forgetful).await.unwrap_err().to_string();
    assert!(error.contains("uplink") && error.contains("+forget"), "{error}");
}
