//! From an export to a graph that can be differentiated.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::{DType, Dim, Graph, Model, Node, ValueInfo, opset, surgery};

use crate::{PassError, Type, fold::fold, fuse::fuse, infer_graph, lower::lower};

/// What to make of a model.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The value at which to cut.
    pub output: String,
    /// Shape of one example at the model's input, without the batch dimension.
    pub input_shape: Vec<usize>,
}

/// A backbone ready for surgery.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// One input, one output; only the batch is not known.
    pub graph: Graph,
    /// The source model's weights among the initializers: what could be trained.
    pub parameters: BTreeSet<String>,
    /// Type of the output.
    pub output: Type,
}

impl Prepared {
    /// Folds everything that does not depend on the input or on `trainable` parameters.
    pub fn fold_frozen(&mut self, trainable: &BTreeSet<String>) -> Result<(), PassError> {
        fold(&mut self.graph, trainable)
    }
}

/// Cuts `model` at a value, fixes all sizes but the batch, folds, fuses and lowers.
///
/// # Errors
/// [`PassError`] naming the node or value at which preparation stopped.
pub fn prepare(mut model: Model, options: &PrepareOptions) -> Result<Prepared, PassError> {
    opset::upgrade(&mut model)?;
    let mut graph = model.graph;
    surgery::cut(&mut graph, &options.output)?;
    let parameters = name_parameters(&mut graph);
    fix_input(&mut graph, &options.input_shape)?;
    fold(&mut graph, &parameters)?;
    fuse(&mut graph)?;
    lower(&mut graph)?;
    fold(&mut graph, &parameters)?;
    let types = infer_graph(&graph)?;
    let name = &graph.outputs[0].name;
    let output = types
        .get(name)
        .cloned()
        .ok_or_else(|| PassError::Input(format!("{name:?} is computed by nothing")))?;
    let parameters = parameters.into_iter().filter(|name| graph.initializers.contains_key(name)).collect();
    Ok(Prepared { graph, parameters, output })
}

/// Declares the input as `[N, ..shape]`.
fn fix_input(graph: &mut Graph, shape: &[usize]) -> Result<(), PassError> {
    let [input] = &mut graph.inputs[..] else {
        let names: Vec<_> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(PassError::Input(format!(
            "one input is supported, the model has {}: {}",
            names.len(),
            names.join(", ")
        )));
    };
    let declared = input.shape.as_ref().map_or(shape.len() + 1, Vec::len);
    if declared != shape.len() + 1 || shape.contains(&0) {
        return Err(PassError::Input(format!(
            "input {:?} has rank {declared}, which the example shape {shape:?} and a batch do not give",
            input.name
        )));
    }
    let dims = std::iter::once(Dim::Symbol("N".into())).chain(Dim::fixed(shape)).collect();
    *input = ValueInfo { name: input.name.clone(), dtype: DType::F32, shape: Some(dims) };
    Ok(())
}

/// The model's weights. Anonymous ones (exporters rename what they transpose) are named after the node that
/// reads them: `/encoder/layer.0/key/MatMul` gives `encoder.layer.0.key.weight`.
fn name_parameters(graph: &mut Graph) -> BTreeSet<String> {
    let is_parameter = |t: &fedpeft_onnx::Tensor| t.dtype.is_float() && !t.shape.is_empty() && t.len() > 1;
    let names: Vec<_> =
        graph.initializers.iter().filter(|(_, t)| is_parameter(t)).map(|(n, _)| n.clone()).collect();
    let mut taken: BTreeSet<String> = graph.initializers.keys().cloned().collect();
    let mut renames = BTreeMap::new();
    for name in names.iter().filter(|name| is_anonymous(name)) {
        let reader = graph.nodes.iter().find(|node| node.inputs.contains(name));
        let Some(base) = reader.and_then(|node| readable_name(node, name)) else { continue };
        let unique = (1..)
            .map(|i| if i == 1 { base.clone() } else { format!("{base}.{i}") })
            .find(|n| !taken.contains(n));
        if let Some(unique) = unique {
            taken.insert(unique.clone());
            renames.insert(name.clone(), unique);
        }
    }
    for (old, new) in &renames {
        surgery::redirect(graph, old, new);
        if let Some(tensor) = graph.initializers.remove(old) {
            graph.initializers.insert(new.clone(), tensor);
        }
    }
    names.into_iter().map(|name| renames.get(&name).cloned().unwrap_or(name)).collect()
}

fn is_anonymous(name: &str) -> bool {
    name.starts_with("onnx::") || name.starts_with("val_") || name.chars().all(|c| c.is_ascii_digit())
}

fn readable_name(node: &Node, input: &str) -> Option<String> {
    let (path, op) = node.name.trim_start_matches('/').rsplit_once('/')?;
    let role = match node.op.as_str() {
        "MatMul" | "Gemm" | "Conv" if node.inputs.first().is_some_and(|first| first != input) => {
            "weight".to_owned()
        }
        _ => format!("{}.value", op.to_ascii_lowercase()),
    };
    Some(format!("{}.{role}", path.replace('/', ".")))
}
