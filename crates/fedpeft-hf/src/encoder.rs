//! The network as a graph, block after block.

use fedpeft_onnx::{DType, Graph, Node};
use fedpeft_passes::{Builder, Extent, Type};

use crate::{
    ATTENTION_MASK, Activation, Config, Family, HfError, INPUT_IDS, OUTPUT, TOKEN_TYPE_IDS, weights::Weights,
};

/// The parameter by which a weights file is recognised.
pub(crate) const WORDS: &str = "embeddings.word_embeddings";

/// Modules of one block, as their family calls them.
struct Block {
    query: String,
    key: String,
    value: String,
    projection: String,
    attention_norm: String,
    mlp_in: String,
    mlp_out: String,
    output_norm: String,
}

impl Block {
    fn new(family: Family, index: usize) -> Self {
        let (prefix, names) = match family {
            Family::Bert | Family::Roberta => (
                "encoder",
                [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "attention.output.LayerNorm",
                    "intermediate.dense",
                    "output.dense",
                    "output.LayerNorm",
                ],
            ),
            Family::DistilBert => (
                "transformer",
                [
                    "attention.q_lin",
                    "attention.k_lin",
                    "attention.v_lin",
                    "attention.out_lin",
                    "sa_layer_norm",
                    "ffn.lin1",
                    "ffn.lin2",
                    "output_layer_norm",
                ],
            ),
        };
        let [query, key, value, projection, attention_norm, mlp_in, mlp_out, output_norm] =
            names.map(|name| format!("{prefix}.layer.{index}.{name}"));
        Self { query, key, value, projection, attention_norm, mlp_in, mlp_out, output_norm }
    }
}

/// Builds the graph for sequences of `length` tokens.
pub(crate) fn build(config: &Config, weights: &Weights, length: usize) -> Result<Graph, HfError> {
    let graph = Graph { name: "encoder".to_owned(), ..Graph::default() };
    let mut encoder = Network { config, weights, length, b: Builder::new(graph, "hf.")? };
    let mut x = encoder.embeddings()?;
    let mask = encoder.additive_mask()?;
    for index in 0..config.layers {
        x = encoder.block(&Block::new(config.family, index), &x, &mask)?;
    }
    encoder.b.output(&x, OUTPUT)?;
    Ok(encoder.b.finish())
}

struct Network<'a> {
    config: &'a Config,
    weights: &'a Weights,
    length: usize,
    b: Builder,
}

type Value = Result<String, HfError>;

