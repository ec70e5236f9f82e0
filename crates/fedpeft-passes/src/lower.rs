//! Writing operators in the form that is cheapest to run and to differentiate: linear layers and
//! non-overlapping convolutions as one two-dimensional `Gemm`, interpolation of constants as matrix products.

use std::collections::{HashMap, HashSet};

use fedpeft_interp::{Value, eval_node};
use fedpeft_onnx::{Graph, Node, Tensor};
use ndarray::Array2;

use crate::{Builder, Extent, PassError};

/// Lowers every node that has a lowering.
pub(crate) fn lower(graph: &mut Graph) -> Result<(), PassError> {
    let biases = linear_biases(graph);
    let absorbed: HashSet<&str> = biases.values().map(|(sum, _)| sum.as_str()).collect();
    let mut builder = Builder::without_nodes(graph, "lower.")?;
    for node in &graph.nodes {
        match node.op.as_str() {
            _ if !node.domain.is_empty() => builder.push(node.clone())?,
            "Add" if absorbed.contains(node.outputs[0].as_str()) => {}
            "MatMul" if is_matrix(graph, node.input(1)) => {
                linear(&mut builder, node, biases.get(&node.outputs[0]))?;
            }
            "Conv" if is_patch_embedding(&builder, node)? => patch_embedding(&mut builder, node)?,
            "Resize" => resize(&mut builder, node)?,
            _ => builder.push(node.clone())?,
        }
    }
    *graph = builder.finish();
    Ok(())
}

fn is_matrix(graph: &Graph, name: Option<&str>) -> bool {
    name.and_then(|name| graph.initializers.get(name)).is_some_and(|tensor| tensor.shape.len() == 2)
}

/// For each product of a linear layer, the sum with its bias: (name of the sum, name of the bias).
fn linear_biases(graph: &Graph) -> HashMap<String, (String, String)> {
    let consumers = graph.consumers();
    let products = graph.nodes.iter().filter(|n| n.is("MatMul") && is_matrix(graph, n.input(1)));
    let bias_of = |node: &Node| {
        let product = &node.outputs[0];
        let &[reader] = consumers.get(product.as_str())?.as_slice() else { return None };
        let add = &graph.nodes[reader];
        let bias = add.inputs.iter().find(|input| *input != product).filter(|_| add.is("Add"))?;
        let columns = graph.initializers[node.input(1)?].shape[1];
        let flat = graph.initializers.get(bias).is_some_and(|tensor| tensor.shape == [columns]);
        flat.then(|| (product.clone(), (add.outputs[0].clone(), bias.clone())))
    };
    products.filter_map(bias_of).collect()
}

/// `[.., C] x [C, D] (+ [D])` as Gemm on rows.
fn linear(builder: &mut Builder, node: &Node, bias: Option<&(String, String)>) -> Result<(), PassError> {
    let [x, weight] = &node.inputs[..] else { return Err(PassError::node(node, "two inputs are needed")) };
    let mut shape = builder.ty(x)?.shape.clone();
    let columns = builder.ty(weight)?.shape[1];
    let rows = builder.rows(x)?;
    let mut gemm = Node::new("Gemm", &[&rows, weight], &[]).named(node.name.clone());
    gemm.inputs.extend(bias.map(|(_, bias)| bias.clone()));
    let output = bias.map_or(&node.outputs[0], |(sum, _)| sum);
    if shape.len() == 2 {
        gemm.outputs = vec![output.clone()];
        return builder.push(gemm);
    }
    let product = builder.add(gemm)?;
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    reshape_to(builder, &product, &shape, output)
}

/// `Reshape` with a given name for its output.
fn reshape_to(builder: &mut Builder, value: &str, shape: &[Extent], output: &str) -> Result<(), PassError> {
    let target = crate::infer::as_reshape_target(shape);
    let target =
        target.ok_or_else(|| PassError::Input(format!("shape {shape:?} is quadratic in the batch")))?;
    let target = builder.ints(&target);
    builder.push(Node::new("Reshape", &[value, &target], &[output]))
}

/// Whether the convolution's windows tile its input: stride equal to kernel, no padding, no dilation.
fn is_patch_embedding(builder: &Builder, node: &Node) -> Result<bool, PassError> {
    let (x, w) = (&builder.ty(&node.inputs[0])?.shape, &builder.ty(&node.inputs[1])?.shape);
    let spatial = x.len().saturating_sub(2);
    let kernel: Option<Vec<i64>> = w.iter().skip(2).map(|e| e.known()).collect();
    let all = |name: &str, value: i64| node.ints(name).is_none_or(|v| v.iter().all(|v| *v == value));
    let tiles = x.iter().zip(w).skip(2).all(|(size, kernel)| size.divided_by(*kernel).is_some());
    Ok(spatial == 2
        && kernel.as_deref() == node.ints("strides")
        && all("pads", 0)
        && all("dilations", 1)
        && node.int("group").unwrap_or(1) == 1
        && tiles)
}

