//! The encoder: values or changes to bytes.

use std::borrow::Cow;

use bytes::Bytes;
use fedpeft_protocol::pipeline::{Choice, Sparsifier, Values};
use half::{bf16, f16};

use crate::{
    Base, Codec, CodecError, Seed, as_bytes, delta, floats,
    header::{Header, Kept},
    integers::{self, Width},
    seed::draw_indices,
    sparse, squeeze,
};

impl Codec<'_> {
    /// Writes changes, or values where there are no changes or nothing is lost.
    pub(crate) fn write(
        &self,
        values: &[f32],
        base: Option<&Base<'_>>,
        seed: Seed,
    ) -> Result<Bytes, CodecError> {
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
}
