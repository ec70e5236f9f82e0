//! What a round does with each update as it comes, and what they come to in the end.
//!
//! | rule | of an update is kept | memory |
//! | --- | --- | --- |
//! | mean, FedNova, FedBuff, clipped mean | its share of an exact sum | 16 bytes per value |
//! | private | its share of an exact sum on a grid | 8 bytes per value |
//! | products, exact | its share of exact sums, of low-rank updates as well | 16 bytes per value, and per weight of tuned layers |
//! | secure | nothing: their sum is made elsewhere | 4 bytes per value |
//! | robust | all of it, in files that the caller provides | a chunk of each |
//!
//! None of them depends on the order in which updates come, not by a byte.

use std::io::Write;

use fedpeft_codec::Layout;
use fedpeft_protocol::{
    Round,
    run::{AggregationSpec, ModeSpec, PrivacyState, RunSpec, StalenessSpec},
};

use crate::{
    accumulator::{AccumulateError, Claim, Encoded, Gathering, Spool, SpoolError, Weight, check_update},
    buffered,
    clip::Scaled,
    clipped::ClippedSum,
    lora::{Pair, ProductMean, Residual},
    mean::{EachChunk, Mean, Moved, Shifted},
    norm::distance_spooled,
    nova::Steps,
    robust::{Gathered, RobustRule},
};

/// What a round does with updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The mean, weighted by examples.
    Mean,
    /// The mean, unweighted.
    Even,
    /// The mean of what may have begun with different adapters, weighted by staleness as well.
    Buffered(StalenessSpec),
    /// The mean per local step.
    Nova(Steps),
    /// The mean of updates no longer than this.
    Clipped(f64),
    /// The mean, of low-rank updates rather than of their factors.
    Products,
    /// The mean, of factors as of all else, and beside it what their product lacks of the mean low-rank update:
    /// [`Fold::residual`].
    Exact,
    /// What lies in the middle of all updates.
    Robust(RobustRule),
    /// The mean of updates that nobody sees: [`Fold::set_mean`].
    Secure,
    /// The noised sum of updates of a bounded norm, over the size that cohorts have in the mean.
    Private {
        /// L2 norm that updates are clipped to.
        clip_norm: f64,
        /// Standard deviation of the noise over `clip_norm`.
        noise_multiplier: f64,
        /// What the sum is divided by.
        cohort: u32,
    },
}

impl Rule {
    /// The rule that a run asks for. `privacy` is what its next round promises, if it promises anything.
    pub fn of_spec(spec: &RunSpec, privacy: Option<&PrivacyState>) -> Self {
        // Clients of a sum that is private and secure clip and add noise themselves.
        if spec.secure_aggregation.is_some() {
            return Self::Secure;
        }
        if let Some(&PrivacyState { clip_norm, noise_multiplier, .. }) = privacy {
            return Self::Private { clip_norm, noise_multiplier, cohort: spec.cohort };
        }
        if let ModeSpec::Buffered { staleness, .. } = spec.mode {
            return Self::Buffered(staleness);
        }
        match spec.aggregation {
            AggregationSpec::Mean if spec.scaffold_population().is_some() => Self::Even,
            AggregationSpec::Mean => Self::Mean,
            AggregationSpec::Fednova => Self::Nova(Steps::of_spec(&spec.training)),
            AggregationSpec::ClippedMean { norm } => Self::Clipped(norm),
            AggregationSpec::LoraProduct => Self::Products,
            AggregationSpec::LoraExact => Self::Exact,
            AggregationSpec::Median => Self::Robust(RobustRule::Median),
            AggregationSpec::TrimmedMean { trim } => Self::Robust(RobustRule::TrimmedMean { trim }),
            AggregationSpec::Krum { byzantine, keep } => Self::Robust(RobustRule::Krum { byzantine, keep }),
            AggregationSpec::GeometricMedian { iterations, smoothing } => {
                Self::Robust(RobustRule::GeometricMedian { iterations, smoothing })
            }
        }
    }

