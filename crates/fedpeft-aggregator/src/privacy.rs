//! What a private run promises, spends and draws.

use fedpeft_privacy::{
    Accountant, AdaptiveClip, AdaptiveError, Mechanism, NoiseStream, PrivacyError, Sampling, epsilon,
    noise_multiplier,
};
use fedpeft_protocol::{
    ClientId, Digest, Round, RunId,
    run::{AccountantSpec, AdaptiveSpec, PrivacySpec, PrivacyState, RunRecord, RunSpec, SamplingSpec},
};
use fedpeft_strategy::cohort;

use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use crate::{drive::Drive, round::RoundState, stop::Stop};

/// A promise that cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unkeepable {
    #[error("privacy: {0}")]
    Accounting(#[from] PrivacyError),
    #[error("privacy.adaptive: {0}")]
    Adaptive(#[from] AdaptiveError),
    #[error(
        "privacy: {rounds} rounds at a noise multiplier of {noise} spend epsilon {spent:.3}, the budget is {budget}: run fewer rounds, or raise privacy.noise_multiplier or privacy.epsilon"
    )]
    Budget { rounds: Round, noise: f64, spent: f64, budget: f64 },
    #[error(
        "privacy: {rounds} rounds, and {again} releases more that crashes left, spend epsilon {spent:.3}, the budget is {budget}: the last committed adapter stands; give all aggregators one --noise-secret"
    )]
    Again { rounds: Round, again: u32, spent: f64, budget: f64 },
}

/// Where the privacy of a run stands before its first round; nothing, where it promises none.
///
/// # Errors
/// A budget that its rounds would exceed.
pub(crate) fn begin(spec: &RunSpec) -> Result<Option<PrivacyState>, Unkeepable> {
    let Some(privacy) = &spec.privacy else { return Ok(None) };
    let (accountant, rounds) = (accountant(privacy), u64::from(spec.rounds));
    let noise_multiplier = match privacy.noise_multiplier {
        Some(noise) => noise,
        None => {
            noise_multiplier(accountant, sampling(spec, privacy), rounds, privacy.epsilon, privacy.delta)?
        }
    };
    let clip_norm = privacy.clip_norm;
    let state = PrivacyState { noise_multiplier, clip_norm, epsilon: 0.0, again: 0, release: None };
    within_budget(spec, privacy, &state, spec.rounds)?;
    // What adaptive clipping takes of the noise must leave some.
    of_updates(spec, &state)?;
    Ok(Some(state))
}

/// Epsilon spent after `rounds` rounds, if the budget allows for them.
///
/// A round that released its sum `k` times, with independent noise, is one whose noise is less by the root of `k`: its
/// releases share one sample, so that each counts for itself would be too little. Which rounds these were does not matter:
/// as if it had been one round, which costs most.
pub(crate) fn within_budget(
    spec: &RunSpec,
    privacy: &PrivacySpec,
    state: &PrivacyState,
    rounds: Round,
) -> Result<f64, Unkeepable> {
    let with =
        |releases: f64| Mechanism::new(sampling(spec, privacy), state.noise_multiplier / releases.sqrt());
    let repeated = u64::from(state.again > 0 && rounds > 0);
    let mut mechanisms = vec![(with(1.0)?, u64::from(rounds) - repeated)];
    if repeated > 0 {
        mechanisms.push((with(f64::from(state.again) + 1.0)?, repeated));
    }
    let spent = epsilon(accountant(privacy), &mechanisms, privacy.delta)?;
    let (noise, budget, again) = (state.noise_multiplier, privacy.epsilon, state.again);
    match spent > budget {
        true if again > 0 => Err(Unkeepable::Again { rounds, again, spent, budget }),
        true => Err(Unkeepable::Budget { rounds, noise, spent, budget }),
        false => Ok(spent),
    }
}

