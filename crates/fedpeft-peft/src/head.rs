//! The classification head: pooled features times a matrix. It begins at zero, as in Dosovitskiy et al.,
//! arXiv 2010.11929, so that the first loss is exactly the logarithm of the number of classes.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::{Builder, PassError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the head's weight, `[features, classes]`.
pub const HEAD_WEIGHT: &str = "head.weight";
/// Name of the head's bias, `[classes]`.
pub const HEAD_BIAS: &str = "head.bias";

/// How tokens `[N, T, features]` become one vector `[N, features]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token, the class token.
    #[default]
    Cls,
    /// The mean of all tokens.
    Mean,
}

/// Appends pooling and head to the value `features`; returns the logits `[N, classes]`. The head's tensors
/// become initializers.
pub fn attach(
    b: &mut Builder,
    features: &str,
    classes: usize,
    pooling: Pooling,
) -> Result<String, PassError> {
    let ty = b.ty(features)?.clone();
    let pooled = match (ty.rank(), pooling) {
        (2, _) => features.to_owned(),
        (3, Pooling::Cls) => {
            let first = b.constant(Tensor::i64([], &[0]));
            b.add(Node::new("Gather", &[features, &first], &[]).with("axis", 1i64))?
        }
        (3, Pooling::Mean) => {
            let tokens = b.ints(&[1]);
            b.add(Node::new("ReduceMean", &[features, &tokens], &[]).with("keepdims", 0i64))?
        }
        _ => {
            return Err(PassError::Input(format!(
                "the output {features:?} has shape {:?}: features [N, C] or tokens [N, T, C] are expected, choose another node",
                ty.shape
            )));
        }
    };
    let width = ty.last().unwrap_or(0) as usize;
    b.initializer(HEAD_WEIGHT, Tensor::f32([width, classes], &vec![0.0; width * classes]));
    b.initializer(HEAD_BIAS, Tensor::f32([classes], &vec![0.0; classes]));
    b.add(Node::new("Gemm", &[&pooled, HEAD_WEIGHT, HEAD_BIAS], &[]).named("head"))
}
