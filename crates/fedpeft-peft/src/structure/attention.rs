//! Attention: a softmax between two products.

use fedpeft_onnx::Node;
use fedpeft_passes::{PassError, Types};

use super::{
    Attention, Linear, Projection, Residual, columns,
    walk::{Walk, is_elementwise, is_layout},
};

/// Every softmax whose surroundings are those of an attention.
pub(super) fn find(walk: &Walk<'_>, linears: &[Linear], types: &Types) -> Result<Vec<Attention>, PassError> {
    let mut found = Vec::new();
    for node in walk.graph.nodes.iter().filter(|node| node.is("Softmax")) {
        if let Some(parts) = around(walk, node) {
            found.push(parts.with_columns(walk, linears, types)?);
        }
    }
    Ok(found)
}

struct Parts {
    scores: usize,
    mix: usize,
    query: usize,
    key: usize,
    value: usize,
    output: usize,
    residual: Residual,
}

fn around(walk: &Walk<'_>, softmax: &Node) -> Option<Parts> {
    let scores = scores(walk, softmax.input(0)?)?;
    let between = |node: &Node| {
        is_elementwise(node) || ["Cast", "Identity", "Dropout", "IsNaN"].iter().any(|op| node.is(op))
    };
    let mix = only(walk.forward(softmax.output(0)?, between, |_, node| node.is("MatMul")))?;
    let source = |node: usize, input: usize| only(walk.sources(walk.graph.nodes[node].input(input)?)?);
    let (query, key, value) = (source(scores, 0)?, source(scores, 1)?, source(mix, 1)?);
    let output =
        only(walk.forward(walk.graph.nodes[mix].output(0)?, is_layout, |index, _| {
            walk.linears.contains_key(&index)
        }))?;
    let residual = residual(walk, walk.graph.nodes[output].output(0)?)?;
    Some(Parts { scores, mix, query, key, value, output: walk.linears[&output], residual })
}

/// The product of which `value` is made by scaling and masking.
fn scores(walk: &Walk<'_>, value: &str) -> Option<usize> {
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        let Some((index, node)) = walk.producer(value) else { continue };
        if node.is("MatMul")
            && node.inputs.iter().all(|input| walk.sources(input).is_some_and(|s| !s.is_empty()))
        {
            return Some(index);
        }
        if is_elementwise(node) || node.is("Cast") || node.is("Identity") {
            stack.extend(node.inputs.iter().map(String::as_str));
        }
    }
    None
}

/// The residual addition behind `value`, past another shape, a scale for each feature, or a bias.
pub(super) fn residual(walk: &Walk<'_>, value: &str) -> Option<Residual> {
    let with_constant = |node: &Node| {
        (node.is("Mul") || node.is("Add")) && node.inputs.iter().any(|input| walk.is_constant(input))
    };
    let passes = |node: &Node| {
        with_constant(node) || ["Reshape", "Identity", "Cast", "Dropout"].iter().any(|op| node.is(op))
    };
    let mut value = value;
    loop {
        if let Some((node, addition)) = walk.readers(value).find(|(_, node)| walk.adds_two_values(node)) {
            let stream = addition.inputs.iter().find(|input| *input != value)?;
            return Some(Residual { node, stream: stream.clone(), branch: value.to_owned() });
        }
        let (_, node) = walk.readers(value).find(|(_, node)| passes(node))?;
        value = node.output(0)?;
    }
}

/// The only element.
pub(super) fn only(set: std::collections::BTreeSet<usize>) -> Option<usize> {
    if set.len() == 1 { set.into_iter().next() } else { None }
}

impl Parts {
    /// Finds out which columns of shared linear layers are which.
    fn with_columns(
        self,
        walk: &Walk<'_>,
        linears: &[Linear],
        types: &Types,
    ) -> Result<Attention, PassError> {
        let shared =
            |linear: usize| [self.query, self.key, self.value].iter().filter(|l| **l == linear).count() > 1;
        let projection = |linear: usize, node: usize, input: usize| {
            let columns = match walk.graph.nodes[node].input(input).filter(|_| shared(linear)) {
                Some(operand) => Some(columns::reaching(walk, &linears[linear], operand, types)?),
                None => None,
            };
            Ok::<_, PassError>(Projection { linear, columns })
        };
        Ok(Attention {
            query: projection(self.query, self.scores, 0)?,
            key: projection(self.key, self.scores, 1)?,
            value: projection(self.value, self.mix, 1)?,
            output: self.output,
            scores: self.scores,
            mix: self.mix,
            residual: self.residual,
        })
    }
}
