//! Adapters that are too large to be held in memory beside the sum: read and written in chunks.

use std::io::{self, Read, Seek, Write};

use fedpeft_codec::CodecError;

use super::{
    AccumulateError, Accumulator, HIGH_SCALE, Weight, add_products, check_values, divide, within_bound,
};

/// Bytes read or written at once.
const CHUNK: usize = 1 << 20;

/// A spooled adapter that was not added, or a mean that was not written.
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
    pub fn add_spooled(
        &mut self,
        adapter: &mut (impl Read + Seek),
        weight: Weight,
    ) -> Result<(), SpoolError> {
        let updates = within_bound(self.updates + 1)?;
        self.check_spooled(adapter)?;
        adapter.rewind()?;
        let scaled_weight = f64::from(weight.0) * HIGH_SCALE;
        let mut chunk = vec![0; CHUNK];
        let mut first = 0;
        self.spoilt = true;
        while first < self.high.len() {
            let values = (self.high.len() - first).min(CHUNK / 4);
            let bytes = &mut chunk[..values * 4];
            adapter.read_exact(bytes)?;
            let (high, low) = (&mut self.high[first..first + values], &mut self.low[first..first + values]);
            pulp::Arch::new().dispatch(|| add_products(high, low, bytes.as_chunks::<4>().0, scaled_weight));
            first += values;
        }
        self.spoilt = false;
        self.weight += weight.get();
        self.updates = updates;
        Ok(())
    }

    fn check_spooled(&self, adapter: &mut (impl Read + Seek)) -> Result<(), SpoolError> {
        let got = adapter.seek(io::SeekFrom::End(0))?;
        if got != self.layout.bytes() {
            let values = self.layout.values();
            let (got, expected) = (usize::try_from(got).unwrap_or(usize::MAX), values * 4);
            return Err(AccumulateError::from(CodecError::Size { got, expected, values }).into());
        }
        adapter.rewind()?;
        let mut chunk = vec![0; CHUNK];
        let mut first = 0;
        while first < self.layout.values() {
            let values = (self.layout.values() - first).min(CHUNK / 4);
            let bytes = &mut chunk[..values * 4];
            adapter.read_exact(bytes)?;
            check_values(first, bytes.as_chunks::<4>().0, &self.layout)?;
            first += values;
        }
        Ok(())
    }

    /// Writes the weighted mean, encoded, in chunks.
    pub fn mean_into(&self, out: &mut impl Write) -> Result<(), SpoolError> {
        self.usable()?;
        let divisor = self.weight as f64;
        let mut chunk = vec![0; CHUNK];
        for (high, low) in self.high.chunks(CHUNK / 4).zip(self.low.chunks(CHUNK / 4)) {
            let bytes = &mut chunk[..high.len() * 4];
            pulp::Arch::new().dispatch(|| divide(high, low, divisor, bytes.as_chunks_mut::<4>().0));
            out.write_all(bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{Layout, TensorSpec, encode};

    use super::{super::MAX_MAGNITUDE, *};

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
        spooled.mean_into(&mut written).unwrap();
        assert_eq!(written, held.mean().unwrap());
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
