//! Pipelines: the stages, put together.

use bytes::Bytes;
use fedpeft_protocol::{
    Round,
    pipeline::{Per, Pipeline},
};

use crate::{
    Base, CodecError, Layout, Seed, as_bytes, delta, encode,
    header::{self, Form, Header, Kept, Store},
    integers::{self, Width},
    read::Received,
    sparse,
};

/// The sender in the seed of a global adapter: no client has a name with a space.
const SENDER: &str = "the aggregator";

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
    pub(crate) pipeline: Pipeline,
    pub(crate) layout: &'a Layout,
    pub(crate) form: Form,
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
    /// bytes. With error feedback what is left out is lost here, see [`Self::encode_with`].
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

    /// Encodes `values` and what earlier updates left out, and gives what is left out now beside the bytes: one value
    /// per value of the adapter, to be handed in the next time. For pipelines with error feedback; from others nothing
    /// is left out for later, and `left_out` comes back as it is.
    pub fn encode_with(
        &self,
        values: &[f32],
        base: Option<&Base<'_>>,
        seed: Seed,
        left_out: Vec<f32>,
    ) -> Result<(Bytes, Vec<f32>), CodecError> {
        self.check(&left_out)?;
        let Some(base) = self.base(base)?.filter(|_| self.pipeline.feedback()) else {
            return Ok((self.encode(values, base, seed)?, left_out));
        };
        self.check(values)?;
        let mut changes = self.changes(values, base)?;
        delta::add(&mut changes, &left_out);
        self.check(&changes)?;
        let bytes = self.write(&changes, Some(base), seed)?;
        let (_, received) = self.read(&bytes)?;
        let left_out = delta::differences(&changes, &self.dense(received));
        self.check(&left_out)?;
        Ok((bytes, left_out))
    }

    /// A global adapter as the run of seed `run` sends it after `round`, and what its receivers make of it.
    pub fn broadcast(&self, values: &[f32], run: u64, round: Round) -> Result<(Bytes, Vec<f32>), CodecError> {
        let bytes = self.encode(values, None, Seed::new(run, round, SENDER))?;
        let received = self.decode(&bytes, None)?;
        Ok((bytes, received))
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

    /// Most bytes after the header, before zstd.
    pub(crate) fn most_body(&self) -> usize {
        let indices = match self.form.kept {
            Kept::Listed(count) => sparse::most_bytes(count, self.layout.values()),
            Kept::All | Kept::Drawn(_) => 0,
        };
        indices.saturating_add(values_bytes(self.form, self.layout).unwrap_or(usize::MAX))
    }
}

/// Bytes of the values of an adapter in this form, without indices.
pub(crate) fn values_bytes(form: Form, layout: &Layout) -> Option<usize> {
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
