//! Images of one size in memory, one byte per channel and pixel.

/// Images of one size.
#[derive(Debug)]
pub(crate) struct Images {
    channels: usize,
    height: usize,
    width: usize,
    /// `[N, channels, height, width]`
    pixels: Vec<u8>,
}

impl Images {
    /// `pixels` is `[N, channels, height, width]`; no size is zero.
    pub fn new(channels: usize, height: usize, width: usize, pixels: Vec<u8>) -> Self {
        Self { channels, height, width, pixels }
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
        let start = example.checked_mul(len)?;
        self.pixels.get(start..start.checked_add(len)?)
    }
}