/// Makes durable what the round is about to release, before anything of it can be seen, and accounts for it. Nothing new,
/// where a former owner was about to release the same bytes; one release more, where it was about to release others.
///
/// # Errors
/// A release beyond the budget: then there is none.
pub(crate) async fn announce(drive: &mut Drive<'_>, round: &RoundState) -> Result<(), Stop> {
    let (Some(state), Some(privacy)) = (drive.record.privacy, drive.record.spec.privacy.clone()) else {
        return Ok(());
    };
    let updates = updates(drive, round);
    let release = Some(match drive.record.spec.secure_aggregation {
        // The noise is in the masked updates.
        Some(_) => Digest::of(&updates),
        None => {
            Digest::of(&drive.secret.derive(&["fedpeft release 1", drive.record.run.as_str(), &updates])[..])
        }
    });
    if state.release == release {
        return Ok(());
    }
    let again = state.again + u32::from(state.release.is_some());
    let next = PrivacyState { again, release, ..state };
    let (spec, number) = (drive.record.spec.clone(), round.open.round);
    let accounting = spawn_blocking(move || within_budget(&spec, &privacy, &next, number)).await;
    let epsilon = accounting.map_err(|error| Stop::Failed(format!("accounting broke off: {error}")))?;
    let epsilon = epsilon.map_err(|error| Stop::Failed(error.to_string()))?;
    if again > state.again {
        tracing::warn!(
            run = %drive.record.run,
            round = number,
            again,
            "a former owner may have released another sum of this round: both count"
        );
    }
    drive.record.write(|record| record.privacy = Some(PrivacyState { epsilon, ..next })).await
}

/// The noise of the updates alone: more of it, where the count of unclipped updates is released as well.
pub(crate) fn of_updates(spec: &RunSpec, state: &PrivacyState) -> Result<PrivacyState, AdaptiveError> {
    let Some(adaptive) = adaptive(spec) else { return Ok(*state) };
    let noise_multiplier = clipping(spec, state, adaptive)?.update_noise(state.noise_multiplier)?;
    Ok(PrivacyState { noise_multiplier, ..*state })
}

/// The clipping norm of the round after this one.
pub(crate) fn next_clip_norm(drive: &Drive<'_>, round: &RoundState, unclipped: u64) -> Result<f64, Stop> {
    let spec = &drive.record.spec;
    let Some(state) = &drive.record.privacy else { return Ok(0.0) };
    let Some(adaptive) = adaptive(spec) else { return Ok(state.clip_norm) };
    let clipping = clipping(spec, state, adaptive).map_err(|error| Stop::Failed(error.to_string()))?;
    let noise = stream(drive, round, "count").gaussian();
    let accepted = round.clients.accepted().count() as u64;
    let share = clipping.share_within(unclipped, accepted, f64::from(spec.cohort), noise);
    Ok(clipping.next(state.clip_norm, share))
}

/// The noise of a round: always the same for the same updates, so that a round that is committed again after a crash
/// releases nothing new.
pub(crate) fn stream(drive: &Drive<'_>, round: &RoundState, what: &str) -> NoiseStream {
    let (run, updates) = (drive.record.run.as_str(), updates(drive, round));
    NoiseStream::new(drive.secret, &["fedpeft round noise 1", run, &updates, what])
}

/// What a round's sum is made of, as a digest.
fn updates(drive: &Drive<'_>, round: &RoundState) -> String {
    let RunRecord { adapter, .. } = &**drive.record;
    // All that the sum is made of, and nothing else: the names of updates differ with the owner of the run.
    let mut text = format!("{adapter}\n{}\n", round.open.round);
    for (client, _, accepted) in round.clients.accepted_by() {
        text.push_str(&format!("{client}\n{}\n", accepted.digest));
    }
    Digest::of(text).to_string()
}

/// The cohort of a private round, drawn by numbers that nobody else knows: who knows whether a client takes part gains from
/// the sampling nothing that has to be hidden.
pub(crate) fn sampled(
    drive: &Drive<'_>,
    privacy: &PrivacySpec,
    present: &[&ClientId],
    round: Round,
) -> Vec<ClientId> {
    let spec = &drive.record.spec;
    let key = key(drive, &drive.record.run, round);
    let drawn = match privacy.sampling {
        SamplingSpec::Fixed => cohort::sample_by(present, spec.sampled() as usize, &key),
        SamplingSpec::Poisson => cohort::poisson_by(present, rate(spec, privacy), &key),
    };
    drawn.into_iter().cloned().collect()
}