    /// The weight of an update that was trained on `examples` examples and began `staleness` rounds ago.
    ///
    /// # Errors
    /// No examples, or too many.
    pub fn weight(&self, examples: u64, staleness: Round) -> Result<Weight, AccumulateError> {
        let by_examples = Weight::new(examples)?;
        match self {
            Self::Mean
            | Self::Secure
            | Self::Clipped(_)
            | Self::Products
            | Self::Exact
            | Self::Robust(RobustRule::GeometricMedian { .. } | RobustRule::Krum { .. }) => Ok(by_examples),
            Self::Buffered(spec) => buffered::weight(examples, spec.factor(staleness)),
            Self::Nova(steps) => steps.weight(examples),
            Self::Even | Self::Robust(_) | Self::Private { .. } => Weight::new(1),
        }
    }

    /// Whether [`Fold::add`] reads the adapter that an update began with.
    pub fn reads_base(&self) -> bool {
        matches!(self, Self::Clipped(_) | Self::Private { .. })
    }

    /// Whether the sum holds updates whose bases are to be subtracted, see [`Fold::subtract`].
    pub fn subtracts_bases(&self) -> bool {
        matches!(self, Self::Buffered(_) | Self::Nova(_))
    }

    /// Whether updates are kept, see [`Fold::keep`].
    pub fn keeps(&self) -> bool {
        matches!(self, Self::Robust(_))
    }

    /// Whether a partial sum may stand for the updates in it, see [`Fold::merge`]: where each counts by its examples and by
    /// nothing else.
    pub fn merges(&self) -> bool {
        matches!(self, Self::Mean)
    }

    /// Whether what updates come to depends on the present global adapter.
    pub fn reads_global(&self) -> bool {
        matches!(self, Self::Buffered(_) | Self::Nova(_) | Self::Private { .. } | Self::Secure)
    }
}

/// The updates of a round so far.
pub struct Fold {
    rule: Rule,
    layout: Layout,
    state: State,
    /// Updates that were not clipped.
    unclipped: u64,
    /// Share of the mean low-rank update that its rank did not hold.
    lost: Option<f64>,
}

enum State {
    Sum(Gathering),
    Products(Box<ProductMean>),
    Private(ClippedSum),
    /// The mean of the updates, as differences to the global adapter, once it is known.
    Secure(Option<Vec<f32>>),
    /// By client, in the order of their names.
    Kept {
        clients: Vec<String>,
        updates: Vec<Gathered>,
    },
}

/// What else is needed to say what the updates of a round come to.
pub struct Closing<'a> {
    /// The present global adapter, where [`Rule::reads_global`]; it is read from its first byte.
    pub global: &'a mut dyn Spool,
    /// Examples of each accepted update, in the order of the clients' names.
    pub examples: &'a [u64],
    /// Gives one number of the noise for each value, in order, where the rule is private.
    pub noise: &'a mut dyn FnMut(&mut [i64]),
}

impl Fold {
    /// Of no updates.
    ///
    /// # Errors
    /// No memory, a clipping norm that the grid of a private sum cannot hold, or no low-rank update to take the mean of.
    pub fn new(rule: Rule, layout: Layout) -> Result<Self, AccumulateError> {
        let state = match rule {
            Rule::Private { clip_norm, noise_multiplier, .. } => {
                State::Private(ClippedSum::new(layout.clone(), clip_norm, noise_multiplier)?)
            }
            Rule::Products | Rule::Exact => {
                let pairs = Pair::all(&layout)?;
                State::Products(Box::new(ProductMean::new(layout.clone(), pairs)?))
            }
            Rule::Secure => State::Secure(None),
            Rule::Robust(_) => State::Kept { clients: Vec::new(), updates: Vec::new() },
            _ => State::Sum(Gathering::new(layout.clone())?),
        };
        Ok(Self { rule, layout, state, unclipped: 0, lost: None })
    }

    /// What it does with updates.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Updates that were not longer than what they are clipped to.
    pub fn unclipped(&self) -> u64 {
        self.unclipped
    }

    /// The share of the squared norm of the mean low-rank update that did not fit its rank, once it was asked for with
    /// [`Rule::Products`].
    pub fn lost(&self) -> Option<f64> {
        self.lost
    }

