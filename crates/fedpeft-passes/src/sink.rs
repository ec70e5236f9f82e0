//! Selections of rows move towards the inputs.
//!
//! A classifier reads the class token alone, `x[:, 0]`. What the last block does behind its attention it does token by token,
//! and so are its queries: computed for that token only, they give the same for one part in T of the work. So what is
//! wanted of each value is found from the outputs back: all of it, or one row of an axis. A node of which one row is wanted,
//! and that works row by row, becomes the same node on one row: the axis stays, one long. Selections stand where that
//! ends: at keys and values, which all tokens have, and at what else is wanted whole.

use std::collections::HashMap;

use fedpeft_onnx::{Graph, Node};

use crate::{
    Builder, DOMAIN, Extent, PassError, Types,
    infer::{as_reshape_target, infer_graph},
};

/// Operators that work value by value on one input.
const UNARY: &[&str] = &[
    "Abs",
    "Cast",
    "Clip",
    "Erf",
    "Exp",
    "Gelu",
    "Identity",
    "IsNaN",
    "Log",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
];

/// Operators that work value by value on inputs broadcast together.
const BROADCAST: &[&str] = &["Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "Where"];

/// Of an axis of extent `outer * size`, the places `index` of each `size`: a token of `[N, T, C]`, or of each example in the
/// rows `[N T, C]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    axis: usize,
    outer: Extent,
    size: i64,
    index: i64,
}

/// Moves every selection `x[:, i]` of a value `[N, T, C]` as far towards the inputs of `graph` as it computes the same.
/// Values keep their names. Nodes must be in order, and none may be without use: what nothing reads is wanted whole.
///
/// Dropout, which drops by the place of a value in its tensor, drops other values of a selected row than it would have
/// dropped of the whole: as many, and in both directions the same.
///
/// # Errors
/// [`PassError`] where the types of `graph` cannot be told.
pub fn sink(graph: &Graph) -> Result<Graph, PassError> {
    let types = infer_graph(graph)?;
    let plan = Plan { short: short(graph, &types), types };
    let mut taken = HashMap::new();
    Builder::rewrite(graph, "sink.", |b, _, node| plan.push(b, node, &mut taken))
}

/// The values of which one row is wanted, and which their nodes can compute alone.
fn short(graph: &Graph, types: &Types) -> HashMap<String, Row> {
    let mut short = HashMap::new();
    let outputs = graph.outputs.iter().map(|output| (output.name.as_str(), None));
    let mut wanted: HashMap<&str, Option<Row>> = outputs.collect();
    for node in graph.nodes.iter().rev() {
        let rule = Rule { node, types };
        let row = rule.only_output().and_then(|output| Some((output, (*wanted.get(output)?)?)));
        let reads = match row.and_then(|(output, row)| Some((output, row, rule.reads(row)?))) {
            Some((output, row, reads)) => {
                short.insert(output.to_owned(), row);
                reads
            }
            None => vec![rule.selects()],
        };
        // What is not named is read whole.
        let reads = reads.into_iter().chain(std::iter::repeat(None));
        for (name, row) in node.inputs.iter().zip(reads) {
            let known = wanted.entry(name).or_insert(row);
            *known = known.filter(|known| Some(*known) == row);
        }
    }
    short
}

/// What becomes of a graph.
struct Plan {
    types: Types,
    /// Values that become one row.
    short: HashMap<String, Row>,
}

