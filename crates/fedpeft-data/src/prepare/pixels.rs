//! From bytes to the model's input: resize, replicate gray to channels, normalise.
//!
//! Resizing runs per batch rather than once per dataset: from 28 to 56 pixels it takes microseconds per
//! image where a training step takes milliseconds, and storing resized floats would cost sixteen times the
//! memory of the bytes.

use std::sync::Arc;

use thiserror::Error;

use super::{BatchError, Column};
use crate::images::Images;

/// Largest side of the model's input.
const MAX_SIDE: usize = 1 << 13;

/// What the model expects of one example.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    channels: Vec<Channel>,
    height: usize,
    width: usize,
}

/// `value = scale * byte + offset`, which is `(byte / 255 - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Channel {
    scale: f32,
    offset: f32,
}

/// The model's input cannot be made from images.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum InputError {
    /// It is not `[channels, height, width]`.
    #[error("the model's input has shape {0:?} per example; images need [channels, height, width]")]
    Rank(Vec<u64>),
    /// A dimension is zero or beyond the limit.
    #[error("the model's input has shape {0:?}: channels must be 1 to 16, sides 1 to {MAX_SIDE}")]
    Dimensions(Vec<u64>),
    /// Mean or deviation do not match the channels.
    #[error("the model's input has {channels} channels but {mean} means and {std} deviations")]
    Channels {
        /// Channels.
        channels: usize,
        /// Means given.
        mean: usize,
        /// Deviations given.
        std: usize,
    },
    /// Mean or deviation cannot normalise.
    #[error("channel {channel}: mean {mean} and deviation {std} must be finite, the deviation above 0")]
    Normalisation {
        /// Position of the channel.
        channel: usize,
        /// Its mean.
        mean: f32,
        /// Its deviation.
        std: f32,
    },
}

impl Input {
    /// `shape` is channels, height, width; `mean` and `std` are per channel on a scale where white is 1.
    pub fn new(shape: &[u64], mean: &[f32], std: &[f32]) -> Result<Self, InputError> {
        let &[channels, height, width] = shape else { return Err(InputError::Rank(shape.to_vec())) };
        let side = |value: u64| usize::try_from(value).ok().filter(|side| (1..=MAX_SIDE).contains(side));
        let (Some(height), Some(width), 1..=16) = (side(height), side(width), channels) else {
            return Err(InputError::Dimensions(shape.to_vec()));
        };
        let channels = channels as usize;
        if mean.len() != channels || std.len() != channels {
            return Err(InputError::Channels { channels, mean: mean.len(), std: std.len() });
        }
        let channels = mean.iter().zip(std).enumerate().map(|(channel, (&mean, &std))| {
            let fit = Channel { scale: 1.0 / (255.0 * std), offset: -mean / std };
            let usable = std > 0.0 && std.is_finite() && fit.scale.is_finite() && fit.offset.is_finite();
            if usable { Ok(fit) } else { Err(InputError::Normalisation { channel, mean, std }) }
        });
        Ok(Self { channels: channels.collect::<Result<_, _>>()?, height, width })
    }

    /// Channels of an image.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Values of one example.
    pub fn values(&self) -> usize {
        self.channels.len() * self.height * self.width
    }
}

/// Images and what a model makes of them.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    images: Arc<Images>,
    input: Input,
    rows: Arc<[Tap]>,
    columns: Arc<[Tap]>,
}

impl Fit {
    /// `images` have one channel, or those of `input`.
    pub fn new(images: Arc<Images>, input: Input) -> Self {
        let (height, width) = images.size();
        let (rows, columns) = (taps(height, input.height), taps(width, input.width));
        Self { images, input, rows, columns }
    }

    /// Writes the images at `examples`, of which there are `count`.
    pub fn fill(
        &self,
        examples: impl Iterator<Item = usize>,
        count: usize,
        pixels: &mut Column<'_>,
    ) -> Result<(), BatchError> {
        let Column::F32(pixels) = pixels else {
            return Err(BatchError::Type { buffer: "pixel", needed: "f32" });
        };
        let values = self.input.values();
        BatchError::check("pixel", count, count * values, pixels.len())?;
        for (example, out) in examples.zip(pixels.chunks_exact_mut(values)) {
            let len = self.images.len();
            let image = self.images.pixels(example).ok_or(BatchError::Index { index: example, len })?;
            self.write(image, out);
        }
        Ok(())
    }

