//! Products of matrices.

use ndarray::{Array3, ArrayD, ArrayView, ArrayViewD, Axis, Dimension, Ix2, Ix3};

use super::elementwise::zip;
use crate::{
    Value,
    call::Call,
    error::{Result, invalid},
    shape::{bounded, broadcast, reshape, standard, stretch},
};

/// Batches of matrices broadcast; a vector is a row on the left and a column on the right.
pub(super) fn matmul(call: &Call<'_>) -> Result<Value> {
    let (a, b) = (call.float(0)?, call.float(1)?);
    if a.ndim() == 0 || b.ndim() == 0 {
        invalid!("a scalar is no matrix");
    }
    let (row, column) = (a.ndim() == 1, b.ndim() == 1);
    let a = if row { a.clone().insert_axis(Axis(0)) } else { a.clone() };
    let b = if column { b.clone().insert_axis(Axis(1)) } else { b.clone() };
    let mut product = batched(&a, &b)?;
    if column {
        let last = product.ndim() - 1;
        product = product.index_axis_move(Axis(last), 0);
    }
    if row {
        let rows = product.ndim() - if column { 1 } else { 2 };
        product = product.index_axis_move(Axis(rows), 0);
    }
    Ok(Value::Float(standard(product)))
}

/// The product of two values of two dimensions at least.
fn batched(a: &ArrayD<f64>, b: &ArrayD<f64>) -> Result<ArrayD<f64>> {
    let (a_batch, a_matrix) = a.shape().split_at(a.ndim() - 2);
    let (b_batch, b_matrix) = b.shape().split_at(b.ndim() - 2);
    let (rows, inner, columns) = (a_matrix[0], a_matrix[1], b_matrix[1]);
    if inner != b_matrix[0] {
        invalid!("matrices of shapes {:?} and {:?} do not multiply", a.shape(), b.shape());
    }
    let batch = broadcast(a_batch, b_batch)?;
    let count: usize = batch.iter().product();
    let to = [&batch[..], &[rows, columns]].concat();
    bounded(&to)?;
    if b_batch.is_empty() {
        // One matrix on the right: all the rows on the left are one matrix as well.
        let a = reshape(a.clone(), &[count * rows, inner])?;
        let product = ranked::<Ix2>(a.view())?.dot(&ranked::<Ix2>(b.view())?);
        return reshape(product.into_dyn(), &to);
    }
    let stacked = |x: &ArrayD<f64>, matrix: &[usize]| {
        let shape = [&batch[..], matrix].concat();
        bounded(&shape)?;
        reshape(stretch(x, &shape)?.to_owned(), &[count, matrix[0], matrix[1]])
    };
    let (a, b) = (stacked(a, a_matrix)?, stacked(b, b_matrix)?);
    let (a, b) = (ranked::<Ix3>(a.view())?, ranked::<Ix3>(b.view())?);
    let mut products = Array3::zeros((count, rows, columns));
    for ((mut product, a), b) in products.outer_iter_mut().zip(a.outer_iter()).zip(b.outer_iter()) {
        product.assign(&a.dot(&b));
    }
    reshape(products.into_dyn(), &to)
}

/// `x`, which must have as many dimensions as `D`.
pub(super) fn ranked<D: Dimension>(x: ArrayViewD<'_, f64>) -> Result<ArrayView<'_, f64, D>> {
    let shape = x.shape().to_vec();
    match x.into_dimensionality() {
        Ok(x) => Ok(x),
        Err(_) => invalid!("shape {shape:?} has not {} dimensions", D::NDIM.unwrap_or_default()),
    }
}

pub(super) fn gemm(call: &Call<'_>) -> Result<Value> {
    let matrix = |index: usize, transposed: &str| {
        let matrix = ranked::<Ix2>(call.float(index)?.view())?;
        Ok(if call.attr_flag(transposed, false)? { matrix.reversed_axes() } else { matrix })
    };
    let (a, b) = (matrix(0, "transA")?, matrix(1, "transB")?);
    if a.ncols() != b.nrows() {
        invalid!("matrices of shapes {:?} and {:?} do not multiply", a.shape(), b.shape());
    }
    bounded(&[a.nrows(), b.ncols()])?;
    let alpha = call.attr_float("alpha", 1.0)?;
    let product = (a.dot(&b) * alpha).into_dyn();
    let Some(c) = call.maybe_float(2)? else { return Ok(Value::Float(standard(product))) };
    let beta = call.attr_float("beta", 1.0)?;
    let sum = zip(&product, c, |product, c| product + beta * c)?;
    if sum.shape() != product.shape() {
        invalid!("the summand of shape {:?} does not fit the product {:?}", c.shape(), product.shape());
    }
    Ok(Value::Float(sum))
}