impl Plan {
    /// Pushes what takes the place of `node`. `taken` are rows that were selected from whole values.
    fn push(
        &self,
        b: &mut Builder,
        mut node: Node,
        taken: &mut HashMap<(String, Row), String>,
    ) -> Result<(), PassError> {
        let rule = Rule { node: &node, types: &self.types };
        let row = node.output(0).and_then(|output| self.short.get(output)).copied();
        let Some((row, reads)) = row.and_then(|row| Some((row, rule.reads(row)?))) else {
            // A selection that has moved away leaves an axis to be dropped.
            if rule.selects().is_some() && self.short.contains_key(&node.inputs[0]) {
                node = reshape(b, &node, &rule.shape_of(&node.outputs[0]).unwrap_or_default())?;
            }
            return b.push(node);
        };
        let mut shape = rule.shape_of(&node.outputs[0]).unwrap_or_default();
        let cuts = rule.slices(row.axis);
        for (name, read) in node.inputs.iter_mut().zip(reads) {
            let Some(read) = read.filter(|_| !self.short.contains_key(name)) else { continue };
            let key = (name.clone(), read);
            *name = match taken.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let row = take(b, name, read)?;
                    taken.insert(key, row.clone());
                    row
                }
            };
        }
        if node.is("Reshape") {
            shape[row.axis] = row.outer;
            node = reshape(b, &node, &shape)?;
        } else if cuts {
            node = Node {
                name: node.name,
                outputs: node.outputs,
                ..Node::new("Identity", &[&node.inputs[0]], &[])
            };
        }
        b.push(node)
    }
}

/// `Reshape` of the first input of `node` in its place.
fn reshape(b: &mut Builder, node: &Node, shape: &[Extent]) -> Result<Node, PassError> {
    let target = as_reshape_target(shape);
    let target =
        target.ok_or_else(|| PassError::node(node, format!("{shape:?} is quadratic in the batch")))?;
    let target = b.ints(&target);
    Ok(Node::new("Reshape", &[&node.inputs[0], &target], &[&node.outputs[0]]).named(node.name.clone()))
}

/// A row of a value that is whole.
fn take(b: &mut Builder, value: &str, row: Row) -> Result<String, PassError> {
    let Row { axis, outer, size, index } = row;
    let mut shape = b.ty(value)?.shape.clone();
    let index = b.ints(&[index]);
    let gather = |b: &mut Builder, value: &str, axis: usize| {
        b.add(Node::new("Gather", &[value, &index], &[]).with("axis", axis as i64))
    };
    if outer == Extent::fixed(1) {
        return gather(b, value, axis);
    }
    let apart = [&shape[..axis], &[outer, Extent::fixed(size)], &shape[axis + 1..]].concat();
    let apart = b.reshape(value, &apart)?;
    let taken = gather(b, &apart, axis + 1)?;
    shape[axis] = outer;
    b.reshape(&taken, &shape)
}

/// How a node works on rows.
struct Rule<'a> {
    node: &'a Node,
    types: &'a Types,
}

impl<'a> Rule<'a> {
    fn shape_of(&self, value: &str) -> Option<Vec<Extent>> {
        self.types.get(value).map(|ty| ty.shape.clone())
    }

