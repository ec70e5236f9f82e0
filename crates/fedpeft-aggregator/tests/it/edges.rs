//! Trees of aggregators, each with a broker of its own.

use std::{collections::BTreeMap, io::Cursor};

use fedpeft_aggregator::EdgeRounds;
use fedpeft_bus::{Bus, BusConfig};
use fedpeft_codec::{decode, encode};
use fedpeft_protocol::{
    Digest,
    event::EventKind,
    ledger,
    presence::Capabilities,
    round::{ClientOutcome, Outcome, Payload, Task, Work},
    run::{AggregationSpec, RunRecord, RunSpec, RunStatus, RunView, StrategySpec, UpstreamState},
};
use fedpeft_strategy::{Accumulator, Weight};
use fedpeft_testkit::Proxy;

use crate::federation::{Federation, Player, capabilities, client, spec};

const CLIENTS: [(&str, u64); 6] = [("a", 10), ("b", 23), ("c", 200), ("d", 5), ("e", 71), ("f", 40)];

/// The global adapters of a run in which everybody is a client of one aggregator.
async fn flat(values: u64, wanted: RunSpec) -> Vec<Digest> {
    let mut federation = Federation::start(values).await;
    match values > 1000 {
        true => federation.uploaders(&CLIENTS).await,
        false => federation.trainers(&CLIENTS).await,
    }
    let _service = federation.aggregator().await;
    federation.create("r", wanted).await.unwrap();
    adapters(&federation.completed("r").await)
}

fn adapters(view: &RunView) -> Vec<Digest> {
    view.rounds.iter().map(|report| report.adapter).collect()
}

