//! `GeluGrad(dY, X) -> dX`

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};

use super::split::{Input, expect_len, for_rows, inputs, output, same_shape};
use crate::kernels;

pub(super) struct GeluGrad;

impl Operator for GeluGrad {
    type Kernel<'attr> = BoxedKernel<'attr>;

    /// The gradient of what the layer after it reads is of no other use.
    const INPLACES: &'static [(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &str {
        "GeluGrad"
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
    let x = Input::get(context, 1)?;
    let (shape, x) = (x.shape()?, x.values()?);
    let given = {
        let dy = Input::get(context, 0)?;
        let dy = dy.values()?;
        expect_len("GeluGrad: dY", dy.len(), x.len())?;
        dy.as_ptr()
    };
    let Some(mut dx) = context.output(0, shape)? else { return Ok(()) };
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    if dx.as_ptr() == given {
        return for_rows(context, dx, 1, |start, dx| {
            kernels::gelu_grad_in_place(&x[start..start + dx.len()], dx);
        });
    }
    let dy = Input::get(context, 0)?;
    let dy = dy.values()?;
    for_rows(context, dx, 1, |start, dx| {
        let range = start..start + dx.len();
        kernels::gelu_grad(&dy[range.clone()], &x[range], dx);
    })
}
