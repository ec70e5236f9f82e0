//! Lifting older operator sets to [`OPSET`].

use crate::{Attribute, Model, OPSET, OnnxError, Tensor};

/// Oldest operator set we lift.
pub const OLDEST: i64 = 13;

/// Rewrites `model` for [`OPSET`]. Between opset 13 and 20 the operators of transformer exports kept their
/// meaning; what changed form is rewritten, what changed meaning is refused.
pub fn upgrade(model: &mut Model) -> Result<(), OnnxError> {
    if !(OLDEST..=OPSET).contains(&model.opset) {
        return Err(OnnxError::Unsupported(format!(
            "the model uses opset {}, supported are {OLDEST} to {OPSET}: export it again with one of these",
            model.opset
        )));
    }
    let from = model.opset;
    let graph = &mut model.graph;
    for (index, node) in graph.nodes.iter_mut().enumerate().filter(|(_, n)| n.domain.is_empty()) {
        match node.op.as_str() {
            // Opset 18 moved the axes of reductions from an attribute to an input.
            "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2" | "ReduceSumSquare"
                if from < 18 =>
            {
                if let Some(Attribute::Ints(axes)) = node.attributes.remove("axes") {
                    let name = format!("opset.axes.{index}");
                    node.inputs.resize(1, String::new());
                    node.inputs.push(name.clone());
                    graph.initializers.insert(name, Tensor::i64([axes.len()], &axes));
                }
            }
            // Opset 18 wants the number of outputs of an even split said.
            "Split" if from < 18 && node.input(1).is_none() => {
                let outputs = node.outputs.len() as i64;
                node.attributes.insert("num_outputs".into(), outputs.into());
            }
            _ => {}
        }
    }
    model.opset = OPSET;
    model.ir_version = crate::IR_VERSION;
    Ok(())
}
