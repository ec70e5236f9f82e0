//! The operators, one file per family, and the table that finds them.

mod arrange;
mod conv;
mod convert;
mod create;
mod elementwise;
mod gather;
mod join;
mod linear;
mod loss;
mod norm;
mod reduce;
pub(crate) mod resize;
mod scatter;

use fedpeft_onnx::Node;

use crate::{
    InterpError, Value,
    call::Call,
    error::{Result, invalid, unsupported},
};

/// How to evaluate an operator: into one value, or several.
enum Operator {
    One(fn(&Call<'_>) -> Result<Value>),
    Many(fn(&Call<'_>) -> Result<Vec<Value>>),
}

/// Applies the standard operator of `node`. The result has every output the operator can give, in its order,
/// also those that `node` does not name.
///
/// # Errors
/// [`InterpError::Node`] with the node's label; [`InterpError::is_unsupported`] tells what this evaluator
/// cannot do from what is wrong.
pub fn eval_node(node: &Node, inputs: &[Option<&Value>]) -> std::result::Result<Vec<Value>, InterpError> {
    apply(&Call { node, inputs }).map_err(|fault| fault.at(node.label()))
}

/// Whether `op` is a standard operator that [`eval_node`] knows.
pub fn supports(op: &str) -> bool {
    find(op).is_some()
}

fn apply(call: &Call<'_>) -> Result<Vec<Value>> {
    if !call.node.domain.is_empty() {
        unsupported!("operators of domain {:?} cannot be evaluated", call.node.domain);
    }
    let values = match find(&call.node.op) {
        Some(Operator::One(operator)) => vec![operator(call)?],
        Some(Operator::Many(operator)) => operator(call)?,
        None => unsupported!("this operator cannot be evaluated"),
    };
    if values.len() < call.node.outputs.len() {
        invalid!("the node names {} outputs, the operator has {}", call.node.outputs.len(), values.len());
    }
    Ok(values)
}

fn find(op: &str) -> Option<Operator> {
    use Operator::{Many, One};
    Some(match op {
        "Constant" => One(create::constant),
        "ConstantOfShape" => One(create::constant_of_shape),
        "Range" => One(create::range),
        "OneHot" => One(create::one_hot),
        "Shape" => One(create::shape),
        "Size" => One(create::size),

        "Identity" => One(|call| call.value(0).cloned()),
        "Cast" => One(convert::cast),

        "Reshape" => One(arrange::reshape),
        "Flatten" => One(arrange::flatten),
        "Squeeze" => One(arrange::squeeze),
        "Unsqueeze" => One(arrange::unsqueeze),
        "Transpose" => One(arrange::transpose),
        "Expand" => One(arrange::expand),
        "Trilu" => One(arrange::trilu),

        "Concat" => One(join::concat),
        "Split" => Many(join::split),
        "Pad" => One(join::pad),
        "Tile" => One(join::tile),

        "Slice" => One(gather::slice),
        "Gather" => One(gather::gather),
        "GatherElements" => One(gather::gather_elements),
        "GatherND" => One(gather::gather_nd),
        "ScatterElements" => One(scatter::scatter_elements),
        "ScatterND" => One(scatter::scatter_nd),

        "Where" => One(elementwise::select),
        "Equal" => One(elementwise::equal),
        "Greater" => One(|call| elementwise::compare(call, |a, b| a > b, |a, b| a > b)),
        "GreaterOrEqual" => One(|call| elementwise::compare(call, |a, b| a >= b, |a, b| a >= b)),
        "Less" => One(|call| elementwise::compare(call, |a, b| a < b, |a, b| a < b)),
        "LessOrEqual" => One(|call| elementwise::compare(call, |a, b| a <= b, |a, b| a <= b)),
        "Not" => One(elementwise::not),
        "IsNaN" => One(|call| Ok(Value::Bool(call.float(0)?.mapv(f64::is_nan)))),
        "And" => One(|call| elementwise::logic(call, |a, b| a && b)),
        "Or" => One(|call| elementwise::logic(call, |a, b| a || b)),
        "Xor" => One(|call| elementwise::logic(call, |a, b| a != b)),

        "Add" => One(|call| elementwise::arithmetic(call, |a, b| a + b, i64::wrapping_add)),
        "Sub" => One(|call| elementwise::arithmetic(call, |a, b| a - b, i64::wrapping_sub)),
        "Mul" => One(|call| elementwise::arithmetic(call, |a, b| a * b, i64::wrapping_mul)),
        "Div" => One(elementwise::div),
        "Mod" => One(elementwise::modulo),
        "Pow" => One(elementwise::pow),
        "Sum" => One(|call| elementwise::variadic(call, |a, b| a + b, i64::wrapping_add)),
        "Max" => One(|call| elementwise::variadic(call, elementwise::max, i64::max)),
        "Min" => One(|call| elementwise::variadic(call, elementwise::min, i64::min)),
        "Clip" => One(elementwise::clip),

        "Neg" => One(|call| elementwise::signed(call, |x| -x, i64::wrapping_neg)),
        "Abs" => One(|call| elementwise::signed(call, f64::abs, i64::wrapping_abs)),
        "Sign" => One(|call| elementwise::signed(call, elementwise::sign, i64::signum)),
        "Sqrt" => One(|call| elementwise::map(call, f64::sqrt)),
        "Reciprocal" => One(|call| elementwise::map(call, f64::recip)),
        "Exp" => One(|call| elementwise::map(call, f64::exp)),
        "Log" => One(|call| elementwise::map(call, f64::ln)),
        "Erf" => One(|call| elementwise::map(call, libm::erf)),
        "Tanh" => One(|call| elementwise::map(call, f64::tanh)),
        "Sigmoid" => One(|call| elementwise::map(call, elementwise::sigmoid)),
        "Softplus" => One(|call| elementwise::map(call, elementwise::softplus)),
        "Relu" => One(|call| elementwise::signed(call, elementwise::relu, |x| x.max(0))),
        "Sin" => One(|call| elementwise::map(call, f64::sin)),
        "Cos" => One(|call| elementwise::map(call, f64::cos)),
        "Floor" => One(|call| elementwise::map(call, f64::floor)),
        "Ceil" => One(|call| elementwise::map(call, f64::ceil)),
        "Round" => One(|call| elementwise::map(call, f64::round_ties_even)),
        "Gelu" => One(elementwise::gelu),

        "MatMul" => One(linear::matmul),
        "Gemm" => One(linear::gemm),
        "Conv" => One(conv::conv),
        "ConvTranspose" => One(conv::conv_transpose),

        "Softmax" => One(norm::softmax),
        "LogSoftmax" => One(norm::log_softmax),
        "LayerNormalization" => Many(norm::layer_normalization),

        "ReduceSum" => One(|call| reduce::reduce(call, reduce::sum, Some(reduce::int_sum))),
        "ReduceProd" => One(|call| reduce::reduce(call, reduce::product, Some(reduce::int_product))),
        "ReduceMax" => One(|call| reduce::reduce(call, reduce::max, Some(reduce::int_max))),
        "ReduceMin" => One(|call| reduce::reduce(call, reduce::min, Some(reduce::int_min))),
        "ReduceMean" => One(|call| reduce::reduce(call, reduce::mean, None)),
        "ReduceL1" => One(|call| reduce::reduce(call, reduce::l1, None)),
        "ReduceL2" => One(|call| reduce::reduce(call, reduce::l2, None)),
        "ReduceSumSquare" => One(|call| reduce::reduce(call, reduce::sum_square, None)),
        "ReduceLogSumExp" => One(|call| reduce::reduce(call, reduce::log_sum_exp, None)),
        "ArgMax" => One(|call| reduce::arg(call, |a, b| a > b)),
        "ArgMin" => One(|call| reduce::arg(call, |a, b| a < b)),
        "CumSum" => One(reduce::cum_sum),

        "SoftmaxCrossEntropyLoss" => Many(loss::softmax_cross_entropy),
        "NegativeLogLikelihoodLoss" => One(loss::negative_log_likelihood),

        "Resize" => One(resize::resize),
        _ => return None,
    })
}
