//! Prompts and prefixes.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::{Graph, Node, Tensor};
use fedpeft_passes::{Builder, Extent, PassError, Types, infer_graph};

use super::{
    PeftError, Surgery,
    grow::{Growth, Tokens},
};
use crate::{Prefix, Prompt, PromptInit, init::Init, structure::Block};

/// Deviation of new keys and values: that of a transformer's weights at first (Devlin et al., arXiv 1810.04805).
const PREFIX_DEVIATION: f64 = 0.02;

/// From the value that enters some blocks to the one that leaves them.
struct Region {
    enters: String,
    leaves: String,
    prompt: String,
}

impl Surgery<'_> {
    /// Learnt tokens in front of the others, from the input of the first block to the output of the last, or
    /// from that of each block to its own. Attention does not ask for the order of what it attends to, so that
    /// prompts in front are the same as prompts behind a class token; under a causal mask they come first.
    pub(super) fn prompt(mut self, spec: &Prompt) -> Result<BTreeSet<String>, PeftError> {
        let graph = self.backbone.graph.clone();
        let types = infer_graph(&graph)?;
        let blocks = self.structure.blocks.clone();
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Err(PeftError::Nothing { method: "prompt", kind: "attention" });
        };
        let stream = &first.attention.residual.stream;
        let (tokens, features) = sequence(&types, stream)?;
        let added = spec.tokens as usize;
        self.fits_positions(&graph, tokens as usize, added)?;
        let mut regions = Vec::new();
        if spec.deep {
            for (i, block) in blocks.iter().enumerate() {
                let enters = block.attention.residual.stream.clone();
                let prompt = self.new_prompt(&format!("prompt.{i}"), spec, features)?;
                regions.push(Region { enters, leaves: end(&graph, block), prompt });
            }
        } else {
            let prompt = self.new_prompt("prompt.0", spec, features)?;
            regions.push(Region { enters: stream.clone(), leaves: end(&graph, last), prompt });
        }
        let mut growth = Growth::new(&graph, &types, "prompt", tokens, spec.tokens.into());
        let mut regions = regions.into_iter();
        let mut region = regions.next();
        let mut inside = false;
        self.finish(|b, _, node| {
            let outputs = node.outputs.clone();
            if let Some(current) = region.as_ref().filter(|_| !inside) {
                // The first node that reads what enters.
                if node.inputs.contains(&current.enters) {
                    let longer = insert(b, &current.prompt, &current.enters)?;
                    growth.begin(&current.enters, longer, vec![None, Some(Tokens::WHOLE), None]);
                    inside = true;
                }
            }
            growth.push(b, node)?;
            if let Some(current) = region.as_ref().filter(|region| inside && outputs.contains(&region.leaves))
            {
                let longer = growth.end(&current.leaves);
                let longer = longer
                    .ok_or_else(|| PeftError::misfit("prompt", "the prompt does not reach the output"))?;
                remove(b, &longer, added as i64, &current.leaves)?;
                region = regions.next();
                inside = false;
            }
            Ok(())
        })
    }

    fn new_prompt(&mut self, name: &str, spec: &Prompt, features: i64) -> Result<String, PeftError> {
        let shape = [spec.tokens as usize, features as usize];
        match spec.init {
            PromptInit::Random => {
                // Xavier's bound for a square layer; at ViT-B/16 that is the bound of VPT.
                let bound = (3.0 / features as f64).sqrt();
                Ok(self.add(name, |init: Init, name| init.uniform(name, &shape, bound)))
            }
            PromptInit::Embedding => {
                let reason = "init = \"embedding\" needs a table of token embeddings, which this model has not: use random";
                let table =
                    self.structure.embeddings.first().map(|table| &self.backbone.graph.initializers[table]);
                let rows = table.and_then(|table| spread_rows(table, &shape));
                let rows = rows.ok_or_else(|| PeftError::misfit("prompt", reason))?;
                Ok(self.add(name, |_, _| rows))
            }
        }
    }

    /// A text model has a table of positions; it has never seen more tokens than that.
    fn fits_positions(&self, graph: &Graph, tokens: usize, added: usize) -> Result<(), PeftError> {
        let vocabulary = &self.structure.embeddings;
        let tables = graph.initializers.iter().filter(|(name, tensor)| {
            let positions = name.contains("position") || name.contains("wpe");
            !vocabulary.is_empty() && positions && tensor.dtype.is_float() && tensor.shape.len() == 2
        });
        for (name, table) in tables {
            if tokens + added > table.shape[0].max(tokens) {
                let reason = format!(
                    "{added} prompt tokens and {tokens} of text do not fit the {} positions of {name}: lower tokens or \
                     max_length",
                    table.shape[0]
                );
                return Err(PeftError::misfit("prompt", reason));
            }
        }
        Ok(())
    }

    /// Learnt keys and values in front of those of every attention.
    pub(super) fn prefix(mut self, spec: &Prefix) -> Result<BTreeSet<String>, PeftError> {
        let graph = self.backbone.graph.clone();
        let types = infer_graph(&graph)?;
        let blocks = self.structure.blocks.clone();
        if blocks.is_empty() {
            return Err(PeftError::Nothing { method: "prefix", kind: "attention" });
        }
        let tokens = spec.tokens as usize;
        let mut scores: BTreeMap<usize, Heads> = BTreeMap::new();
        let mut mixes: BTreeMap<usize, Heads> = BTreeMap::new();
        for (i, block) in blocks.iter().enumerate() {
            let (at, mix) = (block.attention.scores, block.attention.mix);
            for (node, role, places) in [(at, "key", &mut scores), (mix, "value", &mut mixes)] {
                let operand = graph.nodes[node].inputs[1].clone();
                let mut heads = Heads::of(&types, operand, role)?;
                let shape = [tokens, heads.count * heads.width];
                let random = |init: Init, name: &str| init.normal(name, &shape, PREFIX_DEVIATION);
                heads.prefix = self.add(format!("prefix.{i}.{role}"), random);
                places.insert(node, heads);
            }
        }
        let length = scores.values().map(|heads| heads.length).max().unwrap_or(0);
        let mut growth = Growth::new(&graph, &types, "prefix", length, tokens as i64);
        self.finish(|b, index, node| {
            for (places, role) in [(&scores, "key"), (&mixes, "value")] {
                if let Some(heads) = places.get(&index) {
                    let (axis, longer) = heads.lengthen(b, &graph, tokens, role)?;
                    let mut axes = vec![None; 4];
                    axes[axis] = Some(Tokens::WHOLE);
                    growth.begin(&heads.operand, longer, axes);
                }
            }
            growth.push(b, node)?;
            if let Some(heads) = mixes.get(&index) {
                growth.end(&heads.operand);
            }
            Ok(())
        })
    }
}

