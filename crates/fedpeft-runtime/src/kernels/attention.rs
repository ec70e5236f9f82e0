//! Attention of one example, and its gradient, with heads where linear layers leave them: `[T, H, D]`.
//!
//! As standard operators, each head is brought together by a transposition and taken apart by another, which for short
//! sequences takes longer than the products between.

use super::{dispatch, math::exp};

/// Rows of a tile of a product.
const ROWS: usize = 6;
/// Columns of a tile: two registers of AVX, so that with six rows no register is left unused.
const WIDE: usize = 16;
/// Columns of a tile where so many are not left. Transposed keys and values are padded to a multiple.
const NARROW: usize = 8;
/// What is further below the largest score than this is no share of attention. Shares stay normal numbers, others are
/// slow.
const LEAST: f32 = -70.0;

/// What the products of an example are over.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Tokens that ask, `Tq`.
    pub queries: usize,
    /// Tokens that are asked, `Tk`.
    pub keys: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Values of a token in one head, `D`.
    pub width: usize,
    /// Factor of the products of queries and keys, usually `1 / sqrt(D)`.
    pub scale: f32,
}

impl AttentionShape {
    /// What keys take in a row of shares: they are padded, so that rows are whole registers.
    pub fn padded(&self) -> usize {
        self.keys.next_multiple_of(NARROW)
    }
}

/// Memory of the products of one head.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// Rows of a product's left side, a tile's beside each other.
    panel: Vec<[f32; ROWS]>,
    /// Keys or values of a head, transposed: `[D, Tk]`, padded with zeros.
    transposed: Vec<f32>,
    /// `[Tq, Tk]`, padded.
    scores: Vec<f32>,
}

/// `p = softmax(scale q k^T)` by head, `out = p v`. `q` and `out` are `[Tq, H, D]`, `k` and `v` `[Tk, H, D]`, `p` is
/// `[H, Tq, Tk]` with [padded](AttentionShape::padded) rows. (Vaswani et al., Attention is all you need, arXiv
/// 1706.03762.)
pub fn attention(
    shape: AttentionShape,
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    p: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let AttentionShape { queries, keys, heads, width, scale } = shape;
    if queries * keys * heads * width == 0 {
        return;
    }
    let (token, padded) = (heads * width, shape.padded());
    let AttentionScratch { panel, transposed, .. } = scratch;
    dispatch(
        #[inline(always)]
        || {
            for (head, p) in p.chunks_exact_mut(queries * padded).enumerate() {
                let at = head * width;
                transpose(&k[at..], token, width, padded, transposed);
                let left = Left { values: &q[at..], row: token, step: 1 };
                product(left, [queries, width, padded], (transposed, padded), (p, padded), panel);
                for row in p.chunks_exact_mut(padded) {
                    softmax(row, keys, scale);
                }
                let left = Left { values: p, row: padded, step: 1 };
                product(left, [queries, keys, width], (&v[at..], token), (&mut out[at..], token), panel);
            }
        },
    );
}

/// Gradients `[dq, dk, dv]` from that of the output, `dy`, in the shapes of what they are gradients of.
pub fn attention_grad(
    shape: AttentionShape,
    dy: &[f32],
    [q, k, v]: [&[f32]; 3],
    p: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
    scratch: &mut AttentionScratch,
) {
    let AttentionShape { queries, keys, heads, width, scale } = shape;
    if queries * keys * heads * width == 0 {
        return;
    }
    let (token, padded) = (heads * width, shape.padded());
    let AttentionScratch { panel, transposed, scores } = scratch;
    scores.resize(queries * padded, 0.0);
    dispatch(
        #[inline(always)]
        || {
            for (head, p) in p.chunks_exact(queries * padded).enumerate() {
                let at = head * width;
                // What each share of attention is worth, dp = dy v^T.
                transpose(&v[at..], token, width, padded, transposed);
                let left = Left { values: &dy[at..], row: token, step: 1 };
                product(left, [queries, width, padded], (transposed, padded), (scores, padded), panel);
                // In its place the gradient of the products of queries and keys.
                for (row, p) in scores.chunks_exact_mut(padded).zip(p.chunks_exact(padded)) {
                    softmax_grad(row, p, scale);
                }
                let left = Left { values: p, row: 1, step: padded };
                product(left, [keys, queries, width], (&dy[at..], token), (&mut dv[at..], token), panel);
                let left = Left { values: scores, row: padded, step: 1 };
                product(left, [queries, keys, width], (&k[at..], token), (&mut dq[at..], token), panel);
                let left = Left { values: scores, row: 1, step: padded };
                product(left, [keys, queries, width], (&q[at..], token), (&mut dk[at..], token), panel);
            }
        },
    );
}

