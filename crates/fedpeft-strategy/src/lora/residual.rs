//! What the mean factors do not hold of the mean update (FedEx-LoRA, Singhal et al., arXiv 2410.09432).
//!
//! ```text
//! R' = R + sum w_i B_i A_i - B' A'        w_i = n_i / sum n_i, B' and A' the factors that clients get
//! ```
//!
//! Every client has trained on top of the same `R`, so that `R' + B' A'` is the mean of the clients' `R + B_i A_i`, but for
//! one rounding of `R'` to `f32`. `B'` and `A'` are taken as they are sent: what their own rounding, or a lossy downlink,
//! takes from them is in `R'` as well.

use std::io::Write;

use super::{Pair, Product, ProductMean, read};
use crate::accumulator::{AccumulateError, MAX_MAGNITUDE, Spool, SpoolError, total};

/// Between what a residual is.
pub struct Residual<'a> {
    /// That which the round began with, in the order of [`fedpeft_codec::residuals`]; zero where there is none.
    pub before: Option<&'a mut dyn Spool>,
    /// The next global adapter, as clients get it.
    pub adapter: &'a mut dyn Spool,
    /// Where the next one is written, encoded as adapters are.
    pub out: &'a mut dyn Write,
}

impl ProductMean {
    /// Writes the next residual of every pair, layer by layer.
    ///
    /// # Errors
    /// Nothing was added, a value beyond [`MAX_MAGNITUDE`], or what cannot be read or written.
    pub fn residual(&self, Residual { mut before, adapter, out }: Residual<'_>) -> Result<(), SpoolError> {
        self.usable()?;
        self.sum.usable()?;
        let mut start = 0;
        for (pair, product) in self.pairs.iter().zip(&self.products) {
            let range = start..start + pair.outputs * pair.inputs;
            start = range.end;
            let mut values = match &mut before {
                Some(before) => read(*before, &range)?,
                None => vec![0.0; range.len()],
            };
            self.next(pair, product, adapter, &mut values)?;
            out.write_all(&fedpeft_codec::as_bytes(&values))?;
        }
        Ok(())
    }

    /// Turns `values`, the residual of one layer, into its next.
    fn next(
        &self,
        pair: &Pair,
        product: &Product,
        adapter: &mut dyn Spool,
        values: &mut [f32],
    ) -> Result<(), SpoolError> {
        let (factors, weight, inputs) = (pair.read(adapter)?, self.sum.weight() as f64, pair.inputs);
        let sums = product.high.chunks_exact(inputs).zip(product.low.chunks_exact(inputs));
        let rows = values.chunks_exact_mut(inputs).zip(factors.b.chunks_exact(pair.rank)).zip(sums);
        let (mut held, mut largest) = (vec![0.0; inputs], 0.0f32);
        for ((values, b), (high, low)) in rows {
            held.fill(0.0);
            for (b, a) in b.iter().zip(factors.a.chunks_exact(inputs)) {
                held.iter_mut().zip(a).for_each(|(held, a)| *held += f64::from(*b) * f64::from(*a));
            }
            for (((value, held), high), low) in values.iter_mut().zip(&held).zip(high).zip(low) {
                *value = (f64::from(*value) + (total(*high, *low) / weight - held)) as f32;
                largest = largest.max(value.abs());
            }
        }
        if largest <= MAX_MAGNITUDE { Ok(()) } else { Err(pair.beyond_residual(largest).into()) }
    }
}

impl Pair {
    fn beyond_residual(&self, value: f32) -> AccumulateError {
        AccumulateError::Residual { module: self.module.clone(), value: format!("{value:e}") }
    }
}