    /// Resizes into one plane after the other, a gray image into the first and from there to the others, then
    /// normalises each.
    fn write(&self, image: &[u8], out: &mut [f32]) {
        let (height, width) = self.images.size();
        let area = self.input.height * self.input.width;
        for (source, plane) in image.chunks_exact(height * width).zip(out.chunks_exact_mut(area)) {
            self.resize(source, plane);
        }
        let (given, others) = out.split_at_mut(area * self.images.channels());
        for plane in others.chunks_exact_mut(area) {
            plane.copy_from_slice(&given[..area]);
        }
        for (channel, plane) in self.input.channels.iter().zip(out.chunks_exact_mut(area)) {
            for value in plane {
                *value = *value * channel.scale + channel.offset;
            }
        }
    }

    fn resize(&self, source: &[u8], plane: &mut [f32]) {
        let (_, width) = self.images.size();
        for (row, line) in self.rows.iter().zip(plane.chunks_exact_mut(self.input.width)) {
            let upper = &source[row.low * width..][..width];
            let lower = &source[row.high * width..][..width];
            for (column, value) in self.columns.iter().zip(line) {
                let blend = |line: &[u8]| {
                    let (left, right) = (f32::from(line[column.low]), f32::from(line[column.high]));
                    left + (right - left) * column.share
                };
                let (top, bottom) = (blend(upper), blend(lower));
                *value = top + (bottom - top) * row.share;
            }
        }
    }
}

/// The two source positions an output position blends, and the share of the second.
#[derive(Debug, Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    share: f32,
}

/// Bilinear with half-pixel centres and edges held, without antialiasing: what PyTorch calls
/// `interpolate(mode="bilinear", align_corners=False)`.
fn taps(source: usize, target: usize) -> Arc<[Tap]> {
    let ratio = source as f64 / target as f64;
    let last = source.saturating_sub(1);
    let tap = |position: usize| {
        let centre = ((position as f64 + 0.5) * ratio - 0.5).max(0.0);
        let low = (centre as usize).min(last);
        Tap { low, high: (low + 1).min(last), share: (centre - low as f64) as f32 }
    };
    (0..target).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_match_the_reference_values() {
        // interpolate([0, 10, 20, 30] -> 8), align_corners=False
        let line = [0.0_f32, 10.0, 20.0, 30.0];
        let at = |tap: &Tap| line[tap.low] + (line[tap.high] - line[tap.low]) * tap.share;
        let up: Vec<f32> = taps(4, 8).iter().map(at).collect();
        assert_eq!(up, [0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0]);
        let down: Vec<f32> = taps(4, 2).iter().map(at).collect();
        assert_eq!(down, [5.0, 25.0]);
        let same: Vec<f32> = taps(4, 4).iter().map(at).collect();
        assert_eq!(same, line);
    }

    #[test]
    fn inputs_are_checked() {
        let new = Input::new;
        assert!(matches!(new(&[3, 8], &[], &[]), Err(InputError::Rank(_))));
        assert!(matches!(new(&[0, 8, 8], &[], &[]), Err(InputError::Dimensions(_))));
        assert!(matches!(new(&[1, 8, u64::MAX], &[0.0], &[1.0]), Err(InputError::Dimensions(_))));
        assert!(matches!(new(&[3, 8, 8], &[0.0], &[1.0; 3]), Err(InputError::Channels { .. })));
        for (mean, std) in [(0.0, 0.0), (f32::NAN, 1.0), (0.0, f32::INFINITY), (0.0, -1.0), (1.0, 1e-40)] {
            let found = new(&[1, 8, 8], &[mean], &[std]);
            let refused = matches!(found, Err(InputError::Normalisation { .. }));
            assert!(refused, "{mean} {std}: {found:?}");
        }
        assert_eq!(new(&[3, 4, 5], &[0.5; 3], &[0.5; 3]).unwrap().values(), 60);
    }
}
