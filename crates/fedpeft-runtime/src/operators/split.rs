//! Access to tensors of a running node, and the division of its rows among threads.

use std::sync::{Mutex, PoisonError};

use ort::{
    operator::{ComputeContext, OperatorInput, OperatorOutput, ShapeInferenceContext},
    value::{TensorElementType, ValueRef, ValueType},
};

/// Values a task should have: enough to outweigh its start, little enough to stay in the second-level cache.
const TASK_VALUES: usize = 16 << 10;

/// `N` tensors of `f32`.
pub(super) fn inputs<const N: usize>() -> [OperatorInput; N] {
    [const { OperatorInput::required(TensorElementType::Float32) }; N]
}

/// One tensor of `f32`.
pub(super) fn output() -> [OperatorOutput; 1] {
    [OperatorOutput::required(TensorElementType::Float32)]
}

/// An input of a node while it runs.
pub(super) struct Input<'a>(ValueRef<'a>);

impl<'a> Input<'a> {
    pub(super) fn get(context: &'a ComputeContext, index: usize) -> ort::Result<Self> {
        let missing = || ort::Error::new(format!("input {index} is missing"));
        context.input(index)?.map(Self).ok_or_else(missing)
    }

    pub(super) fn values(&self) -> ort::Result<&[f32]> {
        Ok(self.0.try_extract_tensor::<f32>()?.1)
    }

    pub(super) fn shape(&self) -> ort::Result<Vec<i64>> {
        Ok(self.0.try_extract_tensor::<f32>()?.0.to_vec())
    }

    /// The one integer of a scalar.
    pub(super) fn whole(&self) -> ort::Result<i64> {
        match self.0.try_extract_tensor::<i64>()?.1 {
            [value] => Ok(*value),
            values => Err(ort::Error::new(format!("one integer is needed, not {}", values.len()))),
        }
    }

    /// Values, and the size of the last dimension.
    pub(super) fn rows(&self) -> ort::Result<(&[f32], usize)> {
        let (shape, values) = self.0.try_extract_tensor::<f32>()?;
        match shape.last() {
            Some(columns) => Ok((values, usize::try_from(*columns).unwrap_or(0))),
            None => Err(ort::Error::new("a scalar has no rows")),
        }
    }
}

/// Refuses a node whose tensors do not belong together, before a kernel would quietly skip rows.
pub(super) fn expect_len(what: &str, got: usize, expected: usize) -> ort::Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(ort::Error::new(format!("{what} has {got} values, {expected} are needed")))
    }
}

/// Declares that output 0 has the shape of input `index`, so that ONNX Runtime can plan its memory. Nothing is
/// declared of a value of unknown rank, which is reported as a scalar that none of our operators has, nor where
/// a dimension is neither known nor named: it would be taken for the number -1.
pub(super) fn same_shape(context: &mut ShapeInferenceContext, index: usize) -> ort::Result<()> {
    shape_of(context, 0, index)
}

/// Declares that an output has the shape of input `index`, likewise.
pub(super) fn shape_of(context: &mut ShapeInferenceContext, output: usize, index: usize) -> ort::Result<()> {
    match context.inputs().get(index) {
        Some(input @ ValueType::Tensor { shape, dimension_symbols, .. })
            if !shape.is_empty()
                && shape
                    .iter()
                    .zip(dimension_symbols.iter())
                    .all(|(dim, symbol)| *dim >= 0 || !symbol.is_empty()) =>
        {
            context.set_output(output, input)
        }
        _ => Ok(()),
    }
}

/// Runs `kernel(first row, rows of output)` over all rows of `output`, in tasks on ONNX Runtime's threads.
pub(super) fn for_rows(
    context: &ComputeContext,
    output: &mut [f32],
    columns: usize,
    kernel: impl Fn(usize, &mut [f32]) + Sync + Send,
) -> ort::Result<()> {
    let columns = columns.max(1);
    let rows = (TASK_VALUES / columns).max(1);
    for_parts(context, output, rows * columns, |part, values| kernel(part * rows, values))
}

/// Runs `kernel(index, part)` over parts of `size` values.
pub(super) fn for_parts(
    context: &ComputeContext,
    output: &mut [f32],
    size: usize,
    kernel: impl Fn(usize, &mut [f32]) + Sync + Send,
) -> ort::Result<()> {
    if output.len() <= size {
        if !output.is_empty() {
            kernel(0, output);
        }
        return Ok(());
    }
    // A lock per part lends each thread its part; it is never contended.
    let parts: Vec<Mutex<&mut [f32]>> = output.chunks_mut(size).map(Mutex::new).collect();
    context.par_for(parts.len(), 0, |index| {
        let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        kernel(index, &mut part);
    })
}

/// Runs `kernel(example, parts)` over all examples, each of which has a part of so many values of every output.
pub(super) fn for_examples<const N: usize>(
    context: &ComputeContext,
    examples: usize,
    outputs: [(&mut [f32], usize); N],
    kernel: impl Fn(usize, [&mut [f32]; N]) + Sync + Send,
) -> ort::Result<()> {
    let mut outputs = outputs.map(|(values, size)| values.chunks_exact_mut(size.max(1)));
    // A lock per example lends its parts to one thread; it is never contended.
    let parts: Vec<Mutex<[&mut [f32]; N]>> = (0..examples)
        .map(|_| Mutex::new(outputs.each_mut().map(|parts| parts.next().unwrap_or_default())))
        .collect();
    context.par_for(parts.len(), 0, |index| {
        let mut parts = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        kernel(index, parts.each_mut().map(|part| &mut **part));
    })
}
