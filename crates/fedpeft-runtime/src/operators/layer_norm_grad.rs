//! `LayerNormGrad(dY, X, scale, mean, inv_std_dev, residual?) -> dX`, over the last axis; `residual` is added

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType,
};

use super::split::{Input, expect_len, for_rows, inputs, output, same_shape};
use crate::kernels::{self, Normalized};

pub(super) struct LayerNormGrad;

impl Operator for LayerNormGrad {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "LayerNormGrad"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<5>().into_iter().chain([OperatorInput::optional(TensorElementType::Float32)])
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
    let (dy, x, scale) = (Input::get(context, 0)?, Input::get(context, 1)?, Input::get(context, 2)?);
    let (mean, inv_std_dev) = (Input::get(context, 3)?, Input::get(context, 4)?);
    let shape = x.shape()?;
    let (dy, (x, columns), scale) = (dy.values()?, x.rows()?, scale.values()?);
    let (mean, inv_std_dev) = (mean.values()?, inv_std_dev.values()?);
    let rows = x.len() / columns.max(1);
    expect_len("LayerNormGrad: dY", dy.len(), x.len())?;
    expect_len("LayerNormGrad: scale", scale.len(), columns)?;
    expect_len("LayerNormGrad: mean", mean.len(), rows)?;
    expect_len("LayerNormGrad: inv_std_dev", inv_std_dev.len(), rows)?;
    let residual = (context.num_inputs()? > 5).then(|| Input::get(context, 5)).transpose()?;
    let residual = residual.as_ref().map(Input::values).transpose()?;
    expect_len("LayerNormGrad: residual", residual.map_or(x.len(), <[f32]>::len), x.len())?;
    let Some(mut dx) = context.output(0, shape)? else { return Ok(()) };
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    for_rows(context, dx, columns, |first, dx| {
        let (start, last) = (first * columns, first + dx.len() / columns);
        let range = start..start + dx.len();
        let forward = Normalized {
            x: &x[range.clone()],
            scale,
            mean: &mean[first..last],
            inv_std_dev: &inv_std_dev[first..last],
        };
        let residual = residual.map(|residual| &residual[range.clone()]);
        kernels::layer_norm_grad(&dy[range], forward, residual, dx);
    })
}