    /// Adds one encoded adapter. `base` is the one it began with, where [`Rule::reads_base`]. Either all of it is added or,
    /// with an error, nothing.
    pub fn add(
        &mut self,
        mut adapter: Encoded,
        base: &mut dyn Spool,
        weight: Weight,
    ) -> Result<(), SpoolError> {
        match (&mut self.state, self.rule) {
            (State::Sum(sum), Rule::Clipped(norm)) => {
                check_update(&mut *adapter.reader(), &self.layout)?;
                let length = distance_spooled(&mut *adapter.reader(), base)?;
                if length <= norm {
                    sum.add(adapter, weight)?;
                    self.unclipped += 1;
                } else {
                    let mut reader = adapter.reader();
                    let mut scaled = Scaled::new(&mut *reader, base, norm / length);
                    sum.settled()?.add_spooled(&mut scaled, weight)?;
                }
            }
            (State::Sum(sum), _) => sum.add(adapter, weight)?,
            (State::Products(sum), _) => sum.add(&mut *adapter.reader(), weight)?,
            (State::Private(sum), Rule::Private { clip_norm, .. }) => {
                let length = sum.add(&mut *adapter.reader(), base)?;
                self.unclipped += u64::from(length <= clip_norm);
            }
            (State::Secure(_), _) => return Err(AccumulateError::Unseen.into()),
            (State::Private(_) | State::Kept { .. }, _) => {
                check_update(&mut *adapter.reader(), &self.layout)?;
            }
        }
        Ok(())
    }

    /// Keeps an adapter that [`Self::add`] found to be good until the round closes, where [`Rule::keeps`].
    pub fn keep(&mut self, client: &str, adapter: Box<dyn Spool + Send>, weight: Weight) {
        if let State::Kept { clients, updates } = &mut self.state {
            let kept = Gathered { adapter, weight };
            match clients.binary_search_by(|known| known.as_str().cmp(client)) {
                Ok(at) => updates[at] = kept,
                Err(at) => {
                    clients.insert(at, client.to_owned());
                    updates.insert(at, kept);
                }
            }
        }
    }

    /// Subtracts the adapter that updates of this weight began with, where [`Rule::subtracts_bases`].
    pub fn subtract(&mut self, base: &mut dyn Spool, weight: u64) -> Result<(), SpoolError> {
        match &mut self.state {
            State::Sum(sum) => sum.settled()?.subtract_spooled(base, weight),
            State::Products(_) | State::Private(_) | State::Secure(_) | State::Kept { .. } => Ok(()),
        }
    }

    /// Adds updates that were added up elsewhere, where [`Rule::merges`]. Either all of them are added or, with an error,
    /// nothing.
    pub fn merge(&mut self, partial: &mut dyn Spool, claim: Claim) -> Result<(), SpoolError> {
        match (&mut self.state, self.rule.merges()) {
            (State::Sum(sum), true) => sum.settled()?.merge_partial(partial, claim),
            _ => Err(AccumulateError::Single.into()),
        }
    }

    /// Writes the updates added up for [`Self::merge`], where [`Rule::merges`]; what the bytes claim to be.
    pub fn partial(&mut self, out: &mut dyn Write) -> Result<Claim, SpoolError> {
        match (&mut self.state, self.rule.merges()) {
            (State::Sum(sum), true) => {
                let sum = sum.settled()?;
                sum.write_partial(out)?;
                Ok(sum.claim()?)
            }
            _ => Err(AccumulateError::Single.into()),
        }
    }

    /// The mean of updates that nobody saw, as the differences to the global adapter, where the rule is [`Rule::Secure`].
    ///
    /// # Errors
    /// Another rule, or another number of values.
    pub fn set_mean(&mut self, differences: Vec<f32>) -> Result<(), AccumulateError> {
        match &mut self.state {
            State::Secure(mean) if differences.len() == self.layout.values() => {
                *mean = Some(differences);
                Ok(())
            }
            _ => Err(AccumulateError::Layout),
        }
    }

    /// Writes what the factors of the next global adapter do not hold of the mean low-rank update, where the rule is
    /// [`Rule::Exact`].
    ///
    /// # Errors
    /// Another rule, no update, a value out of range, or what cannot be read or written.
    pub fn residual(&self, residual: Residual<'_>) -> Result<(), SpoolError> {
        match (&self.state, self.rule) {
            (State::Products(sum), Rule::Exact) => sum.residual(residual),
            _ => Err(AccumulateError::NoPairs.into()),
        }
    }

    /// What the updates come to.
    pub fn close<'a>(&'a mut self, closing: Closing<'a>) -> Closed<'a> {
        Closed { fold: self, closing }
    }
}

