//! The head: features times a matrix. It begins at zero, as in Dosovitskiy et al., arXiv 2010.11929, so that the
//! first loss of a classifier is exactly the logarithm of the number of classes.

use fedpeft_onnx::{DType, Node, Tensor};
use fedpeft_passes::{Builder, Extent, PassError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the head's weight, `[features, width]`.
pub const HEAD_WEIGHT: &str = "head.weight";
/// Name of the head's bias, `[width]`.
pub const HEAD_BIAS: &str = "head.bias";

/// How tokens `[N, T, features]` become one vector `[N, features]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token, the class token.
    #[default]
    Cls,
    /// The mean of all tokens that are no padding.
    Mean,
}

/// Appends pooling to the value `features`; returns one vector for each example, `[N, C]`. `mask` is the input
/// `[N, T]` that is 0 at padding, of a model that has one.
pub fn pool(
    b: &mut Builder,
    features: &str,
    pooling: Pooling,
    mask: Option<&str>,
) -> Result<String, PassError> {
    let ty = b.ty(features)?.clone();
    match (ty.rank(), pooling, mask) {
        (2, _, _) => Ok(features.to_owned()),
        (3, Pooling::Cls, _) => {
            let first = b.constant(Tensor::i64([], &[0]));
            b.add(Node::new("Gather", &[features, &first], &[]).with("axis", 1i64))
        }
        (3, Pooling::Mean, None) => {
            let tokens = b.ints(&[1]);
            b.add(Node::new("ReduceMean", &[features, &tokens], &[]).with("keepdims", 0i64))
        }
        (3, Pooling::Mean, Some(mask)) => masked_mean(b, features, mask),
        _ => Err(PassError::Input(format!(
            "the output {features:?} has shape {:?}: features [N, C] or tokens [N, T, C] are expected, choose another node",
            ty.shape
        ))),
    }
}

/// `sum_t mask[t] features[t] / sum_t mask[t]`, the sum as a product of `[N, 1, T]` and `[N, T, C]`. An example
/// that is all padding has zeros.
fn masked_mean(b: &mut Builder, features: &str, mask: &str) -> Result<String, PassError> {
    let float = i64::from(DType::F32.code());
    let mask = b.add(Node::new("Cast", &[mask], &[]).with("to", float))?;
    let (tokens, one) = (b.ints(&[1]), b.scalar(1.0));
    let weights = b.op("Unsqueeze", &[&mask, &tokens])?;
    let sum = b.op("MatMul", &[&weights, features])?;
    let sum = b.op("Squeeze", &[&sum, &tokens])?;
    let count = b.op("ReduceSum", &[&mask, &tokens])?;
    let count = b.op("Max", &[&count, &one])?;
    b.op("Div", &[&sum, &count])
}

/// Appends a head of `width` outputs to `features`, `[N, C]` or `[N, T, C]`; returns `[N, width]` or
/// `[N, T, width]`. The head's tensors become initializers.
pub fn attach(b: &mut Builder, features: &str, width: usize) -> Result<String, PassError> {
    let mut shape = b.ty(features)?.shape.clone();
    let columns = b.ty(features)?.last().unwrap_or(0) as usize;
    b.initializer(HEAD_WEIGHT, Tensor::f32([columns, width], &vec![0.0; columns * width]));
    b.initializer(HEAD_BIAS, Tensor::f32([width], &vec![0.0; width]));
    let rows = b.rows(features)?;
    let logits = b.add(Node::new("Gemm", &[&rows, HEAD_WEIGHT, HEAD_BIAS], &[]).named("head"))?;
    if let Some(last) = shape.last_mut() {
        *last = Extent::from(width);
    }
    b.reshape(&logits, &shape)
}
