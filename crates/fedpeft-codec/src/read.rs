//! The decoder: bytes of a stranger to values or changes.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::{
    Codec, CodecError,
    codec::values_bytes,
    floats,
    header::{Header, Kept, Store},
    integers::{self, Width},
    seed::draw_indices,
    sparse, squeeze,
};

impl Codec<'_> {
    /// Reads what was written, which must be in the form of this codec.
    pub(crate) fn read(&self, bytes: &[u8]) -> Result<(Header, Received), CodecError> {
        let (header, body) = Header::read(bytes, self.layout.values())?;
        if header.form != self.form {
            let (got, expected) = (header.form.to_string(), self.form.to_string());
            return Err(CodecError::Pipeline { got, expected });
        }
        let body = match header.form.zstd {
            true => Cow::Owned(squeeze::expand(body, self.most_body())?),
            false => Cow::Borrowed(body),
        };
        let (indices, values) = match header.form.kept {
            Kept::All => (None, &body[..]),
            Kept::Listed(count) => {
                let (indices, rest) = sparse::read(&body, count, header.values)?;
                (Some(indices), rest)
            }
            Kept::Drawn(count) => {
                // Checked before the indices are drawn: that is the dearer part.
                if values_bytes(self.form, self.layout) != Some(body.len()) {
                    return Err(CodecError::Body("its values are not as many as declared"));
                }
                (Some(draw_indices(header.seed, count, header.values)), &body[..])
            }
        };
        let count = indices.as_ref().map_or(header.values, Vec::len);
        let split = header.form.zstd;
        if header.form.is_lossless() {
            return Ok((header, Received::Exact(floats::take::<4>(values, count, split)?)));
        }
        let integers = |width, per| {
            integers::read(values, &integers::groups(self.layout, per, indices.as_deref()), width)
        };
        let values = match header.form.store {
            Store::Fp32 => floats::fp32(&floats::take::<4>(values, count, split)?),
            Store::Fp16 => floats::widen::<f16>(&floats::take::<2>(values, count, split)?),
            Store::Bf16 => floats::widen::<bf16>(&floats::take::<2>(values, count, split)?),
            Store::Int8(per) => integers(Width::Eight, per)?,
            Store::Int4(per) => integers(Width::Four, per)?,
        };
        Ok((
            header,
            match indices {
                None => Received::All(values),
                Some(indices) => Received::Some { values, indices },
            },
        ))
    }

    /// All values, zeros where none was sent.
    pub(crate) fn dense(&self, received: Received) -> Vec<f32> {
        match received {
            Received::Exact(bits) => floats::fp32(&bits),
            Received::All(values) => values,
            Received::Some { values, indices } => sparse::scatter(&values, &indices, self.layout.values()),
        }
    }
}

/// Values as they were received.
pub(crate) enum Received {
    /// Bits of all, or of their differences.
    Exact(Vec<[u8; 4]>),
    /// All.
    All(Vec<f32>),
    /// Those at ascending indices.
    Some { values: Vec<f32>, indices: Vec<u32> },
}
