//! Arithmetic on shapes and axes that trusts nobody.

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use crate::error::{Result, invalid};

/// The most elements any value may have.
pub const MAX_ELEMENTS: usize = 1 << 28;
/// The most dimensions any value may have: checks of axes against each other are quadratic in them.
const MAX_RANK: usize = 64;

/// Refuses shapes that need too much memory. Empty dimensions count as one, so that the strides of an empty
/// array stay in bounds as well.
pub(crate) fn bounded(shape: &[usize]) -> Result<()> {
    check_rank(shape.len())?;
    let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul((*dim).max(1)));
    match elements {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(()),
        _ => invalid!("shape {shape:?} has more than {MAX_ELEMENTS} elements"),
    }
}

fn check_rank(rank: usize) -> Result<()> {
    if rank > MAX_RANK { invalid!("{rank} dimensions are more than {MAX_RANK}") } else { Ok(()) }
}

/// Non-negative sizes.
pub(crate) fn sizes(values: &[i64]) -> Result<Vec<usize>> {
    match values.iter().map(|size| usize::try_from(*size)).collect() {
        Ok(sizes) => Ok(sizes),
        Err(_) => invalid!("sizes {values:?} are not all non-negative"),
    }
}

/// An axis of `rank` dimensions, counted from the end where negative.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize> {
    match index(axis, rank) {
        Some(axis) => Ok(axis),
        None => invalid!("axis {axis} does not exist in {rank} dimensions"),
    }
}

/// Different axes of `rank` dimensions, in the given order.
pub(crate) fn axes(values: &[i64], rank: usize) -> Result<Vec<usize>> {
    check_rank(rank)?;
    let mut seen = vec![false; rank];
    let mut axes = Vec::new();
    for value in values {
        let axis = axis(*value, rank)?;
        if std::mem::replace(&mut seen[axis], true) {
            invalid!("axes {values:?} name one axis twice");
        }
        axes.push(axis);
    }
    Ok(axes)
}

/// An index into `len` entries, counted from the end where negative.
pub(crate) fn index(index: i64, len: usize) -> Option<usize> {
    let from_start = if index < 0 { index.checked_add(i64::try_from(len).ok()?)? } else { index };
    usize::try_from(from_start).ok().filter(|index| *index < len)
}

/// The shape two shapes broadcast to.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let mut shape = Vec::with_capacity(rank);
    for i in 0..rank {
        match (dim(a, i), dim(b, i)) {
            (x, y) if x == y || y == 1 => shape.push(x),
            (1, y) => shape.push(y),
            _ => invalid!("shapes {a:?} and {b:?} do not broadcast"),
        }
    }
    bounded(&shape)?;
    Ok(shape)
}

/// `array`, repeated to `shape` without a copy.
pub(crate) fn stretch<'a, T>(array: &'a ArrayD<T>, shape: &[usize]) -> Result<ArrayViewD<'a, T>> {
    match array.broadcast(IxDyn(shape)) {
        Some(view) => Ok(view),
        None => invalid!("shape {:?} does not broadcast to {shape:?}", array.shape()),
    }
}

/// `array` in row-major order, copied only where it is not.
pub(crate) fn standard<T: Clone>(array: ArrayD<T>) -> ArrayD<T> {
    if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() }
}

/// `array` with the same elements in another shape.
pub(crate) fn reshape<T: Clone>(array: ArrayD<T>, shape: &[usize]) -> Result<ArrayD<T>> {
    let from = array.shape().to_vec();
    match standard(array).into_shape_with_order(IxDyn(shape)) {
        Ok(array) => Ok(array),
        Err(_) => invalid!("shape {from:?} has another number of elements than {shape:?}"),
    }
}

/// An array of `values` in row-major order.
pub(crate) fn filled<T>(shape: &[usize], values: Vec<T>) -> Result<ArrayD<T>> {
    let len = values.len();
    match ArrayD::from_shape_vec(IxDyn(shape), values) {
        Ok(array) => Ok(array),
        Err(_) => invalid!("{len} elements do not fill shape {shape:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_right() {
        assert_eq!(broadcast(&[2, 1, 3], &[4, 1]).unwrap(), [2, 4, 3]);
        assert_eq!(broadcast(&[], &[0, 1]).unwrap(), [0, 1]);
        assert_eq!(broadcast(&[1], &[0]).unwrap(), [0]);
        assert!(broadcast(&[2], &[3]).is_err());
        assert!(broadcast(&[1 << 20, 1], &[1 << 20]).is_err());
    }

    #[test]
    fn indices_count_from_either_end() {
        assert_eq!((index(-1, 3), index(2, 3), index(3, 3), index(-4, 3)), (Some(2), Some(2), None, None));
        assert_eq!((index(i64::MIN, 3), index(i64::MAX, 3), index(0, 0)), (None, None, None));
        assert!(axes(&[0, -2], 2).is_err());
    }

    #[test]
    fn empty_dimensions_do_not_hide_large_ones() {
        assert!(bounded(&[0, usize::MAX]).is_err());
        assert!(bounded(&[0, 7]).is_ok());
    }
}
