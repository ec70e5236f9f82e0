//! Server optimizers: the mean update is a gradient, and the aggregator makes a step along it (Reddi et al., Adaptive
//! Federated Optimization, arXiv 2003.00295, algorithm 2; momentum: Hsu et al., arXiv 1909.06335).
//!
//! With `x` the global adapter, `x_i` and `n_i` a client's adapter and examples, and `d = sum n_i x_i / sum n_i - x`:
//!
//! | strategy | kept | step |
//! | --- | --- | --- |
//! | FedAvgM | `m <- beta1 m + d` | `x + lr m` |
//! | FedAdagrad | `m <- beta1 m + (1 - beta1) d`, `v <- v + d^2` | `x + lr m / (sqrt(v) + tau)` |
//! | FedAdam | `m` as above, `v <- beta2 v + (1 - beta2) d^2` | the same |
//! | FedYogi | `m` as above, `v <- v - (1 - beta2) d^2 sign(v - d^2)` | the same |
//!
//! `m` begins at 0 and `v` at `tau^2`; there is no bias correction, as in the paper. Everything is computed in `f64` from
//! the exact sum and rounded to `f32` once, so that neither order nor grouping of the updates changes a byte.

use std::io::{Read as _, Seek as _, Write};

use crate::{
    accumulator::{Spool, SpoolError},
    mean::Mean,
    strategy::{Kept, Strategy, check_range},
};

/// A server optimizer.
#[derive(Debug, Clone, Copy)]
pub struct FedOpt {
    rule: Rule,
    constants: Constants,
}

/// Its constants, as `RunSpec::validate` has checked them.
#[derive(Debug, Clone, Copy)]
pub struct Constants {
    /// Length of a step, above 0.
    pub learning_rate: f64,
    /// Share of the first moment that is kept, below 1.
    pub beta1: f64,
    /// Share of the second moment that is kept, below 1.
    pub beta2: f64,
    /// What is added to the root of the second moment, above 0.
    pub tau: f64,
}

/// What makes the second moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// There is none.
    Momentum,
    /// The sum of squares.
    Adagrad,
    /// A mean of squares that forgets.
    Adam,
    /// As Adam, but it moves by a bounded amount.
    Yogi,
}

impl FedOpt {
    /// An optimizer that has made no step.
    pub fn new(rule: Rule, constants: Constants) -> Self {
        Self { rule, constants }
    }

    /// One value's step: moments before and after, and the next value.
    #[inline(always)]
    fn step(&self, x: f32, mean: f64, [m, v]: [f32; 2]) -> (f32, [f32; 2]) {
        let Constants { learning_rate, beta1, beta2, tau } = self.constants;
        let (x, d, m, v) = (f64::from(x), mean - f64::from(x), f64::from(m), f64::from(v));
        if self.rule == Rule::Momentum {
            let m = (beta1 * m + d) as f32;
            return ((x + learning_rate * f64::from(m)) as f32, [m, 0.0]);
        }
        let square = d * d;
        let m = (beta1 * m + (1.0 - beta1) * d) as f32;
        let v = match self.rule {
            Rule::Adagrad => v + square,
            Rule::Yogi => v - (1.0 - beta2) * square * sign(v - square),
            Rule::Adam | Rule::Momentum => beta2 * v + (1.0 - beta2) * square,
        } as f32;
        ((x + learning_rate * f64::from(m) / (f64::from(v).sqrt() + tau)) as f32, [m, v])
    }
}

/// -1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

impl Strategy for FedOpt {
    fn name(&self) -> &'static str {
        match self.rule {
            Rule::Momentum => "fedavgm",
            Rule::Adagrad => "fedadagrad",
            Rule::Adam => "fedadam",
            Rule::Yogi => "fedyogi",
        }
    }

    fn reads_global(&self) -> bool {
        true
    }

    fn kept(&self) -> usize {
        if self.rule == Rule::Momentum { 1 } else { 2 }
    }

    /// Kept are, for every value, its moments one after the other.
    fn next(
        &self,
        global: &mut dyn Spool,
        kept: Kept<'_>,
        mean: &mut dyn Mean,
        out: &mut dyn Write,
    ) -> Result<(), SpoolError> {
        let (count, initial) = (self.kept(), [0.0, (self.constants.tau * self.constants.tau) as f32]);
        let Kept { mut before, after } = kept;
        global.rewind()?;
        if let Some(before) = &mut before {
            before.rewind()?;
        }
        let (mut values, mut moments) = (Vec::new(), Vec::new());
        mean.each(&mut |means| {
            values.resize(means.len() * 4, 0);
            global.read_exact(&mut values)?;
            moments.resize(means.len() * 4 * count, 0);
            match &mut before {
                Some(before) => before.read_exact(&mut moments)?,
                None => fill(&mut moments, &initial[..count]),
            }
            let cells = values
                .as_chunks_mut::<4>()
                .0
                .iter_mut()
                .zip(moments.as_chunks_mut::<4>().0.chunks_mut(count));
            for ((value, kept), mean) in cells.zip(means) {
                let mut state = [0.0; 2];
                state.iter_mut().zip(&*kept).for_each(|(state, bytes)| *state = f32::from_le_bytes(*bytes));
                let (next, state) = self.step(f32::from_le_bytes(*value), *mean, state);
                *value = next.to_le_bytes();
                kept.iter_mut().zip(state).for_each(|(bytes, state)| *bytes = state.to_le_bytes());
            }
            check_range(values.as_chunks::<4>().0)?;
            after.write_all(&moments)?;
            Ok(out.write_all(&values)?)
        })
    }
}

