//! Appending nodes to a graph while knowing the type of every value.

use std::collections::HashSet;

use fedpeft_onnx::{Dim, Graph, Node, Tensor, ValueInfo};

use crate::{
    Extent, PassError, Type, Types,
    infer::{infer_node, seed_types},
};

/// A graph under construction. Every node added is inferred at once, so a wrong one is an error where it is
/// made. Values that the builder names begin with a prefix of its own.
pub struct Builder {
    graph: Graph,
    types: Types,
    prefix: String,
    next: usize,
    /// Names of values that are still to come.
    reserved: HashSet<String>,
}

impl Builder {
    /// Continues `graph`, whose nodes are in order.
    pub fn new(graph: Graph, prefix: &str) -> Result<Self, PassError> {
        let types = crate::infer_graph(&graph)?;
        Ok(Self { graph, types, prefix: prefix.to_owned(), next: 0, reserved: HashSet::new() })
    }

    /// Begins with the inputs, outputs and initializers of `graph`, without its nodes.
    pub fn without_nodes(graph: &Graph, prefix: &str) -> Result<Self, PassError> {
        let empty = Graph { nodes: Vec::new(), ..graph.clone() };
        let reserved = graph.nodes.iter().flat_map(|node| node.outputs.iter().cloned()).collect();
        Ok(Self { types: seed_types(&empty)?, graph: empty, prefix: prefix.to_owned(), next: 0, reserved })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph, finished.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Everything known of the values.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// Type of a value that exists.
    pub fn ty(&self, name: &str) -> Result<&Type, PassError> {
        self.types.get(name).ok_or_else(|| PassError::Input(format!("the value {name:?} does not exist")))
    }

    /// The node that computes a value.
    pub fn producer(&self, name: &str) -> Option<&Node> {
        self.graph.nodes.iter().rev().find(|node| node.outputs.iter().any(|output| output == name))
    }

    /// A name that nothing has yet.
    pub fn fresh(&mut self, hint: &str) -> String {
        loop {
            self.next += 1;
            let name = format!("{}{hint}.{}", self.prefix, self.next);
            // An earlier builder with the same prefix may have been here.
            if self.types.get(&name).is_none() && !self.reserved.contains(&name) {
                return name;
            }
        }
    }

    /// A copy of `graph` in which `rewrite` pushes what takes the place of each node: perhaps the node itself.
    /// The outputs of the graph keep their names.
    ///
    /// # Errors
    /// [`PassError`] naming the node that does not fit.
    pub fn rewrite<E: From<PassError>>(
        graph: &Graph,
        prefix: &str,
        mut rewrite: impl FnMut(&mut Self, usize, Node) -> Result<(), E>,
    ) -> Result<Graph, E> {
        let mut builder = Self::without_nodes(graph, prefix)?;
        for (index, node) in graph.nodes.iter().enumerate() {
            rewrite(&mut builder, index, node.clone())?;
        }
        Ok(builder.finish())
    }

    /// Appends `node` as it is.
    pub fn push(&mut self, node: Node) -> Result<(), PassError> {
        let facts = infer_node(&node, &self.types)?;
        for (name, fact) in node.outputs.iter().zip(facts).filter(|(name, _)| !name.is_empty()) {
            self.types.set(name, fact);
        }
        self.graph.nodes.push(node);
        Ok(())
    }

    /// The name of output `slot` of the node at `index`, which begins to be computed if it was not wanted yet.
    pub fn want_output(&mut self, index: usize, slot: usize) -> Result<String, PassError> {
        if let Some(name) = self.graph.nodes[index].output(slot) {
            return Ok(name.to_owned());
        }
        let name = self.fresh(&format!("{}.output{slot}", self.graph.nodes[index].op));
        let node = &mut self.graph.nodes[index];
        if node.outputs.len() <= slot {
            node.outputs.resize(slot + 1, String::new());
        }
        node.outputs[slot].clone_from(&name);
        let facts = infer_node(node, &self.types)?;
        for (name, fact) in node.outputs.iter().zip(facts).filter(|(name, _)| !name.is_empty()) {
            self.types.set(name, fact);
        }
        Ok(name)
    }

    /// Appends `node` with one fresh output and returns that.
    pub fn add(&mut self, mut node: Node) -> Result<String, PassError> {
        let output = self.fresh(&node.op);
        node.outputs = vec![output.clone()];
        self.push(node)?;
        Ok(output)
    }

    /// Appends a standard operator without attributes.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> Result<String, PassError> {
        self.add(Node::new(op, inputs, &[]))
    }

