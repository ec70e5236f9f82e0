//! Sizes that are numbers or multiples of the batch.

use std::fmt;

use fedpeft_onnx::DType;

/// An integer known up to the batch size N: `factor`, or `factor * N`. Dimensions are extents, and so are the
/// elements of shape tensors while they are being folded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The number.
    pub factor: i64,
    /// Whether it is multiplied by N.
    pub batch: bool,
}

impl Extent {
    /// The batch size N itself.
    pub const N: Self = Self { factor: 1, batch: true };

    /// A plain number.
    pub const fn fixed(factor: i64) -> Self {
        Self { factor, batch: false }
    }

    /// The number, if it does not depend on the batch.
    pub fn known(self) -> Option<i64> {
        (!self.batch).then_some(self.factor)
    }

    /// Product; none when it would be quadratic in N.
    pub fn times(self, other: Self) -> Option<Self> {
        let factor = self.factor.checked_mul(other.factor)?;
        (!(self.batch && other.batch)).then_some(Self { factor, batch: self.batch || other.batch })
    }

    /// Sum; none when it is neither a number nor a multiple of N.
    pub fn plus(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self { factor: 0, .. }, any) | (any, Self { factor: 0, .. }) => Some(any),
            (a, b) if a.batch == b.batch => {
                Some(Self { factor: a.factor.checked_add(b.factor)?, batch: a.batch })
            }
            _ => None,
        }
    }

    /// Exact quotient; none when it is not whole for every N.
    pub fn divided_by(self, other: Self) -> Option<Self> {
        let divides = other.factor != 0 && self.factor.checked_rem(other.factor)? == 0;
        match (self.batch, other.batch) {
            (a, b) if a == b && divides => Some(Self::fixed(self.factor / other.factor)),
            (true, false) if divides => Some(Self { factor: self.factor / other.factor, batch: true }),
            _ => None,
        }
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.batch, self.factor) {
            (false, n) => write!(formatter, "{n}"),
            (true, 1) => write!(formatter, "N"),
            (true, n) => write!(formatter, "{n}N"),
        }
    }
}

impl From<usize> for Extent {
    fn from(size: usize) -> Self {
        Self::fixed(size as i64)
    }
}

/// Element type and shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<Extent>,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: Vec<Extent>) -> Self {
        Self { dtype, shape }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The last dimension, if it is a number.
    pub fn last(&self) -> Option<i64> {
        self.shape.last().and_then(|extent| extent.known())
    }

    /// The shape, if no dimension depends on the batch.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|extent| extent.known().map(|n| n as usize)).collect()
    }

    /// The shape as `Reshape` takes it: -1 for the one dimension that depends on the batch.
    pub fn reshape_target(&self) -> Option<Vec<i64>> {
        reshape_target(&self.shape)
    }

    /// All dimensions but the last multiplied.
    pub fn rows(&self) -> Option<Extent> {
        let (_, rows) = self.shape.split_last()?;
        rows.iter().try_fold(Extent::fixed(1), |product, extent| product.times(*extent))
    }
}

/// See [`Type::reshape_target`]; none when more than one dimension depends on the batch.
pub(crate) fn reshape_target(shape: &[Extent]) -> Option<Vec<i64>> {
    let unknown = shape.iter().filter(|extent| extent.batch).count();
    (unknown <= 1).then(|| shape.iter().map(|extent| extent.known().unwrap_or(-1)).collect())
}

/// Shape of two operands broadcast together.
pub(crate) fn broadcast(a: &[Extent], b: &[Extent]) -> Option<Vec<Extent>> {
    let one = Extent::fixed(1);
    let rank = a.len().max(b.len());
    let at = |shape: &[Extent], i: usize| (i + shape.len()).checked_sub(rank).map_or(one, |i| shape[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (x, y) if x == one => Some(y),
            (x, y) if y == one => Some(x),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_knows_the_batch() {
        let (two, n) = (Extent::fixed(2), Extent::N);
        let two_n = n.times(two).unwrap();
        assert_eq!(format!("{two_n:?}"), "2N");
        assert_eq!(n.times(n), None);
        assert_eq!(n.plus(two), None);
        assert_eq!(n.plus(n), Some(two_n));
        assert_eq!(two_n.divided_by(n), Some(two));
        assert_eq!(two_n.divided_by(two), Some(n));
        assert_eq!(n.divided_by(two), None);
        assert_eq!(two.divided_by(Extent::fixed(0)), None);
    }

    #[test]
    fn broadcasting_aligns_to_the_right() {
        let (one, three) = (Extent::fixed(1), Extent::fixed(3));
        assert_eq!(broadcast(&[Extent::N, one, three], &[three]), Some(vec![Extent::N, one, three]));
        assert_eq!(broadcast(&[Extent::N, one], &[one, three]), Some(vec![Extent::N, three]));
        assert_eq!(broadcast(&[Extent::N], &[three]), None);
    }
}
