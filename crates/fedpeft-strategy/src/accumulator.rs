//! A weighted sum of adapters that does not depend on the order of its terms.
//!
//! Floating-point addition is not associative, so a plain running mean would depend on which client was
//! faster. Here every product `value x weight` is computed exactly (24 + 24 bits fit an `f64`), split into
//! two integers and added in integers, which *is* associative and commutative: any order, any grouping, any
//! interruption gives the same bytes. Memory is 16 bytes per value, however many clients there are.
//!
//! The fixed point covers 2^-54 to 2^56:
//!
//! ```text
//! product = high x 2^-7 + low x 2^-54      |product| <= 2^16 x 2^24 = 2^40
//!           |high| <= 2^47, |low| <= 2^46  so that 2^16 - 1 terms stay below 2^63
//! ```
//!
//! Three bounds, checked before anything is added, therefore exclude overflow: [`MAX_MAGNITUDE`],
//! [`MAX_WEIGHT`] and [`MAX_UPDATES`]. Values of magnitude 2^-31 and above are summed exactly; below that a
//! term is rounded to a multiple of 2^-54. The mean is rounded to `f32` once.

mod batch;
mod partial;
mod spooled;

use std::ops::Range;

use bytes::Bytes;
use fedpeft_codec::{CodecError, Layout};

pub use batch::{BATCH, Encoded, Gathering};
pub use partial::{Claim, max_partial_bytes, partial_distance};
pub use spooled::{Spool, SpoolError, check_update};

/// Largest magnitude of an adapter value: the next power of two above what half precision can hold.
pub const MAX_MAGNITUDE: f32 = 65_536.0;
/// Largest weight (examples) of one update.
pub const MAX_WEIGHT: u64 = 1 << 24;
/// Most updates in one sum.
pub const MAX_UPDATES: u64 = (1 << 16) - 1;

pub(crate) const HIGH_SCALE: f64 = (1u64 << 7) as f64;
const LOW_SCALE: f64 = (1u64 << 47) as f64;
/// Added to an `f64` of magnitude below 2^51 it leaves the nearest integer in the low bits of the mantissa:
/// a conversion to `i64` that every vector unit can do.
pub(crate) const MAGIC: f64 = 6_755_399_441_055_744.0;

/// The weight of one update: its examples, 1 to [`MAX_WEIGHT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// Checks `examples`.
    pub fn new(examples: u64) -> Result<Self, AccumulateError> {
        match u32::try_from(examples) {
            Ok(weight) if (1..=MAX_WEIGHT).contains(&examples) => Ok(Self(weight)),
            _ => Err(AccumulateError::Weight(examples)),
        }
    }

    /// The weight as a number.
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

