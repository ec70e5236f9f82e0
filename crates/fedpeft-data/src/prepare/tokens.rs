//! From texts to tokens: once, when the data meets the model.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::{BatchError, Column, FitError};
use crate::labels::IGNORED;

/// An input of a model of texts, `i64 [N, T]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenColumn {
    /// Token ids, the padding token behind a short text.
    Ids,
    /// 1 where a token is, 0 where padding is.
    Mask,
    /// 0: every text is one segment.
    Types,
}

/// What a model of texts reads.
#[derive(Clone, Copy)]
pub struct TextInput<'a> {
    /// Its inputs in their order.
    pub columns: &'a [TokenColumn],
    /// Tokens of a sequence, T.
    pub length: usize,
    /// Id of the padding token.
    pub pad_id: u32,
    /// Makes at most `length` token ids of a text.
    pub tokenize: &'a dyn Fn(&str) -> Result<Vec<u32>, String>,
}

impl fmt::Debug for TextInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { columns, length, pad_id, .. } = self;
        f.debug_struct("TextInput")
            .field("columns", columns)
            .field("length", length)
            .field("pad_id", pad_id)
            .finish()
    }
}

/// The token ids of texts, one text after the other.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    ids: Arc<[u32]>,
    /// Where each text ends in `ids`.
    ends: Arc<[usize]>,
    columns: Arc<[TokenColumn]>,
    length: usize,
    pad_id: u32,
}

impl Tokens {
    /// `examples` are positions, for messages, and texts; `path` is where they come from.
    pub fn new<'t>(
        examples: impl Iterator<Item = (usize, &'t str)>,
        input: &TextInput<'_>,
        path: &Path,
    ) -> Result<Self, FitError> {
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        let length = input.length;
        for (example, text) in examples {
            let path = || path.display().to_string();
            let tokens = (input.tokenize)(text).map_err(|reason| FitError::Tokenize {
                path: path(),
                example,
                reason,
            })?;
            if tokens.is_empty() || tokens.len() > length {
                return Err(FitError::Length { path: path(), example, found: tokens.len(), length });
            }
            ids.extend(tokens);
            ends.push(ids.len());
        }
        Ok(Self {
            ids: ids.into(),
            ends: ends.into(),
            columns: input.columns.into(),
            length,
            pad_id: input.pad_id,
        })
    }

    /// The tokens of the text at `index`.
    fn text(&self, index: usize) -> Result<&[u32], BatchError> {
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(index).copied();
        end.and_then(|end| self.ids.get(start..end)).ok_or(BatchError::Index { index, len: self.ends.len() })
    }

    /// Writes the texts at `indices`, one buffer per column.
    pub fn fill(&self, indices: &[usize], inputs: &mut [Column<'_>]) -> Result<(), BatchError> {
        let (needed, found) = (self.columns.len(), inputs.len());
        if needed != found {
            return Err(BatchError::Inputs { needed, found });
        }
        let pad = i64::from(self.pad_id);
        for (column, buffer) in self.columns.iter().zip(inputs) {
            match column {
                TokenColumn::Ids => self.rows("token", indices, buffer, pad, i64::from)?,
                TokenColumn::Mask => self.rows("token", indices, buffer, 0, |_| 1)?,
                TokenColumn::Types => self.rows("token", indices, buffer, 0, |_| 0)?,
            }
        }
        Ok(())
    }

    /// Writes the tokens as their own labels.
    pub fn fill_labels(&self, indices: &[usize], mut labels: Column<'_>) -> Result<(), BatchError> {
        self.rows("label", indices, &mut labels, IGNORED, i64::from)
    }

    /// One row per text: what `of_token` gives for its tokens, then `padding`.
    fn rows(
        &self,
        buffer: &'static str,
        indices: &[usize],
        column: &mut Column<'_>,
        padding: i64,
        of_token: impl Fn(u32) -> i64,
    ) -> Result<(), BatchError> {
        let Column::I64(values) = column else { return Err(BatchError::Type { buffer, needed: "i64" }) };
        BatchError::check(buffer, indices.len(), indices.len() * self.length, values.len())?;
        for (index, row) in indices.iter().zip(values.chunks_exact_mut(self.length)) {
            let text = self.text(*index)?;
            let (tokens, rest) = row.split_at_mut(text.len());
            for (slot, id) in tokens.iter_mut().zip(text) {
                *slot = of_token(*id);
            }
            rest.fill(padding);
        }
        Ok(())
    }
}