/// A round's updates, as one adapter.
pub struct Closed<'a> {
    fold: &'a mut Fold,
    closing: Closing<'a>,
}

impl Mean for Closed<'_> {
    fn each(&mut self, each: EachChunk<'_>) -> Result<(), SpoolError> {
        let Closing { global, examples, noise } = &mut self.closing;
        match (&mut self.fold.state, self.fold.rule) {
            (State::Sum(sum), Rule::Buffered(_)) => {
                let divisor = (examples.iter().sum::<u64>() * buffered::UNIT) as f64;
                Moved { base: *global, sum: sum.settled()?, divisor }.each(each)
            }
            (State::Sum(sum), Rule::Nova(steps)) => {
                let divisor = steps.divisor(examples);
                Moved { base: *global, sum: sum.settled()?, divisor }.each(each)
            }
            (State::Sum(sum), _) => (&*sum.settled()?).each(each),
            (State::Products(sum), Rule::Exact) => sum.each_factor(each),
            (State::Products(sum), _) => {
                self.fold.lost = Some(sum.each_mean(each)?);
                Ok(())
            }
            (State::Private(sum), Rule::Private { cohort, .. }) => {
                global.rewind()?;
                sum.each_mean(*global, f64::from(cohort), *noise, each)
            }
            (State::Secure(Some(differences)), _) => {
                Shifted { base: &mut **global, by: differences }.each(each)
            }
            (State::Private(_) | State::Secure(None), _) => Err(AccumulateError::Empty.into()),
            (State::Kept { updates, .. }, Rule::Robust(rule)) => {
                rule.aggregate(&self.fold.layout, updates, each)
            }
            (State::Kept { .. }, _) => Err(AccumulateError::Empty.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{TensorSpec, decode, encode};
    use fedpeft_protocol::run::{OptimizerSpec, StrategySpec, TrainingSpec};
    use proptest::prelude::*;

    use super::*;
    use crate::strategy::{Kept, of_spec};

    const VALUES: usize = 6;

    fn layout() -> Layout {
        Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![VALUES as u64] }]).unwrap()
    }

    fn nova() -> Rule {
        let optimizer = OptimizerSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        Rule::Nova(Steps::of_spec(&TrainingSpec { optimizer, ..TrainingSpec::default() }))
    }

    fn rules() -> [Rule; 10] {
        [
            Rule::Mean,
            Rule::Even,
            Rule::Buffered(StalenessSpec::default()),
            nova(),
            Rule::Clipped(0.7),
            Rule::Private { clip_norm: 0.7, noise_multiplier: 1.0, cohort: 5 },
            Rule::Robust(RobustRule::Median),
            Rule::Robust(RobustRule::TrimmedMean { trim: 0.2 }),
            Rule::Robust(RobustRule::Krum { byzantine: 1, keep: 2 }),
            Rule::Robust(RobustRule::GeometricMedian { iterations: 4, smoothing: 1e-6 }),
        ]
    }

    /// An update: its client's name, values and examples.
    type Given = (String, Vec<f32>, u64);

    /// The adapter after a round of these updates, which come in this order, without noise.
    fn folded(rule: Rule, global: &[f32], updates: &[&Given]) -> Vec<f32> {
        let global = encode(global);
        let mut fold = Fold::new(rule, layout()).unwrap();
        for (client, values, examples) in updates {
            let (bytes, weight) = (encode(values), rule.weight(*examples, 0).unwrap());
            fold.add(Encoded::Held(bytes.clone()), &mut Cursor::new(&global), weight).unwrap();
            fold.keep(client, Box::new(Cursor::new(bytes)), weight);
            if rule.subtracts_bases() {
                fold.subtract(&mut Cursor::new(&global), weight.get()).unwrap();
            }
        }
        let mut sorted: Vec<_> = updates.iter().map(|(client, _, examples)| (client, *examples)).collect();
        sorted.sort();
        let examples: Vec<u64> = sorted.into_iter().map(|(_, examples)| examples).collect();
        let closing = Closing {
            global: &mut Cursor::new(&global),
            examples: &examples,
            noise: &mut |values| values.fill(0),
        };
        let (mut next, kept) = (Vec::new(), Kept { before: None, after: &mut std::io::sink() });
        let strategy = of_spec(&StrategySpec::Fedavg);
        strategy.next(&mut Cursor::new(&global), kept, &mut fold.close(closing), &mut next).unwrap();
        decode(&next, &layout()).unwrap()
    }

    fn given() -> impl Strategy<Value = Vec<Given>> {
        let update = (prop::collection::vec(-4.0f32..4.0, VALUES), 1u64..1000);
        prop::collection::vec(update, 5..9).prop_map(|updates| {
            let named = updates.into_iter().enumerate();
            named.map(|(at, (values, examples))| (format!("client-{at}"), values, examples)).collect()
        })
    }

    #[test]
    fn only_the_plain_mean_takes_partial_sums() {
        for rule in rules() {
            let mut below = Fold::new(rule, layout()).unwrap();
            let weight = rule.weight(3, 0).unwrap();
            let (adapter, global) = (encode(&[0.5; VALUES]), encode(&[0.0; VALUES]));
            below.add(Encoded::Held(adapter), &mut Cursor::new(&global), weight).unwrap();
            let mut bytes = Vec::new();
            let written = below.partial(&mut bytes);
            assert_eq!(
                (written.is_ok(), rule.merges()),
                (rule == Rule::Mean, rule == Rule::Mean),
                "{rule:?}"
            );
            let mut above = Fold::new(rule, layout()).unwrap();
            let merged = above.merge(&mut Cursor::new(&bytes), Claim::new(1, 3).unwrap());
            match rule.merges() {
                true => merged.unwrap(),
                false => assert!(merged.unwrap_err().to_string().contains("every single update"), "{rule:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_rule_depends_on_the_order_of_updates(
            updates in given(),
            global in prop::collection::vec(-4.0f32..4.0, VALUES),
            rotate in 0usize..8,
        ) {
            let mut other: Vec<_> = updates.iter().rev().collect();
            let by = rotate % other.len();
            other.rotate_left(by);
            for rule in rules() {
                let (one, other) = (folded(rule, &global, &updates.iter().collect::<Vec<_>>()), folded(rule, &global, &other));
                prop_assert_eq!(encode(&one), encode(&other), "{:?}", rule);
            }
        }

        /// Weights sum to one: clients that agree get what they agree on, but for rounding and clipping.
        #[test]
        fn who_agrees_gets_what_it_wants(
            values in prop::collection::vec(-0.1f32..0.1, VALUES),
            examples in prop::collection::vec(1u64..1000, 5..9),
        ) {
            let updates: Vec<Given> =
                examples.iter().enumerate().map(|(at, n)| (format!("{at}"), values.clone(), *n)).collect();
            for rule in rules() {
                // A private sum is divided by what cohorts have in the mean.
                if matches!(rule, Rule::Private { .. }) && updates.len() != 5 {
                    continue;
                }
                let found = folded(rule, &[0.0; VALUES], &updates.iter().collect::<Vec<_>>());
                let close = found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 2e-3 * b.abs().max(1e-3));
                // FedNova takes means per step, and steps differ with examples.
                prop_assert!(close || matches!(rule, Rule::Nova(_)), "{:?}: {:?} {:?}", rule, found, values);
            }
        }

        #[test]
        fn one_liar_moves_no_bounded_rule_far(updates in given(), lie in -65536.0f32..65536.0) {
            let honest: Vec<&Given> = updates[1..].iter().collect();
            let liar = ("liar".to_owned(), vec![lie; VALUES], 100_000);
            let with: Vec<&Given> = honest.iter().copied().chain([&liar]).collect();
            let zero = [0.0; VALUES];
            for rule in rules() {
                let found = folded(rule, &zero, &with);
                match rule {
                    // The middle of the honest, in every coordinate.
                    Rule::Robust(RobustRule::Median | RobustRule::TrimmedMean { .. }) => {
                        for (at, value) in found.iter().enumerate() {
                            let of = |fold: fn(f32, f32) -> f32, from| honest.iter().map(|u| u.1[at]).fold(from, fold);
                            prop_assert!((of(f32::min, f32::MAX)..=of(f32::max, f32::MIN)).contains(value));
                        }
                    }
                    // One share of five of the clipping norm.
                    Rule::Private { clip_norm, cohort, .. } => {
                        let without = folded(rule, &zero, &honest);
                        let moved = found.iter().zip(&without).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
                        prop_assert!(moved <= clip_norm / f64::from(cohort) + 1e-6, "{moved}");
                    }
                    Rule::Clipped(norm) => {
                        let moved = found.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                        prop_assert!(moved <= norm + 1e-5, "{moved}");
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn low_rank_updates_are_averaged_as_such() {
        let spec = |name: &str, shape: [u64; 2]| TensorSpec { name: name.into(), shape: shape.into() };
        let pair = [spec("q.lora_A.weight", [1, 2]), spec("q.lora_B.weight", [2, 1])];
        let factors = Layout::new(pair.into()).unwrap();
        let mut fold = Fold::new(Rule::Products, factors.clone()).unwrap();
        // Of opposite signs, both diag(2, 0).
        for values in [[1.0, 0.0, 2.0, 0.0], [-1.0, 0.0, -2.0, 0.0]] {
            let weight = fold.rule().weight(10, 0).unwrap();
            fold.add(Encoded::Held(encode(&values)), &mut std::io::empty(), weight).unwrap();
        }
        let closing = Closing { global: &mut std::io::empty(), examples: &[10, 10], noise: &mut |_| () };
        let (mut next, kept) = (Vec::new(), Kept { before: None, after: &mut std::io::sink() });
        let strategy = of_spec(&StrategySpec::Fedavg);
        strategy.next(&mut std::io::empty(), kept, &mut fold.close(closing), &mut next).unwrap();
        let next = decode(&next, &factors).unwrap();
        assert!((next[0] * next[2] - 2.0).abs() < 1e-6 && next[1] == 0.0 && next[3] == 0.0, "{next:?}");
        assert!(fold.lost().is_some_and(|lost| lost < 1e-12));

        for rule in [Rule::Products, Rule::Exact] {
            let other = Fold::new(rule, layout()).err().unwrap();
            assert_eq!(other, AccumulateError::NoPairs);
        }
    }

    #[test]
    fn what_factors_do_not_hold_of_low_rank_updates_is_kept_where_the_rule_is_exact() {
        let spec = |name: &str, shape: [u64; 2]| TensorSpec { name: name.into(), shape: shape.into() };
        let pair = [spec("q.lora_A.weight", [1, 1]), spec("q.lora_B.weight", [1, 1])];
        let factors = Layout::new(pair.into()).unwrap();
        let folded = |rule: Rule| {
            let mut fold = Fold::new(rule, factors.clone()).unwrap();
            for values in [[1.0, 2.0], [3.0, 4.0]] {
                let weight = fold.rule().weight(10, 0).unwrap();
                fold.add(Encoded::Held(encode(&values)), &mut std::io::empty(), weight).unwrap();
            }
            fold
        };
        let mut fold = folded(Rule::Exact);
        let closing = Closing { global: &mut std::io::empty(), examples: &[10, 10], noise: &mut |_| () };
        let (mut next, kept) = (Vec::new(), Kept { before: None, after: &mut std::io::sink() });
        let strategy = of_spec(&StrategySpec::Fedavg);
        strategy.next(&mut std::io::empty(), kept, &mut fold.close(closing), &mut next).unwrap();
        assert_eq!(decode(&next, &factors).unwrap(), [2.0, 3.0], "factors are averaged as they are");
        assert_eq!(fold.lost(), None);
        let residual = |fold: &Fold| {
            let mut out = Vec::new();
            let adapter = &mut Cursor::new(encode(&[2.0, 3.0]));
            fold.residual(Residual { before: None, adapter, out: &mut out }).map(|()| out)
        };
        // (2 + 12) / 2 - 2 x 3
        assert_eq!(residual(&fold).unwrap(), encode(&[1.0]));
        assert!(residual(&folded(Rule::Products)).is_err());
    }

    #[test]
    fn equal_clients_make_fednova_a_mean() {
        let update = |name: &str, values: [f32; VALUES]| (name.to_owned(), values.to_vec(), 100);
        let updates = [update("a", [1.0; VALUES]), update("b", [-0.5, 0.0, 3.0, 2.0, 1.0, 0.25])];
        let updates: Vec<&Given> = updates.iter().collect();
        let (normalised, mean) =
            (folded(nova(), &[0.1; VALUES], &updates), folded(Rule::Mean, &[0.1; VALUES], &updates));
        for (normalised, mean) in normalised.iter().zip(mean) {
            assert!((normalised - mean).abs() < 1e-5, "{normalised} {mean}");
        }
    }
}