fn is_sent(record: &RunRecord) -> bool {
    record.upstream.as_ref().is_some_and(|upstream| upstream.state == UpstreamState::Sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_gives_the_bytes_of_a_flat_run() {
    let wanted = |cohort| RunSpec {
        strategy: StrategySpec::Fedadam { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 },
        max_update_norm: Some(1e3),
        keep_updates: true,
        ..spec(3, cohort)
    };
    let expected = flat(500, wanted(6)).await;

    // f works for the root, a and b for an edge of it, c for an edge with an edge of its own, where d and e work.
    let (mut root, mut west) = (Federation::start(500).await, Federation::bare(500).await);
    let (mut east, mut far) = (Federation::bare(500).await, Federation::bare(500).await);
    root.trainers(&CLIENTS[5..]).await;
    west.trainers(&CLIENTS[..2]).await;
    east.trainers(&CLIENTS[2..3]).await;
    far.trainers(&CLIENTS[3..5]).await;
    let _west = west.edge(root.nats.bus().await, "west", EdgeRounds::default()).await;
    let rounds = EdgeRounds { min_clients: 2, ..EdgeRounds::default() };
    let _east = east.edge(root.nats.bus().await, "east", rounds).await;
    let _far = far.edge(east.nats.bus().await, "far", EdgeRounds::default()).await;
    root.offers("west", 33).await;
    root.offers("east", 276).await;
    let _service = root.aggregator().await;
    root.create("r", wanted(3)).await.unwrap();
    let view = root.completed("r").await;
    assert_eq!(adapters(&view), expected);

    let checked = ledger::check(&view).unwrap();
    assert_eq!((checked.updates, checked.weight), (9, 3 * 349));
    for report in &view.rounds {
        let told = report.clients.iter().map(|c| (c.client.as_str(), c.examples, c.updates));
        assert_eq!(told.collect::<Vec<_>>(), [("east", 276, 3), ("f", 40, 0), ("west", 33, 2)]);
    }
    // Each edge has a ledger of its own, whose sums are the updates in the ledger above.
    far.until("r", is_sent).await;
    let middle = east.completed("r").await;
    for (edge, clients, name, above) in
        [(&west, 2, "west", &view), (&east, 2, "east", &view), (&far, 2, "far", &middle)]
    {
        edge.until("r", is_sent).await;
        let own = edge.completed("r").await;
        assert_eq!(ledger::check(&own).unwrap().updates, 3 * clients);
        for (own, above) in own.rounds.iter().zip(&above.rounds) {
            let entry = above.clients.iter().find(|entry| entry.client == client(name)).unwrap();
            assert!(matches!(entry.outcome, ClientOutcome::Accepted { digest, .. } if digest == own.adapter));
            assert_eq!(own.previous, view.rounds[own.round as usize - 1].previous);
            assert!(!edge.bus.has_blob(&own.adapter).await.unwrap());
        }
    }
    // The root was asked to keep updates: it keeps the sums.
    assert!(root.bus.has_blob(&middle.rounds[2].adapter).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_that_do_not_fit_a_message_are_uploaded() {
    const VALUES: u64 = 300_000;
    let expected = flat(VALUES, spec(2, 6)).await;
    let (root, mut west, mut east) =
        (Federation::start(VALUES).await, Federation::bare(VALUES).await, Federation::bare(VALUES).await);
    west.uploaders(&CLIENTS[..2]).await;
    east.uploaders(&CLIENTS[2..]).await;
    let _west = west.edge(root.nats.bus().await, "west", EdgeRounds::default()).await;
    let _east = east.edge(root.nats.bus().await, "east", EdgeRounds::default()).await;
    root.offers("west", 33).await;
    root.offers("east", 316).await;
    let _service = root.aggregator().await;
    root.create("r", spec(2, 2)).await.unwrap();
    let view = root.completed("r").await;
    assert_eq!(adapters(&view), expected);
    for report in &view.rounds {
        for edge in &report.clients {
            // An adapter takes 4 bytes a value, a sum of several some 6.
            assert!(edge.bytes_up > 4 * VALUES && edge.bytes_up < 8 * VALUES, "{edge:?}");
        }
    }
    assert_eq!(root.uploads().await, 0);
    for edge in [&west, &east] {
        edge.until("r", is_sent).await;
        assert_eq!(edge.uploads().await, 0);
    }
}

/// A root with one edge, whose clients a and b are played by hand.
async fn played() -> (Federation, Federation, Vec<Player>) {
    let (root, mut edge) = (Federation::start(100).await, Federation::bare(100).await);
    let mut players = Vec::new();
    for (name, examples) in &CLIENTS[..2] {
        edge.join(name, *examples).await;
        players.push(edge.player(name).await);
    }
    (root, edge, players)
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_one_edge_do_not_fence_each_other() {
    let expected = flat(100, spec(3, 6)).await;
    let (root, mut edge) = (Federation::start(100).await, Federation::bare(100).await);
    edge.trainers(&CLIENTS).await;
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(edge.edge(root.nats.bus().await, "edge", EdgeRounds::default()).await);
    }
    root.offers("edge", 349).await;
    let _root = root.aggregator().await;
    root.create("r", spec(3, 1)).await.unwrap();
    assert_eq!(adapters(&root.completed("r").await), expected);
    // Each round was taken once.
    assert_eq!(edge.until("r", is_sent).await.epoch, 3);
    for service in services {
        service.stop().await;
    }
    assert!(edge.bus.leases().await.unwrap().keys("").await.unwrap().is_empty());
}

/// What happens to an edge in the middle of the first round.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    /// Killed, and started again.
    Restarts,
    /// Killed while another process of it stands by.
    IsReplaced,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_killed_between_updates_goes_on() {
    let mut results = Vec::new();
    for fate in [Fate::Lives, Fate::Restarts, Fate::IsReplaced] {
        let (root, edge, mut players) = Box::pin(played()).await;
        let start = async || edge.edge(root.nats.bus().await, "edge", EdgeRounds::default()).await;
        let mut service = start().await;
        root.offers("edge", 33).await;
        let _root = root.aggregator().await;
        root.create("r", spec(2, 1)).await.unwrap();
        for round in 1..=2 {
            let tasks: [Task; 2] = [players[0].task().await, players[1].task().await];
            assert_eq!(tasks[1].round, round);
            players[0].send(&tasks[0], &players[0].trained(&tasks[0], 10).await).await;
            if round == 1 && fate != Fate::Lives {
                edge.events_until(
                    "r",
                    |kind| matches!(kind, EventKind::UpdateAccepted { round: r, .. } if *r == round),
                )
                .await;
                let standby = match fate {
                    Fate::IsReplaced => Some(start().await),
                    _ => None,
                };
                service.kill().await;
                service = match standby {
                    Some(standby) => standby,
                    None => start().await,
                };
            }
            players[1].send(&tasks[1], &players[1].trained(&tasks[1], 23).await).await;
        }
        let view = root.completed("r").await;
        assert!(view.rounds.iter().all(|report| report.clients[0].updates == 2));
        let taken = edge.until("r", is_sent).await.epoch;
        assert_eq!(taken, if fate == Fate::Lives { 2 } else { 3 });
        assert_eq!(ledger::check(&edge.view("r").await).unwrap().updates, 4);
        results.push(adapters(&view));
        service.stop().await;
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_decided_is_sent_after_a_crash_as_it_was() {
    let (root, edge, mut players) = Box::pin(played()).await;
    let proxy = Proxy::start(&root.nats.url()).await;
    let config = BusConfig { server: proxy.url(), name: "test".into(), ..Default::default() };
    let rounds = EdgeRounds { min_clients: 2, quorum: Some(1), deadline_seconds: Some(3.0) };
    let service = edge.edge(Bus::connect(&config).await.unwrap(), "edge", rounds.clone()).await;
    root.offers("edge", 33).await;
    let _root = root.aggregator().await;
    root.create("r", spec(1, 1)).await.unwrap();
    let tasks: [Task; 2] = [players[0].task().await, players[1].task().await];
    proxy.refuse();
    players[0].send(&tasks[0], &players[0].trained(&tasks[0], 10).await).await;
    let record = edge
        .until("r", |record| {
            let state = record.upstream.as_ref().map(|upstream| &upstream.state);
            matches!(state, Some(UpstreamState::Answered { .. }))
        })
        .await;
    service.kill().await;
    // Too late by now.
    players[1].send(&tasks[1], &players[1].trained(&tasks[1], 23).await).await;
    let _service = edge.edge(root.nats.bus().await, "edge", rounds).await;
    let view = root.completed("r").await;
    assert_eq!((view.rounds[0].clients[0].updates, view.rounds[0].clients[0].examples), (1, 10));
    let own = edge.view("r").await.rounds.remove(0);
    assert_eq!(own.ledger, record.ledger);
    let words: Vec<_> = own.clients.iter().map(|client| client.outcome.word()).collect();
    assert_eq!(words, ["accepted", "dropped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_its_quorum_says_so_and_its_operator_may_leave_a_run() {
    let (root, edge, mut players) = Box::pin(played()).await;
    let rounds = EdgeRounds { quorum: Some(2), ..EdgeRounds::default() };
    let _edge = edge.edge(root.nats.bus().await, "edge", rounds).await;
    root.offers("edge", 33).await;
    let _root = root.aggregator().await;
    root.create("r", spec(1, 1)).await.unwrap();
    // Both have theirs before the first fails: from then on the round has no hope, and its tasks are forgotten.
    let tasks: [Task; 2] = [players[0].task().await, players[1].task().await];
    let failed = players[0].outcome(&tasks[0], Outcome::Failed { reason: "no disk".into() });
    players[0].send(&tasks[0], &failed).await;
    players[1].send(&tasks[1], &players[1].trained(&tasks[1], 23).await).await;
    let reason = |view: RunView| match view.record.status {
        RunStatus::Failed { reason } => reason,
        other => panic!("{other:?} is no failure"),
    };
    let failed = reason(root.ended("r").await);
    assert!(failed.contains("a failed (no disk)") && failed.contains("the quorum is 2"), "{failed}");
    // The same round again, with the same names, under another token: it has a sum now.
    edge.until("r", is_sent).await;
    let _: RunRecord = edge.ask("runs.cancel", "r").await.unwrap();
    let _: RunRecord = root.ask("runs.resume", "r").await.unwrap();
    let failed = reason(root.ended("r").await);
    assert!(failed.contains("cancelled at edge"), "{failed}");
    let _: RunRecord = edge.ask("runs.resume", "r").await.unwrap();
    let _: RunRecord = root.ask("runs.resume", "r").await.unwrap();
    for player in &mut players {
        let task = player.task().await;
        player.send(&task, &player.trained(&task, 10).await).await;
    }
    let view = root.completed("r").await;
    assert_eq!((view.rounds[0].clients[0].updates, view.rounds[0].clients[0].examples), (2, 20));
    edge.until("r", is_sent).await;
    assert_eq!(ledger::check(&edge.view("r").await).unwrap().updates, 2);
}

/// The sum of these updates as an edge would send it.
fn sum(federation: &Federation, updates: &[(Vec<f32>, u64)]) -> Vec<u8> {
    let mut sum = Accumulator::new(federation.layout.clone()).unwrap();
    for (values, examples) in updates {
        sum.add(&encode(values), Weight::new(*examples).unwrap()).unwrap();
    }
    let mut bytes = Vec::new();
    sum.write_partial(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_that_cannot_be_are_refused_by_name() {
    let mut root = Federation::start(50).await;
    let cases = [
        ("claims", "the update claims 31 examples, the client declared 30"),
        ("digest", "the sum's digest is"),
        ("far", "the mean of the updates is"),
        ("heavy", "is more than updates with a weight of 3 add up to"),
        ("long", "it goes on after its last value"),
        ("none", "0 updates cannot weigh 30"),
        ("plain", "did not declare that it aggregates"),
        ("short", "it ends before its last value"),
        ("size", "the sum has 100000 bytes"),
        ("trained", "the task was to aggregate, the update is a training"),
    ];
    let mut players = BTreeMap::new();
    for name in cases.map(|(name, _)| name).into_iter().chain(["honest"]) {
        let aggregates = name != "plain";
        root.present_with(name, Capabilities { aggregates, ..capabilities(30) }).await;
        players.insert(name, root.player(name).await);
    }
    let _service = root.aggregator().await;
    let wanted = RunSpec { quorum: Some(1), max_update_norm: Some(100.0), ..spec(1, 11) };
    root.create("r", wanted).await.unwrap();
    let global = decode(&root.initial(), &root.layout).unwrap();
    for (name, player) in &mut players {
        let task = player.task().await;
        if *name == "plain" {
            assert!(matches!(task.work, Work::Train { .. }));
        } else {
            assert!(matches!(task.work, Work::Aggregate { examples: 30, .. }));
        }
        let far: Vec<f32> = global.iter().map(|value| value + 100.0).collect();
        let mut bytes = match *name {
            "far" => sum(&root, &[(far, 30)]),
            "heavy" => sum(&root, &[(vec![6e4; 50], 4)]),
            _ => sum(&root, &[(player.train(&global), 12), (global.clone(), 18)]),
        };
        match *name {
            "long" => bytes.push(0),
            "short" => bytes.truncate(bytes.len() - 1),
            _ => {}
        }
        let mut payload = Payload::inline(bytes);
        match (*name, &mut payload) {
            ("digest", Payload::Message { digest, .. }) => *digest = Digest::of("other"),
            ("size", _) => payload = Payload::Blob { digest: Digest::of("x"), size: 100_000 },
            _ => {}
        }
        let (updates, examples) = match *name {
            "claims" => (2, 31),
            "heavy" => (1, 3),
            "none" => (0, 30),
            _ => (2, 30),
        };
        let outcome = Outcome::Aggregated { updates, examples, loss: 0.5, seconds: 1.0, sum: payload };
        let update = match *name {
            "trained" => player.update_with(&task, 30, Payload::inline(encode(&global))),
            _ => player.outcome(&task, outcome),
        };
        player.send(&task, &update).await;
    }
    let view = root.completed("r").await;
    for (name, expected) in cases {
        let reason = root.refusal("r", name).await;
        assert!(reason.contains(expected), "{name}: {reason}");
    }
    // What is left is the honest one's, and nothing else.
    let mut expected = Accumulator::new(root.layout.clone()).unwrap();
    expected.add(&encode(&players["honest"].train(&global)), Weight::new(12).unwrap()).unwrap();
    expected.add_spooled(&mut Cursor::new(encode(&global)), Weight::new(18).unwrap()).unwrap();
    assert_eq!(root.adapter(&view.record.adapter).await, expected.mean().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_need_single_updates_ask_no_edges() {
    let mut root = Federation::start(20).await;
    root.present_with("edge", Capabilities { aggregates: true, ..capabilities(1000) }).await;
    root.trainers(&[("a", 10), ("b", 10), ("c", 10)]).await;
    let mut edge = root.player("edge").await;
    let _service = root.aggregator().await;
    root.create("r", RunSpec { aggregation: AggregationSpec::Median, ..spec(1, 4) }).await.unwrap();
    let told = |kind: &EventKind| matches!(kind, EventKind::Waiting { present: 3, needed: 4 });
    root.events_until("r", told).await;
    root.trainers(&[("d", 10)]).await;
    let view = root.completed("r").await;
    assert!(view.rounds[0].clients.iter().all(|entry| entry.client != client("edge")));
    assert!(!edge.has_task().await);
}
