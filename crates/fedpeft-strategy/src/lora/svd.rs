//! The largest singular vectors of a matrix: subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4) with one-sided
//! Jacobi rotations (Hestenes 1958).
//!
//! Every sum has a fixed order, and nothing is left to how a processor multiplies and adds: all of them get the same
//! bits.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Vectors in the iteration: this many for each that is wanted, and some more. They make it fast where singular values lie
/// close together.
const EACH: usize = 2;
const MORE: usize = 8;
/// Most iterations.
const ITERATIONS: u32 = 100;
/// Most sweeps over all pairs of vectors; some six are needed.
const SWEEPS: u32 = 40;
/// The cosine of two vectors that count as orthogonal.
const ORTHOGONAL: f64 = 1e-14;
/// What is shorter than this, of the longest vector, is rounding.
const NOTHING: f64 = 1e-13;
/// The growth of the squared norm, as a share, with which the iteration ends.
const CONVERGED: f64 = 1e-14;
/// Independent sums; their number is fixed, and with it every result.
const LANES: usize = 8;

/// `sum left right^T`, the part of a matrix with its largest singular values, from the largest on. These are the lengths of
/// `right`; `left` have length 1. Where the matrix has a lower rank, the last of both are 0.
pub(super) struct Largest {
    pub left: Vec<Vec<f64>>,
    pub right: Vec<Vec<f64>>,
}

/// The best approximation of rank `rank` of `matrix [rows, columns]`, row-major, that is not larger than either.
pub(super) fn largest(matrix: &[f64], columns: usize, rank: usize) -> Largest {
    let width = (rank * EACH + MORE).min(matrix.len() / columns).min(columns);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut draw = || f64::from(random.next_u32().cast_signed()) / f64::from(1u32 << 31);
    let start: Vec<Vec<f64>> = (0..width).map(|_| (0..columns).map(|_| draw()).collect()).collect();

    let arch = pulp::Arch::new();
    let (mut found, mut kept) = (arch.dispatch(|| improved(matrix, start)), 0.0);
    for _ in 0..ITERATIONS {
        let squares = found.right.iter().take(rank).map(|right| dot(right, right)).sum();
        if squares <= kept * (1.0 + CONVERGED) {
            break;
        }
        kept = squares;
        found = arch.dispatch(|| improved(matrix, found.right));
    }
    found.left.truncate(rank);
    found.right.truncate(rank);
    found
}

/// What of `matrix` lies in the space that it makes of `inputs`.
#[inline(always)]
fn improved(matrix: &[f64], mut inputs: Vec<Vec<f64>>) -> Largest {
    let columns = inputs[0].len();
    let rows = matrix.chunks_exact(columns);
    normalise(&mut inputs);
    let product = |input: &Vec<f64>| rows.clone().map(|row| dot(row, input)).collect();
    let mut left: Vec<Vec<f64>> = inputs.iter().map(product).collect();
    orthogonalise(&mut left, &mut vec![Vec::new(); inputs.len()]);
    normalise(&mut left);
    let mut right = vec![vec![0.0; columns]; left.len()];
    for (at, row) in rows.enumerate() {
        for (right, left) in right.iter_mut().zip(&left) {
            let weight = left[at];
            right.iter_mut().zip(row).for_each(|(right, value)| *right += weight * value);
        }
    }
    orthogonalise(&mut right, &mut left);
    Largest { left, right }
}

