//! Adapters that are too large to be held in memory beside the sum: read and written in chunks.

use std::io::{self, Read, Seek};

use fedpeft_codec::{CodecError, Layout};

use crate::mean::{CHUNK_VALUES, EachChunk};

use super::{
    AccumulateError, Accumulator, HIGH_SCALE, MAX_WEIGHT, Weight, add_products, check_values, total,
    within_bound,
};

/// Bytes read or written at once.
const CHUNK: usize = 1 << 20;

/// An encoded adapter that can be read again and again: a file, or bytes behind a cursor.
pub trait Spool: Read + Seek {}

impl<T: Read + Seek + ?Sized> Spool for T {}

/// A spooled adapter that was not added, or a result that was not written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The adapter is not to be added; the sum is as it was.
    #[error(transparent)]
    Accumulate(#[from] AccumulateError),
    /// The file could not be read or written.
    #[error("temporary file of an adapter: {0}")]
    Io(#[from] io::Error),
}

impl Accumulator {
    /// Adds one encoded adapter that is read twice from its first byte: to check it, then to add it. Either all of it
    /// is added or, with an error, nothing; only when reading fails the second time is the sum spoilt, and says so
    /// whenever it is used.
    pub fn add_spooled(&mut self, adapter: &mut dyn Spool, weight: Weight) -> Result<(), SpoolError> {
        self.add_parts(adapter, &[f64::from(weight.0)])?;
        self.weight += weight.get();
        Ok(())
    }

    /// [`Self::subtract`], of an adapter that is read as [`Self::add_spooled`] does.
    pub fn subtract_spooled(&mut self, adapter: &mut dyn Spool, weight: u64) -> Result<(), SpoolError> {
        // In parts that fit the bounds of the fixed point.
        let parts = (0..weight.div_ceil(MAX_WEIGHT)).map(|part| (weight - part * MAX_WEIGHT).min(MAX_WEIGHT));
        self.add_parts(adapter, &parts.map(|part| -(part as f64)).collect::<Vec<_>>())
    }

    /// Adds an adapter with each of these weights.
    fn add_parts(&mut self, adapter: &mut dyn Spool, weights: &[f64]) -> Result<(), SpoolError> {
        if self.spoilt {
            return Err(AccumulateError::Spoilt.into());
        }
        let updates = within_bound(self.updates + weights.len() as u64)?;
        check_update(adapter, &self.layout)?;
        self.spoilt = true;
        each_chunk(adapter, self.high.len(), |first, values| {
            let last = first + values.len();
            let (high, low) = (&mut self.high[first..last], &mut self.low[first..last]);
            for weight in weights {
                pulp::Arch::new().dispatch(|| add_products(high, low, values, weight * HIGH_SCALE));
            }
            Ok(())
        })?;
        self.spoilt = false;
        self.updates = updates;
        Ok(())
    }

    /// The sum over `divisor`, in chunks: exact sums divided in `f64`.
    pub(crate) fn each_over(&self, divisor: f64, each: EachChunk<'_>) -> Result<(), SpoolError> {
        self.usable()?;
        let mut means = vec![0.0; CHUNK_VALUES.min(self.high.len())];
        for (high, low) in self.high.chunks(CHUNK_VALUES).zip(self.low.chunks(CHUNK_VALUES)) {
            let means = &mut means[..high.len()];
            for (mean, (high, low)) in means.iter_mut().zip(high.iter().zip(low)) {
                *mean = total(*high, *low) / divisor;
            }
            each(means)?;
        }
        Ok(())
    }
}

/// Checks length, finiteness and magnitude of an adapter that is kept for later, as [`Accumulator::add_spooled`] does
/// before it adds.
pub fn check_update(adapter: &mut dyn Spool, layout: &Layout) -> Result<(), SpoolError> {
    let got = adapter.seek(io::SeekFrom::End(0))?;
    let values = layout.values();
    if got != layout.bytes() {
        let (got, expected) = (usize::try_from(got).unwrap_or(usize::MAX), values * 4);
        return Err(AccumulateError::from(CodecError::Size { got, expected, values }).into());
    }
    each_chunk(adapter, values, |first, values| Ok(check_values(first, values, layout)?))
}

/// Reads `values` values from the first on. `each` gets chunks of them, and the index of their first one.
fn each_chunk(
    adapter: &mut dyn Spool,
    values: usize,
    mut each: impl FnMut(usize, &[[u8; 4]]) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    adapter.rewind()?;
    let mut chunk = vec![0; CHUNK.min(values * 4)];
    let mut first = 0;
    while first < values {
        let count = (values - first).min(CHUNK / 4);
        let bytes = &mut chunk[..count * 4];
        adapter.read_exact(bytes)?;
        each(first, bytes.as_chunks::<4>().0)?;
        first += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{TensorSpec, encode};

    use super::{super::MAX_MAGNITUDE, *};
    use crate::strategy::{FedAvg, Kept, Strategy as _};

    /// Two and a half chunks.
    const VALUES: usize = CHUNK / 4 * 5 / 2;

    fn sums() -> (Accumulator, Accumulator) {
        let spec = TensorSpec { name: "w".into(), shape: vec![VALUES as u64] };
        let sum = Accumulator::new(Layout::new(vec![spec]).unwrap()).unwrap();
        (sum.clone(), sum)
    }

    fn adapter(seed: f32) -> Vec<u8> {
        encode(&(0..VALUES).map(|at| (at as f32 * seed).sin()).collect::<Vec<_>>()).into()
    }

    #[test]
    fn spooled_and_held_adapters_add_up_to_the_same_bytes() {
        let (mut held, mut spooled) = sums();
        for (seed, examples) in [(0.1, 3), (0.7, 17)] {
            let (bytes, weight) = (adapter(seed), Weight::new(examples).unwrap());
            held.add(&bytes, weight).unwrap();
            spooled.add_spooled(&mut Cursor::new(bytes), weight).unwrap();
        }
        assert_eq!(held, spooled);
        let mut written = Vec::new();
        let kept = Kept { before: None, after: &mut io::sink() };
        FedAvg.next(&mut io::empty(), kept, &mut &spooled, &mut written).unwrap();
        assert_eq!(written, held.mean().unwrap());

        // More than fits one part.
        let (base, weight) = (adapter(0.2), MAX_WEIGHT + 5);
        held.subtract(&base, weight).unwrap();
        spooled.subtract_spooled(&mut Cursor::new(&base), weight).unwrap();
        assert_eq!(held, spooled);
    }

    #[test]
    fn bad_spooled_adapters_are_named_and_leave_no_trace() {
        let (_, mut sum) = sums();
        let weight = Weight::new(3).unwrap();
        sum.add(&adapter(0.3), weight).unwrap();
        let before = sum.clone();
        let at = VALUES - 1;
        for (value, text) in [(f32::NAN, "NaN"), (2.0 * MAX_MAGNITUDE, "131072")] {
            let mut bytes = adapter(0.5);
            bytes[at * 4..].copy_from_slice(&value.to_le_bytes());
            let error = sum.add_spooled(&mut Cursor::new(bytes), weight).unwrap_err().to_string();
            assert!(error.contains(&format!("value {at} of tensor w is {text}")), "{error}");
        }
        for length in [0, VALUES * 4 - 1, VALUES * 4 + 4] {
            let error = sum.add_spooled(&mut Cursor::new(vec![0; length]), weight).unwrap_err();
            assert!(
                matches!(error, SpoolError::Accumulate(AccumulateError::Codec(CodecError::Size { .. }))),
                "{error}"
            );
        }
        assert_eq!(sum, before);
    }

    /// A file that is whole when it is checked and breaks when it is added.
    struct Breaking(Cursor<Vec<u8>>, usize);

    impl Read for Breaking {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            if self.1 >= 3 && self.0.position() > 0 {
                return Err(io::Error::other("broken"));
            }
            self.0.read(bytes)
        }
    }

    impl Seek for Breaking {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            self.1 += 1;
            self.0.seek(to)
        }
    }

    #[test]
    fn half_an_adapter_is_never_part_of_a_mean() {
        let (_, mut sum) = sums();
        let weight = Weight::new(3).unwrap();
        sum.add(&adapter(0.3), weight).unwrap();
        let error = sum.add_spooled(&mut Breaking(Cursor::new(adapter(0.5)), 0), weight).unwrap_err();
        assert!(matches!(error, SpoolError::Io(_)), "{error}");
        assert_eq!(sum.mean(), Err(AccumulateError::Spoilt));
        assert_eq!(sum.add(&adapter(0.3), weight), Err(AccumulateError::Spoilt));
    }
}
