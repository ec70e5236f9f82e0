//! Losses: from logits and labels to the outputs `loss`, `correct` and `count`.

use fedpeft_onnx::{DType, Node, Tensor};
use fedpeft_passes::{Builder, Extent, PassError, Type};

use crate::manifest::{CORRECT, COUNT, IGNORED, LABELS, LOSS, TaskSpec};

type Result<T = ()> = std::result::Result<T, PassError>;

/// What a loss is a mean over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The batch: a scalar.
    Batch,
    /// One example, whatever the others are: `[N]`. Classes weigh as they say, not in relation to those of the batch.
    Example,
}

/// What a loss gives: values that become graph outputs.
struct Scores {
    /// Mean loss, `f32`, a scalar or one for each example.
    loss: String,
    /// Right decisions, `i64` scalar.
    correct: String,
    /// Decisions, `i64` scalar.
    count: String,
}

/// Adds the input [`LABELS`] and the outputs [`LOSS`], [`CORRECT`] and [`COUNT`] for `logits`.
pub fn attach(b: &mut Builder, logits: &str, task: &TaskSpec) -> Result {
    let loss = scores(b, logits, task, Over::Batch)?;
    b.output(&loss, LOSS)
}

/// Adds the input [`LABELS`] and the outputs [`CORRECT`] and [`COUNT`] for `logits`; returns the loss of each example,
/// `[N]`.
pub fn attach_each(b: &mut Builder, logits: &str, task: &TaskSpec) -> Result<String> {
    scores(b, logits, task, Over::Example)
}

fn scores(b: &mut Builder, logits: &str, task: &TaskSpec, over: Over) -> Result<String> {
    let scores = match task {
        TaskSpec::Classification { label_smoothing, class_weights, .. } => {
            classification(b, logits, *label_smoothing, class_weights, over)?
        }
        TaskSpec::MultiLabel { pos_weight, .. } => multi_label(b, logits, pos_weight, over)?,
        TaskSpec::Regression { .. } => regression(b, logits, over)?,
        TaskSpec::CausalLm { .. } => causal_lm(b, logits, over)?,
    };
    b.output(&scores.correct, CORRECT)?;
    b.output(&scores.count, COUNT)?;
    Ok(scores.loss)
}

/// Cross-entropy. With label smoothing e, over K classes of weight w, PyTorch's
/// `sum_nc q_nc w_c (-log p_nc) / sum_n w_label(n)` where `q_nc = (1 - e) [c = label(n)] + e / K`.
fn classification(
    b: &mut Builder,
    logits: &str,
    smoothing: f32,
    weights: &[f32],
    over: Over,
) -> Result<Scores> {
    b.input(LABELS, Type::new(DType::I64, vec![Extent::N]));
    let weights = (!weights.is_empty()).then(|| b.constant(Tensor::f32([weights.len()], weights)));
    let loss = if smoothing == 0.0 {
        let inputs: Vec<&str> = [logits, LABELS].into_iter().chain(weights.as_deref()).collect();
        b.add(Node::new("SoftmaxCrossEntropyLoss", &inputs, &[]).with("reduction", over.reduction()))?
    } else {
        smoothed(b, logits, smoothing, weights.as_deref(), over)?
    };
    let correct = hits(b, logits, LABELS)?;
    let count = b.batch_size()?;
    Ok(Scores { loss, correct, count: b.reshape(&count, &[])? })
}

