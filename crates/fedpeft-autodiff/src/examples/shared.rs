//! Operators on trained tensors alone, before these meet the batch: the same on copies, with axes one further behind.

use fedpeft_onnx::Node;
use fedpeft_passes::{Builder, Extent};

use super::{
    copies::{BROADCAST, Result, Spread, unsupported},
    frame::Frame,
};

/// Operators that work value by value on one input.
const UNARY: &[&str] = &[
    "Identity",
    "Cast",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Softplus",
    "Relu",
    "Gelu",
];

impl Spread {
    /// `node`, which reads tensors alone, on copies; one value for each output.
    pub fn shared(&mut self, node: &Node) -> Result<Vec<String>> {
        let shape = self.b.ty(&node.outputs[0])?.shape.clone();
        let frame = Frame::shared(&shape);
        let whole = [&[Extent::N], &shape[..]].concat();
        let no =
            || unsupported(node, "it has no form in which every example has its own copy of what is trained");
        let first = self.copy(node, 0);
        let b = &mut self.b;
        let rank = b.ty(&node.inputs[0])?.rank() as i64;
        // Axes count one more from the front, and the same from the back.
        let shift = |axis: i64| if axis < 0 { axis } else { axis + 1 };
        let axis = |default: i64| shift(node.int("axis").unwrap_or(default));
        let with = |copy: &str| {
            let mut node = Node { outputs: Vec::new(), ..node.clone() };
            copy.clone_into(&mut node.inputs[0]);
            node
        };
        let one = match (node.op.as_str(), first) {
            _ if !node.domain.is_empty() => return Err(no()),
            (op, Some(copy)) if UNARY.contains(&op) => b.add(with(&copy))?,
            ("Reshape" | "Flatten" | "Squeeze" | "Unsqueeze", Some(copy)) => b.reshape(&copy, &whole)?,
            (op, _) if BROADCAST.contains(&op) => return Ok(vec![self.broadcast(node, &frame)?]),
            ("MatMul", _) if rank >= 2 && shape.len() >= 2 => return Ok(vec![self.broadcast(node, &frame)?]),
            ("Transpose", Some(copy)) => {
                let reversed = || (0..rank).rev().collect();
                let perm = node.ints("perm").map_or_else(reversed, <[i64]>::to_vec);
                let perm: Vec<i64> = [0].into_iter().chain(perm.into_iter().map(|axis| axis + 1)).collect();
                b.add(with(&copy).with("perm", perm))?
            }
            ("Concat", _) => {
                let mut parts = Vec::new();
                for name in &node.inputs {
                    parts.push(match self.copies.get(name) {
                        Some(copy) => copy.clone(),
                        None => {
                            let target = [&[Extent::N], &b.ty(name)?.shape[..]].concat();
                            let target = b.extents(&target)?;
                            b.op("Expand", &[name, &target])?
                        }
                    });
                }
                b.add(Node { inputs: parts, outputs: Vec::new(), ..node.clone() }.with("axis", axis(0)))?
            }
            ("Slice", Some(copy)) => {
                let starts =
                    b.ty(&node.inputs[1])?.shape.first().and_then(|extent| extent.known()).unwrap_or(0);
                let axes = known(b, node, 3).unwrap_or_else(|| (0..starts).collect());
                let axes: Vec<i64> = axes.into_iter().map(shift).collect();
                let mut slice = with(&copy);
                slice.inputs.resize(slice.inputs.len().max(4), String::new());
                slice.inputs[3] = b.ints(&axes);
                b.add(slice)?
            }
            ("Pad", Some(copy)) => {
                let pads = known(b, node, 1).filter(|pads| pads.len() as i64 == 2 * rank).ok_or_else(no)?;
                let (before, after) = pads.split_at(rank as usize);
                let pads = [&[0], before, &[0], after].concat();
                let mut pad = with(&copy);
                pad.inputs[1] = b.ints(&pads);
                b.add(pad)?
            }
            ("Split", Some(copy)) => {
                let outputs: Vec<String> = node.outputs.iter().map(|_| b.fresh("split")).collect();
                b.push(Node { outputs: outputs.clone(), ..with(&copy) }.with("axis", axis(0)))?;
                return Ok(outputs);
            }
            ("Gather", Some(copy)) if b.types().ints(&node.inputs[1]).is_some_and(|ints| ints.len() == 1) => {
                b.add(with(&copy).with("axis", axis(0)))?
            }
            // The gradient of many indices is known on the first axis: the examples go last meanwhile.
            ("Gather", Some(copy)) if node.int("axis").unwrap_or(0) == 0 => {
                let turn = |rank: i64, by: i64| (0..rank).map(|axis| (axis + by) % rank).collect::<Vec<_>>();
                let last = b.add(Node::new("Transpose", &[&copy], &[]).with("perm", turn(rank + 1, 1)))?;
                let taken = b.add(with(&last))?;
                let rank = whole.len() as i64;
                b.add(Node::new("Transpose", &[&taken], &[]).with("perm", turn(rank, rank - 1)))?
            }
            ("ReduceSum" | "ReduceMean", Some(copy)) => {
                let axes =
                    known(b, node, 1).filter(|axes| !axes.is_empty()).unwrap_or_else(|| (0..rank).collect());
                let axes: Vec<i64> = axes.into_iter().map(shift).collect();
                let axes = b.ints(&axes);
                let mut reduce = with(&copy);
                reduce.inputs = vec![copy, axes];
                b.add(reduce)?
            }
            ("Expand", Some(copy)) => self.expand(&copy, &frame, &whole)?,
            _ => return Err(no()),
        };
        Ok(vec![one])
    }
}

/// The known integers of input `index`.
fn known(b: &Builder, node: &Node, index: usize) -> Option<Vec<i64>> {
    b.types().ints(node.input(index)?)?.iter().map(|extent| extent.known()).collect()
}
