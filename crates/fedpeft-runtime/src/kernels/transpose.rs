//! Transposition of a matrix.

use super::dispatch;

/// Rows and columns of a square that is turned in registers.
const SIDE: usize = 8;

/// Rows of the result to compute at once: as many values of a row of the matrix are in one line of the cache.
pub const TRANSPOSED_ROWS: usize = 16;

/// Rows of `y = x^T` from `first` on, `rows` values each. `x` is `[rows, columns]`.
pub fn transpose(x: &[f32], columns: usize, first: usize, rows: usize, y: &mut [f32]) {
    if rows == 0 || columns == 0 {
        return;
    }
    let (whole_rows, whole_columns) = (rows / SIDE * SIDE, y.len() / rows / SIDE * SIDE);
    dispatch(
        #[inline(always)]
        || {
            for row in (0..whole_rows).step_by(SIDE) {
                for column in (0..whole_columns).step_by(SIDE) {
                    turn(&x[row * columns + first + column..], columns, &mut y[column * rows + row..], rows);
                }
            }
            for (column, y) in y.chunks_mut(rows).enumerate() {
                let done = if column < whole_columns { whole_rows } else { 0 };
                for (row, y) in y.iter_mut().enumerate().skip(done) {
                    *y = x[row * columns + first + column];
                }
            }
        },
    );
}

/// One square; rows of `x` and `y` are so far apart.
#[inline(always)]
fn turn(x: &[f32], x_row: usize, y: &mut [f32], y_row: usize) {
    let mut square = [[0.0; SIDE]; SIDE];
    for (square, x) in square.iter_mut().zip(x.chunks(x_row)) {
        if let Some(x) = x.first_chunk::<SIDE>() {
            *square = *x;
        }
    }
    for (column, y) in y.chunks_mut(y_row).take(SIDE).enumerate() {
        if let Some(y) = y.first_chunk_mut::<SIDE>() {
            *y = std::array::from_fn(|row| square[row][column]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_is_in_its_place(rows in 1usize..30, columns in 1usize..40, part in 1usize..40) {
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let mut y = vec![f32::NAN; x.len()];
            for (index, y) in y.chunks_mut(part * rows).enumerate() {
                transpose(&x, columns, index * part, rows, y);
            }
            for (i, value) in y.iter().enumerate() {
                prop_assert_eq!(*value, x[i % rows * columns + i / rows]);
            }
        }
    }
}
