//! Rounds with secure aggregation, with clients that speak its protocol.

use fedpeft_codec::decode;
use fedpeft_privacy::{Accountant, Mechanism, NoiseStream, Sampling, Scale, epsilon};
use fedpeft_protocol::{
    ClientId,
    event::EventKind,
    presence::Capabilities,
    round::{ClientOutcome, Outcome, Payload, Task, Update, Work},
    run::{AccountantSpec, PrivacySpec, RunSpec, RunStatus, SamplingSpec, SecureSpec, StrategySpec},
    secure::{IdentityKey, SecureStage, SecureTrained},
};
use fedpeft_secagg::{Client, Noise, Params, Request, Rounding, Session, SigningKey};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use crate::federation::{Federation, Player, capabilities, client, mean, spec};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const EXAMPLES: [u64; 5] = [100, 50, 7, 1, 30];

fn secure_spec(rounds: u32, cohort: u32) -> RunSpec {
    let secure = SecureSpec { stage_seconds: 20.0, bound: 4.0, precision: 24, ..Default::default() };
    RunSpec { secure_aggregation: Some(secure), ..spec(rounds, cohort) }
}

/// A client of the protocol.
struct Member {
    player: Player,
    examples: u64,
    identity: SigningKey,
    rng: ChaCha20Rng,
    session: Option<(Session, Client)>,
    update: Vec<f32>,
}

impl Member {
    async fn join(federation: &mut Federation, at: usize) -> Self {
        let identity = SigningKey::from_bytes(&[at as u8 + 1; 32]);
        let public = IdentityKey::new(identity.verifying_key().to_bytes());
        let offer = Capabilities { identity: Some(public), ..capabilities(EXAMPLES[at]) };
        federation.present_with(NAMES[at], offer).await;
        let (player, rng) = (federation.player(NAMES[at]).await, ChaCha20Rng::seed_from_u64(at as u64));
        Self { player, examples: EXAMPLES[at], identity, rng, session: None, update: Vec::new() }
    }

    /// What it says to a task, and in which stage.
    async fn answer(&mut self, task: &Task) -> (SecureStage, Update) {
        let (stage, message, trained) = match &task.work {
            Work::Train { secure: Some(Payload::Message { data, .. }), .. } => {
                let global = self.player.global(task).await;
                let trained = self.player.train(&global);
                self.update = trained.iter().zip(&global).map(|(trained, global)| trained - global).collect();
                let session = Session::new(Params::decode(data).unwrap()).unwrap();
                let name = self.player.id.to_string();
                let member =
                    Client::new(session.clone(), &name, self.identity.clone(), &mut self.rng).unwrap();
                let message = member.advertise().encode().unwrap();
                self.session = Some((session, member));
                let trained =
                    SecureTrained { steps: 3, loss: 0.5, seconds: 0.25, personal: None, epsilon: None };
                (SecureStage::Advertise, message, Some(trained))
            }
            Work::Secure { stage, request: Payload::Message { data, .. }, .. } => {
                let (session, member) = self.session.as_mut().unwrap();
                let request = Request::decode(data, session).unwrap();
                let message = match stage {
                    SecureStage::Share => member.share(&request, &mut self.rng).unwrap().encode(),
                    SecureStage::Confirm => member.confirm(&request).unwrap().encode(),
                    SecureStage::Unmask => member.unmask(&request).unwrap().encode(),
                    SecureStage::Mask => {
                        let encoding = session.params().encoding;
                        let mut noise =
                            NoiseStream::new(&self.identity.to_bytes().into(), &[&task.round.to_string()]);
                        let mut add = |integers: &mut [i64]| {
                            let scale = Scale::new(encoding.noise).unwrap();
                            integers.iter_mut().for_each(|value| *value += noise.gaussian_with(scale));
                        };
                        let (weight, add): (_, Option<Noise<'_>>) = match encoding.noise {
                            0 => (self.examples as u32, None),
                            _ => (1, Some(&mut add)),
                        };
                        let encoded = encoding.encode(&self.update, weight, Rounding::Nearest, add).unwrap();
                        member.mask(&request, encoded).unwrap().message().encode()
                    }
                    SecureStage::Advertise => panic!("{task:?}"),
                };
                (*stage, message.unwrap(), None)
            }
            work => panic!("{work:?}"),
        };
        let message = match message.len() > 4000 {
            true => self.uploaded(task, message).await,
            false => Payload::inline(message),
        };
        (stage, self.player.outcome(task, Outcome::Secured { stage, message, trained }))
    }

