//! Images of one size in memory, one byte per channel and pixel.

use std::collections::BTreeSet;

/// Images of one size.
#[derive(Debug)]
pub(crate) struct Images {
    channels: usize,
    height: usize,
    width: usize,
    /// `[N, channels, height, width]`
    pixels: Vec<u8>,
    /// Which examples these are, ascending; the first N where this names none.
    examples: Option<Box<[u32]>>,
}

impl Images {
    /// `pixels` is `[N, channels, height, width]`; no size is zero.
    pub fn new(channels: usize, height: usize, width: usize, pixels: Vec<u8>) -> Self {
        Self { channels, height, width, pixels, examples: None }
    }

    /// Images there are.
    pub fn len(&self) -> usize {
        self.pixels.len() / (self.channels * self.height * self.width)
    }

    /// Rows and columns of an image.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// 1 for gray, 3 for colour.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The pixels of one image, channel by channel, row by row.
    pub fn pixels(&self, example: usize) -> Option<&[u8]> {
        let len = self.channels * self.height * self.width;
        let place = match &self.examples {
            None => example,
            Some(examples) => examples.binary_search(&u32::try_from(example).ok()?).ok()?,
        };
        let start = place.checked_mul(len)?;
        self.pixels.get(start..start.checked_add(len)?)
    }

    /// These alone, under the same numbers: those of `examples` that there are.
    pub fn only(&self, examples: &BTreeSet<u32>) -> Self {
        let there = |example: &&u32| self.pixels(**example as usize).is_some();
        let examples: Box<[u32]> = examples.iter().filter(there).copied().collect();
        let parts: Vec<&[u8]> =
            examples.iter().filter_map(|example| self.pixels(*example as usize)).collect();
        Self { pixels: parts.concat(), examples: Some(examples), ..*self }
    }
}
