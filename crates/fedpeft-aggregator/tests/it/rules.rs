//! What the updates of a round come to: robust rules, normalised and clipped means, and private sums.

use fedpeft_codec::{decode, encode};
use fedpeft_peft::{Lora, Method};
use fedpeft_privacy::NoiseSecret;
use fedpeft_protocol::{
    round::{ClientOutcome, Payload, RoundReport},
    run::{
        AccountantSpec, AggregationSpec, OptimizerSpec, PrivacySpec, RunSpec, RunStatus, RunView,
        SamplingSpec,
    },
};

use crate::federation::{Federation, Player, spec};

/// Two rounds of three honest clients and one that sends nonsense; the aggregator is killed in the middle of the second.
/// Returns the global adapters that the rounds began with, and the last.
async fn with_a_liar(aggregation: AggregationSpec) -> (Vec<Vec<f32>>, RunView) {
    let mut federation = Federation::start(20).await;
    let mut players = Vec::new();
    for (name, examples) in [("a", 10), ("b", 20), ("c", 30), ("d", 40), ("liar", 50)] {
        federation.join(name, examples).await;
        players.push((federation.player(name).await, examples));
    }
    let mut service = federation.aggregator().await;
    federation.create("r", RunSpec { aggregation, quorum: Some(5), ..spec(2, 5) }).await.unwrap();
    let mut globals = Vec::new();
    for round in 1..=2 {
        for (at, (player, examples)) in players.iter_mut().enumerate().rev() {
            let task = player.task().await;
            assert_eq!(task.round, round);
            let update = match player.id.as_str() {
                "liar" => player.update_with(&task, *examples, Payload::inline(encode(&[1e4; 20]))),
                _ => player.trained(&task, *examples).await,
            };
            player.send(&task, &update).await;
            if round == 2 && at == 3 {
                service.kill().await;
                service = federation.aggregator().await;
            }
            if at == 0 {
                globals.push(player.global(&task).await);
            }
        }
    }
    let view = federation.completed("r").await;
    globals.push(decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap());
    (globals, view)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_median_does_not_heed_a_liar() {
    let (globals, _) = Box::pin(with_a_liar(AggregationSpec::Median)).await;
    let federation = Federation::start(20).await;
    for (before, after) in globals.iter().zip(&globals[1..]) {
        let mut trained = Vec::new();
        for name in ["a", "b", "c", "d"] {
            trained.push(federation.player(name).await.train(before));
        }
        trained.push(vec![1e4; 20]);
        let medians: Vec<f32> = (0..20)
            .map(|at| {
                let mut values: Vec<f32> = trained.iter().map(|update| update[at]).collect();
                values.sort_by(f32::total_cmp);
                values[2]
            })
            .collect();
        assert_eq!(*after, medians);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn krum_takes_one_of_those_that_agree() {
    let (globals, view) = Box::pin(with_a_liar(AggregationSpec::Krum { byzantine: 1, keep: 1 })).await;
    let federation = Federation::start(20).await;
    let mut honest = Vec::new();
    for name in ["a", "b", "c", "d"] {
        honest.push(federation.player(name).await.train(&globals[1]));
    }
    assert!(honest.contains(&globals[2]));
    assert!(view.rounds.iter().all(|round| round.clients.len() == 5));
}

/// Clients with 32 and 96 examples in batches of 32 make one and three steps.
#[tokio::test(flavor = "multi_thread")]
async fn fednova_weighs_steps_alike() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("few", 32), ("many", 96)]).await;
    let _service = federation.aggregator().await;
    let mut wanted = RunSpec { aggregation: AggregationSpec::Fednova, ..spec(1, 2) };
    wanted.training.optimizer = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    federation.create("r", wanted).await.unwrap();
    let view = federation.completed("r").await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    let start = decode(&federation.initial(), &federation.layout).unwrap();
    let few = federation.player("few").await.train(&start);
    let many = federation.player("many").await.train(&start);
    // tau = (32 x 1 + 96 x 3) / 128 = 2.5.
    let moved = |at: usize| {
        start[at] + 2.5 * (0.25 * (few[at] - start[at]) / 1.0 + 0.75 * (many[at] - start[at]) / 3.0)
    };
    // Weights are whole numbers of units.
    let is_close = |at: usize| (found[at] - moved(at)).abs() < 1e-5;
    assert!((0..20).all(is_close), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clipped_updates_go_no_further_than_the_norm() {
    let (globals, _) = Box::pin(with_a_liar(AggregationSpec::ClippedMean { norm: 0.5 })).await;
    for (before, after) in globals.iter().zip(&globals[1..]) {
        let moved = before.iter().zip(after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(moved > 0.05 && moved <= 0.5 + 1e-6, "{moved}");
    }
}

fn private(rounds: u32, cohort: u32, edit: impl FnOnce(&mut PrivacySpec)) -> RunSpec {
    let mut privacy = PrivacySpec {
        epsilon: 50.0,
        delta: 1e-3,
        clip_norm: 0.5,
        population: None,
        noise_multiplier: Some(1.0),
        sampling: SamplingSpec::Fixed,
        accountant: AccountantSpec::default(),
        adaptive: None,
    };
    edit(&mut privacy);
    RunSpec { privacy: Some(privacy), ..spec(rounds, cohort) }
}

fn epsilons(rounds: &[RoundReport]) -> Vec<f64> {
    rounds.iter().map(|round| round.privacy.unwrap().epsilon).collect()
}

/// Two rounds with noise by this secret; in the second, the aggregator is killed between two updates if asked for.
async fn private_run(secret: [u8; 32], kill: bool) -> (Vec<Vec<f32>>, RunView) {
    let mut federation = Federation::start(200).await;
    let mut players: Vec<Player> = Vec::new();
    for name in ["a", "b"] {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    let mut service = federation.aggregator_with(NoiseSecret::from(secret)).await;
    federation.create("r", private(2, 2, |_| ())).await.unwrap();
    let mut globals = Vec::new();
    for round in 1..=2 {
        let (task, other) = (players[0].task().await, players[1].task().await);
        globals.push(players[0].global(&task).await);
        players[0].send(&task, &players[0].trained(&task, 10).await).await;
        if round == 2 && kill {
            service.kill().await;
            service = federation.aggregator_with(NoiseSecret::from(secret)).await;
        }
        players[1].send(&other, &players[1].trained(&other, 40).await).await;
    }
    let view = federation.completed("r").await;
    globals.push(decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap());
    drop(service);
    (globals, view)
}

#[tokio::test(flavor = "multi_thread")]
async fn private_rounds_clip_weigh_alike_and_add_noise() {
    let (globals, view) = Box::pin(private_run([7; 32], false)).await;
    let federation = Federation::start(200).await;
    let (a, b) = (federation.player("a").await, federation.player("b").await);
    let clipped = |before: &[f32], after: Vec<f32>| -> Vec<f64> {
        let step: Vec<f64> = after.iter().zip(before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let norm = step.iter().map(|value| value * value).sum::<f64>().sqrt();
        step.iter().map(|value| value * (0.5 / norm).min(1.0)).collect()
    };
    let mut squares = 0.0;
    for (before, after) in globals.iter().zip(&globals[1..]) {
        let (one, other) = (clipped(before, a.train(before)), clipped(before, b.train(before)));
        for at in 0..200 {
            let mean = (one[at] + other[at]) / 2.0;
            squares += (f64::from(after[at]) - f64::from(before[at]) - mean).powi(2);
        }
    }
    // Noise of standard deviation 1.0 x 0.5 on the sum of two, 400 values: its variance is known to one in fourteen.
    let deviation = (squares / 400.0).sqrt();
    assert!((deviation - 0.25).abs() < 0.25 * 0.15, "{deviation}");
    let spent = epsilons(&view.rounds);
    assert!(spent[0] > 0.0 && spent[1] > spent[0] && spent[1] <= 50.0, "{spent:?}");
    assert_eq!(view.record.privacy, view.rounds[1].privacy);
    assert!(view.rounds[0].clients.iter().all(|client| client.examples > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_folded_again_has_the_same_noise() {
    let (undisturbed, _) = Box::pin(private_run([9; 32], false)).await;
    let (disturbed, _) = Box::pin(private_run([9; 32], true)).await;
    assert_eq!(undisturbed, disturbed);
    let (other, _) = Box::pin(private_run([8; 32], false)).await;
    assert_ne!(undisturbed, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn poisson_cohorts_have_any_size() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)]).await;
    let _service = federation.aggregator_with(NoiseSecret::from([3; 32])).await;
    let wanted = private(8, 1, |privacy| {
        (privacy.sampling, privacy.population) = (SamplingSpec::Poisson, Some(4));
    });
    federation.create("r", wanted).await.unwrap();
    let view = federation.completed("r").await;
    let sizes: Vec<usize> = view.rounds.iter().map(|round| round.clients.len()).collect();
    assert!(sizes.iter().min() < sizes.iter().max(), "{sizes:?}");
    assert!(sizes.contains(&0), "a cohort of nobody is a round as well: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clipping_norm_follows_the_updates() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10), ("b", 10), ("c", 10)]).await;
    let _service = federation.aggregator_with(NoiseSecret::from([3; 32])).await;
    let wanted = private(4, 3, |privacy| {
        privacy.clip_norm = 1e-3;
        privacy.adaptive =
            Some(serde_json::from_str("{\"learning_rate\": 0.5, \"count_noise\": 1.0}").unwrap());
    });
    federation.create("r", wanted).await.unwrap();
    let view = federation.completed("r").await;
    let norms: Vec<f64> = view.rounds.iter().map(|round| round.privacy.unwrap().clip_norm).collect();
    assert_eq!(norms[0], 1e-3);
    assert!(norms[3] > norms[0], "all updates are longer, so that the norm rises: {norms:?}");
    assert!(view.record.privacy.unwrap().clip_norm != norms[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_beyond_its_budget_is_refused() {
    let federation = Federation::start(20).await;
    let _service = federation.aggregator().await;
    let error = federation.create("r", private(50, 2, |privacy| privacy.epsilon = 1.0)).await.unwrap_err();
    assert!(error.to_string().contains("the budget is 1"), "{error}");
    let kept = RunSpec { keep_updates: true, ..private(1, 2, |_| ()) };
    let error = federation.create("r", kept).await.unwrap_err();
    assert!(error.to_string().contains("keep_updates"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn products_of_an_adapter_without_factors_are_refused() {
    let federation = Federation::start(20).await;
    let _service = federation.aggregator().await;
    for (aggregation, name) in
        [(AggregationSpec::LoraProduct, "lora_product"), (AggregationSpec::LoraExact, "lora_exact")]
    {
        let error =
            federation.create("r", RunSpec { aggregation, ..spec(1, 1) }).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("LoRA"), "{error}");
    }
}

/// One layer `[2] -> [3]` with factors of rank 1, and a head beside it.
const PAIR: [(&str, &[u64]); 3] =
    [("head.bias", &[2]), ("q.lora_A.weight", &[1, 2]), ("q.lora_B.weight", &[3, 1])];

fn lora(residual: bool) -> Method {
    Method::Lora(Lora { rank: 1, residual, ..Lora::default() })
}

fn exact() -> RunSpec {
    RunSpec { aggregation: AggregationSpec::LoraExact, quorum: Some(2), ..spec(2, 2) }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_means_need_residuals_of_factors_that_are_shared() {
    let federation = Federation::start_with(lora(false), &PAIR).await;
    let _service = federation.aggregator().await;
    let error = federation.create("r", exact()).await.unwrap_err().to_string();
    assert!(error.contains("--method lora --residual"), "{error}");

    let federation = Federation::start_with(lora(true), &PAIR).await;
    let _service = federation.aggregator().await;
    let mut wanted = exact();
    wanted.training.local = vec!["*.lora_A.*".to_owned()];
    let error = federation.create("r", wanted).await.unwrap_err().to_string();
    assert!(error.contains("LoRA factors"), "{error}");
}

/// Two rounds of an exact mean; in the second the aggregator is killed between two updates if asked for. Returns what the
/// rounds began with, what clients sent, and the view.
async fn exact_run(kill: bool) -> (Federation, RunView) {
    let mut federation = Federation::start_with(lora(true), &PAIR).await;
    let mut players = Vec::new();
    for name in ["a", "b"] {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    let mut service = federation.aggregator().await;
    // What the downlink rounds off factors is in the residual, too.
    let downlink = "bf16".parse().unwrap();
    let created = federation.create("r", RunSpec { keep_updates: true, downlink, ..exact() }).await.unwrap();
    assert_eq!(created.residual, None);
    for round in 1..=2 {
        let (task, other) = (players[0].task().await, players[1].task().await);
        assert_eq!((task.round, task.residual.is_some()), (round, round == 2));
        assert_eq!(task.residual, other.residual);
        players[0].send(&task, &players[0].trained(&task, 10).await).await;
        if round == 2 && kill {
            service.kill().await;
            service = federation.aggregator().await;
        }
        players[1].send(&other, &players[1].trained(&other, 30).await).await;
    }
    let view = federation.completed("r").await;
    service.stop().await;
    (federation, view)
}

/// `B A` of an adapter with [`PAIR`].
fn update(adapter: &[f32]) -> Vec<f64> {
    let (a, b) = (&adapter[2..4], &adapter[4..7]);
    b.iter().flat_map(|b| a.iter().map(move |a| f64::from(*b) * f64::from(*a))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn factors_and_residual_are_the_mean_of_all_updates() {
    let (federation, view) = Box::pin(exact_run(false)).await;
    let mut before = vec![0.0; 6];
    for report in &view.rounds {
        let mut wanted: Vec<f64> = before.clone();
        for client in &report.clients {
            let ClientOutcome::Accepted { digest, weight, .. } = client.outcome else { panic!("{client:?}") };
            let sent = decode(&federation.adapter(&digest).await, &federation.layout).unwrap();
            let share = weight as f64 / 40.0;
            wanted.iter_mut().zip(update(&sent)).for_each(|(sum, value)| *sum += share * value);
        }
        let adapter = decode(&federation.adapter(&report.adapter).await, &federation.layout).unwrap();
        let residual = federation.adapter(&report.residual.unwrap()).await;
        let residual: Vec<f64> =
            residual.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect();
        for ((wanted, held), rest) in wanted.iter().zip(update(&adapter)).zip(&residual) {
            assert!((wanted - held - rest).abs() < 1e-7, "{wanted} is not {held} and {rest}");
        }
        assert!(residual.iter().any(|value| value.abs() > 1e-4), "{residual:?}");
        before = residual;
    }
    assert_eq!(view.record.residual, view.rounds[1].residual);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_round_folded_again_has_the_same_bytes() {
    let (_, undisturbed) = Box::pin(exact_run(false)).await;
    let (_, disturbed) = Box::pin(exact_run(true)).await;
    let left = |view: &RunView| (view.record.adapter, view.record.residual);
    assert_eq!(left(&undisturbed), left(&disturbed));
    assert!(undisturbed.record.residual.is_some());
}

/// One private round whose aggregator is killed between two updates; its successor finds that another sum was about to be
/// released.
async fn released_again(epsilon: f64) -> RunView {
    let mut federation = Federation::start(20).await;
    let mut players: Vec<Player> = Vec::new();
    for name in ["a", "b"] {
        federation.join(name, 40).await;
        players.push(federation.player(name).await);
    }
    let secret = || NoiseSecret::from([5; 32]);
    let service = federation.aggregator_with(secret()).await;
    federation.create("r", private(1, 2, |privacy| privacy.epsilon = epsilon)).await.unwrap();
    let (task, other) = (players[0].task().await, players[1].task().await);
    players[0].send(&task, &players[0].trained(&task, 10).await).await;
    service.kill().await;
    let runs = federation.nats.bus().await.runs().await.unwrap();
    let (mut record, revision) = runs.get("r").await.unwrap().unwrap();
    record.privacy.as_mut().unwrap().release = Some(fedpeft_protocol::Digest::of("another sum"));
    runs.update("r", &record, revision).await.unwrap();
    let _service = federation.aggregator_with(secret()).await;
    players[1].send(&other, &players[1].trained(&other, 40).await).await;
    federation.ended("r").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_a_crash_may_have_left_counts() {
    let (_, once) = Box::pin(private_run([5; 32], false)).await;
    let view = Box::pin(released_again(50.0)).await;
    let (told, before) = (view.rounds[0].privacy.unwrap(), once.rounds[0].privacy.unwrap());
    assert_eq!((told.again, before.again), (1, 0));
    assert!(told.epsilon > 1.2 * before.epsilon, "{} {}", told.epsilon, before.epsilon);
    assert_eq!(view.record.privacy.unwrap().release, None);

    let view = Box::pin(released_again(1.1 * before.epsilon)).await;
    assert!(view.rounds.is_empty(), "beyond the budget nothing is released");
    let RunStatus::Failed { reason } = &view.record.status else { panic!("{:?}", view.record.status) };
    assert!(reason.contains("1 releases more") && reason.contains("--noise-secret"), "{reason}");
}