/// The left side of a product, and how far apart its rows and the values in them are; one of the two is 1.
#[derive(Clone, Copy)]
struct Left<'a> {
    values: &'a [f32],
    row: usize,
    step: usize,
}

impl Left<'_> {
    /// Writes `count` rows from `first` on to a panel, beside each other.
    #[inline(always)]
    fn pack(self, first: usize, count: usize, panel: &mut [[f32; ROWS]]) {
        if self.step == 1 {
            for row in 0..count {
                for (place, value) in panel.iter_mut().zip(&self.values[(first + row) * self.row..]) {
                    place[row] = *value;
                }
            }
        } else {
            for (place, values) in panel.iter_mut().zip(self.values.chunks(self.step)) {
                for (place, value) in place.iter_mut().zip(&values[first..first + count]) {
                    *place = *value;
                }
            }
        }
    }
}

/// `c[i, j] = Σ_s left[i, s] b[s, j]`, of so many rows, steps and columns; rows of `b` and `c` are as far apart as is
/// said beside them.
#[inline(always)]
fn product(
    left: Left<'_>,
    [rows, steps, columns]: [usize; 3],
    (b, b_row): (&[f32], usize),
    (c, c_row): (&mut [f32], usize),
    panel: &mut Vec<[f32; ROWS]>,
) {
    panel.resize(steps, [0.0; ROWS]);
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        left.pack(first, count, panel);
        let mut column = 0;
        while column + WIDE <= columns {
            tile::<WIDE>(panel, (b, b_row), (c, c_row), [first, count, column]);
            column += WIDE;
        }
        while column + NARROW <= columns {
            tile::<NARROW>(panel, (b, b_row), (c, c_row), [first, count, column]);
            column += NARROW;
        }
        while column < columns {
            tile::<1>(panel, (b, b_row), (c, c_row), [first, count, column]);
            column += 1;
        }
    }
}

/// `count` rows from `first` on and `N` columns of a product.
#[inline(always)]
fn tile<const N: usize>(
    panel: &[[f32; ROWS]],
    (b, b_row): (&[f32], usize),
    (c, c_row): (&mut [f32], usize),
    [first, count, column]: [usize; 3],
) {
    let mut sums = [[0.0; N]; ROWS];
    for (left, b) in panel.iter().zip(b.chunks(b_row)) {
        let Some(b) = b.get(column..).and_then(|b| b.first_chunk::<N>()) else { break };
        for row in 0..ROWS {
            for lane in 0..N {
                sums[row][lane] = left[row].mul_add(b[lane], sums[row][lane]);
            }
        }
    }
    for (row, sums) in sums.iter().take(count).enumerate() {
        let start = (first + row) * c_row + column;
        c[start..start + N].copy_from_slice(sums);
    }
}

/// `to[d, t] = from[t, d]` of tokens that are `token` apart; zeros behind the last token.
#[inline(always)]
fn transpose(from: &[f32], token: usize, width: usize, padded: usize, to: &mut Vec<f32>) {
    to.resize(width * padded, 0.0);
    for (block, rows) in from.chunks(NARROW * token).enumerate() {
        let t = block * NARROW;
        let whole = width / NARROW * NARROW;
        if rows.len() > (NARROW - 1) * token {
            for d in (0..whole).step_by(NARROW) {
                let mut square = [[0.0; NARROW]; NARROW];
                for (square, row) in square.iter_mut().zip(rows.chunks(token)) {
                    if let Some(row) = row.get(d..).and_then(|row| row.first_chunk::<NARROW>()) {
                        *square = *row;
                    }
                }
                for (d, to) in (0..NARROW).zip(to[d * padded..].chunks_mut(padded)) {
                    let column: [f32; NARROW] = std::array::from_fn(|t| square[t][d]);
                    to[t..t + NARROW].copy_from_slice(&column);
                }
            }
        }
        let done = if rows.len() > (NARROW - 1) * token { whole } else { 0 };
        for (t, row) in (t..).zip(rows.chunks(token)) {
            for (value, to) in row[done..width].iter().zip(to[done * padded..].chunks_mut(padded)) {
                to[t] = *value;
            }
        }
    }
}