fn key(drive: &Drive<'_>, run: &RunId, round: Round) -> Zeroizing<[u8; 32]> {
    // An owner that samples a round again after a crash may draw anew: none of it was seen.
    drive.secret.derive(&["fedpeft cohort 1", run.as_str(), &round.to_string()])
}

fn accountant(privacy: &PrivacySpec) -> Accountant {
    match privacy.accountant {
        AccountantSpec::Rdp => Accountant::Rdp,
        AccountantSpec::Prv => Accountant::Prv,
    }
}

fn sampling(spec: &RunSpec, privacy: &PrivacySpec) -> Sampling {
    let rate = rate(spec, privacy);
    match privacy.sampling {
        SamplingSpec::Fixed => Sampling::FixedSize { rate },
        SamplingSpec::Poisson => Sampling::Poisson { rate },
    }
}

/// Share of the population that gets a task: all of it towards an aggregator that is not trusted, for it knows the sample.
fn rate(spec: &RunSpec, privacy: &PrivacySpec) -> f64 {
    if spec.secure_aggregation.is_some() {
        return 1.0;
    }
    let sampled = match privacy.sampling {
        SamplingSpec::Fixed => spec.sampled(),
        SamplingSpec::Poisson => spec.cohort,
    };
    f64::from(sampled) / f64::from(spec.population())
}

fn adaptive(spec: &RunSpec) -> Option<&AdaptiveSpec> {
    spec.privacy.as_ref()?.adaptive.as_ref()
}

fn clipping(
    spec: &RunSpec,
    state: &PrivacyState,
    adaptive: &AdaptiveSpec,
) -> Result<AdaptiveClip, AdaptiveError> {
    let noise = adaptive.count_noise(spec.cohort, state.noise_multiplier);
    AdaptiveClip::new(adaptive.quantile, adaptive.learning_rate, noise)
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::{ModelName, run::ModelRef};

    use super::*;

    fn spec(edit: impl FnOnce(&mut PrivacySpec)) -> RunSpec {
        let model = ModelRef { name: ModelName::new("m").unwrap(), version: None };
        let mut privacy: PrivacySpec = serde_json::from_value(
            serde_json::json!({"epsilon": 5.0, "delta": 1e-3, "clip_norm": 1.0, "population": 64}),
        )
        .unwrap();
        edit(&mut privacy);
        RunSpec { privacy: Some(privacy), ..RunSpec::new(model, 20, 8) }
    }

    #[test]
    fn noise_is_calibrated_to_the_budget() {
        let spec = spec(|_| ());
        let state = begin(&spec).unwrap().unwrap();
        let privacy = spec.privacy.as_ref().unwrap();
        let spent = within_budget(&spec, privacy, &state, 20).unwrap();
        assert!((4.9..=5.0).contains(&spent), "{spent}");
        let half = within_budget(&spec, privacy, &state, 10).unwrap();
        assert!(half < spent && half > 0.0);
        assert!(matches!(
            within_budget(&spec, privacy, &state, 40),
            Err(Unkeepable::Budget { rounds: 40, .. })
        ));
    }

    #[test]
    fn a_run_that_would_exceed_its_budget_is_not_begun() {
        let error = begin(&spec(|privacy| privacy.noise_multiplier = Some(0.3))).unwrap_err().to_string();
        assert!(error.contains("20 rounds") && error.contains("run fewer rounds"), "{error}");
    }

    #[test]
    fn adaptive_clipping_takes_its_share_of_the_noise() {
        let spec = spec(|privacy| privacy.adaptive = Some(AdaptiveSpec::default()));
        let state = begin(&spec).unwrap().unwrap();
        assert!(of_updates(&spec, &state).unwrap().noise_multiplier > state.noise_multiplier);
    }
}
