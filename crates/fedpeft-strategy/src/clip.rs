//! Updates of a bounded length.

use std::io::{self, Read, Seek, SeekFrom};

use crate::{accumulator::Spool, norm::fill};

/// Bytes computed at once; whole values.
const CHUNK: usize = 1 << 18;

/// `base + scale (adapter - base)`, encoded, computed while it is read: an adapter that is read from its first byte, as the
/// accumulator does, and never held.
pub(crate) struct Scaled<'a> {
    adapter: &'a mut dyn Spool,
    base: &'a mut dyn Spool,
    scale: f64,
    chunk: Vec<u8>,
    /// Bytes of the chunk that were read.
    read: usize,
}

impl<'a> Scaled<'a> {
    pub fn new(adapter: &'a mut dyn Spool, base: &'a mut dyn Spool, scale: f64) -> Self {
        Self { adapter, base, scale, chunk: Vec::new(), read: 0 }
    }

    fn compute(&mut self) -> io::Result<()> {
        let mut base = vec![0; CHUNK];
        self.chunk.resize(CHUNK, 0);
        let length = fill(self.adapter, &mut self.chunk)?;
        fill(self.base, &mut base[..length])?;
        self.chunk.truncate(length);
        let bases = base.as_chunks::<4>().0.iter().map(|base| f64::from(f32::from_le_bytes(*base)));
        for (value, base) in self.chunk.as_chunks_mut::<4>().0.iter_mut().zip(bases) {
            let difference = f64::from(f32::from_le_bytes(*value)) - base;
            *value = ((base + self.scale * difference) as f32).to_le_bytes();
        }
        self.read = 0;
        Ok(())
    }
}

impl Read for Scaled<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read == self.chunk.len() {
            self.compute()?;
        }
        let count = out.len().min(self.chunk.len() - self.read);
        out[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

impl Seek for Scaled<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(0) => {
                self.adapter.rewind()?;
                self.base.rewind()?;
                self.chunk.clear();
                self.read = 0;
                Ok(0)
            }
            SeekFrom::End(0) => self.adapter.seek(to),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::encode;

    use super::*;

    #[test]
    fn a_scaled_adapter_lies_between_its_base_and_itself() {
        let count = CHUNK / 4 + 5;
        let adapter = encode(&vec![3.0; count]);
        let base = encode(&vec![1.0; count]);
        let (mut adapter, mut base) = (Cursor::new(adapter), Cursor::new(base));
        let mut scaled = Scaled::new(&mut adapter, &mut base, 0.25);
        assert_eq!(scaled.seek(SeekFrom::End(0)).unwrap(), count as u64 * 4);
        for _ in 0..2 {
            scaled.rewind().unwrap();
            let mut read = Vec::new();
            scaled.read_to_end(&mut read).unwrap();
            assert_eq!(read, encode(&vec![1.5; count]));
        }
    }
}