    /// A constant; small equal ones are one.
    pub fn constant(&mut self, tensor: Tensor) -> String {
        let small = tensor.byte_len() <= 64;
        let known = self
            .graph
            .initializers
            .iter()
            .find(|(name, t)| small && name.starts_with(&self.prefix) && **t == tensor);
        if let Some((name, _)) = known {
            return name.clone();
        }
        let name = self.fresh("constant");
        self.initializer(&name, tensor);
        name
    }

    /// One `f32`.
    pub fn scalar(&mut self, value: f32) -> String {
        self.constant(Tensor::scalar(value))
    }

    /// A one-dimensional constant of integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(Tensor::i64([values.len()], values))
    }

    /// A named constant.
    pub fn initializer(&mut self, name: &str, tensor: Tensor) {
        self.types.set_initializer(name, &tensor);
        self.graph.initializers.insert(name.to_owned(), tensor);
    }

    /// A graph input.
    pub fn input(&mut self, name: &str, ty: Type) {
        self.graph.inputs.push(value_info(name, &ty));
        self.types.set(name, crate::infer::Fact { ty, ints: None });
    }

    /// Makes `value` a graph output called `name`.
    pub fn output(&mut self, value: &str, name: &str) -> Result<(), PassError> {
        if value != name {
            self.push(Node::new("Identity", &[value], &[name]))?;
        }
        let info = value_info(name, self.ty(name)?);
        self.graph.outputs.push(info);
        Ok(())
    }

    /// Reshapes `value`; as it is, where it already has that shape.
    pub fn reshape(&mut self, value: &str, shape: &[Extent]) -> Result<String, PassError> {
        if self.ty(value)?.shape == shape {
            return Ok(value.to_owned());
        }
        let target = crate::infer::as_reshape_target(shape);
        let target = target.ok_or_else(|| {
            PassError::Input(format!("shape {shape:?} of {value:?} is quadratic in the batch"))
        })?;
        let target = self.ints(&target);
        self.op("Reshape", &[value, &target])
    }

    /// `value` with all dimensions but the last merged into one.
    pub fn rows(&mut self, value: &str) -> Result<String, PassError> {
        let ty = self.ty(value)?;
        match (ty.rows(), ty.shape.last().copied()) {
            (Some(rows), Some(last)) => self.reshape(value, &[rows, last]),
            _ => Err(PassError::Input(format!("{value:?} has no rows"))),
        }
    }

    /// Elements known up to the batch, as a tensor: the batch is read from the first graph input.
    pub fn extents(&mut self, extents: &[Extent]) -> Result<String, PassError> {
        if let Some(known) = extents.iter().map(|e| e.known()).collect::<Option<Vec<_>>>() {
            return Ok(self.ints(&known));
        }
        let batch = self.batch_size()?;
        let mut parts = Vec::new();
        for extent in extents {
            parts.push(match (extent.batch, extent.factor) {
                (false, size) => self.ints(&[size]),
                (true, 1) => batch.clone(),
                (true, factor) => {
                    let factor = self.ints(&[factor]);
                    self.op("Mul", &[&batch, &factor])?
                }
            });
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.add(Node::new("Concat", &parts, &[]).with("axis", 0i64))
    }

    /// The batch size as an `i64` tensor of shape `[1]`.
    pub fn batch_size(&mut self) -> Result<String, PassError> {
        let name = format!("{}batch", self.prefix);
        if self.types.get(&name).is_none() {
            let batched = |input: &&ValueInfo| matches!(input.shape.as_deref(), Some([Dim::Symbol(_), ..]));
            let input = self.graph.inputs.iter().find(batched).map(|input| input.name.clone());
            let input = input.ok_or_else(|| PassError::Input("no input has a batch dimension".into()))?;
            self.push(Node::new("Shape", &[&input], &[&name]).with("start", 0i64).with("end", 1i64))?;
        }
        Ok(name)
    }
}

/// The declaration of a graph input or output.
fn value_info(name: &str, ty: &Type) -> ValueInfo {
    let dim = |extent: &Extent| match (extent.batch, extent.factor) {
        (false, size) => Dim::Fixed(size as usize),
        (true, 1) => Dim::Symbol("N".into()),
        (true, factor) => Dim::Symbol(format!("{factor}N")),
    };
    ValueInfo::new(name, ty.dtype, ty.shape.iter().map(dim).collect())
}
