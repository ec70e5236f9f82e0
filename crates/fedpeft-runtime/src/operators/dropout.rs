//! `Dropout(X, seed, layer, rate) -> Y`

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType,
};

use super::split::{Input, for_rows, output, same_shape};
use crate::kernels::{DropoutMask, dropout};

pub(super) struct Dropout;

impl Operator for Dropout {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Dropout"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Int64};
        [Float32, Int64, Int64, Float32].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        output()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        same_shape(context, 0)
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        Ok(Box::new(compute))
    }
}

fn compute(context: &ComputeContext) -> ort::Result<()> {
    let input = Input::get(context, 0)?;
    let [seed, layer] = [Input::get(context, 1)?.whole()?, Input::get(context, 2)?.whole()?];
    let rate = Input::get(context, 3)?;
    let &[rate] = rate.values()? else { return Err(ort::Error::new("Dropout: rate is not one number")) };
    let mask = DropoutMask::new(seed, layer, rate);
    let (shape, x) = (input.shape()?, input.values()?);
    let Some(mut y) = context.output(0, shape)? else { return Ok(()) };
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    for_rows(context, y, 1, |start, y| dropout(mask, start, &x[start..start + y.len()], y))
}