impl Network<'_> {
    /// Adds the parameter `name`, whose initializer is called the same.
    fn parameter(&mut self, name: String, shape: &[usize]) -> Value {
        let tensor = self.weights.tensor(&name, shape)?;
        self.b.initializer(&name, tensor);
        Ok(name)
    }

    fn node(&mut self, name: &str, node: Node) -> Value {
        Ok(self.b.add(node.named(name))?)
    }

    /// Words, positions and token types, normalised: `[N, T, C]`.
    fn embeddings(&mut self) -> Value {
        let Config { vocabulary, hidden, positions, first_position, token_types, .. } = *self.config;
        let ids = Type::new(DType::I64, vec![Extent::N, Extent::from(self.length)]);
        self.b.input(INPUT_IDS, ids.clone());
        self.b.input(ATTENTION_MASK, ids.clone());
        let words = self.parameter(format!("{WORDS}.weight"), &[vocabulary, hidden])?;
        let mut x = self.node(WORDS, Node::new("Gather", &[&words, INPUT_IDS], &[]))?;

        if token_types > 0 {
            let name = "embeddings.token_type_embeddings";
            let table = self.parameter(format!("{name}.weight"), &[token_types, hidden])?;
            let types = if self.config.reads_token_types() {
                self.b.input(TOKEN_TYPE_IDS, ids);
                self.node(name, Node::new("Gather", &[&table, TOKEN_TYPE_IDS], &[]))?
            } else {
                // RoBERTa's tokenizer gives every token the type 0.
                self.leading_rows(name, &table, 0, 1)?
            };
            x = self.b.op("Add", &[&x, &types])?;
        }
        let name = "embeddings.position_embeddings";
        let table = self.parameter(format!("{name}.weight"), &[positions, hidden])?;
        let places = self.leading_rows(name, &table, first_position, self.length)?;
        x = self.b.op("Add", &[&x, &places])?;
        self.layer_norm("embeddings.LayerNorm", &x)
    }

    fn leading_rows(&mut self, name: &str, table: &str, from: usize, count: usize) -> Value {
        let [start, end, axis] = [from, from + count, 0].map(|at| self.b.ints(&[at as i64]));
        self.node(name, Node::new("Slice", &[table, &start, &end, &axis], &[]))
    }

    /// What is added to attention scores `[N, H, T, T]`: nothing where a token is, the least number where
    /// padding is. Finite, so that a row of padding alone has a softmax.
    fn additive_mask(&mut self) -> Value {
        let present =
            self.b.add(Node::new("Cast", &[ATTENTION_MASK], &[]).with("to", i64::from(DType::F32.code())))?;
        let (one, least) = (self.b.scalar(1.0), self.b.scalar(f32::MIN));
        let absent = self.b.op("Sub", &[&one, &present])?;
        let bias = self.b.op("Mul", &[&absent, &least])?;
        let axes = self.b.ints(&[1, 2]);
        Ok(self.b.op("Unsqueeze", &[&bias, &axes])?)
    }

    fn block(&mut self, block: &Block, x: &str, mask: &str) -> Value {
        let Config { hidden, intermediate, .. } = *self.config;
        let attended = self.attention(block, x, mask)?;
        let sum = self.b.op("Add", &[&attended, x])?;
        let x = self.layer_norm(&block.attention_norm, &sum)?;
        let inner = self.linear(&block.mlp_in, &x, hidden, intermediate)?;
        let inner = self.activation(&inner)?;
        let outer = self.linear(&block.mlp_out, &inner, intermediate, hidden)?;
        let sum = self.b.op("Add", &[&outer, &x])?;
        self.layer_norm(&block.output_norm, &sum)
    }

    /// Scaled dot-product attention. The scale is on the queries, the smallest of what it could multiply.
    fn attention(&mut self, block: &Block, x: &str, mask: &str) -> Value {
        let Config { hidden, heads, .. } = *self.config;
        let query = self.linear(&block.query, x, hidden, hidden)?;
        let scale = self.b.scalar((1.0 / ((hidden / heads) as f64).sqrt()) as f32);
        let query = self.b.op("Mul", &[&query, &scale])?;
        let query = self.split_heads(&query, [0, 2, 1, 3])?;
        let key = self.linear(&block.key, x, hidden, hidden)?;
        let key = self.split_heads(&key, [0, 2, 3, 1])?;
        let value = self.linear(&block.value, x, hidden, hidden)?;
        let value = self.split_heads(&value, [0, 2, 1, 3])?;
        let scores = self.b.op("MatMul", &[&query, &key])?;
        let scores = self.b.op("Add", &[&scores, mask])?;
        let weights = self.b.add(Node::new("Softmax", &[&scores], &[]).with("axis", -1i64))?;
        let context = self.b.op("MatMul", &[&weights, &value])?;
        let context =
            self.b.add(Node::new("Transpose", &[&context], &[]).with("perm", vec![0i64, 2, 1, 3]))?;
        let context = self.b.reshape(&context, &self.tokens(hidden))?;
        self.linear(&block.projection, &context, hidden, hidden)
    }

    /// `[N, T, C]` as `[N, T, H, C / H]`, then permuted.
    fn split_heads(&mut self, x: &str, perm: [i64; 4]) -> Value {
        let Config { hidden, heads, .. } = *self.config;
        let shape = [Extent::N, self.length.into(), heads.into(), (hidden / heads).into()];
        let split = self.b.reshape(x, &shape)?;
        Ok(self.b.add(Node::new("Transpose", &[&split], &[]).with("perm", perm.to_vec()))?)
    }

    /// A linear layer with a weight `[to, from]`, on rows.
    fn linear(&mut self, name: &str, x: &str, from: usize, to: usize) -> Value {
        let weight = self.parameter(format!("{name}.weight"), &[to, from])?;
        let bias = self.parameter(format!("{name}.bias"), &[to])?;
        let rows = self.b.rows(x)?;
        let gemm = Node::new("Gemm", &[&rows, &weight, &bias], &[]).with("transB", 1i64);
        let product = self.node(name, gemm)?;
        Ok(self.b.reshape(&product, &self.tokens(to))?)
    }

    fn tokens(&self, width: usize) -> [Extent; 3] {
        [Extent::N, self.length.into(), width.into()]
    }

    fn layer_norm(&mut self, name: &str, x: &str) -> Value {
        let width = self.config.hidden;
        let scale = self.parameter(format!("{name}.weight"), &[width])?;
        let bias = self.parameter(format!("{name}.bias"), &[width])?;
        let node = Node::new("LayerNormalization", &[x, &scale, &bias], &[])
            .with("axis", -1i64)
            .with("epsilon", self.config.epsilon);
        self.node(name, node)
    }

    fn activation(&mut self, x: &str) -> Value {
        let node = match self.config.activation {
            Activation::Gelu => Node::new("Gelu", &[x], &[]),
            Activation::GeluTanh => Node::new("Gelu", &[x], &[]).with("approximate", "tanh"),
            Activation::Relu => Node::new("Relu", &[x], &[]),
        };
        Ok(self.b.add(node)?)
    }
}
