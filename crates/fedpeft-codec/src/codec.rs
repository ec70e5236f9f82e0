//! Pipelines: the stages, put together.

use std::borrow::Cow;

use bytes::Bytes;
use fedpeft_protocol::{
    Round,
    pipeline::{Choice, Per, Pipeline, Sparsifier, Values},
};
use half::{bf16, f16};

use crate::{
    Base, CodecError, Feedback, Layout, Seed, as_bytes, delta, encode, floats,
    header::{self, Form, Header, Kept, Store},
    integers::{self, Width},
    seed::draw_indices,
    sparse, squeeze,
};

/// Encodes and decodes the adapters of one layout with one pipeline.
///
/// | pipeline | what `decode` gives for a value `x`, with a base `b` for changes |
/// | --- | --- |
/// | `fp32`, with or without `delta` and `zstd` | every bit of `x` |
/// | `fp16` | error at most 2⁻¹¹ of the magnitude, or 2⁻²⁵ if that is more; magnitudes up to 65504 |
/// | `bf16` | error at most 2⁻⁸ of the magnitude |
/// | `int8` | error at most one step of m / 127 where m is the largest magnitude of the tensor or channel; half a step with `nearest` |
/// | `int4` | the same with m / 7 |
/// | `topk`, `randk` | changes that are not sent are 0 |
///
/// With `delta` and anything that loses, it is the change `x - b` of which this holds, and subtraction and addition
/// round in `f32`.
#[derive(Debug, Clone, Copy)]
pub struct Codec<'a> {
    pipeline: Pipeline,
    layout: &'a Layout,
    form: Form,
}

impl<'a> Codec<'a> {
    /// Puts a pipeline and a layout together.
    pub fn new(pipeline: Pipeline, layout: &'a Layout) -> Self {
        Self { pipeline, layout, form: Form::of(&pipeline, layout.values()) }
    }

    /// Most bytes that an encoded adapter may have.
    pub fn most_bytes(&self) -> u64 {
        if self.pipeline.is_plain() {
            return self.layout.bytes();
        }
        // zstd adds 1/256 and a few bytes to what it cannot compress.
        let body = self.most_body() as u64;
        header::BYTES as u64 + body + body / 256 + 512
    }

    /// Encodes `values`. Changes need the `base` that the receiver has as well. The same arguments give the same
    /// bytes; pipelines with error feedback lose what they leave out, see [`Self::encode_with`].
    pub fn encode(&self, values: &[f32], base: Option<&Base<'_>>, seed: Seed) -> Result<Bytes, CodecError> {
        self.check(values)?;
        if self.pipeline.is_plain() {
            return Ok(encode(values));
        }
        let base = self.base(base)?;
        match base {
            Some(base) if !self.form.is_lossless() => {
                self.write(&self.changes(values, base)?, Some(base), seed)
            }
            _ => self.write(values, base, seed),
        }
    }

    /// Encodes `values` and what was left out of earlier rounds, and keeps what is left out of this one. With an
    /// error, or without error feedback in the pipeline, `feedback` stays as it is.
    pub fn encode_with(
        &self,
        values: &[f32],
        base: Option<&Base<'_>>,
        seed: Seed,
        feedback: &mut Feedback,
        round: Round,
    ) -> Result<Bytes, CodecError> {
        let Some(base) = self.base(base)?.filter(|_| self.pipeline.feedback()) else {
            return self.encode(values, base, seed);
        };
        self.check(values)?;
        self.check(feedback.entering(round))?;
        let mut changes = self.changes(values, base)?;
        delta::add(&mut changes, feedback.entering(round));
        self.check(&changes)?;
        let bytes = self.write(&changes, Some(base), seed)?;
        let (_, received) = self.read(&bytes)?;
        feedback.advance(round, delta::differences(&changes, &self.dense(received)));
        Ok(bytes)
    }

    /// Decodes what another codec of the same pipeline and layout encoded. Changes are applied to `base`.
    pub fn decode(&self, bytes: &[u8], base: Option<&Base<'_>>) -> Result<Vec<f32>, CodecError> {
        if self.pipeline.is_plain() {
            return crate::decode(bytes, self.layout);
        }
        let base = self.base(base)?;
        let (header, received) = self.read(bytes)?;
        if header.base != base.map_or([0; 8], Base::tag) {
            return Err(CodecError::Base);
        }
        let values = match (received, base) {
            (Received::Exact(codes), Some(base)) => delta::undo_bit_differences(&codes, base.values()),
            (received, Some(base)) => {
                let mut values = self.dense(received);
                delta::add(&mut values, base.values());
                values
            }
            (received, None) => self.dense(received),
        };
        self.check(&values)?;
        Ok(values)
    }

    /// The length and finiteness of values.
    fn check(&self, values: &[f32]) -> Result<(), CodecError> {
        crate::validate(&as_bytes(values), self.layout)
    }

    /// The base, where one is needed.
    fn base<'b, 'v>(&self, base: Option<&'b Base<'v>>) -> Result<Option<&'b Base<'v>>, CodecError> {
        if !self.form.delta {
            return Ok(None);
        }
        let base = base.ok_or(CodecError::NoBase)?;
        self.check(base.values()).map(|()| Some(base))
    }

    fn changes(&self, values: &[f32], base: &Base<'_>) -> Result<Vec<f32>, CodecError> {
        let changes = delta::differences(values, base.values());
        self.check(&changes)?;
        Ok(changes)
    }