fn smoothed(
    b: &mut Builder,
    logits: &str,
    smoothing: f32,
    weights: Option<&str>,
    over: Over,
) -> Result<String> {
    let classes = b.ty(logits)?.last().unwrap_or(0);
    let off = smoothing / classes as f32;
    let values = b.constant(Tensor::f32([2], &[off, 1.0 - smoothing + off]));
    let depth = b.ints(&[classes]);
    let target = b.op("OneHot", &[LABELS, &depth, &values])?;
    let target = match weights {
        Some(weights) => b.op("Mul", &[&target, weights])?,
        None => target,
    };
    let log_probabilities = b.add(Node::new("LogSoftmax", &[logits], &[]).with("axis", -1i64))?;
    let product = b.op("Mul", &[&log_probabilities, &target])?;
    if over == Over::Example {
        let likelihood = sum_behind_first(b, &product)?;
        return b.op("Neg", &[&likelihood]);
    }
    let total = match weights {
        Some(weights) => {
            let chosen = b.op("Gather", &[weights, LABELS])?;
            sum(b, &chosen)?
        }
        None => {
            let batch = b.batch_size()?;
            let batch = cast(b, &batch, DType::F32)?;
            b.reshape(&batch, &[])?
        }
    };
    let likelihood = sum(b, &product)?;
    let negative = b.op("Neg", &[&likelihood])?;
    b.op("Div", &[&negative, &total])
}

/// Binary cross-entropy of each label, from logits x and labels y:
/// `softplus(x) - x y`; with weights p of the positive, `p y softplus(-x) + (1 - y) softplus(x)`.
fn multi_label(b: &mut Builder, logits: &str, pos_weight: &[f32], over: Over) -> Result<Scores> {
    let shape = b.ty(logits)?.shape.clone();
    b.input(LABELS, Type::new(DType::F32, shape));
    let negative_loss = b.op("Softplus", &[logits])?;
    let losses = if pos_weight.is_empty() {
        let product = b.op("Mul", &[logits, LABELS])?;
        b.op("Sub", &[&negative_loss, &product])?
    } else {
        let weights = b.constant(Tensor::f32([pos_weight.len()], pos_weight));
        let one = b.scalar(1.0);
        let opposite = b.op("Neg", &[logits])?;
        let positive_loss = b.op("Softplus", &[&opposite])?;
        let positive = b.op("Mul", &[LABELS, &weights])?;
        let positive = b.op("Mul", &[&positive, &positive_loss])?;
        let absent = b.op("Sub", &[&one, LABELS])?;
        let negative = b.op("Mul", &[&absent, &negative_loss])?;
        b.op("Add", &[&positive, &negative])?
    };
    let loss = mean(b, &losses, over)?;
    let (zero, half) = (b.scalar(0.0), b.scalar(0.5));
    let predicted = b.op("Greater", &[logits, &zero])?;
    let expected = b.op("Greater", &[LABELS, &half])?;
    let right = b.op("Equal", &[&predicted, &expected])?;
    let correct = count_true(b, &right)?;
    let width = b.ty(logits)?.last().unwrap_or(0);
    let count = b.extents(&[Extent { factor: width, batch: true }])?;
    Ok(Scores { loss, correct, count: b.reshape(&count, &[])? })
}

/// Mean squared error. Nothing is decided.
fn regression(b: &mut Builder, predicted: &str, over: Over) -> Result<Scores> {
    let shape = b.ty(predicted)?.shape.clone();
    b.input(LABELS, Type::new(DType::F32, shape));
    let difference = b.op("Sub", &[predicted, LABELS])?;
    let squares = b.op("Mul", &[&difference, &difference])?;
    let none = b.constant(Tensor::i64([], &[0]));
    Ok(Scores { loss: mean(b, &squares, over)?, correct: none.clone(), count: none })
}

