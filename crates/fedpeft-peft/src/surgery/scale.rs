//! IA3: learnt scales.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::Node;

use super::{PeftError, Surgery, packed};
use crate::{Ia3, init::ones, structure::module};

/// What the names of the new tensors end with, after HF peft.
pub(crate) const SCALE: &str = ".ia3_l";

/// A scale, and the columns of a packed layer that it is for; none for all.
type Scale = (String, Option<Vec<usize>>);

impl Surgery<'_> {
    /// `y = l (x W + b)` for targets, `y = (l x) W + b` for feed-forward ones; `l` is one at first.
    pub(super) fn ia3(mut self, spec: &Ia3) -> Result<BTreeSet<String>, PeftError> {
        let (targets, inner) =
            (self.structure.choose(&spec.targets)?, self.structure.choose(&spec.feedforward)?);
        let linears = self.structure.linears.clone();
        let mut outputs: BTreeMap<usize, Vec<Scale>> = BTreeMap::new();
        let mut inputs: BTreeMap<usize, String> = BTreeMap::new();
        for target in targets {
            let linear = &linears[target.linear];
            let base = module(&linear.weight);
            let (name, length) = match &target.columns {
                None => (format!("{base}{SCALE}"), linear.outputs),
                Some(columns) => {
                    let role = target.path.rsplit_once('.').map_or("", |(_, role)| role);
                    (format!("{base}.{role}{SCALE}"), columns.len())
                }
            };
            let name = self.add(name, |_, _| ones(&[length]));
            outputs.entry(linear.node).or_default().push((name, target.columns));
        }
        for target in inner {
            let linear = &linears[target.linear];
            if target.columns.is_some() || outputs.contains_key(&linear.node) {
                let reason = format!(
                    "{} cannot be a feed-forward target as well: remove it from one list",
                    target.path
                );
                return Err(PeftError::misfit("ia3", reason));
            }
            let name = self.add(format!("{}{SCALE}", module(&linear.weight)), |_, _| ones(&[linear.inputs]));
            inputs.insert(linear.node, name);
        }
        let width: BTreeMap<usize, usize> =
            linears.iter().map(|linear| (linear.node, linear.outputs)).collect();
        self.finish(|builder, index, mut node| {
            if let Some(scale) = inputs.get(&index) {
                node.inputs[0] = builder.op("Mul", &[&node.inputs[0], scale])?;
            }
            let Some(scales) = outputs.get(&index) else { return Ok(builder.push(node)?) };
            let y = node.outputs[0].clone();
            let mut value = builder.fresh("frozen");
            node.outputs[0].clone_from(&value);
            builder.push(node)?;
            // The scales of a packed layer's parts are joined first: the layer's output is large, they are not.
            let mut joined: Option<String> = None;
            for (scale, columns) in scales {
                let wide = match columns {
                    None => scale.clone(),
                    Some(columns) => packed::spread(builder, scale, columns, width[&index], 1.0)?,
                };
                joined = Some(match joined {
                    None => wide,
                    Some(other) => builder.op("Mul", &[&other, &wide])?,
                });
            }
            if let Some(scale) = joined {
                value = builder.op("Mul", &[&value, &scale])?;
            }
            Ok(builder.push(Node::new("Identity", &[&value], &[&y]))?)
        })
    }
}