/// Rotates `vectors` until every two are orthogonal, and sorts them, the longest first. Those that are nothing but
/// rounding become 0. `along` goes through the same.
#[inline(always)]
fn orthogonalise(vectors: &mut Vec<Vec<f64>>, along: &mut Vec<Vec<f64>>) {
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for later in 1..vectors.len() {
            for earlier in 0..later {
                let (one, other) = two(vectors, earlier, later);
                let (squares, product) = ((dot(one, one), dot(other, other)), dot(one, other));
                if product.abs() > ORTHOGONAL * (squares.0 * squares.1).sqrt() {
                    let ratio = (squares.1 - squares.0) / (2.0 * product);
                    let tangent = ratio.signum() / (ratio.abs() + (1.0 + ratio * ratio).sqrt());
                    rotate(one, other, tangent);
                    let (one, other) = two(along, earlier, later);
                    rotate(one, other, tangent);
                    rotated = true;
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let lengths: Vec<f64> = vectors.iter().map(|vector| dot(vector, vector).sqrt()).collect();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by(|one, other| lengths[*other].total_cmp(&lengths[*one]));
    let longest = lengths[order[0]];
    for vectors in [vectors, along] {
        let mut moved = std::mem::take(vectors);
        for at in &order {
            let mut vector = std::mem::take(&mut moved[*at]);
            if lengths[*at] <= longest * NOTHING {
                vector.fill(0.0);
            }
            vectors.push(vector);
        }
    }
}

fn two(vectors: &mut [Vec<f64>], earlier: usize, later: usize) -> (&mut [f64], &mut [f64]) {
    let (left, right) = vectors.split_at_mut(later);
    (&mut left[earlier], &mut right[0])
}

#[inline(always)]
fn rotate(one: &mut [f64], other: &mut [f64], tangent: f64) {
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    for (one, other) in one.iter_mut().zip(other) {
        (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
    }
}

/// Makes all lengths 1 that are not 0.
#[inline(always)]
fn normalise(vectors: &mut [Vec<f64>]) {
    for vector in vectors {
        let length = dot(vector, vector).sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value /= length);
        }
    }
}

#[inline(always)]
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    for ((sum, left), right) in sums.iter_mut().zip(left_rest).zip(right_rest) {
        *sum += left * right;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn product(found: &Largest, rows: usize, columns: usize) -> Vec<f64> {
        let mut product = vec![0.0; rows * columns];
        for (left, right) in found.left.iter().zip(&found.right) {
            for (row, left) in product.chunks_exact_mut(columns).zip(left) {
                row.iter_mut().zip(right).for_each(|(value, right)| *value += left * right);
            }
        }
        product
    }

    fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
        values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    #[test]
    fn a_matrix_by_hand() {
        // Singular values 3 sqrt(5) and sqrt(5) (Strang, Introduction to Linear Algebra, 7.2).
        let found = largest(&[3.0, 0.0, 4.0, 5.0], 2, 2);
        let values: Vec<_> = found.right.iter().map(|right| norm(right.iter().copied())).collect();
        assert!((values[0] - 45f64.sqrt()).abs() < 1e-12 && (values[1] - 5f64.sqrt()).abs() < 1e-12);
        let one = product(&largest(&[3.0, 0.0, 4.0, 5.0], 2, 1), 2, 2);
        for (got, wanted) in one.iter().zip([1.5, 1.5, 4.5, 4.5]) {
            assert!((got - wanted).abs() < 1e-12, "{one:?}");
        }
        let nothing = largest(&[0.0; 6], 3, 2);
        assert!(nothing.left.iter().chain(&nothing.right).flatten().all(|value| *value == 0.0));
    }

    proptest! {
        /// What is left has nothing in common with what was found, and no vector of it is longer.
        #[test]
        fn vectors_are_orthogonal_and_the_largest(
            (rows, columns, rank, values) in (1usize..14, 1usize..14).prop_flat_map(|(rows, columns)| {
                let value = prop_oneof![4 => -1f64..1.0, 1 => Just(0.0), 1 => -1e-9f64..1e-9];
                (Just(rows), Just(columns), 1..=rows.min(columns), prop::collection::vec(value, rows * columns))
            }),
        ) {
            let found = largest(&values, columns, rank);
            let size = norm(values.iter().copied());
            for (at, vectors) in [&found.left, &found.right].into_iter().enumerate() {
                prop_assert_eq!(vectors.len(), rank);
                for later in 0..rank {
                    for earlier in 0..later {
                        let scale = if at == 0 { 1.0 } else { size * size };
                        prop_assert!(dot(&vectors[earlier], &vectors[later]).abs() <= 1e-12 * scale);
                    }
                }
            }
            let lengths: Vec<_> = found.right.iter().map(|right| norm(right.iter().copied())).collect();
            prop_assert!(lengths.is_sorted_by(|a, b| a >= b));
            let rest: Vec<_> =
                values.iter().zip(product(&found, rows, columns)).map(|(value, kept)| value - kept).collect();
            let kept = norm(lengths.iter().copied());
            prop_assert!((norm(rest.iter().copied()).powi(2) + kept * kept - size * size).abs() <= 1e-11 * size * size);
            let next = largest(&rest, columns, 1);
            prop_assert!(norm(next.right[0].iter().copied()) <= lengths[rank - 1] + 1e-9 * size);
            for left in found.left.iter().take_while(|left| left.iter().any(|value| *value != 0.0)) {
                let across: Vec<f64> = (0..columns).map(|column| (0..rows).map(|row| rest[row * columns + column] * left[row]).sum()).collect();
                prop_assert!(norm(across) <= 1e-9 * size);
            }
        }
    }
}
