//! The server's step towards what the updates of a round come to.

use std::io::Write;

use fedpeft_protocol::run::StrategySpec;

use crate::{
    accumulator::{AccumulateError, MAX_MAGNITUDE, Spool, SpoolError, largest_magnitude},
    fedopt::{Constants, FedOpt, Rule},
    mean::Mean,
    scaffold::Scaffold,
};

/// What a strategy keeps between rounds.
pub struct Kept<'a> {
    /// What the round before left; nothing before the first.
    pub before: Option<&'a mut dyn Spool>,
    /// What this round leaves: [`Strategy::kept`] times as long as the adapter.
    pub after: &'a mut dyn Write,
}

/// How what the updates come to becomes the next global adapter.
pub trait Strategy: Send + Sync {
    /// One word for logs.
    fn name(&self) -> &'static str;

    /// Whether [`Self::next`] reads the present global adapter. If not, it need not be at hand.
    fn reads_global(&self) -> bool;

    /// Values kept between rounds for each value of the adapter.
    fn kept(&self) -> usize {
        0
    }

    /// Writes the next global adapter, encoded, made of the present one and the mean of the accepted updates.
    ///
    /// # Errors
    /// What cannot be read or written, or a step that leaves the range of adapter values.
    fn next(
        &self,
        global: &mut dyn Spool,
        kept: Kept<'_>,
        mean: &mut dyn Mean,
        out: &mut dyn Write,
    ) -> Result<(), SpoolError>;
}

/// The mean of the clients' adapters, weighted by their examples (McMahan et al., arXiv 1602.05629).
#[derive(Debug, Clone, Copy, Default)]
pub struct FedAvg;

impl Strategy for FedAvg {
    fn name(&self) -> &'static str {
        "fedavg"
    }

    fn reads_global(&self) -> bool {
        false
    }

    fn next(
        &self,
        _global: &mut dyn Spool,
        _kept: Kept<'_>,
        mean: &mut dyn Mean,
        out: &mut dyn Write,
    ) -> Result<(), SpoolError> {
        let mut bytes = Vec::new();
        mean.each(&mut |means| {
            bytes.resize(means.len() * size_of::<f32>(), 0);
            let values = bytes.as_chunks_mut::<4>().0;
            values.iter_mut().zip(means).for_each(|(value, mean)| *value = (*mean as f32).to_le_bytes());
            check_range(values)?;
            Ok(out.write_all(&bytes)?)
        })
    }
}

/// Refuses values that no client would take.
pub(crate) fn check_range(values: &[[u8; 4]]) -> Result<(), AccumulateError> {
    let largest = f32::from_bits(largest_magnitude(values));
    // Not a number is not at most anything.
    match largest <= MAX_MAGNITUDE {
        true => Ok(()),
        false => Err(AccumulateError::Diverged(largest.to_string())),
    }
}

/// The strategy a run asked for.
pub fn of_spec(spec: &StrategySpec) -> Box<dyn Strategy> {
    let (rule, constants) = match *spec {
        StrategySpec::Fedavg => return Box::new(FedAvg),
        StrategySpec::Scaffold { learning_rate, .. } => return Box::new(Scaffold { learning_rate }),
        StrategySpec::Fedavgm { learning_rate, momentum } => {
            (Rule::Momentum, Constants { learning_rate, beta1: momentum, beta2: 0.0, tau: 0.0 })
        }
        StrategySpec::Fedadagrad { learning_rate, beta1, tau } => {
            (Rule::Adagrad, Constants { learning_rate, beta1, beta2: 0.0, tau })
        }
        StrategySpec::Fedadam { learning_rate, beta1, beta2, tau } => {
            (Rule::Adam, Constants { learning_rate, beta1, beta2, tau })
        }
        StrategySpec::Fedyogi { learning_rate, beta1, beta2, tau } => {
            (Rule::Yogi, Constants { learning_rate, beta1, beta2, tau })
        }
    };
    Box::new(FedOpt::new(rule, constants))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulator::{Accumulator, Weight};
    use fedpeft_codec::{Layout, TensorSpec, encode};

    #[test]
    fn fedavg_weighs_by_examples() {
        let layout = Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![2] }]).unwrap();
        let strategy = of_spec(&StrategySpec::Fedavg);
        let mut sum = Accumulator::new(layout).unwrap();
        for (values, examples) in [([1.0, -2.0], 1), ([4.0, 1.0], 2)] {
            sum.add(&encode(&values), Weight::new(examples).unwrap()).unwrap();
        }
        let mut next = Vec::new();
        let kept = Kept { before: None, after: &mut std::io::sink() };
        strategy.next(&mut std::io::empty(), kept, &mut &sum, &mut next).unwrap();
        assert_eq!(next, encode(&[3.0, 0.0]));
        assert_eq!(strategy.name(), "fedavg");
    }
}
