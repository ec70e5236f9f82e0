//! `Attention(Q, K, V) -> Y, P` and `AttentionGrad(dY, Q, K, V, P) -> dQ, dK, dV`, with `Q`, `K` and `V` `[N, T, H, D]`

use ort::{
    operator::{
        BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType,
};

use super::split::{Input, expect_len, for_examples, inputs, shape_of};
use crate::kernels::{self, AttentionScratch, AttentionShape};

/// Attribute with the factor of the products of queries and keys.
pub(crate) const SCALE: &str = "scale";

fn outputs<const N: usize>() -> [OperatorOutput; N] {
    [const { OperatorOutput::required(TensorElementType::Float32) }; N]
}

fn scale(context: &KernelContext<'_>) -> ort::Result<f32> {
    context.get(SCALE).ok_or_else(|| ort::Error::new("attention has no scale"))
}

/// Queries and keys of all examples, and what those of one are like.
struct Sides {
    examples: usize,
    queries: [i64; 4],
    keys: [i64; 4],
    each: AttentionShape,
}

impl Sides {
    fn of(q: &Input<'_>, k: &Input<'_>, scale: f32) -> ort::Result<Self> {
        let (q, k) = (q.shape()?, k.shape()?);
        let (&[n, tq, h, d], &[m, tk, heads, width]) = (q.as_slice(), k.as_slice()) else {
            return Err(ort::Error::new("attention: queries and keys are not [N, T, H, D]"));
        };
        if (n, h, d) != (m, heads, width) {
            return Err(ort::Error::new(format!("attention: queries {q:?} do not belong to keys {k:?}")));
        }
        let size = |dim: i64| usize::try_from(dim).unwrap_or(0);
        let each =
            AttentionShape { queries: size(tq), keys: size(tk), heads: size(h), width: size(d), scale };
        Ok(Self { examples: size(n), queries: [n, tq, h, d], keys: [m, tk, heads, width], each })
    }

    /// Values of an example: of its queries, of its keys, and of its shares of attention.
    fn sizes(&self) -> [usize; 3] {
        let AttentionShape { queries, keys, heads, width, .. } = self.each;
        [queries * heads * width, keys * heads * width, heads * queries * self.each.padded()]
    }
}

pub(super) struct Attention;

impl Operator for Attention {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Attention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<3>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<2>()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        shape_of(context, 0, 0)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let scale = scale(context)?;
        Ok(Box::new(move |context: &ComputeContext| forward(context, scale)))
    }
}

fn forward(context: &ComputeContext, scale: f32) -> ort::Result<()> {
    let [q, k, v] = [Input::get(context, 0)?, Input::get(context, 1)?, Input::get(context, 2)?];
    let sides = Sides::of(&q, &k, scale)?;
    let [asked, given, shares] = sides.sizes();
    let [q, k, v] = [q.values()?, k.values()?, v.values()?];
    expect_len("Attention: V", v.len(), k.len())?;
    let [n, tq, h, _] = sides.queries;
    let Some(mut y) = context.output(0, sides.queries)? else { return Ok(()) };
    let Some(mut p) = context.output(1, [n, h, tq, sides.each.padded() as i64])? else { return Ok(()) };
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let (_, p) = p.try_extract_tensor_mut::<f32>()?;
    for_examples(context, sides.examples, [(y, asked), (p, shares)], |i, [y, p]| {
        let [q, k, v] =
            [(q, asked), (k, given), (v, given)].map(|(values, size)| &values[i * size..][..size]);
        kernels::attention(sides.each, [q, k, v], y, p, &mut AttentionScratch::default());
    })
}

pub(super) struct AttentionGrad;

impl Operator for AttentionGrad {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "AttentionGrad"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<5>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<3>()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        (0..3).try_for_each(|index| shape_of(context, index, index + 1))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let scale = scale(context)?;
        Ok(Box::new(move |context: &ComputeContext| backward(context, scale)))
    }
}

fn backward(context: &ComputeContext, scale: f32) -> ort::Result<()> {
    let [q, k, v] = [Input::get(context, 1)?, Input::get(context, 2)?, Input::get(context, 3)?];
    let (dy, p) = (Input::get(context, 0)?, Input::get(context, 4)?);
    let sides = Sides::of(&q, &k, scale)?;
    let [asked, given, shares] = sides.sizes();
    let [dy, q, k, v, p] = [dy.values()?, q.values()?, k.values()?, v.values()?, p.values()?];
    expect_len("AttentionGrad: dY", dy.len(), q.len())?;
    expect_len("AttentionGrad: V", v.len(), k.len())?;
    expect_len("AttentionGrad: P", p.len(), sides.examples * shares)?;
    let Some(mut dq) = context.output(0, sides.queries)? else { return Ok(()) };
    let Some(mut dk) = context.output(1, sides.keys)? else { return Ok(()) };
    let Some(mut dv) = context.output(2, sides.keys)? else { return Ok(()) };
    let (_, dq) = dq.try_extract_tensor_mut::<f32>()?;
    let (_, dk) = dk.try_extract_tensor_mut::<f32>()?;
    let (_, dv) = dv.try_extract_tensor_mut::<f32>()?;
    for_examples(context, sides.examples, [(dq, asked), (dk, given), (dv, given)], |i, gradients| {
        let [dy, q] = [dy, q].map(|values| &values[i * asked..][..asked]);
        let [k, v] = [k, v].map(|values| &values[i * given..][..given]);
        let p = &p[i * shares..][..shares];
        kernels::attention_grad(sides.each, dy, [q, k, v], p, gradients, &mut AttentionScratch::default());
    })
}
