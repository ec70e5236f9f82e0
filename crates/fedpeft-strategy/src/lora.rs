//! The mean of low-rank updates themselves (FlexLoRA, Bai et al., arXiv 2402.11505).
//!
//! A client's update of a layer is the product `B_i A_i`. The mean of the factors is not a factor of the mean:
//!
//! ```text
//! (sum w_i B_i) (sum w_i A_i)  is not  sum w_i B_i A_i        w_i = n_i / sum n_i
//! ```
//!
//! [`ProductMean`] adds the products up and, when the round closes, splits their mean into factors again: the best ones
//! of the same rank, by a truncated singular value decomposition `U S V^T`, `B = U S` and `A = V^T`. So rows of `A` are
//! of length 1, near what they begin with, and ordered by what they matter, so that the first `r` of them are the best
//! factors of rank `r` (see [`fedpeft_codec::LowRank`] for clients with less of it). What does not fit the rank is lost, and its share
//! is returned. All other tensors are averaged as ever.
//!
//! Products are summed in integers as in [`crate::accumulator`], each rounded to `f64` first: the order of the clients
//! does not change a byte. Memory is 16 bytes for each weight of the *tuned layers*, more than for the adapter but
//! independent of the number of clients, and 8 more for one layer at a time when the round closes.
//!
//! Factors of two rounds need not resemble each other, so server optimizers, which keep moments of each value, do not go
//! with this. Neither is anything averaged in the nonlinear part of DoRA: its magnitudes are averaged as they are.
//!
//! What else there is:
//!
//! - FFA-LoRA (arXiv 2403.12313) trains `B` alone (`freeze_a`). The plain mean is exact then, and nothing is lost.
//! - FedEx-LoRA (arXiv 2410.09432) loses nothing either: the factors are averaged as they are, and what their product does
//!   not hold of the mean update goes into a matrix of its own beside the frozen weights, of whatever rank it has. It is
//!   dense here, so that its bytes do not grow with the cohort: see [`ProductMean::residual`].
//! - FLoRA (arXiv 2409.05976) adds all of the update to the frozen weights, and begins with new factors. Every client
//!   would receive the factors of all, bytes that grow with the cohort: it is not done.

mod residual;
mod svd;

use std::{io::SeekFrom, ops::Range};

use fedpeft_codec::{FACTOR_A, FACTOR_B, Layout};

use crate::accumulator::{
    AccumulateError, Accumulator, HIGH_SCALE, MAX_MAGNITUDE, Spool, SpoolError, Weight, add_integers,
    add_term, check_update, total, zeros,
};
pub use residual::Residual;
use svd::Largest;

/// The factors `A [rank, inputs]` and `B [outputs, rank]` of one layer's update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    module: String,
    a: Range<usize>,
    b: Range<usize>,
    rank: usize,
    inputs: usize,
    outputs: usize,
}

impl Pair {
    /// All pairs of an adapter, found by their names `MODULE.lora_A.weight` and `MODULE.lora_B.weight`.
    ///
    /// # Errors
    /// [`AccumulateError::NoPairs`] where there is none.
    pub fn all(layout: &Layout) -> Result<Vec<Self>, AccumulateError> {
        let tensor = |name: &str| layout.ranges().find(|(spec, _)| spec.name == name);
        let pair = |module: &str| {
            let (a_spec, a) = tensor(&format!("{module}{FACTOR_A}"))?;
            let (b_spec, b) = tensor(&format!("{module}{FACTOR_B}"))?;
            let (&[rank, inputs], &[outputs, inner]) = (&a_spec.shape[..], &b_spec.shape[..]) else {
                return None;
            };
            let (rank, inputs, outputs) = (rank as usize, inputs as usize, outputs as usize);
            (rank == inner as usize).then(|| Self { module: module.to_owned(), a, b, rank, inputs, outputs })
        };
        let modules = layout.tensors().iter().filter_map(|spec| spec.name.strip_suffix(FACTOR_A));
        let pairs: Vec<_> = modules.filter_map(pair).collect();
        if pairs.is_empty() { Err(AccumulateError::NoPairs) } else { Ok(pairs) }
    }

