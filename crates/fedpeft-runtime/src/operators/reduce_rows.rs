//! `ReduceRows(X) -> sums over all axes but the last`

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::{Shape, SymbolicDimensions, TensorElementType, ValueType},
};

use super::split::{Input, for_parts, inputs, output};
use crate::kernels::{self, ROWS_PER_PART};

pub(super) struct ReduceRows;

impl Operator for ReduceRows {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "ReduceRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<1>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        output()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        columns_of(context, 0)
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let mut parts = Vec::new();
        Ok(Box::new(move |context: &ComputeContext| compute(context, &mut parts)))
    }
}

/// Declares that the output has the size of the last dimension of input `index`.
pub(super) fn columns_of(context: &mut ShapeInferenceContext, index: usize) -> ort::Result<()> {
    match context.inputs().get(index) {
        Some(ValueType::Tensor { shape, .. }) if shape.last().is_some_and(|columns| *columns > 0) => {
            let columns: Shape = shape.last().copied().into_iter().collect();
            let (ty, dimension_symbols) = (TensorElementType::Float32, SymbolicDimensions::empty(1));
            context.set_output(0, &ValueType::Tensor { ty, shape: columns, dimension_symbols })
        }
        _ => Ok(()),
    }
}

/// `parts` is kept between runs, so that a step allocates nothing.
fn compute(context: &ComputeContext, parts: &mut Vec<f32>) -> ort::Result<()> {
    let x = Input::get(context, 0)?;
    let (x, columns) = x.rows()?;
    let Some(mut sums) = context.output(0, [columns])? else { return Ok(()) };
    let (_, sums) = sums.try_extract_tensor_mut::<f32>()?;
    sums.fill(0.0);
    if x.is_empty() {
        return Ok(());
    }
    let part = ROWS_PER_PART * columns;
    parts.resize(x.len().div_ceil(part) * columns, 0.0);
    for_parts(context, parts, columns, |index, sums| {
        let rows = &x[index * part..x.len().min((index + 1) * part)];
        kernels::reduce_rows(rows, sums);
    })?;
    kernels::combine_parts(parts, sums);
    Ok(())
}
