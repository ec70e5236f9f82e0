//! Operators in which trained tensors meet the batch: values with the same derivative by the copies.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::Extent;

use super::copies::{BROADCAST, Result, Spread, unsupported};
use crate::{functions, rules::transposed};

impl Spread {
    /// Values with the same derivative as `node`, which meets the batch, by the copies it reads.
    pub fn shadows(&mut self, node: &Node) -> Result<Vec<String>> {
        let y = &node.outputs[0];
        let shape = self.b.ty(y)?.shape.clone();
        let frame = self.frame(node, y)?;
        let mut shadows = Vec::new();
        match node.op.as_str() {
            _ if !node.domain.is_empty() => {}
            op if BROADCAST.contains(&op) => {
                let value = self.broadcast(node, &frame)?;
                shadows.push(self.b.reshape(&value, &shape)?);
            }
            "Gemm" => {
                if let Some(copies) = self.copy(node, 1) {
                    shadows.push(self.rows(node, &copies, node.int("transB").unwrap_or(0) != 0)?);
                }
                if let Some(copies) = self.copy(node, 2) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
                if node.int("transA").unwrap_or(0) != 0 || self.copy(node, 0).is_some() {
                    shadows.clear();
                }
            }
            "MatMul" if frame.is_rows() => {
                if let Some(copies) = self.copy(node, 1) {
                    shadows.push(self.rows(node, &copies, false)?);
                }
            }
            "MatMul" if frame.axis() + 2 < shape.len() => {
                let value = self.broadcast(node, &frame)?;
                shadows.push(self.b.reshape(&value, &shape)?);
            }
            "LayerNormalization" => {
                if let Some(copies) = self.copy(node, 1) {
                    let normal = self.normal(node)?;
                    let normal = frame.take_apart(&mut self.b, &normal)?;
                    let scale = frame.place(&mut self.b, &copies)?;
                    let value = self.b.op("Mul", &[&normal, &scale])?;
                    shadows.push(self.b.reshape(&value, &shape)?);
                }
                if let Some(copies) = self.copy(node, 2) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Conv" if self.copy(node, 1).is_some() => {
                let reason = "the weight of a convolution with overlapping windows has no gradient for each example: \
                              choose a method that does not train it";
                return Err(unsupported(node, reason));
            }
            "Conv" => {
                if let Some(copies) = self.copy(node, 2) {
                    let one = Extent::fixed(1);
                    let channels = self.b.ty(&copies)?.shape.clone();
                    let spatial = vec![one; shape.len() - 2];
                    let copies = self.b.reshape(&copies, &[&channels[..], &spatial].concat())?;
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Expand" => {
                if let Some(copies) = self.copy(node, 0) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Gather" if node.int("axis").unwrap_or(0) == 0 => shadows.push(self.table(node, &shape)?),
            _ => {}
        }
        let read = node.inputs.iter().filter(|name| self.copies.contains_key(*name)).count();
        if shadows.is_empty() || (!BROADCAST.contains(&node.op.as_str()) && shadows.len() < read) {
            let reason = "it has no form in which every example has its own copy of what is trained: choose a method \
                          that does not train what it reads";
            return Err(unsupported(node, reason));
        }
        Ok(shadows)
    }

    /// Rows of the batch times a matrix, `Gemm` or `MatMul` of two axes. With rows grouped by example it is a product of
    /// `[N, rows, C]` and `[N, C, D]`.
    fn rows(&mut self, node: &Node, copies: &str, is_transposed: bool) -> Result<String> {
        let shape = self.b.ty(&node.outputs[0])?.shape.clone();
        let frame = self.frame(node, &node.inputs[0])?;
        if !frame.is_rows() {
            return Err(unsupported(node, "the batch is not the first axis of its rows"));
        }
        let columns = self.b.ty(&node.inputs[0])?.shape[1];
        let x = self.stop(&node.inputs[0])?;
        let b = &mut self.b;
        let x = b.reshape(&x, &frame.rows_apart(columns))?;
        let mut copies = copies.to_owned();
        if let Some(alpha) = node.float("alpha").filter(|alpha| *alpha != 1.0) {
            let alpha = b.scalar(alpha);
            copies = b.op("Mul", &[&copies, &alpha])?;
        }
        let product = if is_transposed {
            // The matrix first, that its gradient is not a transpose of a product.
            let x = transposed(b, &x)?;
            let product = b.op("MatMul", &[&copies, &x])?;
            transposed(b, &product)?
        } else {
            b.op("MatMul", &[&x, &copies])?
        };
        Ok(b.reshape(&product, &shape)?)
    }

    /// `(X - mean) / deviation` of a normalisation, a constant.
    fn normal(&mut self, node: &Node) -> Result<String> {
        let index = self.b.graph().nodes.len() - 1;
        let x = self.stop(&node.inputs[0])?;
        let mut moments = Vec::new();
        for slot in [1, 2] {
            let moment = self.b.want_output(index, slot)?;
            // They depend on what X depends on.
            moments.push(self.b.add(functions::node("StopGradient", &[&moment]))?);
        }
        let centred = self.b.op("Sub", &[&x, &moments[0]])?;
        Ok(self.b.op("Mul", &[&centred, &moments[1]])?)
    }

    /// Rows of an embedding table: those of all examples' tables one below the other.
    fn table(&mut self, node: &Node, shape: &[Extent]) -> Result<String> {
        let missing = || unsupported(node, "only a table that is indexed by the batch can be copied");
        let copies = self.copy(node, 0).ok_or_else(missing)?;
        let indices = self.frame(node, &node.inputs[1])?;
        let rows = self.b.ty(&copies)?.shape[1..].to_vec();
        let ids = self.stop(&node.inputs[1])?;
        let b = &mut self.b;
        let ids = indices.take_apart(b, &ids)?;
        let size = b.batch_size()?;
        let (zero, step, limit) =
            (b.constant(Tensor::i64([], &[0])), b.constant(Tensor::i64([], &[1])), b.reshape(&size, &[])?);
        let numbers = b.op("Range", &[&zero, &limit, &step])?;
        let height = b.extents(&rows[..1])?;
        let first = b.op("Mul", &[&numbers, &height])?;
        let first = indices.place(b, &first)?;
        let ids = b.op("Add", &[&ids, &first])?;
        let all = rows[0].times(Extent::N).ok_or_else(missing)?;
        let table = b.reshape(&copies, &[&[all], &rows[1..]].concat())?;
        let value = b.op("Gather", &[&table, &ids])?;
        Ok(b.reshape(&value, shape)?)
    }
}
