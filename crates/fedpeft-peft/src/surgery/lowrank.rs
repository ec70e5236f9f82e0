//! LoRA and DoRA.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::{Builder, DOMAIN, PassError, Type};

use super::{DROPOUT_SEED, PeftError, Surgery, packed};
use crate::{
    Lora,
    init::{Init, zeros},
    structure::{Linear, Target, module},
};

/// What the names of the new tensors end with, after HF peft.
pub(crate) const FACTOR_A: &str = ".lora_A.weight";
pub(crate) const FACTOR_B: &str = ".lora_B.weight";
pub(crate) const MAGNITUDE: &str = ".lora_magnitude_vector.weight";
pub(crate) const RESIDUAL: &str = ".lora_residual.weight";

/// A low-rank update of a layer or of a part of it.
struct Update {
    module: String,
    a: String,
    b: String,
    columns: Option<Vec<usize>>,
}

impl Update {
    /// Name of DoRA's magnitudes.
    fn magnitude(&self) -> String {
        format!("{}{MAGNITUDE}", self.module)
    }

    /// Name of the residual.
    fn residual(&self) -> String {
        format!("{}{RESIDUAL}", self.module)
    }
}

impl Surgery<'_> {
    /// `y = x W + b + alpha / rank drop(x) A^T B^T`; with residuals, `W + alpha / rank R^T` in the place of `W`.
    pub(super) fn lora(mut self, spec: &Lora) -> Result<BTreeSet<String>, PeftError> {
        let updates = self.updates("lora", spec)?;
        let linears = self.structure.linears.clone();
        if spec.residual {
            for (linear, updates) in updates.values() {
                let linear = &linears[*linear];
                for update in updates {
                    let outputs = update.columns.as_ref().map_or(linear.outputs, Vec::len);
                    self.add(update.residual(), |_, _| zeros(&[outputs, linear.inputs]));
                }
            }
        }
        let scale = (spec.alpha / f64::from(spec.rank)) as f32;
        let dropout = Dropout { rate: spec.dropout as f32 };
        let added = self.finish(|builder, index, mut node| {
            let Some((linear, updates)) = updates.get(&index) else { return Ok(builder.push(node)?) };
            let (x, y) = (node.inputs[0].clone(), node.outputs[0].clone());
            let base = builder.fresh("frozen");
            node.outputs[0].clone_from(&base);
            if spec.residual {
                node.inputs[1] = with_residual(builder, &linears[*linear], &node, scale, updates)?;
            }
            builder.push(node)?;
            let x = dropout.apply(builder, &x, index)?;
            let (a, b) = factors(builder, updates, linears[*linear].outputs)?;
            let inner = builder.add(Node::new("Gemm", &[&x, &a], &[]).with("transB", 1i64))?;
            let outer = Node::new("Gemm", &[&inner, &b, &base], &[&y]).with("transB", 1i64);
            Ok(builder.push(outer.with("alpha", scale))?)
        })?;
        Ok(trained(added, spec))
    }

    /// `y = g (x W + alpha / rank drop(x) A^T B^T) + b` with `g = m / ||W + alpha / rank B A||` for each
    /// output, where the norm is a constant to differentiation (section 4.3 of the paper).
    pub(super) fn dora(mut self, spec: &Lora) -> Result<BTreeSet<String>, PeftError> {
        let updates = self.updates("dora", spec)?;
        let linears = self.structure.linears.clone();
        for (linear, updates) in updates.values() {
            let linear = &linears[*linear];
            let norms = norms(&self.backbone.graph.initializers[&linear.weight], linear.transposed);
            let norms = norms
                .ok_or_else(|| PeftError::misfit("dora", format!("weight {} is not f32", linear.weight)))?;
            for update in updates {
                let own: Vec<f32> = match &update.columns {
                    None => norms.clone(),
                    Some(columns) => columns.iter().map(|column| norms[*column]).collect(),
                };
                self.add(update.magnitude(), |_, _| Tensor::f32([own.len()], &own));
            }
        }
        let scale = (spec.alpha / f64::from(spec.rank)) as f32;
        let dropout = Dropout { rate: spec.dropout as f32 };
        let added = self.finish(|builder, index, mut node| {
            let Some((linear, updates)) = updates.get(&index) else { return Ok(builder.push(node)?) };
            let linear = &linears[*linear];
            let (x, y) = (node.inputs[0].clone(), node.outputs[0].clone());
            let bias = node.inputs.drain(2..).next().filter(|name| !name.is_empty());
            let base = builder.fresh("frozen");
            node.outputs[0].clone_from(&base);
            let weight = node.inputs[1].clone();
            builder.push(node)?;
            let dropped = dropout.apply(builder, &x, index)?;
            let (a, b) = factors(builder, updates, linear.outputs)?;
            let gain = gain(builder, linear, &weight, (&a, &b), scale, updates)?;
            let inner = builder.add(Node::new("Gemm", &[&dropped, &a], &[]).with("transB", 1i64))?;
            let outer = Node::new("Gemm", &[&inner, &b, &base], &[]).with("transB", 1i64);
            let sum = builder.add(outer.with("alpha", scale))?;
            match bias {
                Some(bias) => {
                    let product = builder.op("Mul", &[&sum, &gain])?;
                    builder.push(Node::new("Add", &[&product, &bias], &[&y]))?;
                }
                None => builder.push(Node::new("Mul", &[&sum, &gain], &[&y]))?,
            }
            Ok(())
        })?;
        Ok(trained(added, spec))
    }

    /// Adds the factors of every target; by node, with the index of its linear layer.
    fn updates(
        &mut self,
        method: &'static str,
        spec: &Lora,
    ) -> Result<BTreeMap<usize, (usize, Vec<Update>)>, PeftError> {
        let rank = spec.rank as usize;
        let mut updates: BTreeMap<usize, (usize, Vec<Update>)> = BTreeMap::new();
        for Target { path, linear: index, columns } in self.structure.choose(&spec.targets)? {
            let linear = self.structure.linears[index].clone();
            let outputs = columns.as_ref().map_or(linear.outputs, Vec::len);
            if rank > linear.inputs.min(outputs) {
                let reason = format!(
                    "rank {rank} is larger than {path}, which is {outputs} x {}: lower it",
                    linear.inputs
                );
                return Err(PeftError::misfit(method, reason));
            }
            if method == "dora" && !linear.direct {
                let reason = format!("the weight of {path} is stored in another shape: target other layers");
                return Err(PeftError::misfit(method, reason));
            }
            let role = path.rsplit_once('.').map_or("", |(_, role)| role);
            let base = module(&linear.weight);
            let base = if columns.is_some() { format!("{base}.{role}") } else { base.to_owned() };
            // Kaiming's uniform bound with a = sqrt(5), as in the authors' code.
            let bound = 1.0 / (linear.inputs as f64).sqrt();
            let random = |init: Init, name: &str| init.uniform(name, &[rank, linear.inputs], bound);
            let a = self.add(format!("{base}{FACTOR_A}"), random);
            let b = self.add(format!("{base}{FACTOR_B}"), |_, _| zeros(&[outputs, rank]));
            let update = Update { module: base, a, b, columns };
            updates.entry(linear.node).or_insert((index, Vec::new())).1.push(update);
        }
        Ok(updates)
    }
}

