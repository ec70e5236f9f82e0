//! Several adapters added at once.
//!
//! A sum has eight bytes to read and write for each byte of an adapter: beyond the caches, adding one adapter after the
//! other moves little else. In a [`Gathering`] large adapters wait, each checked when it comes, until there are [`BATCH`] of
//! them, and the sum is read and written once for all.

use std::io;

use bytes::Bytes;
use fedpeft_codec::Layout;

use super::{
    AccumulateError, Accumulator, HIGH_SCALE, Spool, SpoolError, Weight, add_products, add_term, check,
    check_update, within_bound,
};

/// Adapters that are added at once.
pub const BATCH: usize = 4;
/// Smaller adapters, of so many bytes, do not wait: with their sum they fit the caches, and would take memory for little.
const SMALL: u64 = 4 << 20;
/// Values of each that are added at once: with their part of the sum they fit the cache of a core.
const BLOCK: usize = 1 << 13;

/// An encoded adapter that may wait to be added.
pub enum Encoded {
    /// In memory.
    Held(Bytes),
    /// Elsewhere.
    Spooled(Box<dyn Spool + Send>),
}

impl Encoded {
    /// Its bytes, from the first on.
    pub fn reader(&mut self) -> Box<dyn Spool + '_> {
        match self {
            Self::Held(bytes) => Box::new(io::Cursor::new(&bytes[..])),
            Self::Spooled(spool) => Box::new(spool),
        }
    }

    fn check(&mut self, layout: &Layout) -> Result<(), SpoolError> {
        match self {
            Self::Held(bytes) => Ok(check(bytes, layout)?),
            Self::Spooled(spool) => check_update(spool, layout),
        }
    }

    /// `count` values from the `first` on, of an adapter that is read from its first to its last.
    fn block<'a>(
        &'a mut self,
        first: usize,
        count: usize,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<&'a [[u8; 4]]> {
        let bytes = match self {
            Self::Held(bytes) => &bytes[first * 4..(first + count) * 4],
            Self::Spooled(spool) => {
                buffer.resize(count * 4, 0);
                if first == 0 {
                    spool.rewind()?;
                }
                spool.read_exact(buffer)?;
                &buffer[..]
            }
        };
        Ok(bytes.as_chunks::<4>().0)
    }
}

/// A sum, and adapters that are about to be added to it.
pub struct Gathering {
    sum: Accumulator,
    waiting: Vec<(Encoded, Weight)>,
    /// How many are added at once.
    batch: usize,
}

impl Gathering {
    /// An empty sum.
    ///
    /// # Errors
    /// No memory for it.
    pub fn new(layout: Layout) -> Result<Self, AccumulateError> {
        let batch = if layout.bytes() < SMALL { 1 } else { BATCH };
        Self::of_batches(layout, batch)
    }

    fn of_batches(layout: Layout, batch: usize) -> Result<Self, AccumulateError> {
        Ok(Self { sum: Accumulator::new(layout)?, waiting: Vec::with_capacity(batch), batch })
    }

    /// Adds one adapter, now or with those that follow it. Either all of it is added or, with an error, nothing; only when
    /// reading one fails after it was checked is the sum spoilt, and says so whenever it is used.
    pub fn add(&mut self, mut adapter: Encoded, weight: Weight) -> Result<(), SpoolError> {
        if self.sum.spoilt {
            return Err(AccumulateError::Spoilt.into());
        }
        within_bound(self.sum.updates + self.waiting.len() as u64 + 1)?;
        adapter.check(&self.sum.layout)?;
        self.waiting.push((adapter, weight));
        if self.waiting.len() < self.batch { Ok(()) } else { self.settle() }
    }

    /// The sum of all that was added.
    pub fn settled(&mut self) -> Result<&mut Accumulator, SpoolError> {
        self.settle()?;
        Ok(&mut self.sum)
    }

    fn settle(&mut self) -> Result<(), SpoolError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.sum.spoilt = true;
            self.sum.add_checked(&mut waiting)?;
            self.sum.spoilt = false;
        }
        waiting.clear();
        self.waiting = waiting;
        Ok(())
    }
}

impl Accumulator {
    /// Adds adapters that were checked.
    fn add_checked(&mut self, adapters: &mut [(Encoded, Weight)]) -> io::Result<()> {
        let scaled = |weight: &Weight| f64::from(weight.0) * HIGH_SCALE;
        let mut buffers = [const { Vec::new() }; BATCH];
        let mut first = 0;
        for (high, low) in self.high.chunks_mut(BLOCK).zip(self.low.chunks_mut(BLOCK)) {
            match (&mut *adapters, &mut buffers) {
                ([a, b, c, d], [for_a, for_b, for_c, for_d]) => {
                    let weights = [scaled(&a.1), scaled(&b.1), scaled(&c.1), scaled(&d.1)];
                    let values = [
                        a.0.block(first, high.len(), for_a)?,
                        b.0.block(first, high.len(), for_b)?,
                        c.0.block(first, high.len(), for_c)?,
                        d.0.block(first, high.len(), for_d)?,
                    ];
                    pulp::Arch::new().dispatch(|| add_four(high, low, values, weights));
                }
                (some, [buffer, ..]) => {
                    for (adapter, weight) in some {
                        let (values, weight) = (adapter.block(first, high.len(), buffer)?, scaled(weight));
                        pulp::Arch::new().dispatch(|| add_products(high, low, values, weight));
                    }
                }
            }
            first += high.len();
        }
        self.weight += adapters.iter().map(|(_, weight)| weight.get()).sum::<u64>();
        self.updates += adapters.len() as u64;
        Ok(())
    }
}

