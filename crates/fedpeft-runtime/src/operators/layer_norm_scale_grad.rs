//! `LayerNormScaleGrad(dY, X, mean, inv_std_dev) -> dscale`, over all axes but the last

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};

use super::{
    reduce_rows::columns_of,
    split::{Input, expect_len, for_parts, inputs, output},
};
use crate::kernels::{self, ROWS_PER_PART};

pub(super) struct LayerNormScaleGrad;

impl Operator for LayerNormScaleGrad {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "LayerNormScaleGrad"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<4>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        output()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        columns_of(context, 1)
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let mut parts = Vec::new();
        Ok(Box::new(move |context: &ComputeContext| compute(context, &mut parts)))
    }
}

/// `parts` is kept between runs, so that a step allocates nothing.
fn compute(context: &ComputeContext, parts: &mut Vec<f32>) -> ort::Result<()> {
    let (dy, x) = (Input::get(context, 0)?, Input::get(context, 1)?);
    let (mean, inv_std_dev) = (Input::get(context, 2)?, Input::get(context, 3)?);
    let (dy, (x, columns), mean, inv_std_dev) =
        (dy.values()?, x.rows()?, mean.values()?, inv_std_dev.values()?);
    let rows = x.len() / columns.max(1);
    expect_len("LayerNormScaleGrad: dY", dy.len(), x.len())?;
    expect_len("LayerNormScaleGrad: mean", mean.len(), rows)?;
    expect_len("LayerNormScaleGrad: inv_std_dev", inv_std_dev.len(), rows)?;
    let Some(mut sums) = context.output(0, [columns])? else { return Ok(()) };
    let (_, sums) = sums.try_extract_tensor_mut::<f32>()?;
    sums.fill(0.0);
    if x.is_empty() {
        return Ok(());
    }
    parts.resize(rows.div_ceil(ROWS_PER_PART) * columns, 0.0);
    for_parts(context, parts, columns, |index, sums| {
        let (first, last) = (index * ROWS_PER_PART, rows.min((index + 1) * ROWS_PER_PART));
        let values = first * columns..last * columns;
        let statistics = [&mean[first..last], &inv_std_dev[first..last]];
        kernels::layer_norm_scale_grad(&dy[values.clone()], &x[values], statistics, sums);
    })?;
    kernels::combine_parts(parts, sums);
    Ok(())
}