/// New tensors without the factors that stay as they are, and without residuals.
fn trained(mut added: BTreeSet<String>, spec: &Lora) -> BTreeSet<String> {
    let stays = |name: &str| (spec.freeze_a && name.ends_with(FACTOR_A)) || name.ends_with(RESIDUAL);
    added.retain(|name| !stays(name));
    added
}

/// The weight of `layer` and the scaled residuals of its updates, as the layer reads it: one sum of the size of a weight
/// in every step, where products of their own would read every activation once more, forward and backward.
fn with_residual(
    builder: &mut Builder,
    linear: &Linear,
    layer: &Node,
    scale: f32,
    updates: &[Update],
) -> Result<String, PassError> {
    // The layer multiplies its weight by a scale of its own.
    let scale = builder.scalar(scale / layer.float("alpha").unwrap_or(1.0));
    let mut weight = layer.inputs[1].clone();
    for update in updates {
        let scaled = builder.op("Mul", &[&update.residual(), &scale])?;
        let wide = match &update.columns {
            None => scaled,
            Some(columns) => packed::spread(builder, &scaled, columns, linear.outputs, 0.0)?,
        };
        let oriented = match linear.transposed {
            true => wide,
            false => builder.add(Node::new("Transpose", &[&wide], &[]).with("perm", vec![1i64, 0]))?,
        };
        weight = builder.op("Add", &[&weight, &oriented])?;
    }
    Ok(weight)
}

