//! The parts of a transformer, recognised by what the graph computes and not by an exporter's names.
//!
//! A softmax between two products is an attention; the linear layers that its operands come from are query,
//! key and value, one packed layer where they coincide; the first linear layer behind it is the output
//! projection, and the addition behind that the residual connection. The linear layers between that and the
//! next residual addition are the MLP.

mod attention;
mod block;
mod columns;
mod linear;
mod norm;
mod targets;
mod walk;

use std::collections::BTreeSet;

use fedpeft_onnx::Graph;
use fedpeft_passes::{PassError, Prepared, infer_graph};

pub(crate) use targets::module;
pub use targets::{Target, TargetError};

/// What was recognised in a prepared graph. Nodes are meant by index.
#[derive(Debug, Clone)]
pub struct Structure {
    /// Linear layers with a weight of their own.
    pub linears: Vec<Linear>,
    /// Blocks, from the input to the output.
    pub blocks: Vec<Block>,
    /// Scales and biases of normalisations.
    pub norms: BTreeSet<String>,
    /// Token embedding tables `[vocabulary, features]`, by name.
    pub embeddings: Vec<String>,
}

/// `y = x W + b` on rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// The `Gemm`.
    pub node: usize,
    /// What it is in the model: `blocks.0.attention.query`, or `linear.3` where that is not known.
    pub path: String,
    /// Name of the weight.
    pub weight: String,
    /// Whether the weight is stored `[out, in]`.
    pub transposed: bool,
    /// Features in.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
    /// Whether its weight is an initializer as it stands, so that it can be reparametrised.
    pub direct: bool,
}

/// Attention, and the MLP behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The attention.
    pub attention: Attention,
    /// The MLP, if there is one.
    pub mlp: Option<Mlp>,
}

/// Scaled dot-product attention with its projections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    /// Query, key and value.
    pub query: Projection,
    /// Key.
    pub key: Projection,
    /// Value.
    pub value: Projection,
    /// Output projection, a linear layer.
    pub output: usize,
    /// The product of queries and keys.
    pub scores: usize,
    /// The product of probabilities and values.
    pub mix: usize,
    /// Its residual connection.
    pub residual: Residual,
}

/// A linear layer, or some columns of the output of one that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The linear layer.
    pub linear: usize,
    /// Its columns that are meant; none for all.
    pub columns: Option<Vec<usize>>,
}

/// `stream + branch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residual {
    /// The addition.
    pub node: usize,
    /// What went around the sub-layer.
    pub stream: String,
    /// What the sub-layer computed.
    pub branch: String,
}

/// The layers of an MLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mlp {
    /// Linear layers into it: one, or a gate and another.
    pub up: Vec<usize>,
    /// The linear layer out of it.
    pub down: usize,
    /// Its residual connection.
    pub residual: Residual,
}

impl Structure {
    /// Recognises the parts of `backbone`.
    ///
    /// # Errors
    /// [`PassError`] where the graph itself is wrong. What is not recognised is not listed.
    pub fn of(backbone: &Prepared) -> Result<Self, PassError> {
        let graph = &backbone.graph;
        let types = infer_graph(graph)?;
        let mut linears = linear::find(graph, &backbone.parameters, &types);
        let blocks = {
            let walk = walk::Walk::new(graph, &linears);
            let attentions = attention::find(&walk, &linears, &types)?;
            attentions.into_iter().map(|attention| block::complete(&walk, attention)).collect::<Vec<_>>()
        };
        let blocks = block::in_order(graph, blocks);
        name(&mut linears, &blocks);
        Ok(Self {
            norms: norm::parameters(graph, &backbone.parameters),
            embeddings: embeddings(graph, &backbone.parameters),
            linears,
            blocks,
        })
    }
}

/// Gives linear layers the names of their roles.
fn name(linears: &mut [Linear], blocks: &[Block]) {
    for (i, block) in blocks.iter().enumerate() {
        let mut role = |linear: usize, role: &str| linears[linear].path = format!("blocks.{i}.{role}");
        let attention = &block.attention;
        let (query, key, value) = (&attention.query, &attention.key, &attention.value);
        role(query.linear, "attention.query");
        match (query.linear == key.linear, key.linear == value.linear) {
            (true, true) => role(query.linear, "attention.qkv"),
            (true, false) => {
                role(query.linear, "attention.query_key");
                role(value.linear, "attention.value");
            }
            (false, true) => role(key.linear, "attention.key_value"),
            (false, false) => {
                role(key.linear, "attention.key");
                role(value.linear, "attention.value");
            }
        }
        role(attention.output, "attention.output");
        if let Some(mlp) = &block.mlp {
            match mlp.up[..] {
                [up] => role(up, "mlp.up"),
                [gate, up] => {
                    role(gate, "mlp.gate");
                    role(up, "mlp.up");
                }
                _ => {}
            }
            role(mlp.down, "mlp.down");
        }
    }
}

fn embeddings(graph: &Graph, parameters: &BTreeSet<String>) -> Vec<String> {
    let tables = graph.nodes.iter().filter(|node| node.is("Gather") && node.int("axis").unwrap_or(0) == 0);
    let reads_input = |name: &str| graph.input(name).is_some();
    let tables =
        tables.filter(|node| node.input(1).is_some_and(reads_input)).filter_map(|node| node.input(0));
    tables.filter(|table| parameters.contains(*table)).map(str::to_owned).collect()
}
