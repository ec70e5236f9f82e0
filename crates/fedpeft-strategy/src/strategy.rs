//! What becomes of a round's updates.

use std::io::Write;

use fedpeft_protocol::run::StrategySpec;

use crate::accumulator::{AccumulateError, Accumulator, Spool, SpoolError, Weight};

/// How updates are weighed and how their sum becomes the next global adapter.
pub trait Strategy: Send + Sync {
    /// One word for logs.
    fn name(&self) -> &'static str;

    /// The weight of an update that was trained on `examples` examples.
    fn weight(&self, examples: u64) -> Result<Weight, AccumulateError>;

    /// Whether [`Self::next`] reads the present global adapter. If not, it need not be at hand.
    fn reads_global(&self) -> bool;

    /// Writes the next global adapter, encoded, made of the present one and the sum of the accepted updates.
    fn next(&self, global: &mut dyn Spool, sum: &Accumulator, out: &mut dyn Write) -> Result<(), SpoolError>;
}

/// The mean of the clients' adapters, weighted by their examples (McMahan et al., arXiv 1602.05629).
#[derive(Debug, Clone, Copy, Default)]
pub struct FedAvg;

impl Strategy for FedAvg {
    fn name(&self) -> &'static str {
        "fedavg"
    }

    fn weight(&self, examples: u64) -> Result<Weight, AccumulateError> {
        Weight::new(examples)
    }

    fn reads_global(&self) -> bool {
        false
    }

    fn next(
        &self,
        _global: &mut dyn Spool,
        sum: &Accumulator,
        out: &mut dyn Write,
    ) -> Result<(), SpoolError> {
        sum.mean_into(out)
    }
}

/// The strategy a run asked for.
pub fn of_spec(spec: &StrategySpec) -> Box<dyn Strategy> {
    match spec {
        StrategySpec::Fedavg => Box::new(FedAvg),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_codec::{Layout, TensorSpec, encode};

    #[test]
    fn fedavg_weighs_by_examples() {
        let layout = Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![2] }]).unwrap();
        let strategy = of_spec(&StrategySpec::Fedavg);
        let mut sum = Accumulator::new(layout).unwrap();
        for (values, examples) in [([1.0, -2.0], 1), ([4.0, 1.0], 2)] {
            sum.add(&encode(&values), strategy.weight(examples).unwrap()).unwrap();
        }
        let mut next = Vec::new();
        strategy.next(&mut std::io::empty(), &sum, &mut next).unwrap();
        assert_eq!(next, encode(&[3.0, 0.0]));
        assert_eq!(strategy.name(), "fedavg");
    }
}
