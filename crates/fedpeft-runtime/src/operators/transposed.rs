//! `Transposed(X) -> X^T` of a matrix

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::{Shape, SymbolicDimensions, TensorElementType, ValueType},
};

use super::split::{Input, for_parts, inputs, output};
use crate::kernels::{self, TRANSPOSED_ROWS};

pub(super) struct Transposed;

impl Operator for Transposed {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Transposed"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<1>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        output()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        match context.inputs().first() {
            Some(ValueType::Tensor { shape, .. }) if shape.len() == 2 && shape.iter().all(|dim| *dim > 0) => {
                let shape: Shape = shape.iter().rev().copied().collect();
                let (ty, dimension_symbols) = (TensorElementType::Float32, SymbolicDimensions::empty(2));
                context.set_output(0, &ValueType::Tensor { ty, shape, dimension_symbols })
            }
            _ => Ok(()),
        }
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        Ok(Box::new(compute))
    }
}

fn compute(context: &ComputeContext) -> ort::Result<()> {
    let x = Input::get(context, 0)?;
    let &[rows, columns] = x.shape()?.as_slice() else {
        return Err(ort::Error::new("Transposed: X is no matrix"));
    };
    let Some(mut y) = context.output(0, [columns, rows])? else { return Ok(()) };
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let (x, columns) = x.rows()?;
    let rows = x.len() / columns.max(1);
    for_parts(context, y, TRANSPOSED_ROWS * rows.max(1), |part, y| {
        kernels::transpose(x, columns, part * TRANSPOSED_ROWS, rows, y);
    })
}