/// T and C of tokens `[N, T, C]`.
fn sequence(types: &Types, stream: &str) -> Result<(i64, i64), PeftError> {
    let shape = types.get(stream).map(|ty| ty.shape.iter().map(|extent| extent.known()).collect::<Vec<_>>());
    match shape.as_deref() {
        Some(&[_, Some(tokens), Some(features)]) => Ok((tokens, features)),
        _ => Err(PeftError::misfit("prompt", "the blocks of this model do not read tokens [N, T, C]")),
    }
}

/// The value with which a block ends.
fn end(graph: &Graph, block: &Block) -> String {
    let residual = block.mlp.as_ref().map_or(&block.attention.residual, |mlp| &mlp.residual);
    graph.nodes[residual.node].outputs[0].clone()
}

/// Every so many rows of `table`, so that there are as many as `shape` says.
fn spread_rows(table: &Tensor, shape: &[usize; 2]) -> Option<Tensor> {
    let (values, [count, features]) = (table.as_f32()?, *shape);
    let &[rows, width] = &table.shape[..] else { return None };
    (width == features && rows > 0).then_some(())?;
    let row = |i: usize| &values[(i * rows / count) * width..][..width];
    Some(Tensor::f32([count, features], &(0..count).flat_map(row).copied().collect::<Vec<_>>()))
}

