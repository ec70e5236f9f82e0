//! `SoftmaxGrad(dY, Y) -> dX`, over the last axis

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};

use super::split::{Input, expect_len, for_rows, inputs, output, same_shape};
use crate::kernels;

pub(super) struct SoftmaxGrad;

impl Operator for SoftmaxGrad {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "SoftmaxGrad"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<2>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        output()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        same_shape(context, 1)
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        Ok(Box::new(compute))
    }
}

fn compute(context: &ComputeContext) -> ort::Result<()> {
    let (dy, y) = (Input::get(context, 0)?, Input::get(context, 1)?);
    let shape = y.shape()?;
    let (dy, (y, columns)) = (dy.values()?, y.rows()?);
    expect_len("SoftmaxGrad: dY", dy.len(), y.len())?;
    let Some(mut dx) = context.output(0, shape)? else { return Ok(()) };
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    for_rows(context, dx, columns, |first, dx| {
        let range = first * columns..first * columns + dx.len();
        kernels::softmax_grad(&dy[range.clone()], &y[range], columns, dx);
    })
}
