//! Tensors for some columns of a packed layer, spread over all of them.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::{Builder, PassError};

/// Columns that follow one another: the first and their number.
fn run(columns: &[usize]) -> Option<usize> {
    let first = *columns.first()?;
    columns.iter().enumerate().all(|(i, column)| *column == first + i).then_some(first)
}

/// `part`, whose first axis has one row for each of `columns`, with rows of `fill` for the rest of `total`.
pub(super) fn spread(
    b: &mut Builder,
    part: &str,
    columns: &[usize],
    total: usize,
    fill: f32,
) -> Result<String, PassError> {
    let shape = b.ty(part)?.known_shape().unwrap_or_default();
    if let Some(first) = run(columns) {
        let mut pads = vec![0i64; 2 * shape.len()];
        pads[0] = first as i64;
        pads[shape.len()] = (total - first - columns.len()) as i64;
        let (pads, fill) = (b.ints(&pads), b.scalar(fill));
        return b.op("Pad", &[part, &pads, &fill]);
    }
    // One row of the filling behind the part; every column takes its row or that one.
    let mut row = shape;
    row[0] = 1;
    let filling = b.constant(Tensor::f32(row.clone(), &vec![fill; row.iter().product()]));
    let rows = b.add(Node::new("Concat", &[part, &filling], &[]).with("axis", 0i64))?;
    let mut places = vec![columns.len() as i64; total];
    columns.iter().enumerate().for_each(|(i, column)| places[*column] = i as i64);
    let places = b.ints(&places);
    b.add(Node::new("Gather", &[&rows, &places], &[]).with("axis", 0i64))
}
