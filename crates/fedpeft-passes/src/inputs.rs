//! Giving every input of a model its type: the batch first, every other size known.

use fedpeft_onnx::{DType, Dim, Graph, Node, ValueInfo, surgery};

use crate::PassError;

/// One input of a model: `[N, ..shape]` values of `dtype`, N dynamic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputDecl {
    /// Its name; without one, inputs are taken in the model's order.
    pub name: Option<String>,
    /// Type of what callers give. A model that declares another one gets a conversion.
    pub dtype: DType,
    /// Shape of one example.
    pub shape: Vec<usize>,
}

/// Gives `graph` the inputs `declared`, in their order.
pub(crate) fn declare(graph: &mut Graph, declared: &[InputDecl]) -> Result<(), PassError> {
    let mut rest = std::mem::take(&mut graph.inputs);
    let names = |inputs: &[ValueInfo]| {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let all = names(&rest);
    // Named ones first, so that the unnamed take what is left.
    let mut found: Vec<Option<ValueInfo>> = Vec::new();
    for decl in declared {
        let at = decl.name.as_ref().map(|name| {
            rest.iter().position(|input| input.name == *name).ok_or_else(|| {
                PassError::Input(format!("the model has no input {name:?} before its cut; inputs: {all}"))
            })
        });
        found.push(at.transpose()?.map(|at| rest.remove(at)));
    }
    for input in found.iter_mut().filter(|input| input.is_none()) {
        if rest.is_empty() {
            let count = declared.len();
            return Err(PassError::Input(format!("{count} inputs are declared, the model has: {all}")));
        }
        *input = Some(rest.remove(0));
    }
    if !rest.is_empty() {
        let missing = names(&rest);
        return Err(PassError::Input(format!(
            "inputs that are not declared: {missing}; declare every input"
        )));
    }
    let mut casts = Vec::new();
    for (input, decl) in found.into_iter().flatten().zip(declared) {
        check_shape(&input, &decl.shape)?;
        if input.dtype != decl.dtype {
            casts.push(conversion(graph, &input, decl.dtype)?);
        }
        let dims = std::iter::once(Dim::Symbol("N".into())).chain(Dim::fixed(&decl.shape)).collect();
        graph.inputs.push(ValueInfo { name: input.name, dtype: decl.dtype, shape: Some(dims) });
    }
    graph.nodes.splice(0..0, casts);
    Ok(())
}

fn check_shape(input: &ValueInfo, shape: &[usize]) -> Result<(), PassError> {
    let declared = input.shape.as_ref().map_or(shape.len() + 1, Vec::len);
    if declared != shape.len() + 1 || shape.contains(&0) {
        return Err(PassError::Input(format!(
            "input {:?} has rank {declared}, which the example shape {shape:?} and a batch do not give",
            input.name
        )));
    }
    Ok(())
}

/// A node that turns what callers give into what the model's readers of `input` expect.
fn conversion(graph: &mut Graph, input: &ValueInfo, given: DType) -> Result<Node, PassError> {
    if input.dtype.is_float() != given.is_float() && given != DType::I64 {
        return Err(PassError::Input(format!(
            "input {:?} is declared as {given:?}, the model reads {:?}: declare it as integers",
            input.name, input.dtype
        )));
    }
    let converted = format!("{}.converted", input.name);
    surgery::redirect(graph, &input.name, &converted);
    Ok(Node::new("Cast", &[&input.name], &[&converted]).with("to", i64::from(input.dtype.code())))
}