    async fn uploaded(&self, task: &Task, message: Vec<u8>) -> Payload {
        let stored = self.player.put(task, message).await;
        Payload::Blob { digest: stored.digest, size: stored.size }
    }

    /// Takes part until it has answered `last`, and then not any more.
    fn until(mut self, last: SecureStage) -> tokio::task::JoinHandle<Self> {
        tokio::spawn(async move {
            loop {
                let task = self.player.task().await;
                let (stage, update) = self.answer(&task).await;
                self.player.send(&task, &update).await;
                // Said again, it is the same.
                self.player.send(&task, &update).await;
                if stage == last {
                    return self;
                }
            }
        })
    }

    /// Takes part for ever.
    fn stay(mut self) {
        tokio::spawn(async move {
            loop {
                let task = self.player.task().await;
                let (_, update) = self.answer(&task).await;
                self.player.send(&task, &update).await;
            }
        });
    }
}

async fn members(federation: &mut Federation, range: std::ops::Range<usize>) -> Vec<Member> {
    let mut members = Vec::new();
    for at in range {
        members.push(Member::join(federation, at).await);
    }
    members
}

/// The mean of what the named clients make of `global`, and how far a secure one may be from it: each rounds each value to
/// the grid, whose step is `bound / 2^precision`, and the mean is rounded to `f32` with the adapter.
async fn expected(federation: &Federation, names: &[usize], global: &[f32]) -> (Vec<f32>, f32) {
    let mut players = Vec::new();
    for at in names {
        players.push((federation.player(NAMES[*at]).await, EXAMPLES[*at]));
    }
    let players: Vec<_> = players.iter().map(|(player, examples)| (player, *examples)).collect();
    let weight: u64 = names.iter().map(|at| EXAMPLES[*at]).sum();
    let step = 4.0 / f64::from(24u32).exp2();
    let grid = 0.5 * names.len() as f64 * step / weight as f64;
    (mean(&players, global), (grid + 3e-7) as f32)
}

fn assert_within(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= bound, "{found} is not {expected} within {bound}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_dropouts_it_is_the_plain_weighted_mean() {
    let mut federation = Federation::start(2000).await;
    for member in members(&mut federation, 0..5).await {
        member.stay();
    }
    let _service = federation.aggregator().await;
    federation.create("r", secure_spec(2, 5)).await.unwrap();
    let view = federation.completed("r").await;
    let mut global = decode(&federation.initial(), &federation.layout).unwrap();
    for report in &view.rounds {
        let (wanted, bound) = expected(&federation, &[0, 1, 2, 3, 4], &global).await;
        global = decode(&federation.adapter(&report.adapter).await, &federation.layout).unwrap();
        assert_within(&global, &wanted, bound);
        let secure = report.secure.as_ref().unwrap();
        assert_eq!((secure.weight, secure.quorum, secure.threshold), (188, 4, 3));
        assert_eq!(secure.stages, [5, 5, 5, 5, 5]);
        assert!(
            report.clients.iter().all(|client| matches!(
                client.outcome,
                ClientOutcome::Accepted { weight: 0, staleness: 0, .. }
            ))
        );
    }
    fedpeft_protocol::ledger::check(&view).unwrap();
    assert_eq!(federation.uploads().await, 0, "masked updates are forgotten");
    let events = federation.events("r").await;
    let stages = events.iter().filter(|kind| matches!(kind, EventKind::SecureStageClosed { clients: 5, .. }));
    assert_eq!(stages.count(), 10);
}

