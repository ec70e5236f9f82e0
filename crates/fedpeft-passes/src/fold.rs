//! Constant folding: what depends neither on the input nor on a parameter that may be trained is computed
//! now, and shape arithmetic disappears.

use std::collections::{BTreeSet, HashMap};

use fedpeft_interp::{Value, eval_node};
use fedpeft_onnx::{Attribute, DType, Graph, Node, Tensor, surgery};

use crate::{
    Builder, Extent, PassError,
    extent::reshape_target,
    infer::{Fact, infer_node},
};

/// Folds `graph`. Nodes that read a tensor named in `parameters` are left as they are.
///
/// # Errors
/// [`PassError`] naming the node whose types do not fit.
pub fn fold(graph: &mut Graph, parameters: &BTreeSet<String>) -> Result<(), PassError> {
    let mut builder = Builder::without_nodes(graph, "fold.")?;
    let mut values: HashMap<String, Value> = HashMap::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        for input in &mut node.inputs {
            if let Some(name) = renamed.get(input) {
                input.clone_from(name);
            }
        }
        let facts = infer_node(&node, builder.types())?;
        let outputs = graph.outputs.iter().map(|output| output.name.as_str());
        let is_output = outputs.clone().any(|name| node.outputs.iter().any(|o| o == name));
        if !is_output && is_copy(&node, &builder) {
            renamed.insert(node.outputs[0].clone(), node.inputs[0].clone());
            continue;
        }
        if let [fact] = &facts[..]
            && let Some(known) =
                fact.ints.as_ref().and_then(|ints| ints.iter().map(|e| e.known()).collect::<Option<Vec<_>>>())
            && let Some(tensor) = int_tensor(fact.ty.dtype, fact.ty.known_shape(), &known)
        {
            builder.initializer(&node.outputs[0], tensor);
            continue;
        }
        let constant = |name: &String| {
            name.is_empty() || (builder.graph().initializers.contains_key(name) && !parameters.contains(name))
        };
        if node.domain.is_empty() && node.inputs.iter().all(constant) && is_cheap(&node, &facts, &builder) {
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                if !values.contains_key(name) {
                    values.insert(name.clone(), Value::from_tensor(&builder.graph().initializers[name])?);
                }
            }
            let inputs: Vec<_> = node.inputs.iter().map(|name| values.get(name)).collect();
            let results = match node.attributes.get("value") {
                Some(Attribute::Tensor(tensor)) if node.is("Constant") => {
                    builder.initializer(&node.outputs[0], tensor.clone());
                    continue;
                }
                _ => eval_node(&node, &inputs)?,
            };
            for ((name, value), fact) in
                node.outputs.iter().zip(results).zip(facts).filter(|((n, _), _)| !n.is_empty())
            {
                builder.initializer(name, value.to_tensor(fact.ty.dtype)?);
            }
            continue;
        }
        simplify_shapes(&mut node, &facts[0].ty.shape, &mut builder)?;
        builder.push(node)?;
    }
    let mut folded = builder.finish();
    for output in &mut folded.outputs {
        if let Some(name) = renamed.get(&output.name) {
            output.name.clone_from(name);
        }
    }
    *graph = folded;
    Ok(surgery::prune(graph)?)
}

/// Whether `node` only hands on its first input.
fn is_copy(node: &Node, builder: &Builder) -> bool {
    let ty = |name: Option<&str>| name.and_then(|name| builder.types().get(name));
    let Some(input) = ty(node.input(0)) else { return false };
    match node.op.as_str() {
        _ if !node.domain.is_empty() => false,
        "Identity" => true,
        "Dropout" => node.outputs.iter().skip(1).all(String::is_empty),
        "Cast" => node.int("to") == Some(input.dtype.code().into()),
        _ => false,
    }
}

/// Whether folding `node` pays. A large weight given another shape would be stored a second time, and the
/// runtime reshapes it for nothing. And a model is a stranger's: what it can make us compute here is bounded.
fn is_cheap(node: &Node, facts: &[Fact], builder: &Builder) -> bool {
    const LARGE_BYTES: usize = 1 << 16;
    const MAX_ELEMENTS: i64 = 1 << 22;
    let inputs = node.inputs.iter().filter_map(|name| builder.graph().initializers.get(name));
    let mut sizes = inputs.clone().map(|tensor| tensor.len() as i64);
    let small = |fact: &Fact| {
        let known = fact.ty.shape.iter().try_fold(1i64, |product, e| product.checked_mul(e.known()?));
        known.is_some_and(|len| len <= MAX_ELEMENTS)
    };
    let reshapes_weight = node.is("Reshape") && inputs.clone().any(|tensor| tensor.byte_len() > LARGE_BYTES);
    !reshapes_weight && sizes.all(|len| len <= MAX_ELEMENTS) && facts.iter().all(small)
}

fn int_tensor(dtype: DType, shape: Option<Vec<usize>>, values: &[i64]) -> Option<Tensor> {
    let shape = shape.filter(|shape| shape.iter().product::<usize>() == values.len())?;
    match dtype {
        DType::I64 => Some(Tensor::i64(shape, values)),
        DType::Bool => Some(Tensor::bool(shape, &values.iter().map(|v| *v != 0).collect::<Vec<_>>())),
        _ => None,
    }
}

/// Replaces a computed shape by a constant, or where it contains the batch by the shortest computation of it.
fn simplify_shapes(node: &mut Node, output: &[Extent], builder: &mut Builder) -> Result<(), PassError> {
    let known = |builder: &Builder, name: &str| builder.graph().initializers.contains_key(name);
    match node.op.as_str() {
        "Reshape" => {
            if let Some(target) = reshape_target(output) {
                node.attributes.remove("allowzero");
                node.inputs[1] = builder.ints(&target);
            }
        }
        "Expand" | "ConstantOfShape" | "Tile" => {
            let index = usize::from(node.op != "ConstantOfShape");
            let extents = builder.types().ints(&node.inputs[index]).map(<[_]>::to_vec);
            if let Some(extents) = extents.filter(|_| !known(builder, &node.inputs[index])) {
                node.inputs[index] = builder.extents(&extents)?;
            }
        }
        _ => {}
    }
    Ok(())
}
