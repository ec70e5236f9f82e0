//! Matrix products and convolutions.

use fedpeft_onnx::Node;

use crate::{
    reverse::{AutodiffError, Cx},
    rules::{transposed, unbroadcast},
};

type Result = std::result::Result<(), AutodiffError>;

/// `Y = alpha op(A) op(B) + C`. Each gradient is one `Gemm` that reads the factors where they lie: no transposed
/// copy of a frozen weight exists.
pub fn gemm(cx: &mut Cx<'_>) -> Result {
    let alpha = cx.node.float("alpha").unwrap_or(1.0);
    if cx.node.float("beta").is_some_and(|factor| factor != 1.0) {
        return Err(cx.unsupported("beta other than 1 has no rule"));
    }
    let dy = cx.dy()?;
    let (a, w) = (cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    let flag = |name: &str| cx.node.int(name).unwrap_or(0) != 0;
    let (trans_a, trans_b) = (flag("transA"), flag("transB"));
    let product = |cx: &mut Cx<'_>, left: (&str, bool), right: (&str, bool)| {
        let mut node = Node::new("Gemm", &[left.0, right.0], &[]);
        if alpha != 1.0 {
            node = node.with("alpha", alpha);
        }
        cx.b.add(node.with("transA", i64::from(left.1)).with("transB", i64::from(right.1)))
    };
    if cx.wants(0) {
        let da = if trans_a {
            product(cx, (&w, trans_b), (&dy, true))?
        } else {
            product(cx, (&dy, false), (&w, !trans_b))?
        };
        cx.give(0, da);
    }
    if cx.wants(1) {
        let dw = if trans_b {
            product(cx, (&dy, true), (&a, trans_a))?
        } else {
            product(cx, (&a, !trans_a), (&dy, false))?
        };
        cx.give(1, dw);
    }
    if cx.wants(2) {
        cx.give_unbroadcast(2, &dy)?;
    }
    Ok(())
}

/// `dA = dY B^T`, `dB = A^T dY` over the last two axes, summed over broadcast leading axes.
pub fn matmul(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    let (a, w) = (cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    if cx.b.ty(&a)?.rank() < 2 || cx.b.ty(&w)?.rank() < 2 {
        return Err(cx.unsupported("products with vectors have no rule"));
    }
    if cx.wants(0) {
        let w = transposed(cx.b, &w)?;
        let da = cx.b.op("MatMul", &[&dy, &w])?;
        cx.give_unbroadcast(0, &da)?;
    }
    if cx.wants(1) {
        let a = transposed(cx.b, &a)?;
        let dw = cx.b.op("MatMul", &[&a, &dy])?;
        cx.give_unbroadcast(1, &dw)?;
    }
    Ok(())
}

/// `Y[n, m] = sum_c X[n, c] * W[m, c] + b[m]` over two spatial axes, one group.
///
/// `dX` is the transposed convolution of `dY` with `W`. `dW[m, c]` correlates `X[:, c]` with `dY[:, m]`: a
/// convolution whose batch is the channels and whose kernel is the output gradient, with stride and dilation
/// exchanged; positions that no window reached at the right and bottom are cut off.
pub fn conv(cx: &mut Cx<'_>) -> Result {
    let (x, w) = (cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    let (x_shape, w_shape) = (cx.b.ty(&x)?.shape.clone(), cx.b.ty(&w)?.shape.clone());
    if x_shape.len() != 4 || cx.node.int("group").unwrap_or(1) != 1 {
        return Err(cx.unsupported("only two-dimensional convolutions with one group have a rule"));
    }
    let dy = cx.dy()?;
    let ints = |name: &str, default: Vec<i64>| cx.node.ints(name).map_or(default, <[_]>::to_vec);
    let (strides, dilations) = (ints("strides", vec![1, 1]), ints("dilations", vec![1, 1]));
    let pads = ints("pads", vec![0; 4]);
    if cx.wants(0) {
        let y_shape = cx.b.ty(&dy)?.shape.clone();
        let mut missing = Vec::new();
        for i in 0..2 {
            let (Some(size), Some(kernel), Some(out)) =
                (x_shape[i + 2].known(), w_shape[i + 2].known(), y_shape[i + 2].known())
            else {
                return Err(cx.unsupported("spatial dimensions must be known"));
            };
            let covered = strides[i] * (out - 1) + dilations[i] * (kernel - 1) + 1 - pads[i] - pads[i + 2];
            missing.push(size - covered);
        }
        let node = Node::new("ConvTranspose", &[&dy, &w], &[])
            .with("strides", strides.clone())
            .with("dilations", dilations.clone())
            .with("pads", pads.clone())
            .with("output_padding", missing);
        let dx = cx.b.add(node)?;
        cx.give(0, dx);
    }
    if cx.wants(1) {
        let swap = |cx: &mut Cx<'_>, value: &str| {
            cx.b.add(Node::new("Transpose", &[value], &[]).with("perm", vec![1i64, 0, 2, 3]))
        };
        let (images, kernel) = (swap(cx, &x)?, swap(cx, &dy)?);
        let node = Node::new("Conv", &[&images, &kernel], &[])
            .with("strides", dilations)
            .with("dilations", strides)
            .with("pads", pads);
        let full = cx.b.add(node)?;
        let full = swap(cx, &full)?;
        let (Some(kh), Some(kw)) = (w_shape[2].known(), w_shape[3].known()) else {
            return Err(cx.unsupported("the kernel's shape must be known"));
        };
        let (starts, ends, axes) = (cx.b.ints(&[0, 0]), cx.b.ints(&[kh, kw]), cx.b.ints(&[2, 3]));
        let dw = cx.b.op("Slice", &[&full, &starts, &ends, &axes])?;
        cx.give(1, dw);
    }
    if cx.wants(2) {
        let bias = cx.x(2)?.to_owned();
        let axes = cx.b.ints(&[0, 2, 3]);
        let sum = cx.b.add(Node::new("ReduceSum", &[&dy, &axes], &[]).with("keepdims", 0i64))?;
        let db = unbroadcast(cx.b, &sum, &bias)?;
        cx.give(2, db);
    }
    Ok(())
}