/// Dropout on the inputs of low-rank updates.
struct Dropout {
    rate: f32,
}

impl Dropout {
    /// `x` with a share of its values dropped in training; `layer` tells masks apart.
    fn apply(&self, builder: &mut Builder, x: &str, layer: usize) -> Result<String, PassError> {
        if self.rate == 0.0 {
            return Ok(x.to_owned());
        }
        if builder.ty(DROPOUT_SEED).is_err() {
            builder.input(DROPOUT_SEED, Type::new(fedpeft_onnx::DType::I64, Vec::new()));
        }
        let layer = builder.constant(Tensor::i64([], &[layer as i64 + 1]));
        let rate = builder.scalar(self.rate);
        let node = Node::new("Dropout", &[x, DROPOUT_SEED, &layer, &rate], &[]);
        builder.add(Node { domain: DOMAIN.into(), ..node })
    }
}

/// `A [rank, in]` and `B [out, rank]` of all updates of one layer together.
fn factors(builder: &mut Builder, updates: &[Update], outputs: usize) -> Result<(String, String), PassError> {
    let mut wide = Vec::new();
    for update in updates {
        wide.push(match &update.columns {
            None => update.b.clone(),
            Some(columns) => packed::spread(builder, &update.b, columns, outputs, 0.0)?,
        });
    }
    let join = |builder: &mut Builder, parts: Vec<&str>, axis: i64| match parts[..] {
        [one] => Ok(one.to_owned()),
        _ => builder.add(Node::new("Concat", &parts, &[]).with("axis", axis)),
    };
    let a = join(builder, updates.iter().map(|update| update.a.as_str()).collect(), 0)?;
    let b = join(builder, wide.iter().map(String::as_str).collect(), 1)?;
    Ok((a, b))
}

/// `m / ||W + scale B A||` for each output, one where no update is.
fn gain(
    builder: &mut Builder,
    linear: &Linear,
    weight: &str,
    (a, b): (&str, &str),
    scale: f32,
    updates: &[Update],
) -> Result<String, PassError> {
    let tuned = if linear.transposed {
        Node::new("Gemm", &[b, a, weight], &[])
    } else {
        Node::new("Gemm", &[a, b, weight], &[]).with("transA", 1i64).with("transB", 1i64)
    };
    let tuned = builder.add(tuned.with("alpha", scale))?;
    let squares = builder.op("Mul", &[&tuned, &tuned])?;
    let axis = builder.ints(&[i64::from(linear.transposed)]);
    let sum = builder.add(Node::new("ReduceSum", &[&squares, &axis], &[]).with("keepdims", 0i64))?;
    let norm = builder.op("Sqrt", &[&sum])?;
    let norm = builder.add(Node { domain: DOMAIN.into(), ..Node::new("StopGradient", &[&norm], &[]) })?;
    let mut gains = Vec::new();
    for update in updates {
        gains.push(match &update.columns {
            None => builder.op("Div", &[&update.magnitude(), &norm])?,
            Some(columns) => {
                let places = builder.ints(&columns.iter().map(|column| *column as i64).collect::<Vec<_>>());
                let own = builder.add(Node::new("Gather", &[&norm, &places], &[]).with("axis", 0i64))?;
                let gain = builder.op("Div", &[&update.magnitude(), &own])?;
                packed::spread(builder, &gain, columns, linear.outputs, 1.0)?
            }
        });
    }
    let mut gains = gains.into_iter();
    let mut product = gains.next().unwrap_or_default();
    for gain in gains {
        product = builder.op("Mul", &[&product, &gain])?;
    }
    Ok(product)
}

/// The norm of the weights of each output.
fn norms(weight: &Tensor, transposed: bool) -> Option<Vec<f32>> {
    let values = weight.as_f32()?;
    let &[rows, columns] = &weight.shape[..] else { return None };
    let (outputs, inputs) = if transposed { (rows, columns) } else { (columns, rows) };
    let at = |output: usize, input: usize| {
        f64::from(if transposed { values[output * inputs + input] } else { values[input * outputs + output] })
    };
    let norm = |output: usize| (0..inputs).map(|input| at(output, input).powi(2)).sum::<f64>().sqrt() as f32;
    Some((0..outputs).map(norm).collect())
}
