//! Laws that operators obey together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use fedpeft_interp::{Coordinates, Interpolation, Nearest, Value, eval_node, resize_matrix};
use fedpeft_onnx::{Attribute, Node};
use ndarray::{ArrayD, Axis, IxDyn};
use proptest::prelude::*;

fn one(node: &Node, inputs: &[&Value]) -> ArrayD<f64> {
    let inputs: Vec<Option<&Value>> = inputs.iter().copied().map(Some).collect();
    eval_node(node, &inputs).unwrap().remove(0).as_float().unwrap().clone()
}

fn real(shape: &[usize], numbers: &[f64]) -> Value {
    let len = shape.iter().product();
    Value::Float(ArrayD::from_shape_vec(IxDyn(shape), numbers[..len].to_vec()).unwrap())
}

fn numbers() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-3.0f64..3.0, 200)
}

proptest! {
    #[test]
    fn softmax_is_a_distribution(shape in prop::collection::vec(1usize..4, 1..4), numbers in numbers()) {
        let y = one(&Node::new("Softmax", &[], &["y"]), &[&real(&shape, &numbers)]);
        for sum in y.sum_axis(Axis(shape.len() - 1)) {
            prop_assert!((sum - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn convolution_and_its_transpose_are_adjoint(
        (stride, dilation, before, after) in (1i64..3, 1i64..3, 0i64..2, 0i64..2),
        (numbers, others) in (numbers(), numbers()),
    ) {
        let with = |op: &str| {
            Node::new(op, &[], &["y"])
                .with("strides", vec![stride, stride])
                .with("dilations", vec![dilation, dilation])
                .with("pads", vec![before, before, after, after])
        };
        let (x, w) = (real(&[1, 2, 7, 6], &numbers), real(&[3, 2, 2, 3], &others));
        let y = one(&with("Conv"), &[&x, &w]);
        let dy = real(y.shape(), &others);
        // What a stride skips at the end belongs to no place of the kernel.
        let skipped: Vec<i64> = [(7, 2), (6, 3)]
            .map(|(len, kernel)| (len + before + after - (kernel - 1) * dilation - 1) % stride)
            .to_vec();
        let transpose = with("ConvTranspose").with("output_padding", skipped);
        let dx = one(&transpose, &[&dy, &w]);
        prop_assert_eq!(dx.shape(), x.shape());
        let left = (&y * dy.as_float().unwrap()).sum();
        let right = (&dx * x.as_float().unwrap()).sum();
        prop_assert!((left - right).abs() < 1e-10, "{} {}", left, right);
    }

    #[test]
    fn transposing_the_transposed_product_swaps_its_factors(numbers in numbers(), others in numbers()) {
        let (a, b) = (real(&[4, 3], &numbers), real(&[3, 5], &others));
        let gemm = Node::new("Gemm", &[], &["y"]).with("transA", 1i64).with("transB", 1i64);
        let product = one(&Node::new("MatMul", &[], &["y"]), &[&a, &b]);
        let swapped = one(&gemm, &[&b, &a]);
        for (x, y) in product.t().iter().zip(&swapped) {
            prop_assert!((x - y).abs() < 1e-12);
        }
    }

    #[test]
    fn slices_are_gathers(start in -6i64..6, end in -6i64..6, step in prop_oneof![-3i64..0, 1i64..4]) {
        let x = Value::Float(ArrayD::from_shape_fn(IxDyn(&[5]), |at| at[0] as f64));
        let list = |value: i64| Value::Int(ArrayD::from_elem(IxDyn(&[1]), value));
        let slice = Node::new("Slice", &[], &["y"]);
        let y = one(&slice, &[&x, &list(start), &list(end), &list(0), &list(step)]);
        // The sequence a reader of the specification would write down by hand.
        let wrap = |bound: i64| if bound < 0 { bound + 5 } else { bound };
        let (mut at, end) = if step > 0 {
            (wrap(start).clamp(0, 5), wrap(end).clamp(0, 5))
        } else {
            (wrap(start).clamp(0, 4), wrap(end).clamp(-1, 4))
        };
        let mut expected = Vec::new();
        while (step > 0 && at < end) || (step < 0 && at > end) {
            expected.push(at as f64);
            at += step;
        }
        prop_assert_eq!(y.iter().copied().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn resizing_keeps_constants(input in 1usize..9, output in 1usize..9, which in 0usize..3, how in 0usize..4) {
        let interpolation = [
            Interpolation::Nearest(Nearest::RoundPreferFloor),
            Interpolation::Linear,
            Interpolation::Cubic { a: -0.75 },
        ][which];
        let coordinates = [
            Coordinates::HalfPixel,
            Coordinates::PytorchHalfPixel,
            Coordinates::AlignCorners,
            Coordinates::Asymmetric,
        ][how];
        let scale = output as f64 / input as f64;
        let matrix = resize_matrix(input, output, scale, interpolation, coordinates).unwrap();
        for row in matrix.sum_axis(Axis(1)) {
            prop_assert!((row - 1.0).abs() < 1e-12);
        }
        if input == output {
            prop_assert_eq!(matrix, ndarray::Array2::eye(input));
        }
    }
}

#[test]
fn the_error_function_is_exact_in_double_precision() {
    let x = [-3.0, -0.5, 1e-8, 0.3, 0.84375, 1.0, 1.25, 2.5, 4.0];
    // From arithmetic with 30 digits.
    let erf = [
        -0.999_977_909_503_001_4,
        -0.520_499_877_813_046_5,
        1.128_379_167_095_512_6e-8,
        0.328_626_759_459_127_4,
        0.767_225_661_232_341_6,
        0.842_700_792_949_714_9,
        0.922_900_128_256_458_2,
        0.999_593_047_982_555,
        0.999_999_984_582_742_1,
    ];
    let y = one(&Node::new("Erf", &[], &["y"]), &[&real(&[9], &x)]);
    for (ours, exact) in y.iter().zip(erf) {
        assert!((ours - exact).abs() <= 4.0 * f64::EPSILON * exact.abs(), "{ours} {exact}");
    }
}

#[test]
fn large_arguments_do_not_overflow() {
    let x = real(&[2], &[-800.0, 800.0]);
    let apply = |op: &str| one(&Node::new(op, &[], &["y"]), &[&x]).into_raw_vec_and_offset().0;
    assert_eq!(apply("Sigmoid"), [0.0, 1.0]);
    assert_eq!(apply("Softplus"), [0.0, 800.0]);
    assert_eq!(apply("Softmax"), [0.0, 1.0]);
    assert_eq!(apply("LogSoftmax"), [-1600.0, 0.0]);
    assert_eq!(apply("ReduceLogSumExp"), [800.0]);
}

#[test]
fn losses_refuse_labels_that_are_no_class() {
    let node = Node::new("SoftmaxCrossEntropyLoss", &[], &["y"]).with("ignore_index", Attribute::Int(-5));
    let scores = real(&[1, 2], &[0.0, 0.0]);
    for (label, valid) in [(0, true), (-5, true), (2, false), (-1, false)] {
        let label = Value::Int(ArrayD::from_elem(IxDyn(&[1]), label));
        assert_eq!(eval_node(&node, &[Some(&scores), Some(&label)]).is_ok(), valid);
    }
}