fn fill(moments: &mut [u8], initial: &[f32]) {
    for (bytes, value) in moments.as_chunks_mut::<4>().0.iter_mut().zip(initial.iter().cycle()) {
        *bytes = value.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{Layout, TensorSpec, decode, encode};
    use fedpeft_protocol::run::StrategySpec;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        accumulator::{Accumulator, Weight},
        strategy::{Strategy, of_spec},
    };

    fn layout(values: usize) -> Layout {
        Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![values as u64] }]).unwrap()
    }

    fn specs() -> [StrategySpec; 4] {
        let (learning_rate, beta1, beta2, tau) = (0.1, 0.9, 0.99, 0.1);
        [
            StrategySpec::Fedavgm { learning_rate, momentum: beta1 },
            StrategySpec::Fedadagrad { learning_rate, beta1, tau },
            StrategySpec::Fedadam { learning_rate, beta1, beta2, tau },
            StrategySpec::Fedyogi { learning_rate, beta1, beta2, tau },
        ]
    }

    /// Rounds in which all clients' adapters have these means.
    fn rounds(strategy: &dyn Strategy, start: &[f32], means: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let layout = layout(start.len());
        let (mut global, mut kept) = (encode(start).to_vec(), None);
        means
            .iter()
            .map(|mean| {
                let mut sum = Accumulator::new(layout.clone()).unwrap();
                sum.add(&encode(mean), Weight::new(3).unwrap()).unwrap();
                let (mut next, mut after) = (Vec::new(), Vec::new());
                let mut before = kept.take().map(Cursor::new);
                let state = Kept {
                    before: before.as_mut().map(|cursor| cursor as &mut dyn Spool),
                    after: &mut after,
                };
                strategy.next(&mut Cursor::new(&global), state, &mut &sum, &mut next).unwrap();
                assert_eq!(after.len(), next.len() * strategy.kept());
                (global, kept) = (next, Some(after));
                decode(&global, &layout).unwrap()
            })
            .collect()
    }

    /// One value, 1.0 at first, whose mean is 1.5 and then 1.0, by hand.
    #[test]
    fn two_rounds_are_as_computed_by_hand() {
        let wanted = [
            // m = 0.5; x = 1.05. d = -0.05, m = 0.4; x = 1.09.
            [1.05, 1.09],
            // m = 0.05, v = 0.01 + 0.25 = 0.26; x = 1 + 0.005 / (0.509902 + 0.1) = 1.008198.
            // d = -0.008198, m = 0.0441802, v = 0.2600672; x = 1.008198 + 0.00441802 / 0.609968 = 1.015441.
            [1.008_198, 1.015_441],
            // v = 0.0099 + 0.0025 = 0.0124; x = 1 + 0.005 / (0.111355 + 0.1) = 1.023657.
            // d = -0.023657, m = 0.0426343, v = 0.0122816; x = 1.023657 + 0.00426343 / 0.210823 = 1.043880.
            [1.023_657, 1.043_88],
            // v = 0.01 + 0.0025 = 0.0125; x = 1 + 0.005 / (0.111803 + 0.1) = 1.023607.
            // d = -0.023607, m = 0.0426393, v = 0.0125 - 0.01 * 0.000557290 = 0.0124944;
            // x = 1.023607 + 0.00426393 / 0.211778 = 1.043741.
            [1.023_607, 1.043_741],
        ];
        for (spec, wanted) in specs().iter().zip(wanted) {
            let got = rounds(&*of_spec(spec), &[1.0], &[vec![1.5], vec![1.0]]);
            for (got, wanted) in got.iter().zip(wanted) {
                assert!((got[0] - wanted).abs() < 2e-6, "{spec:?}: {got:?} is not {wanted}");
            }
        }
    }

    #[test]
    fn momentum_of_none_and_a_rate_of_one_are_fedavg() {
        let plain = StrategySpec::Fedavgm { learning_rate: 1.0, momentum: 0.0 };
        let got = rounds(&*of_spec(&plain), &[1.0, -2.0], &[vec![0.25, 3.0], vec![0.5, 0.5]]);
        assert_eq!(got, [[0.25, 3.0], [0.5, 0.5]]);
    }

    #[test]
    fn a_step_that_leaves_the_range_is_an_error() {
        let strategy = of_spec(&StrategySpec::Fedavgm { learning_rate: 1e9, momentum: 0.9 });
        let mut sum = Accumulator::new(layout(1)).unwrap();
        sum.add(&encode(&[2.0]), Weight::new(1).unwrap()).unwrap();
        let mut after = Vec::new();
        let kept = Kept { before: None, after: &mut after };
        let failed =
            strategy.next(&mut Cursor::new(encode(&[1.0])), kept, &mut &sum, &mut Vec::new()).unwrap_err();
        assert!(failed.to_string().contains("learning_rate"), "{failed}");
    }

    proptest! {
        /// Chunks do not show, nor does the order of the updates.
        #[test]
        fn the_order_of_updates_does_not_change_a_byte(
            updates in prop::collection::vec((prop::collection::vec(-4.0f32..4.0, 5), 1u64..1000), 1..6),
            global in prop::collection::vec(-4.0f32..4.0, 5),
        ) {
            for spec in specs() {
                let strategy = of_spec(&spec);
                let next = |updates: &mut dyn Iterator<Item = &(Vec<f32>, u64)>| {
                    let mut sum = Accumulator::new(layout(5)).unwrap();
                    for (values, examples) in updates {
                        sum.add(&encode(values), Weight::new(*examples).unwrap()).unwrap();
                    }
                    let (mut next, mut after) = (Vec::new(), Vec::new());
                    let kept = Kept { before: None, after: &mut after };
                    strategy.next(&mut Cursor::new(encode(&global)), kept, &mut &sum, &mut next).unwrap();
                    (next, after)
                };
                prop_assert_eq!(next(&mut updates.iter()), next(&mut updates.iter().rev()));
            }
        }
    }
}