    /// The tuned layer.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Its update's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    fn read(&self, adapter: &mut dyn Spool) -> Result<Factors, SpoolError> {
        Ok(Factors { a: read(adapter, &self.a)?, b: read(adapter, &self.b)? })
    }

    /// Checks that no entry of the product is beyond [`MAX_MAGNITUDE`], by the lengths of the vectors it is a product of.
    fn check(&self, factors: &Factors) -> Result<(), AccumulateError> {
        let square = |value: &f32| f64::from(*value).powi(2);
        let mut columns = vec![0.0; self.inputs];
        for row in factors.a.chunks_exact(self.inputs) {
            columns.iter_mut().zip(row).for_each(|(sum, value)| *sum += square(value));
        }
        let rows = factors.b.chunks_exact(self.rank).map(|row| row.iter().map(square).sum());
        let longest = |squares: &mut dyn Iterator<Item = f64>| squares.fold(0.0, f64::max).sqrt();
        let reach = longest(&mut columns.into_iter()) * longest(&mut rows.into_iter());
        if reach <= f64::from(MAX_MAGNITUDE) { Ok(()) } else { Err(self.beyond(reach)) }
    }

    fn beyond(&self, value: f64) -> AccumulateError {
        AccumulateError::Product { module: self.module.clone(), value: format!("{value:e}") }
    }
}

/// One client's factors of one layer.
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
}

fn read(adapter: &mut dyn Spool, range: &Range<usize>) -> Result<Vec<f32>, SpoolError> {
    let mut bytes = vec![0; range.len() * 4];
    adapter.seek(SeekFrom::Start(range.start as u64 * 4))?;
    adapter.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// The sum of one layer's updates, `[outputs, inputs]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Product {
    high: Vec<i64>,
    low: Vec<i64>,
}

impl Product {
    /// Adds `B A` times a weight, already scaled by [`HIGH_SCALE`].
    #[inline(always)]
    fn add(&mut self, Pair { rank, inputs, .. }: &Pair, factors: &Factors, scaled_weight: f64) {
        let mut update = vec![0.0; *inputs];
        let sums = self.high.chunks_exact_mut(*inputs).zip(self.low.chunks_exact_mut(*inputs));
        for ((high, low), weights) in sums.zip(factors.b.chunks_exact(*rank)) {
            update.fill(0.0);
            for (weight, row) in weights.iter().zip(factors.a.chunks_exact(*inputs)) {
                for (update, value) in update.iter_mut().zip(row) {
                    *update += f64::from(*weight) * f64::from(*value);
                }
            }
            for ((high, low), update) in high.iter_mut().zip(low).zip(&update) {
                add_term(high, low, update * scaled_weight);
            }
        }
    }
}

/// Factors of a mean update, its squared norm and what they lack of it.
struct Split {
    a: Vec<f64>,
    b: Vec<f64>,
    norm: f64,
    rest: f64,
}

fn square(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// A weighted sum of adapters that averages low-rank updates rather than their factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductMean {
    /// Of everything, factors too.
    sum: Accumulator,
    pairs: Vec<Pair>,
    products: Vec<Product>,
    /// Whether it holds half an adapter.
    spoilt: bool,
}

impl ProductMean {
    /// An empty sum over adapters with these pairs.
    ///
    /// # Errors
    /// No memory for it.
    pub fn new(layout: Layout, pairs: Vec<Pair>) -> Result<Self, AccumulateError> {
        let product = |pair: &Pair| {
            let values = pair.outputs * pair.inputs;
            Ok(Product { high: zeros(values)?, low: zeros(values)? })
        };
        let products = pairs.iter().map(product).collect::<Result<_, AccumulateError>>()?;
        Ok(Self { sum: Accumulator::new(layout)?, pairs, products, spoilt: false })
    }

    /// Updates in the sum.
    pub fn updates(&self) -> u64 {
        self.sum.updates()
    }

    /// Total weight of the updates in the sum.
    pub fn weight(&self) -> u64 {
        self.sum.weight()
    }

    /// Adds one encoded adapter. Either all of it is added or, with an error, nothing; only when reading fails after all
    /// was checked is the sum spoilt, and says so whenever it is used.
    pub fn add(&mut self, adapter: &mut dyn Spool, weight: Weight) -> Result<(), SpoolError> {
        self.usable()?;
        check_update(adapter, self.sum.layout())?;
        for pair in &self.pairs {
            pair.check(&pair.read(adapter)?)?;
        }
        self.sum.add_spooled(adapter, weight)?;
        self.spoilt = true;
        for (pair, product) in self.pairs.iter().zip(&mut self.products) {
            let factors = pair.read(adapter)?;
            let scaled = weight.get() as f64 * HIGH_SCALE;
            pulp::Arch::new().dispatch(|| product.add(pair, &factors, scaled));
        }
        self.spoilt = false;
        Ok(())
    }

