//! Which clients take part, when a round closes, and what counts.

use std::collections::BTreeSet;

use fedpeft_codec::{decode, encode};
use fedpeft_protocol::{
    Digest, ledger,
    presence::Capabilities,
    round::{ClientOutcome, Payload, RoundReport, Task},
    run::{Eligibility, ModeSpec, RunSpec, StabilitySpec, StalenessSpec, StrategySpec},
    subject,
};

use crate::federation::{Federation, Player, assert_close, capabilities, mean, spec};

/// Clients and what became of them, in the order of the report.
fn outcomes(report: &RoundReport) -> Vec<(&str, &'static str)> {
    report.clients.iter().map(|client| (client.client.as_str(), client.outcome.word())).collect()
}

async fn players(federation: &mut Federation, names: &[&str]) -> Vec<Player> {
    let mut players = Vec::new();
    for name in names {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    players
}

#[tokio::test(flavor = "multi_thread")]
async fn reserves_stand_in_for_slow_clients() {
    let mut federation = Federation::start(20).await;
    let mut players = players(&mut federation, &["a", "b", "slow"]).await;
    let _service = federation.aggregator().await;
    let wanted = RunSpec { over_selection: 0.5, ..spec(2, 2) };
    federation.create("r", wanted).await.unwrap();
    let slow_task = players[2].task().await;
    for round in 1..=2 {
        for player in &mut players[..2] {
            let task = player.task().await;
            assert_eq!(task.round, round);
            player.send(&task, &player.trained(&task, 40).await).await;
        }
    }
    players[2].send(&slow_task, &players[2].trained(&slow_task, 40).await).await;
    let view = federation.completed("r").await;
    let expected = [("a", "accepted"), ("b", "accepted"), ("slow", "surplus")];
    assert!(view.rounds.iter().all(|report| outcomes(report) == expected));
    let reason = federation.refusal("r", "slow").await;
    assert!(reason.contains("round 1 is closed, the update came too late"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_its_soft_deadline_on_a_quorum_closes_a_round() {
    let mut federation = Federation::start(20).await;
    let mut players = players(&mut federation, &["a", "b", "silent"]).await;
    let _service = federation.aggregator().await;
    let wanted = RunSpec {
        quorum: Some(2),
        soft_deadline_seconds: Some(2.0),
        round_deadline_seconds: 3600.0,
        ..spec(1, 3)
    };
    federation.create("r", wanted).await.unwrap();
    for player in &mut players[..2] {
        let task = player.task().await;
        player.send(&task, &player.trained(&task, 40).await).await;
    }
    let view = federation.completed("r").await;
    assert_eq!(outcomes(&view.rounds[0]), [("a", "accepted"), ("b", "accepted"), ("silent", "dropped")]);
    assert!(view.rounds[0].seconds.total >= 1.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_eligible_clients_are_sampled() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("small", 5), ("large", 500)]).await;
    let labelled = |site: &str| Capabilities {
        labels: [("site".to_owned(), site.to_owned())].into(),
        free_memory_mib: Some(4096),
        ..capabilities(50)
    };
    federation.present_with("there", labelled("us")).await;
    federation.present_with("here", labelled("eu")).await;
    let mut here = federation.player("here").await;
    let _service = federation.aggregator().await;
    let eligibility = Eligibility {
        min_examples: Some(10),
        max_examples: Some(100),
        min_free_memory_mib: Some(1024),
        labels: [("site".to_owned(), "eu".to_owned())].into(),
        ..Default::default()
    };
    federation
        .create("r", RunSpec { eligibility, min_clients: Some(1), quorum: Some(1), ..spec(1, 4) })
        .await
        .unwrap();
    let task = here.task().await;
    here.send(&task, &here.trained(&task, 50).await).await;
    assert_eq!(outcomes(&federation.completed("r").await.rounds[0]), [("here", "accepted")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_clients_are_not_sampled() {
    let mut federation = Federation::start(20).await;
    let names: Vec<_> = (0..8).map(|number| format!("c{number}")).collect();
    let clients: Vec<_> = names.iter().map(|name| (name.as_str(), 10)).collect();
    federation.trainers(&clients).await;
    let _service = federation.aggregator().await;
    let stability = StabilitySpec { participation: 0.5, seed: Some(3), ..Default::default() };
    let wanted = RunSpec { stability: Some(stability), quorum: Some(2), ..spec(4, 8) };
    let mut seen = Vec::new();
    for run in ["r1", "r2"] {
        federation.create(run, wanted.clone()).await.unwrap();
        let view = federation.completed(run).await;
        let cohorts: Vec<Vec<_>> = view
            .rounds
            .iter()
            .map(|report| report.clients.iter().map(|client| client.client.clone()).collect())
            .collect();
        assert!(cohorts.iter().all(|cohort| (2..8).contains(&cohort.len())), "{cohorts:?}");
        assert!(cohorts.iter().collect::<BTreeSet<_>>().len() > 1);
        seen.push((cohorts, view.record.adapter));
    }
    assert_eq!(seen[0], seen[1], "one seed, the same clients and bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_went_too_far_is_refused() {
    let mut federation = Federation::start(20).await;
    let mut players = players(&mut federation, &["far", "near"]).await;
    let _service = federation.aggregator().await;
    federation.create("r", RunSpec { max_update_norm: Some(0.5), ..spec(1, 2) }).await.unwrap();
    for (player, step) in players.iter_mut().zip([0.51f32, 0.49]) {
        let task = player.task().await;
        let mut values = player.global(&task).await;
        values[3] += step;
        player.send(&task, &player.update_with(&task, 40, Payload::inline(encode(&values)))).await;
    }
    let view = federation.completed("r").await;
    assert_eq!(outcomes(&view.rounds[0]), [("far", "rejected"), ("near", "accepted")]);
    let reason = federation.refusal("r", "far").await;
    assert!(reason.contains("L2 norm of 0.51") && reason.contains("max_update_norm is 0.5"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_names_every_update_once() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 3), ("b", 5)]).await;
    let _service = federation.aggregator().await;
    federation.create("r", RunSpec { keep_updates: true, ..spec(3, 2) }).await.unwrap();
    let view = federation.completed("r").await;
    let checked = ledger::check(&view).unwrap();
    assert_eq!((checked.rounds, checked.updates, checked.weight), (3, 6, 24));
    let first = &view.rounds[0].clients[1];
    let ClientOutcome::Accepted { update, weight, digest, staleness: 0 } = &first.outcome else {
        panic!("{first:?}")
    };
    assert_eq!((update.as_str(), *weight), ("r/1/b/train/1", 5));
    assert!(federation.bus.has_blob(digest).await.unwrap(), "kept on request");
    assert_eq!(view.rounds[0].previous, Digest::of(federation.initial()));
}

/// Answers the next task of a player.
async fn answer(player: &mut Player, examples: u64) -> Task {
    let task = player.task().await;
    player.send(&task, &player.trained(&task, examples).await).await;
    task
}

fn buffered(rounds: u32) -> RunSpec {
    let mode = ModeSpec::Buffered { buffer: 2, max_staleness: 3, staleness: StalenessSpec::default() };
    RunSpec { mode, ..spec(rounds, 3) }
}

#[tokio::test(flavor = "multi_thread")]
async fn buffered_rounds_take_stale_updates_as_computed_by_hand() {
    let mut results = Vec::new();
    for stormy in [false, true] {
        let mut federation = Federation::start(20).await;
        let mut players = players(&mut federation, &["a", "b", "slow"]).await;
        let mut service = federation.aggregator().await;
        federation.create("r", buffered(2)).await.unwrap();
        let slow_task = players[2].task().await;
        let first = answer(&mut players[0], 10).await;
        answer(&mut players[1], 30).await;
        // Round 2: b is asked again, slow goes on with what it has.
        let second = players[0].task().await;
        assert_eq!((second.round, slow_task.round), (2, 1));
        if stormy {
            service.kill().await;
            service = federation.aggregator().await;
        }
        players[2].send(&slow_task, &players[2].trained(&slow_task, 20).await).await;
        if stormy {
            federation.events_until("r", |kind| matches!(kind, fedpeft_protocol::event::EventKind::UpdateAccepted { client, .. } if client.as_str() == "slow")).await;
            service.kill().await;
            service = federation.aggregator().await;
        }
        let b_task = answer(&mut players[1], 30).await;
        assert_eq!(b_task.round, 2);
        let view = federation.completed("r").await;
        assert_eq!(outcomes(&view.rounds[0]), [("a", "accepted"), ("b", "accepted"), ("slow", "training")]);
        assert_eq!(outcomes(&view.rounds[1]), [("a", "training"), ("b", "accepted"), ("slow", "accepted")]);
        assert!(matches!(view.rounds[1].clients[2].outcome, ClientOutcome::Accepted { staleness: 1, .. }));
        assert_eq!(ledger::check(&view).unwrap().updates, 4);

        let x0 = players[0].global(&first).await;
        let x1 = players[0].global(&second).await;
        let (a, b) = (players[0].train(&x0), players[1].train(&x0));
        let expected: Vec<_> = (0..20).map(|at| (10.0 * a[at] + 30.0 * b[at]) / 40.0).collect();
        for (found, expected) in x1.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6);
        }
        // s(1) = 2^-1/2, in 64ths of an example.
        let stale = (20.0f64 * 64.0 * 0.5f64.sqrt()).round() / 64.0;
        let (slow, b) = (players[2].train(&x0), players[1].train(&x1));
        let expected: Vec<_> = (0..20)
            .map(|at| {
                let moved = 30.0 * (f64::from(b[at]) - f64::from(x1[at]))
                    + stale * (f64::from(slow[at]) - f64::from(x0[at]));
                (f64::from(x1[at]) + moved / 50.0) as f32
            })
            .collect();
        let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
        assert_close(&found, &expected);
        results.push(view.rounds.iter().map(|report| report.adapter).collect::<Vec<_>>());
        // Nobody waits for a any more.
        players[0].send(&second, &players[0].trained(&second, 10).await).await;
        assert!(federation.refusal("r", "a").await.contains("too late"));
        service.stop().await;
    }
    assert_eq!(results[0], results[1], "the same bytes, with and without crashes");
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_are_too_stale_are_refused() {
    let mut federation = Federation::start(20).await;
    let mut players = players(&mut federation, &["a", "b", "slow"]).await;
    let _service = federation.aggregator().await;
    let mode = ModeSpec::Buffered { buffer: 2, max_staleness: 1, staleness: StalenessSpec::Constant };
    federation.create("r", RunSpec { mode, ..spec(4, 3) }).await.unwrap();
    let slow_task = players[2].task().await;
    for _ in 0..2 {
        answer(&mut players[0], 10).await;
        answer(&mut players[1], 10).await;
    }
    // Round 3 samples the slow client anew.
    players[2].send(&slow_task, &players[2].trained(&slow_task, 10).await).await;
    assert!(federation.refusal("r", "slow").await.contains("round 1 is closed"));
    for _ in 0..2 {
        answer(&mut players[0], 10).await;
        answer(&mut players[1], 10).await;
    }
    let view = federation.completed("r").await;
    assert_eq!(outcomes(&view.rounds[0])[2], ("slow", "training"));
    assert_eq!(outcomes(&view.rounds[1])[2], ("slow", "surplus"));
    assert_eq!(outcomes(&view.rounds[2])[2], ("slow", "training"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_strays_changes_nothing_and_is_told_of_briefly() {
    let mut federation = Federation::start(20).await;
    let mut players = players(&mut federation, &["a", "flood"]).await;
    let _service = federation.aggregator().await;
    federation.create("r", RunSpec { quorum: Some(1), ..spec(1, 2) }).await.unwrap();
    let (task, flooded) = (players[0].task().await, players[1].task().await);
    let broker = async_nats::jetstream::new(async_nats::connect(federation.nats.url()).await.unwrap());
    for number in 0..200u32 {
        let subject = subject::update(&flooded.run, 1000 + number % 7, &players[1].id);
        let _ = broker.publish(subject, "flood".into()).await.unwrap().await;
    }
    players[1].send(&flooded, &players[1].trained(&flooded, 40).await).await;
    players[0].send(&task, &players[0].trained(&task, 40).await).await;
    let view = federation.completed("r").await;
    assert_eq!(outcomes(&view.rounds[0]), [("a", "accepted"), ("flood", "accepted")]);
    let events = federation.events("r").await;
    let told = events.iter().filter(|kind| kind.name() == "update_rejected").count();
    assert!((1..=17).contains(&told), "{told}");
}

/// FedAdam over three rounds, the second of which another owner finishes: moments are as durable as the adapter, and
/// those of the past are forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_optimizer_goes_on_where_its_owner_died() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 40).await;
    }
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let service = federation.aggregator().await;
    let mut wanted = spec(3, 2);
    let (learning_rate, beta1, beta2, tau) = (0.05, 0.9, 0.99, 0.01);
    wanted.strategy = StrategySpec::Fedadam { learning_rate, beta1, beta2, tau };
    federation.create("r", wanted).await.unwrap();

    let mut global = decode(&federation.initial(), &federation.layout).unwrap();
    // Moments are kept as the adapter's values are.
    let rounded = |value: f64| f64::from(value as f32);
    let (mut m, mut v) = (vec![0.0f64; 20], vec![rounded(tau * tau); 20]);
    let (mut service, mut first_moments) = (Some(service), None);
    for round in 1..=3 {
        let (task_a, task_b) = (a.task().await, b.task().await);
        assert_eq!((task_a.round, task_b.round), (round, round));
        a.send(&task_a, &a.trained(&task_a, 30).await).await;
        if round == 2 {
            first_moments = federation.view("r").await.record.moments;
            service.take().unwrap().kill().await;
            service = Some(federation.aggregator().await);
        }
        b.send(&task_b, &b.trained(&task_b, 10).await).await;
        let means = mean(&[(&a, 30), (&b, 10)], &global);
        for (((x, mean), m), v) in global.iter_mut().zip(means).zip(&mut m).zip(&mut v) {
            let d = f64::from(mean) - f64::from(*x);
            *m = rounded(beta1 * *m + (1.0 - beta1) * d);
            *v = rounded(beta2 * *v + (1.0 - beta2) * d * d);
            *x = (f64::from(*x) + learning_rate * *m / (v.sqrt() + tau)) as f32;
        }
    }
    let view = federation.completed("r").await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &global);
    let (first, last) = (first_moments.unwrap(), view.record.moments.unwrap());
    assert!(federation.bus.has_blob(&last).await.unwrap() && !federation.bus.has_blob(&first).await.unwrap());
    drop(service);
}