    fn shape(&self, input: usize) -> Option<&'a [Extent]> {
        self.types.get(self.node.input(input)?).map(|ty| ty.shape.as_slice())
    }

    /// The known integers of an input.
    fn ints(&self, input: usize) -> Option<Vec<i64>> {
        self.types.ints(self.node.input(input)?)?.iter().map(|extent| extent.known()).collect()
    }

    /// The first output, where no other is wanted.
    fn only_output(&self) -> Option<&'a str> {
        let rest = self.node.outputs.get(1..)?;
        self.node.output(0).filter(|_| rest.iter().all(String::is_empty))
    }

    /// The attribute `axis` of an operator whose first input has this rank.
    fn axis(&self, default: i64) -> Option<usize> {
        let axis = self.node.int("axis").unwrap_or(default);
        usize::try_from(if axis < 0 { axis + self.shape(0)?.len() as i64 } else { axis }).ok()
    }

    /// The row that the node selects, where it is a selection of a token.
    fn selects(&self) -> Option<Row> {
        let &[Extent::N, tokens, _] = self.shape(0).filter(|_| self.node.is("Gather"))? else { return None };
        let size = tokens.known().filter(|size| *size > 1 && self.axis(0) == Some(1))?;
        let &[index] = self.ints(1)?.as_slice() else { return None };
        let index = if index < 0 { index + size } else { index };
        (0..size).contains(&index).then_some(Row { axis: 1, outer: Extent::fixed(1), size, index })
    }

    /// What of each input `row` of the output is computed from: a row, or all, which inputs that are not named are read.
    /// None where the operator is not known to work row by row.
    fn reads(&self, row: Row) -> Option<Vec<Option<Row>>> {
        let node = self.node;
        let first = |row| Some(vec![Some(row)]);
        match node.op.as_str() {
            "Dropout" if node.domain == DOMAIN => first(row),
            _ if !node.domain.is_empty() => None,
            op if UNARY.contains(&op) => first(row),
            op if BROADCAST.contains(&op) => {
                (0..node.inputs.len()).map(|input| self.operand(input, row)).collect()
            }
            "LayerNormalization" if row.axis < self.axis(-1)? => first(row),
            "Softmax" if row.axis != self.axis(-1)? => first(row),
            "Gemm" if row.axis == 0 && node.int("transA").unwrap_or(0) == 0 => {
                let addend = node.input(2).map_or(Some(None), |_| self.operand(2, row))?;
                Some(vec![Some(row), None, addend])
            }
            "MatMul" => {
                let rank = self.types.get(node.output(0)?)?.rank();
                let own = self.shape(0)?.len();
                (row.axis + 2 == rank && own >= 2).then(|| vec![Some(Row { axis: own - 2, ..row })])
            }
            "Transpose" => {
                let axis = usize::try_from(*node.ints("perm")?.get(row.axis)?).ok()?;
                first(Row { axis, ..row })
            }
            "Reshape" => first(self.reshaped(row)?),
            "Slice" if self.slices(row.axis) => first(self.sliced(row)?),
            _ => None,
        }
    }

    /// What of an input that is broadcast to the output belongs to `row`.
    fn operand(&self, input: usize, row: Row) -> Option<Option<Row>> {
        let (rank, shape) = (self.types.get(self.node.output(0)?)?.rank(), self.shape(input)?);
        let axis = (row.axis + shape.len()).checked_sub(rank);
        let axis = axis.filter(|axis| shape.get(*axis).is_some_and(|extent| *extent != Extent::fixed(1)));
        Some(axis.map(|axis| Row { axis, ..row }))
    }

    /// Where a row lies before `Reshape`: as much is before it in memory, and its axis ends with it.
    fn reshaped(&self, row: Row) -> Option<Row> {
        let product = |shape: &[Extent]| {
            shape.iter().try_fold(Extent::fixed(1), |product, extent| product.times(*extent))
        };
        let (from, to) = (self.shape(0)?, &self.types.get(self.node.output(0)?)?.shape);
        let before = product(to.get(..row.axis)?)?.times(row.outer)?;
        (0..from.len()).find_map(|axis| {
            let outer = before.divided_by(product(&from[..axis])?)?;
            (from[axis] == outer.times(Extent::fixed(row.size))?).then_some(Row { axis, outer, ..row })
        })
    }

    /// Whether the node cuts this axis, and no other, without leaving out any place in between.
    fn slices(&self, axis: usize) -> bool {
        let rank = self.shape(0).map_or(0, <[Extent]>::len);
        let is_it = |axes: Vec<i64>| [vec![axis as i64], vec![axis as i64 - rank as i64]].contains(&axes);
        let steps = self.node.input(4).map_or(Some(vec![1]), |_| self.ints(4));
        self.node.is("Slice") && self.ints(3).is_some_and(is_it) && steps.is_some_and(|steps| steps == [1])
    }

    /// Where a row lies before its axis was cut.
    fn sliced(&self, row: Row) -> Option<Row> {
        let size = self.shape(0)?.get(row.axis)?.known().filter(|_| row.outer == Extent::fixed(1))?;
        let &[start] = self.ints(1)?.as_slice() else { return None };
        let start = (if start < 0 { start.saturating_add(size) } else { start }).clamp(0, size);
        Some(Row { size, index: row.index + start, ..row })
    }
}