/// `[p, C]` in front of `[N, T, C]`.
fn insert(b: &mut Builder, prompt: &str, stream: &str) -> Result<String, PassError> {
    let (shape, prompts) = (b.ty(stream)?.shape.clone(), b.ty(prompt)?.shape.clone());
    let target = b.extents(&[shape[0], prompts[0], prompts[1]])?;
    let prompts = b.op("Expand", &[prompt, &target])?;
    b.add(Node::new("Concat", &[&prompts, stream], &[]).with("axis", 1i64))
}

/// `[N, T, C]` of `[N, p + T, C]`.
fn remove(b: &mut Builder, longer: &str, added: i64, output: &str) -> Result<(), PassError> {
    let (starts, ends, axes) = (b.ints(&[added]), b.ints(&[i64::MAX]), b.ints(&[1]));
    b.push(Node::new("Slice", &[longer, &starts, &ends, &axes], &[output]))
}

/// Keys `[N, heads, width, T]` or values `[N, heads, T, width]` of one attention.
struct Heads {
    operand: String,
    batch: Extent,
    count: usize,
    width: usize,
    length: i64,
    prefix: String,
}

impl Heads {
    fn of(types: &Types, operand: String, role: &str) -> Result<Self, PeftError> {
        let shape = types.get(&operand).map(|ty| ty.shape.clone()).unwrap_or_default();
        let known = |axis: usize| shape.get(axis).and_then(|extent| extent.known());
        let (width, length) = if role == "key" { (2, 3) } else { (3, 2) };
        match (shape.len(), known(1), known(width), known(length)) {
            (4, Some(count), Some(width), Some(length)) => {
                let (count, width) = (count as usize, width as usize);
                Ok(Self { operand, batch: shape[0], count, width, length, prefix: String::new() })
            }
            _ => Err(PeftError::misfit(
                "prefix",
                "the heads of this model's attention are not an axis of their own",
            )),
        }
    }

    /// The operand with the prefix in front, and the axis along which it grew.
    fn lengthen(
        &self,
        b: &mut Builder,
        graph: &Graph,
        tokens: usize,
        role: &str,
    ) -> Result<(usize, String), PassError> {
        let (axis, perm) = if role == "key" { (3, vec![1i64, 2, 0]) } else { (2, vec![1i64, 0, 2]) };
        let heads = b.reshape(
            &self.prefix,
            &[Extent::from(tokens), Extent::from(self.count), Extent::from(self.width)],
        )?;
        let heads = b.add(Node::new("Transpose", &[&heads], &[]).with("perm", perm))?;
        // Scales that the graph puts on keys are put on theirs.
        let mut heads = scaled(b, graph, &self.operand, heads)?;
        let mut shape = b.ty(&heads)?.shape.clone();
        shape.insert(0, self.batch);
        let target = b.extents(&shape)?;
        heads = b.op("Expand", &[&heads, &target])?;
        let longer = b.add(Node::new("Concat", &[&heads, &self.operand], &[]).with("axis", axis as i64))?;
        Ok((axis, longer))
    }
}

/// `value`, multiplied by the numbers by which `operand` was.
fn scaled(b: &mut Builder, graph: &Graph, operand: &str, mut value: String) -> Result<String, PassError> {
    let producers = graph.producers();
    let mut operand = operand;
    while let Some(node) = producers.get(operand).map(|index| &graph.nodes[*index]) {
        let number = |name: &&String| graph.initializers.get(*name).is_some_and(|tensor| tensor.len() == 1);
        let (true, Some(number)) = (node.is("Mul") || node.is("Div"), node.inputs.iter().find(number)) else {
            break;
        };
        value = b.op(&node.op, &[&value, number])?;
        operand = node.inputs.iter().find(|input| *input != number).map_or("", String::as_str);
    }
    Ok(value)
}