/// An update that was not added; the sum is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccumulateError {
    /// Wrong length, or a value that is not finite.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A finite value beyond [`MAX_MAGNITUDE`].
    #[error(
        "adapter value {index} of tensor {tensor} is {value}: values are at most {MAX_MAGNITUDE} in magnitude"
    )]
    Magnitude {
        /// Tensor the value belongs to.
        tensor: String,
        /// Index within that tensor, row-major.
        index: usize,
        /// The value.
        value: String,
    },
    /// No examples, or too many.
    #[error("update has {0} examples: an update has 1 to {MAX_WEIGHT}")]
    Weight(u64),
    /// Too many updates for one sum.
    #[error("the sum holds {0} updates: one sum holds at most {MAX_UPDATES}")]
    Updates(u64),
    /// Nothing was added.
    #[error("the sum holds no update, so it has no mean")]
    Empty,
    /// Reading a spooled adapter broke off while it was added.
    #[error("the sum holds half an update: it has to be gathered again")]
    Spoilt,
    /// A server optimizer's step that left the range.
    #[error(
        "the server's step gives a value of {0}, more than {MAX_MAGNITUDE}: lower strategy.learning_rate"
    )]
    Diverged(String),
    /// Too few updates for a robust rule.
    #[error("{rule} needs {least} updates and got {updates}: raise the quorum")]
    Few {
        /// The rule.
        rule: &'static str,
        /// Fewest it works with.
        least: u32,
        /// Updates there are.
        updates: usize,
    },
    /// Too many updates for a robust rule.
    #[error("{rule} takes at most {most} updates and got {updates}: lower the size of the cohort")]
    Many {
        /// The rule.
        rule: &'static str,
        /// Most it works with.
        most: u32,
        /// Updates there are.
        updates: usize,
    },
    /// No low-rank factors to multiply.
    #[error(
        "the adapter has no pair of trained LoRA factors: train with lora, without freeze_a, or average otherwise"
    )]
    NoPairs,
    /// Low-rank factors whose product may leave the range.
    #[error(
        "the low-rank update of {module} may reach {value}: its entries are at most {MAX_MAGNITUDE} in magnitude"
    )]
    Product {
        /// The tuned layer.
        module: String,
        /// What its entries may reach.
        value: String,
    },
    /// A residual that left the range.
    #[error(
        "what the mean factors do not hold of {module} reaches {value}, more than {MAX_MAGNITUDE}: lower training.learning_rate"
    )]
    Residual {
        /// The tuned layer.
        module: String,
        /// What its largest entry is.
        value: String,
    },
    /// A clipping norm.
    #[error("the clipping norm is {0}: it is between 1e-9 and 1e9")]
    Clip(String),
    /// A noise multiplier.
    #[error("the noise multiplier is {0}: a clipped sum takes 2^-10 and above")]
    Noise(String),
    /// Noise that makes the grid of a clipped sum too coarse for its number of values.
    #[error(
        "a noise multiplier of {noise} is too much for {values} values, which take up to {most}: train a smaller \
         adapter, or take fewer rounds or a larger budget"
    )]
    Coarse {
        /// The multiplier.
        noise: String,
        /// Values of the adapter.
        values: usize,
        /// Largest multiplier for that many.
        most: String,
    },
    /// A partial sum that claims what no updates are.
    #[error(
        "{updates} updates cannot weigh {weight}: each has 1 to {MAX_WEIGHT} examples, and a sum 1 to {MAX_UPDATES} updates"
    )]
    Claim {
        /// Updates claimed.
        updates: u64,
        /// Weight claimed.
        weight: u64,
    },
    /// Bytes that are no partial sum.
    #[error("the partial sum is malformed: {0}")]
    Partial(&'static str),
    /// A value of a partial sum that no updates add up to.
    #[error(
        "value {index} of tensor {tensor} in the partial sum is more than updates with a weight of {weight} add up to"
    )]
    PartialValue {
        /// Tensor the value belongs to.
        tensor: String,
        /// Index within that tensor, row-major.
        index: usize,
        /// Weight of the sum.
        weight: u64,
    },
    /// A partial sum where single updates are needed.
    #[error("this aggregation needs every single update, and takes no partial sums")]
    Single,
    /// A single update where only their sum may be seen.
    #[error("this aggregation is secure: it takes the sum of all updates, and no single one")]
    Unseen,
    /// Two sums over different adapters.
    #[error("sums of different adapter layouts cannot be merged")]
    Layout,
    /// The machine cannot hold the sum.
    #[error("no memory for the sum of {0} values, 16 bytes each")]
    Memory(usize),
}

/// A weighted sum of adapters of one layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accumulator {
    layout: Layout,
    high: Vec<i64>,
    low: Vec<i64>,
    weight: u64,
    updates: u64,
    /// Whether it holds half an adapter.
    spoilt: bool,
}

impl Accumulator {
    /// An empty sum.
    pub fn new(layout: Layout) -> Result<Self, AccumulateError> {
        let (high, low) = (zeros(layout.values())?, zeros(layout.values())?);
        Ok(Self { layout, high, low, weight: 0, updates: 0, spoilt: false })
    }

    /// Terms of the sum: updates, and parts that were subtracted.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Total weight of the updates in the sum.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Adds one encoded adapter. Either all of it is added or, with an error, nothing.
    pub fn add(&mut self, adapter: &[u8], weight: Weight) -> Result<(), AccumulateError> {
        if self.spoilt {
            return Err(AccumulateError::Spoilt);
        }
        check(adapter, &self.layout)?;
        let updates = within_bound(self.updates + 1)?;
        let weight_value = f64::from(weight.0);
        let values = adapter.as_chunks::<4>().0;
        pulp::Arch::new()
            .dispatch(|| add_products(&mut self.high, &mut self.low, values, weight_value * HIGH_SCALE));
        self.weight += weight.get();
        self.updates = updates;
        Ok(())
    }

