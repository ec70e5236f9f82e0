//! Which tensor lies where in the flat adapter.

use std::{collections::BTreeSet, ops::Range};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most values an adapter may have: 16 GiB of `f32`. It bounds what a manifest can make us allocate.
pub const MAX_VALUES: u64 = 1 << 32;

/// Name and shape of one trainable tensor; its values are `f32`, row-major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TensorSpec {
    /// Name, unique within the adapter.
    pub name: String,
    /// Shape.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }
}

/// The tensors of an adapter in their order on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<TensorSpec>", into = "Vec<TensorSpec>")]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    starts: Vec<usize>,
}

/// Tensors that make no adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLayout {
    /// There is none.
    #[error("the adapter has no tensors")]
    Empty,
    /// Two share a name.
    #[error("two adapter tensors are named {0}")]
    Duplicate(String),
    /// One is empty, or all together are too large.
    #[error("adapter tensor {name} has shape {shape:?}: an adapter has 1 to {MAX_VALUES} values in all")]
    Size {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
}

impl Layout {
    /// Checks the tensors and fixes their order.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, InvalidLayout> {
        if tensors.is_empty() {
            return Err(InvalidLayout::Empty);
        }
        let (mut names, mut starts, mut total) = (BTreeSet::new(), vec![0], 0u64);
        for TensorSpec { name, shape } in &tensors {
            if !names.insert(name.as_str()) {
                return Err(InvalidLayout::Duplicate(name.clone()));
            }
            let values = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
            match values.and_then(|values| total.checked_add(values)) {
                Some(sum) if sum > total && sum <= MAX_VALUES => total = sum,
                _ => return Err(InvalidLayout::Size { name: name.clone(), shape: shape.clone() }),
            }
            starts.push(total as usize);
        }
        Ok(Self { tensors, starts })
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Values of all tensors together.
    pub fn values(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Bytes of all values together.
    pub fn bytes(&self) -> u64 {
        self.values() as u64 * 4
    }

    /// Tensors with the range of flat indices each occupies.
    pub fn ranges(&self) -> impl Iterator<Item = (&TensorSpec, Range<usize>)> {
        self.tensors.iter().zip(self.starts.windows(2).map(|w| w[0]..w[1]))
    }

    /// The tensor that holds flat index `flat`, and the index within it.
    pub fn locate(&self, flat: usize) -> (&str, usize) {
        let at = self.starts.partition_point(|start| *start <= flat).clamp(1, self.tensors.len()) - 1;
        (&self.tensors[at].name, flat - self.starts[at])
    }
}

impl TryFrom<Vec<TensorSpec>> for Layout {
    type Error = InvalidLayout;

    fn try_from(tensors: Vec<TensorSpec>) -> Result<Self, InvalidLayout> {
        Self::new(tensors)
    }
}

impl From<Layout> for Vec<TensorSpec> {
    fn from(layout: Layout) -> Self {
        layout.tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.into() }
    }

    #[test]
    fn ranges_and_locations_agree() {
        let layout = Layout::new(vec![spec("a", &[2, 3]), spec("b", &[]), spec("c", &[4])]).unwrap();
        assert_eq!((layout.values(), layout.bytes()), (11, 44));
        assert_eq!(layout.ranges().map(|(_, r)| r).collect::<Vec<_>>(), [0..6, 6..7, 7..11]);
        assert_eq!(layout.locate(5), ("a", 5));
        assert_eq!(layout.locate(6), ("b", 0));
        assert_eq!(layout.locate(10), ("c", 3));
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert_eq!(Layout::new(vec![]), Err(InvalidLayout::Empty));
        assert!(matches!(
            Layout::new(vec![spec("a", &[1]), spec("a", &[1])]),
            Err(InvalidLayout::Duplicate(_))
        ));
        for shape in [&[0][..], &[u64::MAX, 2], &[MAX_VALUES + 1]] {
            assert!(matches!(Layout::new(vec![spec("a", shape)]), Err(InvalidLayout::Size { .. })));
        }
        assert!(serde_json::from_str::<Layout>("[]").is_err());
    }
}
