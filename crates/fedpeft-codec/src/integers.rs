//! Values as small integers times a scale.
//!
//! Values of a group share a scale, the largest magnitude among them divided by the largest code, so that codes are
//! symmetric and zero is exact. Scales come first, as `f32`, then the codes: a byte each, or two to a byte with the
//! first in its lower half.

use fedpeft_protocol::pipeline::{Per, Rounding};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use crate::{CodecError, Layout, TensorSpec};

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Eight,
    Four,
}

impl Width {
    /// The largest code.
    fn limit(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Four => 7.0,
        }
    }

    /// Bytes of so many codes.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::Eight => count,
            Self::Four => count.div_ceil(2),
        }
    }
}

/// Groups of a tensor that share a scale.
fn groups_of(spec: &TensorSpec, per: Per) -> usize {
    match (per, &spec.shape[..]) {
        (Per::Tensor, _) | (Per::Channel, [] | [_]) => 1,
        (Per::Channel, [channels, ..]) => *channels as usize,
    }
}

/// Groups of an adapter that share a scale.
pub(crate) fn group_count(layout: &Layout, per: Per) -> usize {
    layout.tensors().iter().map(|spec| groups_of(spec, per)).sum()
}

/// How many of the values that are sent, all or those at `indices`, fall into each group that shares a scale.
pub(crate) fn groups(layout: &Layout, per: Per, indices: Option<&[u32]>) -> Vec<usize> {
    let mut groups = Vec::with_capacity(group_count(layout, per));
    let (mut end, mut sent) = (0, 0);
    for (spec, range) in layout.ranges() {
        let count = groups_of(spec, per);
        for _ in 0..count {
            end += range.len() / count;
            let up_to =
                indices.map_or(end, |indices| indices.partition_point(|index| (*index as usize) < end));
            groups.push(up_to - sent);
            sent = up_to;
        }
    }
    groups
}

/// Random bytes are drawn for so many values at a time.
const CHUNK: usize = 4096;

/// Appends scales and codes. The index of a value that is too large, if there is one.
pub(crate) fn write(
    values: &[f32],
    groups: &[usize],
    width: Width,
    rounding: Rounding,
    draws: &mut ChaCha8Rng,
    body: &mut Vec<u8>,
) -> Result<(), usize> {
    let limit = width.limit();
    let mut codes = vec![0i8; values.len()];
    let (mut rest, mut rest_codes) = (values, &mut codes[..]);
    let mut noise = [0; CHUNK * 2];
    for length in groups {
        let (group, after) = rest.split_at(*length);
        let (group_codes, codes_after) = rest_codes.split_at_mut(*length);
        (rest, rest_codes) = (after, codes_after);
        let largest = pulp::Arch::new().dispatch(|| largest_magnitude(group));
        // Below the normal floats a scale would have no inverse.
        let scale = if largest == 0.0 { 0.0 } else { (largest / limit).max(f32::MIN_POSITIVE) };
        if !(scale * limit).is_finite() {
            let before = values.len() - after.len() - group.len();
            return Err(before + group.iter().position(|value| value.abs() == largest).unwrap_or_default());
        }
        body.extend_from_slice(&scale.to_le_bytes());
        if scale == 0.0 {
            continue;
        }
        let inverse = scale.recip();
        for (values, codes) in group.chunks(CHUNK).zip(group_codes.chunks_mut(CHUNK)) {
            match rounding {
                Rounding::Nearest => pulp::Arch::new().dispatch(|| to_nearest(values, inverse, limit, codes)),
                Rounding::Stochastic => {
                    let noise = &mut noise[..values.len() * 2];
                    draws.fill_bytes(noise);
                    let noise = noise.as_chunks().0;
                    pulp::Arch::new().dispatch(|| at_random(values, noise, inverse, limit, codes));
                }
            }
        }
    }
    match width {
        Width::Eight => body.extend_from_slice(bytemuck::cast_slice(&codes)),
        Width::Four => body.extend(codes.chunks(2).map(|pair| {
            let high = pair.get(1).map_or(0, |code| code.cast_unsigned() << 4);
            (pair[0].cast_unsigned() & 0x0f) | high
        })),
    }
    Ok(())
}

/// The largest magnitude: without their sign, finite floats order as integers do.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff)))
}

/// Added to a small `f32` it leaves the nearest integer in the low bits of the mantissa, ties to even.
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
fn code(value: f32, limit: f32) -> i8 {
    (value.clamp(-limit, limit) + MAGIC).to_bits() as i8
}

#[inline(always)]
fn to_nearest(values: &[f32], inverse: f32, limit: f32, codes: &mut [i8]) {
    for (value, to) in values.iter().zip(codes) {
        *to = code(value * inverse, limit);
    }
}

/// Rounds up with a probability of the fractional part: the nearest integer to the value plus noise, which is
/// uniform in (-1/2, 1/2) with 2^16 steps. A value that is a multiple of the scale keeps it.
#[inline(always)]
fn at_random(values: &[f32], noise: &[[u8; 2]], inverse: f32, limit: f32, codes: &mut [i8]) {
    for ((value, noise), to) in values.iter().zip(noise).zip(codes) {
        let noise = (f32::from(u16::from_le_bytes(*noise)) - 32_767.5) * (1.0 / 65_536.0);
        *to = code(value * inverse + noise, limit);
    }
}

/// Reads what [`write`] wrote, which must be all there is.
pub(crate) fn read(body: &[u8], groups: &[usize], width: Width) -> Result<Vec<f32>, CodecError> {
    let count: usize = groups.iter().sum();
    let Some((scales, codes)) = body.split_at_checked(groups.len().saturating_mul(4)) else {
        return Err(CodecError::Body("its scales are cut off"));
    };
    if codes.len() != width.bytes(count) {
        return Err(CodecError::Body("its values are not as many as declared"));
    }
    let unpacked;
    let codes: &[i8] = match width {
        Width::Eight => bytemuck::cast_slice(codes),
        Width::Four => {
            let halves = codes.iter().flat_map(|byte| {
                let byte = byte.cast_signed();
                [(byte << 4) >> 4, byte >> 4]
            });
            unpacked = halves.collect::<Vec<i8>>();
            if unpacked[count..].iter().any(|padding| *padding != 0) {
                return Err(CodecError::Body("a half byte that is not used is not 0"));
            }
            &unpacked[..count]
        }
    };
    let lowest = -(width.limit() as i8);
    if codes.iter().fold(false, |beyond, code| beyond | (*code < lowest)) {
        return Err(CodecError::Body("a code is beyond the largest"));
    }
    let mut values = vec![0.0; count];
    let (mut rest, mut rest_codes) = (&mut values[..], codes);
    for (length, scale) in groups.iter().zip(scales.as_chunks::<4>().0) {
        let scale = f32::from_le_bytes(*scale);
        if !scale.is_finite() || scale.is_sign_negative() {
            return Err(CodecError::Body("a scale is negative or not finite"));
        }
        let (group, after) = rest.split_at_mut(*length);
        let (codes, codes_after) = rest_codes.split_at(*length);
        (rest, rest_codes) = (after, codes_after);
        pulp::Arch::new().dispatch(|| times(codes, scale, group));
    }
    Ok(values)
}

#[inline(always)]
fn times(codes: &[i8], scale: f32, values: &mut [f32]) {
    for (code, value) in codes.iter().zip(values) {
        *value = f32::from(*code) * scale;
    }
}