/// `[N, C, h kh, w kw]` convolved with `[M, C, kh, kw]`: patches as rows, times the weight's rows.
fn patch_embedding(builder: &mut Builder, node: &Node) -> Result<(), PassError> {
    let (x, w) = (builder.ty(&node.inputs[0])?.shape.clone(), builder.ty(&node.inputs[1])?.shape.clone());
    let (batch, channels, features, kh, kw) = (x[0], x[1], w[0], w[2], w[3]);
    let quadratic = || PassError::node(node, "the patches are quadratic in the batch");
    let (h, wide) = (x[2].divided_by(kh).ok_or_else(quadratic)?, x[3].divided_by(kw).ok_or_else(quadratic)?);
    let product = |extents: &[Extent]| {
        extents.iter().try_fold(Extent::fixed(1), |p, e| p.times(*e)).ok_or_else(quadratic)
    };
    let tiles = builder.reshape(&node.inputs[0], &[batch, channels, h, kh, wide, kw])?;
    let tiles =
        builder.add(Node::new("Transpose", &[&tiles], &[]).with("perm", vec![0i64, 2, 4, 1, 3, 5]))?;
    let patches = builder.reshape(&tiles, &[product(&[batch, h, wide])?, product(&[channels, kh, kw])?])?;
    let weight = builder.reshape(&node.inputs[1], &[features, product(&[channels, kh, kw])?])?;
    let mut gemm = Node::new("Gemm", &[&patches, &weight], &[]).with("transB", 1i64).named(node.name.clone());
    gemm.inputs.extend(node.input(2).map(str::to_owned));
    let rows = builder.add(gemm)?;
    let map = builder.reshape(&rows, &[batch, h, wide, features])?;
    builder.push(Node::new("Transpose", &[&map], &[&node.outputs[0]]).with("perm", vec![0i64, 3, 1, 2]))
}

/// Interpolation is linear in its input and separable: one matrix per resized axis.
fn resize(builder: &mut Builder, node: &Node) -> Result<(), PassError> {
    let (from, to) = (builder.ty(&node.inputs[0])?.shape.clone(), sizes(builder, node)?);
    let rank = from.len();
    let changed: Vec<usize> = (0..rank).filter(|axis| from[*axis] != to[*axis]).collect();
    if rank < 3 || changed.iter().any(|axis| *axis + 2 < rank) {
        return Err(PassError::node(node, "only the last two dimensions can be resized"));
    }
    let mut value = node.inputs[0].clone();
    for axis in changed {
        let (Some(input), Some(output)) = (from[axis].known(), to[axis].known()) else {
            return Err(PassError::node(node, "the batch cannot be resized"));
        };
        let matrix = resize_matrix(node, rank, axis, input as usize, output as usize)?;
        value = if axis + 1 == rank {
            let columns: Vec<f32> = matrix.t().iter().map(|v| *v as f32).collect();
            let matrix = builder.constant(Tensor::f32([input as usize, output as usize], &columns));
            builder.op("MatMul", &[&value, &matrix])?
        } else {
            let rows: Vec<f32> = matrix.iter().map(|v| *v as f32).collect();
            let matrix = builder.constant(Tensor::f32([output as usize, input as usize], &rows));
            builder.op("MatMul", &[&matrix, &value])?
        };
    }
    builder.push(Node::new("Identity", &[&value], &[&node.outputs[0]]))
}

/// The weights `[output, input]` by which the node interpolates one axis: what it makes of every unit vector.
fn resize_matrix(
    node: &Node,
    rank: usize,
    axis: usize,
    input: usize,
    output: usize,
) -> Result<Array2<f64>, PassError> {
    // One unit vector per channel; the node treats channels alike.
    let vectors = rank - 3;
    let mut shape = vec![1; rank];
    (shape[vectors], shape[axis]) = (input, input);
    let mut sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
    sizes[axis] = output as i64;
    let unit = Value::Float(
        Array2::eye(input).into_shape_with_order(shape).map_err(|e| PassError::node(node, e.to_string()))?,
    );
    let sizes = Value::Int(ndarray::Array1::from(sizes).into_dyn());
    let results = eval_node(node, &[Some(&unit), None, None, Some(&sizes)])?;
    let result = results.first().ok_or_else(|| PassError::node(node, "no output"))?.as_float()?;
    let by_vector = result.to_shape((input, output)).map_err(|e| PassError::node(node, e.to_string()))?;
    Ok(by_vector.t().to_owned())
}

fn sizes(builder: &Builder, node: &Node) -> Result<Vec<Extent>, PassError> {
    let sizes = node.input(3).and_then(|name| builder.types().ints(name)).map(<[_]>::to_vec);
    sizes.ok_or_else(|| {
        PassError::node(node, "only resizing to sizes known when the graph is built is supported")
    })
}
