//! Client stability as an experiment: what happens to a client in a round, drawn from a specification, a seed,
//! the round and the client's name, and from nothing else.
//!
//! The aggregator asks who [`is_available`]; a worker that may simulate faults asks for a client's [`fate`] and
//! its [`delay`]. Both get the same answers whatever they ask first and wherever they run, so that a run with
//! drop-outs can be repeated. `seed` is everywhere the seed of the run; the specification's own comes before it.

use std::time::Duration;

use fedpeft_protocol::{
    ClientId, Digest, Round,
    run::{DelaySpec, StabilitySpec},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};

/// Longest delay, so that the tail of a distribution cannot park a client for ever.
pub const LONGEST_DELAY: Duration = Duration::from_secs(24 * 3600);

/// What becomes of a sampled client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    /// It trains and answers.
    Answers,
    /// It takes its task and is not heard of again in this round.
    DropsOut,
    /// It loses what it has in memory in the middle of its training, and comes back.
    Crashes {
        /// Share of the training's steps that are done by then, in [0, 1).
        at: f64,
    },
}

/// Whether `client` can be sampled in `round`.
pub fn is_available(spec: &StabilitySpec, seed: u64, round: Round, client: &ClientId) -> bool {
    // The draw is less than 1: a participation of 1 is everybody.
    stream("availability", spec, seed, round, client).random::<f64>() < spec.participation
}

/// What becomes of `client` where it is sampled in `round`: the delay of an answer is drawn apart from it.
pub fn fate(spec: &StabilitySpec, seed: u64, round: Round, client: &ClientId) -> Fate {
    let mut stream = stream("fate", spec, seed, round, client);
    let (drops_out, crashes, at): (f64, f64, f64) = stream.random();
    if drops_out < spec.dropout {
        Fate::DropsOut
    } else if crashes < spec.crash {
        Fate::Crashes { at }
    } else {
        Fate::Answers
    }
}

/// How late `client` answers in `round`, at most [`LONGEST_DELAY`].
pub fn delay(spec: &StabilitySpec, seed: u64, round: Round, client: &ClientId) -> Duration {
    let mut stream = stream("delay", spec, seed, round, client);
    let seconds = match spec.delay {
        DelaySpec::None => 0.0,
        DelaySpec::Fixed { seconds } => seconds,
        DelaySpec::Uniform { min, max } => min + (max - min) * stream.random::<f64>(),
        DelaySpec::Exponential { mean } => {
            let standard: f64 = Exp1.sample(&mut stream);
            mean * standard
        }
        DelaySpec::Lognormal { median, sigma } => {
            let standard: f64 = StandardNormal.sample(&mut stream);
            median * libm::exp(sigma * standard)
        }
    };
    bounded(seconds)
}

/// How long `client` is away after a crash, at most [`LONGEST_DELAY`].
pub fn absence(spec: &StabilitySpec) -> Duration {
    bounded(spec.restart_seconds)
}

fn bounded(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY)
}

/// A stream of its own for every question, so that changing one number of a specification moves no other draw.
fn stream(question: &str, spec: &StabilitySpec, seed: u64, round: Round, client: &ClientId) -> ChaCha8Rng {
    let seed = spec.seed.unwrap_or(seed);
    let key = Digest::of(format!("fedpeft stability/1 {question} {seed} {round} {client}"));
    ChaCha8Rng::from_seed(*key.as_bytes())
}

#[cfg(test)]
mod tests;