/// `row = softmax(scale row)` over its first `keys` values; next to nothing behind them.
#[inline(always)]
fn softmax(row: &mut [f32], keys: usize, scale: f32) {
    row[keys..].fill(f32::NEG_INFINITY);
    let (chunks, _) = row.as_chunks_mut::<NARROW>();
    let mut most = [f32::NEG_INFINITY; NARROW];
    for chunk in &mut *chunks {
        for lane in 0..NARROW {
            chunk[lane] *= scale;
            // A comparison lets NaN through, max does not.
            most[lane] = if chunk[lane] <= most[lane] { most[lane] } else { chunk[lane] };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, |most, x| if x <= most { most } else { x });
    let mut sums = [0.0; NARROW];
    for chunk in &mut *chunks {
        for lane in 0..NARROW {
            let below = chunk[lane] - most;
            chunk[lane] = exp(if below < LEAST { LEAST } else { below });
            sums[lane] += chunk[lane];
        }
    }
    let share = 1.0 / sum(sums);
    chunks.as_flattened_mut().iter_mut().for_each(|p| *p *= share);
}

/// `row = scale p (row - Σ row p)`.
#[inline(always)]
fn softmax_grad(row: &mut [f32], p: &[f32], scale: f32) {
    let ((chunks, _), (shares, _)) = (row.as_chunks_mut::<NARROW>(), p.as_chunks::<NARROW>());
    let mut sums = [0.0; NARROW];
    for (chunk, p) in chunks.iter().zip(shares) {
        for lane in 0..NARROW {
            sums[lane] = chunk[lane].mul_add(p[lane], sums[lane]);
        }
    }
    let mean = sum(sums);
    for (dp, p) in chunks.as_flattened_mut().iter_mut().zip(shares.as_flattened()) {
        *dp = scale * p * (*dp - mean);
    }
}

#[inline(always)]
fn sum([a, b, c, d, e, f, g, h]: [f32; NARROW]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Output and gradients of one example in f64, by their formulas.
    fn reference(shape: AttentionShape, [q, k, v, dy]: [&[f32]; 4]) -> [Vec<f64>; 4] {
        let AttentionShape { queries, keys, heads, width, scale } = shape;
        let at =
            |values: &[f32], t: usize, h: usize, d: usize| f64::from(values[(t * heads + h) * width + d]);
        let place = |t: usize, h: usize, d: usize| (t * heads + h) * width + d;
        let zeros = |tokens: usize| vec![0.0; tokens * heads * width];
        let (mut out, mut dq, mut dk, mut dv) = (zeros(queries), zeros(queries), zeros(keys), zeros(keys));
        for (h, i) in (0..heads).flat_map(|h| (0..queries).map(move |i| (h, i))) {
            let dot =
                |a: &[f32], b: &[f32], j: usize| (0..width).map(|d| at(a, i, h, d) * at(b, j, h, d)).sum();
            let scores: Vec<f64> = (0..keys)
                .map(|j| {
                    f64::from(scale) * {
                        let dot: f64 = dot(q, k, j);
                        dot
                    }
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
            let dp: Vec<f64> = (0..keys).map(|j| dot(dy, v, j)).collect();
            let mean: f64 = dp.iter().zip(&p).map(|(dp, p)| dp * p).sum();
            for (j, d) in (0..keys).flat_map(|j| (0..width).map(move |d| (j, d))) {
                let ds = f64::from(scale) * p[j] * (dp[j] - mean);
                out[place(i, h, d)] += p[j] * at(v, j, h, d);
                dv[place(j, h, d)] += p[j] * at(dy, i, h, d);
                dq[place(i, h, d)] += ds * at(k, j, h, d);
                dk[place(j, h, d)] += ds * at(q, i, h, d);
            }
        }
        [out, dq, dk, dv]
    }

    proptest! {
        #[test]
        fn agrees_with_f64(
            queries in 1usize..20,
            keys in 1usize..20,
            heads in 1usize..4,
            width in 1usize..40,
            seed in proptest::collection::vec(-2.0f32..2.0, 997),
        ) {
            let shape = AttentionShape { queries, keys, heads, width, scale: 0.4 };
            let values = |tokens: usize, from: usize| -> Vec<f32> {
                (0..tokens * heads * width).map(|i| seed[(i * 7 + from) % seed.len()]).collect()
            };
            let (q, k, v, dy) = (values(queries, 0), values(keys, 300), values(keys, 600), values(queries, 900));
            let (mut out, mut p) = (vec![f32::NAN; q.len()], vec![f32::NAN; heads * queries * shape.padded()]);
            let (mut dq, mut dk, mut dv) =
                (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
            let mut scratch = AttentionScratch::default();
            attention(shape, [&q, &k, &v], &mut out, &mut p, &mut scratch);
            attention_grad(shape, &dy, [&q, &k, &v], &p, [&mut dq, &mut dk, &mut dv], &mut scratch);
            let wanted = reference(shape, [&q, &k, &v, &dy]);
            for (got, wanted) in [out, dq, dk, dv].iter().zip(&wanted) {
                for (got, wanted) in got.iter().zip(wanted) {
                    let tolerance = 2e-5 * wanted.abs().max(1.0) * width as f64;
                    prop_assert!((f64::from(*got) - wanted).abs() < tolerance, "{got} is not {wanted}");
                }
            }
        }
    }
}