    /// Subtracts an encoded adapter `weight` times, whatever it was added for: the sum's own weight stays. Either
    /// all of it is subtracted or, with an error, nothing.
    pub fn subtract(&mut self, adapter: &[u8], weight: u64) -> Result<(), AccumulateError> {
        if self.spoilt {
            return Err(AccumulateError::Spoilt);
        }
        check(adapter, &self.layout)?;
        // In parts that fit the bounds of the fixed point.
        let updates = within_bound(self.updates + weight.div_ceil(MAX_WEIGHT))?;
        let values = adapter.as_chunks::<4>().0;
        let mut left = weight;
        while left > 0 {
            let part = left.min(MAX_WEIGHT);
            pulp::Arch::new().dispatch(|| {
                add_products(&mut self.high, &mut self.low, values, -(part as f64) * HIGH_SCALE);
            });
            left -= part;
        }
        self.updates = updates;
        Ok(())
    }

    /// Adds another sum, for instance one that was gathered nearer to its clients.
    pub fn merge(&mut self, other: &Self) -> Result<(), AccumulateError> {
        if self.layout != other.layout {
            return Err(AccumulateError::Layout);
        }
        if self.spoilt || other.spoilt {
            return Err(AccumulateError::Spoilt);
        }
        let updates = within_bound(self.updates + other.updates)?;
        pulp::Arch::new().dispatch(|| {
            add_integers(&mut self.high, &other.high);
            add_integers(&mut self.low, &other.low);
        });
        self.weight += other.weight;
        self.updates = updates;
        Ok(())
    }

    /// What it is a sum of.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The weighted means of some values.
    pub(crate) fn means(&self, range: Range<usize>) -> Vec<f64> {
        let sums = self.high[range.clone()].iter().zip(&self.low[range]);
        sums.map(|(high, low)| total(*high, *low) / self.weight as f64).collect()
    }

    /// Whether it has a mean.
    pub(crate) fn usable(&self) -> Result<(), AccumulateError> {
        match self.updates {
            _ if self.spoilt => Err(AccumulateError::Spoilt),
            0 => Err(AccumulateError::Empty),
            _ => Ok(()),
        }
    }

    /// The weighted mean, encoded.
    pub fn mean(&self) -> Result<Bytes, AccumulateError> {
        self.usable()?;
        let mut encoded = vec![0; self.layout.values() * size_of::<f32>()];
        let divisor = self.weight as f64;
        pulp::Arch::new().dispatch(|| divide(&self.high, &self.low, divisor, encoded.as_chunks_mut::<4>().0));
        Ok(encoded.into())
    }
}

pub(crate) fn zeros(values: usize) -> Result<Vec<i64>, AccumulateError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(values).map_err(|_| AccumulateError::Memory(values))?;
    zeros.resize(values, 0);
    Ok(zeros)
}

pub(crate) fn within_bound(updates: u64) -> Result<u64, AccumulateError> {
    if updates <= MAX_UPDATES { Ok(updates) } else { Err(AccumulateError::Updates(updates)) }
}

/// Checks length, finiteness and magnitude.
fn check(adapter: &[u8], layout: &Layout) -> Result<(), AccumulateError> {
    if adapter.len() as u64 != layout.bytes() {
        let (got, values) = (adapter.len(), layout.values());
        return Err(CodecError::Size { got, expected: values * size_of::<f32>(), values }.into());
    }
    check_values(0, adapter.as_chunks::<4>().0, layout)
}

/// Checks the values from `first` on in one vectorised pass; the culprit is searched only if there is one.
pub(crate) fn check_values(first: usize, values: &[[u8; 4]], layout: &Layout) -> Result<(), AccumulateError> {
    if pulp::Arch::new().dispatch(|| largest_magnitude(values)) <= MAX_MAGNITUDE.to_bits() {
        return Ok(());
    }
    let mut floats = values.iter().map(|b| f32::from_le_bytes(*b)).zip(first..);
    let culprit = floats.find(|(value, _)| value.is_nan() || value.abs() > MAX_MAGNITUDE);
    culprit.map_or(Ok(()), |(value, flat)| {
        let (tensor, index) = layout.locate(flat);
        let (tensor, value, finite) = (tensor.to_owned(), value.to_string(), value.is_finite());
        Err(match finite {
            true => AccumulateError::Magnitude { tensor, index, value },
            false => CodecError::NotFinite { tensor, index, value }.into(),
        })
    })
}

/// The largest magnitude as bits: without their sign, floats order as integers do, and infinities and NaN
/// lie above all finite values.
#[inline(always)]
pub(crate) fn largest_magnitude(values: &[[u8; 4]]) -> u32 {
    values.iter().fold(0, |largest, b| largest.max(u32::from_le_bytes(*b) & 0x7fff_ffff))
}