    /// Adds another sum, for instance one that was gathered nearer to its clients.
    pub fn merge(&mut self, other: &Self) -> Result<(), AccumulateError> {
        self.usable()?;
        other.usable()?;
        if self.pairs != other.pairs {
            return Err(AccumulateError::Layout);
        }
        self.sum.merge(&other.sum)?;
        for (product, other) in self.products.iter_mut().zip(&other.products) {
            pulp::Arch::new().dispatch(|| {
                add_integers(&mut product.high, &other.high);
                add_integers(&mut product.low, &other.low);
            });
        }
        Ok(())
    }

    /// Gives the mean adapter to `each`, in chunks of [`crate::mean::CHUNK_VALUES`] values of which the last may be
    /// shorter, and returns the share of the squared norm of all mean updates that did not fit their rank, 0 to 1.
    ///
    /// # Errors
    /// Nothing was added, a factor beyond [`MAX_MAGNITUDE`], or what `each` returns.
    pub fn each_mean(
        &self,
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
    ) -> Result<f64, SpoolError> {
        self.usable()?;
        self.sum.usable()?;
        let (mut replaced, mut all, mut lost) = (Vec::new(), 0.0, 0.0);
        for (pair, product) in self.pairs.iter().zip(&self.products) {
            let Split { a, b, norm, rest } = self.split(pair, product)?;
            all += norm;
            lost += rest;
            replaced.push((pair.a.clone(), a));
            replaced.push((pair.b.clone(), b));
        }
        let (mut first, mut chunk) = (0, Vec::new());
        self.sum.each_over(self.sum.weight() as f64, &mut |means| {
            chunk.clear();
            chunk.extend_from_slice(means);
            for (range, values) in &replaced {
                let (from, to) = (range.start.max(first), range.end.min(first + means.len()));
                if from < to {
                    chunk[from - first..to - first]
                        .copy_from_slice(&values[from - range.start..to - range.start]);
                }
            }
            first += means.len();
            each(&chunk)
        })?;
        Ok(if all > 0.0 { lost / all } else { 0.0 })
    }

    /// Gives the mean of everything, factors as they are, to `each`, as [`Self::each_mean`] does.
    ///
    /// # Errors
    /// Nothing was added, or what `each` returns.
    pub fn each_factor(
        &self,
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        self.usable()?;
        self.sum.each_over(self.sum.weight() as f64, each)
    }

    /// The best factors of the mean of one layer's updates.
    fn split(&self, pair: &Pair, product: &Product) -> Result<Split, AccumulateError> {
        let weight = self.sum.weight() as f64;
        let sums = product.high.iter().zip(&product.low);
        let mean: Vec<_> = sums.map(|(high, low)| total(*high, *low) / weight).collect();
        // Directions that no update uses stay what they are on average, and can still be learnt.
        let mut a = self.sum.means(pair.a.clone());
        let mut b = vec![0.0; pair.b.len()];
        let Largest { left, right } = svd::largest(&mean, pair.inputs, pair.rank);
        let (norm, mut kept, mut largest) = (square(&mean), 0.0, 0.0f64);
        for (at, (left, right)) in left.iter().zip(&right).enumerate() {
            let square = square(right);
            if square == 0.0 {
                continue;
            }
            kept += square;
            let value = square.sqrt();
            let row = &mut a[at * pair.inputs..][..pair.inputs];
            row.iter_mut().zip(right).for_each(|(a, right)| *a = right / value);
            for (row, left) in b.chunks_exact_mut(pair.rank).zip(left) {
                row[at] = left * value;
                largest = largest.max(row[at].abs());
            }
        }
        if largest > f64::from(MAX_MAGNITUDE) {
            return Err(pair.beyond(largest));
        }
        Ok(Split { a, b, norm, rest: (norm - kept).max(0.0) })
    }

    fn usable(&self) -> Result<(), AccumulateError> {
        if self.spoilt { Err(AccumulateError::Spoilt) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
