//! What the updates of a round come to, value by value.

use std::io::Read as _;

use crate::accumulator::{Accumulator, Spool, SpoolError};

/// Values in a chunk; the last one of an adapter may be shorter.
pub const CHUNK_VALUES: usize = 1 << 17;

/// Takes one chunk after another.
pub type EachChunk<'a> = &'a mut dyn FnMut(&[f64]) -> Result<(), SpoolError>;

/// An adapter that nobody holds as a whole: its values come in chunks of [`CHUNK_VALUES`], in `f64`.
pub trait Mean {
    /// Gives `each` all chunks in order.
    fn each(&mut self, each: EachChunk<'_>) -> Result<(), SpoolError>;
}

impl Mean for &Accumulator {
    fn each(&mut self, each: EachChunk<'_>) -> Result<(), SpoolError> {
        self.each_over(self.weight() as f64, each)
    }
}

/// `base` moved by a sum over a divisor.
pub(crate) struct Moved<'a> {
    pub base: &'a mut dyn Spool,
    pub sum: &'a Accumulator,
    pub divisor: f64,
}

impl Mean for Moved<'_> {
    fn each(&mut self, each: EachChunk<'_>) -> Result<(), SpoolError> {
        let Self { base, sum, divisor } = self;
        base.rewind()?;
        let (mut bytes, mut moved) = (Vec::new(), Vec::new());
        sum.each_over(*divisor, &mut |steps| {
            bytes.resize(steps.len() * size_of::<f32>(), 0);
            base.read_exact(&mut bytes)?;
            let values = bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value)));
            moved.clear();
            moved.extend(values.zip(steps).map(|(value, step)| value + step));
            each(&moved)
        })
    }
}

/// `base` moved by as many differences.
pub(crate) struct Shifted<'a> {
    pub base: &'a mut dyn Spool,
    pub by: &'a [f32],
}

impl Mean for Shifted<'_> {
    fn each(&mut self, each: EachChunk<'_>) -> Result<(), SpoolError> {
        let Self { base, by } = self;
        base.rewind()?;
        let (mut bytes, mut moved) = (Vec::new(), Vec::new());
        for steps in by.chunks(CHUNK_VALUES) {
            bytes.resize(size_of_val(steps), 0);
            base.read_exact(&mut bytes)?;
            let values = bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value)));
            moved.clear();
            moved.extend(values.zip(steps).map(|(value, step)| value + f64::from(*step)));
            each(&moved)?;
        }
        Ok(())
    }
}