/// [`add_products`] of four adapters.
#[inline(always)]
fn add_four(high: &mut [i64], low: &mut [i64], values: [&[[u8; 4]]; BATCH], weights: [f64; BATCH]) {
    let [a, b, c, d] = values;
    let values = a.iter().zip(b).zip(c.iter().zip(d));
    for ((high, low), ((a, b), (c, d))) in high.iter_mut().zip(low).zip(values) {
        let mut sum = (*high, *low);
        for (value, weight) in [a, b, c, d].into_iter().zip(weights) {
            add_term(&mut sum.0, &mut sum.1, f64::from(f32::from_le_bytes(*value)) * weight);
        }
        (*high, *low) = sum;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read, Seek, SeekFrom};

    use fedpeft_codec::{TensorSpec, encode};
    use proptest::prelude::*;

    use super::*;

    fn layout(values: usize) -> Layout {
        Layout::new(vec![TensorSpec { name: "w".into(), shape: vec![values as u64] }]).unwrap()
    }

    fn adapter(values: usize, seed: usize) -> Bytes {
        encode(&(0..values).map(|at| ((at + 1) as f32 * (seed + 1) as f32 * 0.37).sin()).collect::<Vec<_>>())
    }

    proptest! {
        /// At once or one after the other, held or not: the same sum.
        #[test]
        fn a_batch_is_the_sum_of_its_adapters(
            values in prop_oneof![1usize..40, BLOCK - 2..BLOCK + 3, 3 * BLOCK - 1..3 * BLOCK + 2],
            updates in prop::collection::vec((1u64..5000, any::<bool>()), 1..11),
            batch in 1..=BATCH,
        ) {
            let (mut one, mut all) = (Accumulator::new(layout(values)).unwrap(), Gathering::of_batches(layout(values), batch).unwrap());
            for (seed, (examples, held)) in updates.into_iter().enumerate() {
                let (bytes, weight) = (adapter(values, seed), Weight::new(examples).unwrap());
                one.add(&bytes, weight).unwrap();
                let encoded = match held {
                    true => Encoded::Held(bytes),
                    false => Encoded::Spooled(Box::new(Cursor::new(bytes))),
                };
                all.add(encoded, weight).unwrap();
            }
            prop_assert_eq!(&one, all.settled().unwrap());
        }
    }

    #[test]
    fn bad_adapters_do_not_wait() {
        let (mut sum, weight) = (Gathering::of_batches(layout(3), BATCH).unwrap(), Weight::new(7).unwrap());
        sum.add(Encoded::Held(encode(&[1.0, 2.0, 3.0])), weight).unwrap();
        for bytes in [encode(&[1.0, f32::NAN, 3.0]), encode(&[1.0, 2.0])] {
            for encoded in [Encoded::Held(bytes.clone()), Encoded::Spooled(Box::new(Cursor::new(bytes)))] {
                assert!(matches!(sum.add(encoded, weight), Err(SpoolError::Accumulate(_))));
            }
        }
        let sum = sum.settled().unwrap();
        assert_eq!((sum.updates(), sum.weight(), sum.mean().unwrap()), (1, 7, encode(&[1.0, 2.0, 3.0])));
    }

    /// Whole when it is checked, gone when it is added.
    struct Vanishing(Cursor<Bytes>, u32);

    impl Read for Vanishing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            if self.1 > 2 { Err(io::Error::other("gone")) } else { self.0.read(bytes) }
        }
    }

    impl Seek for Vanishing {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.1 += 1;
            self.0.seek(to)
        }
    }

    #[test]
    fn an_adapter_that_vanishes_spoils_the_sum() {
        let (mut sum, weight) = (Gathering::of_batches(layout(3), BATCH).unwrap(), Weight::new(7).unwrap());
        let bytes = encode(&[1.0, 2.0, 3.0]);
        sum.add(Encoded::Held(bytes.clone()), weight).unwrap();
        sum.add(Encoded::Spooled(Box::new(Vanishing(Cursor::new(bytes.clone()), 0))), weight).unwrap();
        assert!(matches!(sum.settled(), Err(SpoolError::Io(_))));
        assert!(sum.add(Encoded::Held(bytes), weight).is_err());
        assert_eq!(sum.settled().unwrap().mean(), Err(AccumulateError::Spoilt));
    }
}