/// A round in which one client drops out after a stage.
async fn dropping_out(after: SecureStage) {
    let mut federation = Federation::start(100).await;
    let mut all = members(&mut federation, 0..5).await;
    let leaver = all.pop().unwrap();
    all.into_iter().for_each(Member::stay);
    let leaver = leaver.until(after);
    let _service = federation.aggregator().await;
    let mut wanted = secure_spec(1, 5);
    wanted.secure_aggregation.as_mut().unwrap().stage_seconds = 1.5;
    federation.create("r", wanted).await.unwrap();
    leaver.await.unwrap();
    let view = federation.completed("r").await;

    let in_the_sum = after >= SecureStage::Mask;
    let who: &[usize] = if in_the_sum { &[0, 1, 2, 3, 4] } else { &[0, 1, 2, 3] };
    let global = decode(&federation.initial(), &federation.layout).unwrap();
    let (wanted, bound) = expected(&federation, who, &global).await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_within(&found, &wanted, bound);
    let report = &view.rounds[0];
    let secure = report.secure.as_ref().unwrap();
    let stayed = |stage: &SecureStage| if *stage <= after { 5 } else { 4 };
    assert_eq!(secure.stages, SecureStage::ALL.iter().map(stayed).collect::<Vec<u32>>(), "{after:?}");
    match &report.clients[4].outcome {
        ClientOutcome::Accepted { .. } => assert!(in_the_sum, "{after:?}"),
        ClientOutcome::Failed { reason } => {
            assert!(!in_the_sum && reason.contains("did not answer in stage"), "{after:?}: {reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drops_out_at_any_stage_is_recovered() {
    use SecureStage::{Advertise, Confirm, Mask, Share};
    futures::future::join_all([Advertise, Share, Mask, Confirm].map(dropping_out)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_end_the_round_with_one_reason() {
    let mut federation = Federation::start(100).await;
    let mut all = members(&mut federation, 0..5).await;
    let leavers = all.split_off(3);
    all.into_iter().for_each(Member::stay);
    let leavers: Vec<_> = leavers.into_iter().map(|member| member.until(SecureStage::Share)).collect();
    let _service = federation.aggregator().await;
    let mut wanted = secure_spec(1, 5);
    wanted.secure_aggregation.as_mut().unwrap().stage_seconds = 1.0;
    federation.create("r", wanted).await.unwrap();
    futures::future::join_all(leavers).await;
    let RunStatus::Failed { reason } = federation.ended("r").await.record.status else {
        panic!("not failed")
    };
    assert!(reason.contains("3 clients are left in stage Mask, and 4 are needed"), "{reason}");
}

/// Kills the aggregator when `stages` stages have ended, while one client has not answered the next and another is gone;
/// what the round then comes to.
async fn taken_over(stages: usize) -> fedpeft_protocol::Digest {
    let mut federation = Federation::start(100).await;
    let mut all = members(&mut federation, 0..5).await;
    let (gone, slow) = (all.pop().unwrap(), all.pop().unwrap());
    all.into_iter().for_each(Member::stay);
    let service = federation.aggregator().await;
    let mut wanted = secure_spec(1, 5);
    wanted.secure_aggregation.as_mut().unwrap().stage_seconds = 40.0;
    federation.create("r", wanted).await.unwrap();
    let gone = gone.until(SecureStage::Share);
    if stages == 0 {
        slow.stay();
        gone.await.unwrap();
        federation.leave("e").await;
    } else {
        let slow = slow.until(SecureStage::ALL[stages - 1]).await.unwrap();
        if stages > 1 {
            gone.await.unwrap();
            federation.leave("e").await;
        }
        let ended = federation
            .until("r", |record| {
                let closed = record.open.as_ref().and_then(|open| open.secure.as_ref());
                closed.is_some_and(|secure| secure.closed.len() == stages)
            })
            .await;
        service.kill().await;
        let _successor = federation.aggregator().await;
        slow.stay();
        if stages == 1 {
            federation.until("r", |record| record.epoch > ended.epoch).await;
            federation.leave("e").await;
        }
        let view = federation.completed("r").await;
        assert_eq!(view.rounds[0].epoch, ended.epoch + 1);
        let before = ended.open.unwrap().secure.as_ref().unwrap().closed.clone();
        assert_eq!(before.len(), stages);
        let secure = view.rounds[0].secure.clone().unwrap();
        assert_eq!(secure.stages[..2], [5, 5], "{stages}");
        assert_eq!(secure.stages[2..], [4, 4, 4], "{stages}");
        fedpeft_protocol::ledger::check(&view).unwrap();
        return view.record.adapter;
    }
    federation.completed("r").await.record.adapter
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_is_killed_in_any_stage_changes_nothing() {
    let adapters = futures::future::join_all((0..5).map(taken_over)).await;
    assert!(adapters.iter().all(|adapter| *adapter == adapters[0]), "{adapters:?}");
}

/// Everything that crosses the broker in a run, whether it is stored for long or not.
async fn overheard(secure: bool) -> (Vec<u8>, Vec<Vec<f32>>) {
    use futures::StreamExt as _;
    let mut federation = Federation::start(2000).await;
    let mut all = members(&mut federation, 0..4).await;
    let listener = async_nats::connect(federation.nats.url()).await.unwrap();
    let mut heard = listener.subscribe(">").await.unwrap();
    let listening = tokio::spawn(async move {
        let mut bytes = Vec::new();
        while let Some(message) = heard.next().await {
            if message.subject.as_str() == "the.end" {
                return bytes;
            }
            bytes.extend_from_slice(&message.payload);
        }
        bytes
    });
    let global = decode(&federation.initial(), &federation.layout).unwrap();
    let plain: Vec<Vec<f32>> = all.iter().map(|member| member.player.train(&global)).collect();
    let service = federation.aggregator().await;
    if secure {
        all.drain(..).for_each(Member::stay);
        federation.create("r", secure_spec(1, 4)).await.unwrap();
    } else {
        drop(all);
        let names: Vec<_> = (0..4).map(|at| (NAMES[at], EXAMPLES[at])).collect();
        federation.trainers(&names).await;
        federation.create("r", spec(1, 4)).await.unwrap();
    }
    federation.completed("r").await;
    service.stop().await;
    listener.publish("the.end", "".into()).await.unwrap();
    listener.flush().await.unwrap();
    (listening.await.unwrap(), plain)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_a_plain_update_reaches_the_broker() {
    let holds = |heard: &[u8], wanted: &[u8]| heard.windows(wanted.len()).any(|window| window == wanted);
    let of = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for secure in [false, true] {
        let (heard, trained) = overheard(secure).await;
        let global: Vec<f32> = (0..2000).map(|at| (at as f32).cos()).collect();
        for trained in &trained {
            let update: Vec<f32> = trained.iter().zip(&global).map(|(end, start)| end - start).collect();
            // Any four values in a row, of the adapter and of what it changed by, at many places.
            for at in (0..1990).step_by(199) {
                let found = holds(&heard, &of(&trained[at..at + 4]));
                assert_eq!(found, !secure, "{at}");
                assert!(!holds(&heard, &of(&update[at..at + 4])), "{at}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_optimizer_takes_the_secure_mean_as_it_takes_the_plain_one() {
    let strategy = StrategySpec::Fedavgm { learning_rate: 1.0, momentum: 0.5 };
    let mut federation = Federation::start(100).await;
    for member in members(&mut federation, 0..3).await {
        member.stay();
    }
    let _service = federation.aggregator().await;
    federation.create("r", RunSpec { strategy, ..secure_spec(2, 3) }).await.unwrap();
    let view = federation.completed("r").await;
    let mut global = decode(&federation.initial(), &federation.layout).unwrap();
    let mut momentum = vec![0.0f32; global.len()];
    for report in &view.rounds {
        let (mean, bound) = expected(&federation, &[0, 1, 2], &global).await;
        for at in 0..global.len() {
            momentum[at] = 0.5 * momentum[at] + (mean[at] - global[at]);
            global[at] += momentum[at];
        }
        let found = decode(&federation.adapter(&report.adapter).await, &federation.layout).unwrap();
        assert_within(&found, &global, 4.0 * bound);
        global = found;
    }
}

const CLIP_NORM: f64 = 0.5;
const NOISE_MULTIPLIER: f64 = 2.0;

fn private_spec() -> RunSpec {
    let privacy = PrivacySpec {
        epsilon: 50.0,
        delta: 1e-3,
        clip_norm: CLIP_NORM,
        population: None,
        noise_multiplier: Some(NOISE_MULTIPLIER),
        sampling: SamplingSpec::Fixed,
        accountant: AccountantSpec::Prv,
        adaptive: None,
    };
    let secure = SecureSpec { stage_seconds: 20.0, precision: 18, ..Default::default() };
    RunSpec { secure_aggregation: Some(secure), privacy: Some(privacy), ..spec(2, 5) }
}

/// A run whose clients add the noise. Where it `dies`, the aggregator does, when it has asked for the shares that take the
/// masks off the first sum; what then was released.
async fn private(dies: bool) -> fedpeft_protocol::run::RunView {
    let mut federation = Federation::start(2000).await;
    let mut all = members(&mut federation, 0..5).await;
    let slow = all.pop().unwrap();
    all.into_iter().for_each(Member::stay);
    let service = federation.aggregator().await;
    federation.create("r", private_spec()).await.unwrap();
    let view = if dies {
        let slow = slow.until(SecureStage::Confirm).await.unwrap();
        let asked = federation
            .until("r", |record| {
                let closed = record.open.as_ref().and_then(|open| open.secure.as_ref());
                closed.is_some_and(|secure| secure.closed.len() == 4)
            })
            .await;
        assert!(asked.privacy.unwrap().epsilon > 0.0, "it is accounted for before the sum can be seen");
        service.kill().await;
        let _successor = federation.aggregator().await;
        slow.stay();
        federation.completed("r").await
    } else {
        slow.stay();
        federation.completed("r").await
    };
    fedpeft_protocol::ledger::check(&view).unwrap();

    // The mean of the clipped updates, in which all weigh the same, and the noise of five where four would be enough.
    let global = decode(&federation.initial(), &federation.layout).unwrap();
    let mut mean = vec![0.0; global.len()];
    for name in NAMES {
        let trained = federation.player(name).await.train(&global);
        let update: Vec<f64> =
            trained.iter().zip(&global).map(|(end, start)| f64::from(end - start)).collect();
        let norm = update.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!(norm > CLIP_NORM, "{norm}");
        mean.iter_mut().zip(&update).for_each(|(mean, value)| *mean += value * CLIP_NORM / norm / 5.0);
    }
    let found = decode(&federation.adapter(&view.rounds[0].adapter).await, &federation.layout).unwrap();
    let noise =
        found.iter().zip(&global).zip(&mean).map(|((found, start), mean)| f64::from(found - start) - mean);
    let deviation = (noise.map(|value| value * value).sum::<f64>() / mean.len() as f64).sqrt();
    let wanted = NOISE_MULTIPLIER * CLIP_NORM * (5.0f64 / 4.0).sqrt() / 5.0;
    assert!((0.93..1.07).contains(&(deviation / wanted)), "{deviation} is not {wanted}");
    view
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_of_the_clients_hides_each_of_them_in_the_sum_even_from_the_aggregator() {
    let (calm, disturbed) = tokio::join!(private(false), private(true));
    assert_eq!(calm.record.adapter, disturbed.record.adapter);
    let all = Sampling::FixedSize { rate: 1.0 };
    for view in [calm, disturbed] {
        let spent = view.rounds[1].privacy.unwrap();
        let twice = [(Mechanism::new(all, NOISE_MULTIPLIER).unwrap(), 2)];
        let wanted = epsilon(Accountant::Prv, &twice, 1e-3).unwrap();
        assert_eq!((spent.epsilon, spent.again), (wanted, 0));
        assert_eq!(view.rounds[0].secure.as_ref().unwrap().weight, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_an_identity_are_not_sampled_and_bad_numbers_are_named() {
    let mut federation = Federation::start(20).await;
    federation.join("plain", 10).await;
    let all = members(&mut federation, 0..2).await;
    for member in all {
        member.stay();
    }
    let _service = federation.aggregator().await;
    let error = |spec: RunSpec| async { federation.create("bad", spec).await.unwrap_err().to_string() };
    let mut low = secure_spec(1, 8);
    low.quorum = Some(5);
    low.secure_aggregation.as_mut().unwrap().corrupt = 0.4;
    let told = error(low).await;
    assert!(told.contains("secure_aggregation") && told.contains("lower"), "{told}");
    let told = error(RunSpec { keep_updates: true, ..secure_spec(1, 4) }).await;
    assert!(told.contains("keep_updates needs single updates"), "{told}");
    let mut coarse = private_spec();
    coarse.secure_aggregation.as_mut().unwrap().precision = 1;
    let told = error(coarse).await;
    assert!(told.contains("raise the precision"), "{told}");
    federation.create("r", RunSpec { min_clients: Some(2), ..secure_spec(1, 2) }).await.unwrap();
    let view = federation.completed("r").await;
    let names: Vec<&ClientId> = view.rounds[0].clients.iter().map(|client| &client.client).collect();
    assert_eq!(names, [&client("a"), &client("b")]);
}