    /// Writes changes, or values where there are no changes or nothing is lost.
    fn write(&self, values: &[f32], base: Option<&Base<'_>>, seed: Seed) -> Result<Bytes, CodecError> {
        let tag = base.map_or([0; 8], Base::tag);
        let mut header = Header { form: self.form, values: values.len(), base: tag, seed: 0 };
        let mut body = Vec::new();
        let (indices, kept) = match self.form.kept {
            Kept::All => (None, Cow::Borrowed(values)),
            Kept::Listed(count) => {
                let indices = sparse::largest(values, count);
                sparse::write(&indices, values.len(), &mut body);
                let kept = sparse::gather(values, &indices);
                (Some(indices), Cow::Owned(kept))
            }
            Kept::Drawn(count) => {
                header.seed = seed.indices();
                let indices = draw_indices(header.seed, count, values.len());
                let mut kept = sparse::gather(values, &indices);
                self.compensate(&mut kept);
                (Some(indices), Cow::Owned(kept))
            }
        };
        let written = match base {
            Some(base) if self.form.is_lossless() => {
                let codes = delta::bit_differences(values, base.values());
                floats::put::<4>(&delta::integer_bytes(&codes), self.form.zstd, &mut body);
                Ok(())
            }
            _ => self.write_values(&kept, indices.as_deref(), seed, &mut body),
        };
        if let Err((at, stage)) = written {
            let flat = indices.as_ref().map_or(at, |indices| indices[at] as usize);
            let (tensor, index) = self.layout.locate(flat);
            return Err(CodecError::Range {
                tensor: tensor.to_owned(),
                index,
                value: kept[at].to_string(),
                stage,
            });
        }
        if let Some(level) = self.pipeline.zstd() {
            body = squeeze::compress(&body, level)?;
        }
        Ok([&header.write()[..], &body].concat().into())
    }

    /// Scales what was drawn to the right expectation, unless the rest is sent later.
    fn compensate(&self, kept: &mut [f32]) {
        let forgets = |sparsifier: &Sparsifier| sparsifier.choice == Choice::Random && !sparsifier.feedback;
        if self.pipeline.sparsifier().as_ref().is_some_and(forgets) {
            let factor = (self.layout.values() as f64 / kept.len() as f64) as f32;
            kept.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// Appends values as they are stored. The index of one beyond range, if there is one, and how it should be stored.
    fn write_values(
        &self,
        values: &[f32],
        indices: Option<&[u32]>,
        seed: Seed,
        body: &mut Vec<u8>,
    ) -> Result<(), (usize, &'static str)> {
        let split = self.form.zstd;
        let mut integers = |width, per, rounding| {
            let groups = integers::groups(self.layout, per, indices);
            integers::write(values, &groups, width, rounding, &mut seed.rounding(), body)
        };
        match self.pipeline.values() {
            Values::Fp32 => floats::put::<4>(&as_bytes(values), split, body),
            Values::Fp16 => {
                floats::put::<2>(&floats::narrow::<f16>(values).map_err(|at| (at, "fp16"))?, split, body);
            }
            Values::Bf16 => {
                floats::put::<2>(&floats::narrow::<bf16>(values).map_err(|at| (at, "bf16"))?, split, body);
            }
            Values::Int8(how) => integers(Width::Eight, how.per, how.rounding).map_err(|at| (at, "int8"))?,
            Values::Int4(how) => integers(Width::Four, how.per, how.rounding).map_err(|at| (at, "int4"))?,
        }
        Ok(())
    }

    /// Reads what was written, which must be in the form of this codec.
    fn read(&self, bytes: &[u8]) -> Result<(Header, Received), CodecError> {
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
    fn dense(&self, received: Received) -> Vec<f32> {
        match received {
            Received::Exact(bits) => floats::fp32(&bits),
            Received::All(values) => values,
            Received::Some { values, indices } => sparse::scatter(&values, &indices, self.layout.values()),
        }
    }

    /// Most bytes after the header, before zstd.
    fn most_body(&self) -> usize {
        let indices = match self.form.kept {
            Kept::Listed(count) => sparse::most_bytes(count, self.layout.values()),
            Kept::All | Kept::Drawn(_) => 0,
        };
        indices.saturating_add(values_bytes(self.form, self.layout).unwrap_or(usize::MAX))
    }
}

/// Values as they were received.
enum Received {
    /// Bits of all, or of their differences.
    Exact(Vec<[u8; 4]>),
    /// All.
    All(Vec<f32>),
    /// Those at ascending indices.
    Some { values: Vec<f32>, indices: Vec<u32> },
}

/// Bytes of the values of an adapter in this form, without indices.
fn values_bytes(form: Form, layout: &Layout) -> Option<usize> {
    let count = match form.kept {
        Kept::All => layout.values(),
        Kept::Listed(count) | Kept::Drawn(count) => count,
    };
    let integers = |width: Width, per: Per| {
        integers::group_count(layout, per).checked_mul(4)?.checked_add(width.bytes(count))
    };
    match form.store {
        Store::Fp32 => count.checked_mul(4),
        Store::Fp16 | Store::Bf16 => count.checked_mul(2),
        Store::Int8(per) => integers(Width::Eight, per),
        Store::Int4(per) => integers(Width::Four, per),
    }
}

/// The stages that encoded `bytes` went through, as their header has it.
pub fn describe(bytes: &[u8], layout: &Layout) -> Result<String, CodecError> {
    Header::read(bytes, layout.values()).map(|(header, _)| header.form.to_string())
}