/// Cross-entropy of each token given those before it, a mean over the scored ones. Labels are shifted rather
/// than logits, which are much larger: the last position has nothing to predict and is ignored.
fn causal_lm(b: &mut Builder, logits: &str, over: Over) -> Result<Scores> {
    let shape = b.ty(logits)?.shape.clone();
    let [batch, tokens, vocabulary] = shape[..] else {
        return Err(PassError::Input(format!("logits {shape:?} are not [N, T, vocabulary]")));
    };
    b.input(LABELS, Type::new(DType::I64, vec![batch, tokens]));
    let (start, end, axis) = (b.ints(&[1]), b.ints(&[i64::MAX]), b.ints(&[1]));
    let following = b.op("Slice", &[LABELS, &start, &end, &axis])?;
    let ignored = b.constant(Tensor::i64([], &[IGNORED]));
    let column = b.extents(&[batch, Extent::fixed(1)])?;
    let column = b.op("Expand", &[&ignored, &column])?;
    let labels = b.add(Node::new("Concat", &[&following, &column], &[]).with("axis", 1i64))?;
    let positions = batch.times(tokens);
    let positions =
        positions.ok_or_else(|| PassError::Input("the tokens are quadratic in the batch".into()))?;
    let labels = b.reshape(&labels, &[positions])?;
    let rows = b.reshape(logits, &[positions, vocabulary])?;
    let node = Node::new("SoftmaxCrossEntropyLoss", &[&rows, &labels], &[]);
    let loss = b.add(node.with("reduction", over.reduction()).with("ignore_index", IGNORED))?;
    let is_ignored = b.op("Equal", &[&labels, &ignored])?;
    let is_scored = b.op("Not", &[&is_ignored])?;
    let count = count_true(b, &is_scored)?;
    let loss = match over {
        // The mean over no token at all is no number; such a batch teaches nothing, and must not end the training.
        Over::Batch => {
            let (nothing, zero) = (b.constant(Tensor::i64([], &[0])), b.scalar(0.0));
            let any = b.op("Greater", &[&count, &nothing])?;
            b.op("Where", &[&any, &loss, &zero])?
        }
        Over::Example => {
            let (losses, scored) = (b.reshape(&loss, &[batch, tokens])?, cast(b, &is_scored, DType::F32)?);
            let scored = b.reshape(&scored, &[batch, tokens])?;
            let (total, scored) = (sum_behind_first(b, &losses)?, sum_behind_first(b, &scored)?);
            let one = b.scalar(1.0);
            let scored = b.op("Max", &[&scored, &one])?;
            b.op("Div", &[&total, &scored])?
        }
    };
    // An ignored label equals no prediction.
    Ok(Scores { loss, correct: hits(b, &rows, &labels)?, count })
}

/// Rows of `logits` whose largest value is at their label.
fn hits(b: &mut Builder, logits: &str, labels: &str) -> Result<String> {
    let predicted = b.add(Node::new("ArgMax", &[logits], &[]).with("axis", -1i64).with("keepdims", 0i64))?;
    let right = b.op("Equal", &[&predicted, labels])?;
    count_true(b, &right)
}

fn count_true(b: &mut Builder, condition: &str) -> Result<String> {
    let ones = cast(b, condition, DType::I64)?;
    sum(b, &ones)
}

fn cast(b: &mut Builder, value: &str, to: DType) -> Result<String> {
    b.add(Node::new("Cast", &[value], &[]).with("to", i64::from(to.code())))
}

/// Sum over all dimensions.
fn sum(b: &mut Builder, value: &str) -> Result<String> {
    b.add(Node::new("ReduceSum", &[value], &[]).with("keepdims", 0i64))
}

/// Sum over all dimensions but the first.
fn sum_behind_first(b: &mut Builder, value: &str) -> Result<String> {
    let axes = behind_first(b, value)?;
    b.add(Node::new("ReduceSum", &[value, &axes], &[]).with("keepdims", 0i64))
}

fn behind_first(b: &mut Builder, value: &str) -> Result<String> {
    let rank = b.ty(value)?.rank() as i64;
    Ok(b.ints(&(1..rank).collect::<Vec<_>>()))
}

/// Mean over all dimensions, those of each example alone where that is asked for.
fn mean(b: &mut Builder, value: &str, over: Over) -> Result<String> {
    let node = match over {
        Over::Batch => Node::new("ReduceMean", &[value], &[]),
        Over::Example => Node::new("ReduceMean", &[value, &behind_first(b, value)?], &[]),
    };
    b.add(node.with("keepdims", 0i64))
}

impl Over {
    /// What `SoftmaxCrossEntropyLoss` calls it.
    fn reduction(self) -> &'static str {
        match self {
            Self::Batch => "mean",
            Self::Example => "none",
        }
    }
}
