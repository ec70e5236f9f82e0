//! The header: what says of encoded bytes how to read them.
//!
//! 44 bytes, integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..3 | `FPC` |
//! | 3 | version: 1 |
//! | 4 | 1 for changes, 0 for values |
//! | 5 | which of them: 0 all, 1 those of a list of indices, 2 those drawn from a seed |
//! | 6 | how a value is stored: 0 fp32, 1 fp16, 2 bf16, 3 int8, 4 int4 |
//! | 7 | scales of int8 and int4: 0 per tensor, 1 per channel; 0 otherwise |
//! | 8 | 1 if the rest is a zstd frame |
//! | 9..12 | 0 |
//! | 12..20 | values of the adapter |
//! | 20..28 | values that are sent |
//! | 28..36 | of changes: the first bytes of the SHA-256 of the adapter they change, as fp32; 0 otherwise |
//! | 36..44 | of drawn indices: their seed; 0 otherwise |

use std::fmt;

use fedpeft_protocol::pipeline::{Choice, Per, Pipeline, Values};

use crate::CodecError;

/// Version of the format.
pub(crate) const VERSION: u8 = 1;
/// Bytes of the header.
pub(crate) const BYTES: usize = 44;

const MAGIC: [u8; 3] = *b"FPC";

/// Which values are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// All.
    All,
    /// So many, with their indices.
    Listed(usize),
    /// So many, whose indices follow from the seed.
    Drawn(usize),
}

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Fp32,
    Fp16,
    Bf16,
    Int8(Per),
    Int4(Per),
}

/// What of a pipeline matters to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub delta: bool,
    pub kept: Kept,
    pub store: Store,
    pub zstd: bool,
}

impl Form {
    /// The form that `pipeline` gives to an adapter of so many values.
    pub fn of(pipeline: &Pipeline, values: usize) -> Self {
        let kept = pipeline.sparsifier().map_or(Kept::All, |sparsifier| {
            // A conversion of floats to integers saturates.
            let count = ((sparsifier.fraction * values as f64).ceil() as usize).clamp(1, values.max(1));
            match sparsifier.choice {
                Choice::Largest => Kept::Listed(count),
                Choice::Random => Kept::Drawn(count),
            }
        });
        let store = match pipeline.values() {
            Values::Fp32 => Store::Fp32,
            Values::Fp16 => Store::Fp16,
            Values::Bf16 => Store::Bf16,
            Values::Int8(quantizer) => Store::Int8(quantizer.per),
            Values::Int4(quantizer) => Store::Int4(quantizer.per),
        };
        Self { delta: pipeline.delta(), kept, store, zstd: pipeline.zstd().is_some() }
    }

    /// Whether every bit of every value is sent. Changes are then differences of bit patterns.
    pub fn is_lossless(&self) -> bool {
        self.kept == Kept::All && self.store == Store::Fp32
    }
}

/// The stages as a pipeline has them, with counts instead of shares.
impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = match self.kept {
            Kept::All => None,
            Kept::Listed(count) => Some(format!("topk ({count} values)")),
            Kept::Drawn(count) => Some(format!("randk ({count} values)")),
        };
        let store = match self.store {
            Store::Fp32 => "fp32",
            Store::Fp16 => "fp16",
            Store::Bf16 => "bf16",
            Store::Int8(Per::Tensor) => "int8",
            Store::Int8(Per::Channel) => "int8=channel",
            Store::Int4(Per::Tensor) => "int4",
            Store::Int4(Per::Channel) => "int4=channel",
        };
        let delta = self.delta.then(|| "delta".to_owned());
        let zstd = self.zstd.then(|| "zstd".to_owned());
        let parts: Vec<String> = [delta, kept, Some(store.to_owned()), zstd].into_iter().flatten().collect();
        formatter.write_str(&parts.join(","))
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub form: Form,
    pub values: usize,
    pub base: [u8; 8],
    pub seed: u64,
}

/// How many values a header declares; nothing where `bytes` do not begin with one.
pub(crate) fn declared_values(bytes: &[u8]) -> Option<usize> {
    let head = bytes.first_chunk::<BYTES>()?;
    let declared = head[12..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
    usize::try_from(declared).ok().filter(|_| head[..3] == MAGIC)
}

impl Header {
    /// Its bytes.
    pub fn write(&self) -> [u8; BYTES] {
        let Form { delta, kept, store, zstd } = self.form;
        let (kept_tag, count) = match kept {
            Kept::All => (0, self.values),
            Kept::Listed(count) => (1, count),
            Kept::Drawn(count) => (2, count),
        };
        let (store_tag, per) = match store {
            Store::Fp32 => (0, Per::Tensor),
            Store::Fp16 => (1, Per::Tensor),
            Store::Bf16 => (2, Per::Tensor),
            Store::Int8(per) => (3, per),
            Store::Int4(per) => (4, per),
        };
        let mut bytes = [0; BYTES];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = VERSION;
        let tags = [u8::from(delta), kept_tag, store_tag, u8::from(per == Per::Channel), u8::from(zstd)];
        bytes[4..9].copy_from_slice(&tags);
        bytes[12..20].copy_from_slice(&(self.values as u64).to_le_bytes());
        bytes[20..28].copy_from_slice(&(count as u64).to_le_bytes());
        bytes[28..36].copy_from_slice(&self.base);
        bytes[36..44].copy_from_slice(&self.seed.to_le_bytes());
        bytes
    }

    /// Reads a header of an adapter of `values` values; what follows it is returned beside it. There is one way
    /// only to write a header.
    pub fn read(bytes: &[u8], values: usize) -> Result<(Self, &[u8]), CodecError> {
        let Some((head, body)) = bytes.split_first_chunk::<BYTES>() else {
            return Err(CodecError::Header("it has fewer than 44 bytes"));
        };
        if head[..3] != MAGIC {
            return Err(CodecError::Header("it does not begin with FPC"));
        }
        if head[3] != VERSION {
            return Err(CodecError::Version(head[3]));
        }
        let number = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (declared, count, seed) = (number(12), number(20), number(36));
        if declared != values as u64 {
            return Err(CodecError::Values { got: declared, expected: values as u64 });
        }
        if !(1..=declared).contains(&count) {
            return Err(CodecError::Header("it sends no values, or more than there are"));
        }
        let count = count as usize;
        let flag = |at: usize| match head[at] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Header("a flag is neither 0 nor 1")),
        };
        let kept = match head[5] {
            0 => Kept::All,
            1 => Kept::Listed(count),
            2 => Kept::Drawn(count),
            _ => return Err(CodecError::Header("its choice of values is not known")),
        };
        let per = if flag(7)? { Per::Channel } else { Per::Tensor };
        let store = match head[6] {
            0 => Store::Fp32,
            1 => Store::Fp16,
            2 => Store::Bf16,
            3 => Store::Int8(per),
            4 => Store::Int4(per),
            _ => return Err(CodecError::Header("its way to store values is not known")),
        };
        let mut base = [0; 8];
        base.copy_from_slice(&head[28..36]);
        let form = Form { delta: flag(4)?, kept, store, zstd: flag(8)? };
        let header = Self { form, values, base, seed };
        let drawn = matches!(kept, Kept::Drawn(_));
        if header.write() != *head || (!form.delta && base != [0; 8]) || (!drawn && seed != 0) {
            return Err(CodecError::Header("a field that is not used is not 0"));
        }
        Ok((header, body))
    }
}