/// Adds the exact products of `values` and a weight, already scaled by [`HIGH_SCALE`].
#[inline(always)]
fn add_products(high: &mut [i64], low: &mut [i64], values: &[[u8; 4]], scaled_weight: f64) {
    for ((high, low), value) in high.iter_mut().zip(low).zip(values) {
        add_term(high, low, f64::from(f32::from_le_bytes(*value)) * scaled_weight);
    }
}

/// Adds one term, already scaled by [`HIGH_SCALE`].
#[inline(always)]
pub(crate) fn add_term(high: &mut i64, low: &mut i64, term: f64) {
    let whole = term + MAGIC;
    let fraction = term - (whole - MAGIC);
    *high += integer(whole);
    *low += integer(fraction * LOW_SCALE + MAGIC);
}

/// The integer that adding [`MAGIC`] left in the mantissa.
#[inline(always)]
pub(crate) fn integer(shifted: f64) -> i64 {
    shifted.to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

#[inline(always)]
pub(crate) fn add_integers(sum: &mut [i64], terms: &[i64]) {
    for (sum, term) in sum.iter_mut().zip(terms) {
        *sum += term;
    }
}

#[inline(always)]
fn divide(high: &[i64], low: &[i64], divisor: f64, means: &mut [[u8; 4]]) {
    for ((high, low), mean) in high.iter().zip(low).zip(means) {
        *mean = ((total(*high, *low) / divisor) as f32).to_le_bytes();
    }
}

/// The sum as a float. Whole multiples of the high unit move up first, so that what remains low is below one unit
/// and both parts convert with a relative error of at most 2^-53.
#[inline(always)]
pub(crate) fn total(high: i64, low: i64) -> f64 {
    let carry = low >> 47;
    let high = (high + carry) as f64 / HIGH_SCALE;
    let low = (low - (carry << 47)) as f64 / (HIGH_SCALE * LOW_SCALE);
    high + low
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_codec::{TensorSpec, decode, encode};
    use proptest::prelude::*;

    fn layout(values: usize) -> Layout {
        Layout::new(vec![TensorSpec { name: "head.weight".into(), shape: vec![values as u64] }]).unwrap()
    }

    fn sum(updates: &[(Vec<f32>, u64)]) -> Accumulator {
        let mut sum = Accumulator::new(layout(updates[0].0.len())).unwrap();
        for (values, weight) in updates {
            sum.add(&encode(values), Weight::new(*weight).unwrap()).unwrap();
        }
        sum
    }

    #[test]
    fn bad_updates_are_named_and_leave_no_trace() {
        let mut sum = sum(&[(vec![1.0, 2.0, 3.0], 5)]);
        let before = sum.clone();
        let weight = Weight::new(3).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = sum.add(&encode(&[0.5, value, 0.5]), weight).unwrap_err();
            assert!(
                matches!(error, AccumulateError::Codec(CodecError::NotFinite { index: 1, .. })),
                "{error}"
            );
        }
        let too_large = f32::from_bits(MAX_MAGNITUDE.to_bits() + 1);
        let error = sum.add(&encode(&[0.5, 0.5, -too_large]), weight).unwrap_err();
        assert!(matches!(error, AccumulateError::Magnitude { index: 2, .. }), "{error}");
        for length in [0, 8, 11, 13, 16] {
            let error = sum.add(&vec![0; length], weight).unwrap_err();
            assert!(matches!(error, AccumulateError::Codec(CodecError::Size { .. })), "{error}");
        }
        assert_eq!(sum, before);
        assert_eq!(Weight::new(0), Err(AccumulateError::Weight(0)));
        assert_eq!(Weight::new(MAX_WEIGHT + 1), Err(AccumulateError::Weight(MAX_WEIGHT + 1)));
        assert_eq!(Accumulator::new(layout(1)).unwrap().mean(), Err(AccumulateError::Empty));
        assert_eq!(sum.merge(&Accumulator::new(layout(2)).unwrap()), Err(AccumulateError::Layout));
    }

    #[test]
    fn the_extremes_of_all_bounds_together_do_not_overflow() {
        let extreme = [MAX_MAGNITUDE, -MAX_MAGNITUDE, f32::from_bits(MAX_MAGNITUDE.to_bits() - 1), 1.0 / 3.0];
        let mut sum = Accumulator::new(layout(extreme.len())).unwrap();
        let (encoded, weight) = (encode(&extreme), Weight::new(MAX_WEIGHT).unwrap());
        for _ in 0..MAX_UPDATES {
            sum.add(&encoded, weight).unwrap();
        }
        assert_eq!(sum.mean().unwrap(), encoded);
        assert_eq!(sum.add(&encoded, weight), Err(AccumulateError::Updates(MAX_UPDATES + 1)));
        assert_eq!(sum.merge(&sum.clone()), Err(AccumulateError::Updates(2 * MAX_UPDATES)));
        assert_eq!(sum.weight(), MAX_UPDATES * MAX_WEIGHT);
    }

    /// Adapter values over many magnitudes, zero and both bounds included.
    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -1.0f32..1.0,
            2 => -MAX_MAGNITUDE..=MAX_MAGNITUDE,
            1 => Just(0.0f32),
            1 => any::<f32>().prop_filter("within bounds", |v| v.abs() <= MAX_MAGNITUDE),
        ]
    }

    fn updates() -> impl Strategy<Value = Vec<(Vec<f32>, u64)>> {
        (1usize..40).prop_flat_map(|values| {
            let update = (
                proptest::collection::vec(value(), values),
                prop_oneof![4 => 1u64..5000, 1 => Just(1), 1 => Just(MAX_WEIGHT)],
            );
            proptest::collection::vec(update, 1..12)
        })
    }

    proptest! {
        #[test]
        fn order_and_grouping_do_not_change_a_byte(
            (updates, shuffled) in updates().prop_flat_map(|u| (Just(u.clone()), Just(u).prop_shuffle())),
            split in 0usize..12,
        ) {
            let flat = sum(&updates);
            prop_assert_eq!(&sum(&shuffled), &flat);
            let (left, right) = shuffled.split_at(split.min(shuffled.len()));
            let mut merged = Accumulator::new(flat.layout.clone()).unwrap();
            for half in [right, left].into_iter().filter(|half| !half.is_empty()) {
                merged.merge(&sum(half)).unwrap();
            }
            prop_assert_eq!(&merged, &flat);
            prop_assert_eq!(merged.mean().unwrap(), flat.mean().unwrap());
            prop_assert_eq!(flat.weight(), updates.iter().map(|(_, weight)| weight).sum::<u64>());
            prop_assert_eq!(flat.updates(), updates.len() as u64);
        }

        #[test]
        fn the_mean_is_that_of_a_compensated_f64_sum(updates in updates()) {
            let sum = sum(&updates);
            let means = decode(&sum.mean().unwrap(), &sum.layout).unwrap();
            for (at, mean) in means.iter().enumerate() {
                let terms = updates.iter().map(|(values, weight)| f64::from(values[at]) * *weight as f64);
                let (expected, scale) = neumaier(terms);
                let (expected, scale) = (expected / sum.weight() as f64, scale / sum.weight() as f64);
                // One f32 rounding of the result, the f64 error of the reference, the fixed point's unit.
                let tolerance = expected.abs() * 2f64.powi(-24) + scale * 2f64.powi(-50) + 2f64.powi(-53);
                prop_assert!((f64::from(*mean) - expected).abs() <= tolerance, "{mean} is not {expected}");
            }
        }

        #[test]
        fn the_mean_of_equal_adapters_is_that_adapter(
            values in proptest::collection::vec(value(), 1..40),
            weights in proptest::collection::vec(1..=MAX_WEIGHT, 1..12),
        ) {
            // Below 2^-31 the fixed point rounds.
            let values: Vec<_> = values.into_iter().map(|v| if v.abs() < 2f32.powi(-31) { 0.0 } else { v }).collect();
            let copies: Vec<_> = weights.into_iter().map(|weight| (values.clone(), weight)).collect();
            let sum = sum(&copies);
            prop_assert_eq!(decode(&sum.mean().unwrap(), &sum.layout).unwrap(), values);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), weight: u64) {
            let mut sum = sum(&[(vec![0.25; 8], 3)]);
            let before = sum.clone();
            if Weight::new(weight).and_then(|weight| sum.add(&bytes, weight)).is_err() {
                prop_assert_eq!(sum, before);
            }
        }
    }

    /// Kahan-Babuska sum, and the sum of magnitudes.
    fn neumaier(terms: impl Iterator<Item = f64>) -> (f64, f64) {
        let (mut sum, mut compensation, mut scale) = (0.0f64, 0.0, 0.0);
        for term in terms {
            let next = sum + term;
            compensation += if sum.abs() >= term.abs() { (sum - next) + term } else { (term - next) + sum };
            sum = next;
            scale += term.abs();
        }
        (sum + compensation, scale)
    }
}
