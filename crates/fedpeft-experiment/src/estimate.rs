//! How long trials take.

use serde::Deserialize;

use crate::{Outcome, trial::Trial};

/// Seconds before the first round and after the last.
const AROUND: f64 = 6.0;
/// An evaluated example in trained ones: it needs the forward pass and no more.
const EVALUATION: f64 = 0.5;

/// What a trial does, as far as its duration is concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Rounds.
    pub rounds: u32,
    /// Clients of a round.
    pub sampled: u32,
    /// Passes over a client's examples in a round.
    pub local_epochs: u32,
    /// All clients.
    pub clients: u32,
    /// Examples of a client; 0 deals all of them out.
    pub samples_per_client: u32,
    /// Evaluations of the global adapter.
    pub evaluations: u32,
    /// Examples it is evaluated on; 0 takes all.
    pub eval_examples: u32,
    /// Cores that work at once.
    pub cores: u32,
}

/// `[estimate]`: what trials cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// Milliseconds in which one core trains on one example, in a trial of cost 1.
    pub ms_per_example: Option<f64>,
    /// Training examples of all clients together, where a run deals out all there are.
    pub train_examples: Option<u32>,
    /// Held-out examples, where a run takes all there are.
    pub eval_examples: Option<u32>,
}

/// What a trial will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Examples that are trained on, each as often as it is; none where nobody says how many there are.
    pub passes: Option<f64>,
    /// Seconds, likewise and where nobody says how long an example takes.
    pub seconds: Option<f64>,
}

impl Shape {
    /// What `trial` of this shape takes.
    pub fn estimate(&self, trial: &Trial, costs: &Costs) -> Estimate {
        let given =
            |own: u32, all: Option<u32>| if own > 0 { Some(f64::from(own)) } else { all.map(f64::from) };
        let clients = f64::from(self.clients.max(1));
        let each = match self.samples_per_client {
            0 => costs.train_examples.map(|all| f64::from(all) / clients),
            samples => Some(f64::from(samples)),
        };
        let visits = f64::from(self.rounds) * f64::from(self.sampled.min(self.clients));
        let passes = each.map(|each| each * visits * f64::from(self.local_epochs));
        let evaluated = match self.evaluations {
            0 => Some(0.0),
            times => {
                given(self.eval_examples, costs.eval_examples).map(|examples| examples * f64::from(times))
            }
        };
        let work = passes.zip(evaluated).map(|(trained, tested)| trained * trial.cost + tested * EVALUATION);
        let seconds = work
            .zip(costs.ms_per_example)
            .map(|(work, ms)| work * ms / 1000.0 / f64::from(self.cores.max(1)) + AROUND);
        Estimate { passes, seconds }
    }
}

/// How much longer finished trials took than was estimated: the median, or 1 where none is finished.
pub fn calibration<'a>(finished: impl Iterator<Item = (Estimate, &'a Outcome)>) -> f64 {
    let ratio =
        |(estimate, outcome): (Estimate, &Outcome)| Some((outcome.seconds + AROUND) / estimate.seconds?);
    let mut ratios: Vec<f64> = finished.filter_map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Grid;

    #[test]
    fn work_is_what_clients_and_the_evaluator_do() {
        let grid = "title = 't'\nseeds = [1]\nbase = {}\n[[axis]]\nname = 'm'\nvalues = [{ name = 'full', cost = 2.0 }]";
        let trial = &Grid::parse("g", grid).unwrap().trials().unwrap()[0];
        let shape = Shape {
            rounds: 10,
            sampled: 4,
            local_epochs: 2,
            clients: 8,
            samples_per_client: 100,
            evaluations: 10,
            eval_examples: 1000,
            cores: 2,
        };
        let costs = Costs { ms_per_example: Some(10.0), ..Costs::default() };
        let estimate = shape.estimate(trial, &costs);
        assert_eq!(estimate.passes, Some(8000.0));
        // (8,000 x 2 + 10,000 / 2) x 10 ms on two cores.
        assert_eq!(estimate.seconds, Some(105.0 + AROUND));
        let all = Shape { samples_per_client: 0, ..shape };
        assert_eq!(all.estimate(trial, &costs), Estimate { passes: None, seconds: None });
        let known = Costs { train_examples: Some(1600), ..costs };
        assert_eq!(all.estimate(trial, &known).passes, Some(16_000.0));
        assert_eq!(calibration(std::iter::empty()), 1.0);
    }
}
