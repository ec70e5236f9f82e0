//! Bottleneck modules.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_passes::{Builder, PassError};

use super::{PeftError, Surgery};
use crate::{
    Activation, Bottleneck, Placement,
    init::{Init, zeros},
    structure::Residual,
};

/// Deviation of the random half of a module; Houlsby et al. find anything below 0.01 to work alike, and with
/// the other half at zero the module is the identity whatever it is.
const DEVIATION: f64 = 0.01;

/// The tensors of one module.
#[derive(Clone)]
struct Module {
    down: (String, String),
    up: (String, String),
}

impl Surgery<'_> {
    /// `stream + h + Up(activation(Down(h)))` with `h` the sub-layer's output.
    pub(super) fn bottleneck(mut self, spec: &Bottleneck) -> Result<BTreeSet<String>, PeftError> {
        let mut modules = BTreeMap::new();
        for (i, block) in self.structure.blocks.clone().into_iter().enumerate() {
            let attention =
                (spec.placement == Placement::Houlsby).then_some(("attention", block.attention.residual));
            let mlp = block.mlp.map(|mlp| ("mlp", mlp.residual));
            for (role, residual) in attention.into_iter().chain(mlp) {
                let name =
                    if spec.shared { "adapter.shared".to_owned() } else { format!("adapter.{i}.{role}") };
                let module = self.module(&name, spec, &residual)?;
                modules.insert(residual.node, (residual.branch, module));
            }
        }
        if modules.is_empty() {
            return Err(PeftError::Nothing {
                method: "adapter",
                kind: "sub-layer with a residual connection",
            });
        }
        let activation = spec.activation;
        self.finish(|builder, index, mut node| {
            if let Some((branch, module)) = modules.get(&index) {
                let adapted = module.apply(builder, branch, activation)?;
                for input in node.inputs.iter_mut().filter(|input| *input == branch) {
                    input.clone_from(&adapted);
                }
            }
            Ok(builder.push(node)?)
        })
    }

    fn module(&mut self, name: &str, spec: &Bottleneck, residual: &Residual) -> Result<Module, PeftError> {
        let types = fedpeft_passes::infer_graph(&self.backbone.graph)?;
        let features = types.get(&residual.branch).and_then(fedpeft_passes::Type::last);
        let features =
            features.ok_or_else(|| PeftError::misfit("adapter", "the number of features is not known"))?;
        let features = features.max(1) as usize;
        let size = spec.size.map_or(features / spec.reduction as usize, |size| size as usize);
        if size == 0 || size > features {
            let reason = format!(
                "the inner width {size} must be 1 to the {features} features: change size or reduction"
            );
            return Err(PeftError::misfit("adapter", reason));
        }
        let random = |init: Init, name: &str| init.normal(name, &[features, size], DEVIATION);
        let down = self.add(format!("{name}.down.weight"), random);
        let down_bias = self.add(format!("{name}.down.bias"), |_, _| zeros(&[size]));
        let up = self.add(format!("{name}.up.weight"), |_, _| zeros(&[size, features]));
        let up_bias = self.add(format!("{name}.up.bias"), |_, _| zeros(&[features]));
        Ok(Module { down: (down, down_bias), up: (up, up_bias) })
    }
}

impl Module {
    fn apply(&self, builder: &mut Builder, value: &str, activation: Activation) -> Result<String, PassError> {
        let shape = builder.ty(value)?.shape.clone();
        let rows = builder.rows(value)?;
        let inner = builder.op("Gemm", &[&rows, &self.down.0, &self.down.1])?;
        let active = builder.op(if activation == Activation::Gelu { "Gelu" } else { "Relu" }, &[&inner])?;
        let outer = builder.op("Gemm", &[&active, &self.up.0, &self.up.1])?;
        let outer = builder.reshape(&outer, &shape)?;
        builder.op("Add", &[value, &outer])
    }
}
