"""Writes operators.json: small random cases of every operator, with the results of ONNX Runtime.

    pip install onnx onnxruntime==1.31.1 numpy
    python3 make.py

The tests only read operators.json; run this again after adding a case.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(7)
CASES = []


def real(*shape, low=-2.0, high=2.0):
    return np.round(RANDOM.uniform(low, high, shape), 2).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def whole(*shape, low=0, high=5):
    return RANDOM.integers(low, high, shape)


def truth(*shape):
    return RANDOM.integers(0, 2, shape).astype(bool)


def one(value):
    return np.array(value, dtype=np.float32 if isinstance(value, float) else np.int64)


def attribute(value):
    if isinstance(value, np.ndarray):
        return {"tensor": tensor(value)}
    kind = type(value[0] if isinstance(value, list) and value else value).__name__
    return {kind + "s" if isinstance(value, list) else kind: value}


def tensor(array):
    if array.dtype == np.float32:
        data = " ".join(np.format_float_positional(v, unique=True, trim="-") for v in array.ravel())
    else:
        data = " ".join(str(int(v)) for v in array.ravel())
    return {"type": str(array.dtype), "shape": list(array.shape), "data": data}


def case(op, *inputs, outputs=1, **attributes):
    """Runs one node; inputs are arrays, or None where absent."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    given = {name: x for name, x in zip(names, inputs) if name}
    made = [f"y{i}" for i in range(outputs)]
    onnx_attributes = {
        name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }
    node = helper.make_node(op, names, made, **onnx_attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in given.items()],
        [onnx.ValueInfoProto(name=name) for name in made],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    CASES.append({
        "op": op,
        "attributes": {name: attribute(value) for name, value in attributes.items()},
        "inputs": [None if x is None else tensor(x) for x in inputs],
        "outputs": [tensor(y) for y in session.run(None, given)],
    })


def creation():
    case("Constant", value=real(2, 2))
    case("Constant", value=ints(3, 4))
    case("Constant", value_float=1.5)
    case("Constant", value_floats=[1.5, -2.0])
    case("Constant", value_int=-3)
    case("Constant", value_ints=[1, 2, 3])
    case("ConstantOfShape", ints(2, 3))
    case("ConstantOfShape", ints(2), value=ints(7))
    case("ConstantOfShape", ints(0, 2), value=np.array([1.5], dtype=np.float32))
    for bounds in [{}, {"start": 1}, {"start": -2, "end": -1}, {"start": -9, "end": 9}, {"start": 2, "end": 1}]:
        case("Shape", real(2, 3, 4), **bounds)
    case("Size", real(2, 3))
    case("Range", one(2), one(9), one(3))
    case("Range", one(2), one(-7), one(-3))
    case("Range", one(2), one(-7), one(3))
    case("Range", one(0.5), one(3.0), one(0.25))
    case("OneHot", ints(0, 2, -1, 5), one(3), ints(-1, 7))
    case("OneHot", whole(2, 2, high=3), one(3), np.array([0, 1], dtype=np.float32), axis=1)


def arrangement():
    x = real(2, 3, 4)
    case("Identity", x)
    for shape in [(4, 6), (0, -1), (-1,), (1, 0, 8), (3, -1, 2)]:
        case("Reshape", x, ints(*shape))
    case("Reshape", real(0, 3), ints(3, 0), allowzero=1)
    for axis in [0, 1, 2, 3, -1]:
        case("Flatten", x, axis=axis)
    case("Squeeze", real(1, 3, 1), ints(0))
    case("Squeeze", real(1, 3, 1), ints(-1, 0))
    case("Squeeze", real(1, 3, 1))
    case("Unsqueeze", x, ints(0, -1))
    case("Unsqueeze", real(3), ints(2, 0))
    case("Transpose", x)
    case("Transpose", x, perm=[1, 2, 0])
    case("Transpose", truth(2, 3), perm=[1, 0])
    case("Expand", real(3, 1), ints(2, 1, 4))
    case("Expand", real(3, 1), ints(1))
    case("Trilu", real(3, 4))
    case("Trilu", real(2, 3, 4), one(-1), upper=0)
    case("Trilu", whole(3, 3), one(1))
    case("Concat", real(2, 1), real(2, 3), axis=1)
    case("Concat", ints(1), ints(2, 3), axis=-1)
    case("Split", real(2, 7), ints(1, 4, 2), outputs=3, axis=1)
    case("Split", real(7, 2), outputs=3, num_outputs=3)
    case("Split", real(2, 4), outputs=2, num_outputs=2, axis=-1)
    case("Pad", real(2, 3), ints(1, 0, 0, 2))
    case("Pad", real(2, 3), ints(1, -1, 0, 2), one(1.5))
    case("Pad", whole(2, 3), ints(1, 2), one(9), ints(-1))
    case("Tile", real(2, 2), ints(2, 3))
    case("Tile", ints(1, 2), ints(0))


def indexing():
    x = real(4, 5)
    case("Slice", x, ints(1), ints(3))
    case("Slice", x, ints(0, -2), ints(99, 99), ints(0, 1))
    case("Slice", x, ints(-1), ints(-99), ints(1), ints(-2))
    case("Slice", x, ints(99, 1), ints(0, 2**63 - 1), ints(-2, -1), ints(-1, 3))
    case("Slice", x, ints(3), ints(1), ints(0))
    case("Slice", real(0, 3), ints(-1, 2), ints(-99, -9), ints(0, 1), ints(-1, -2))
    case("Slice", x, ints(-99), ints(-99), ints(0), ints(-1))
    case("Gather", x, ints(2, -1))
    case("Gather", x, one(1), axis=1)
    case("Gather", whole(3, 2, 4), whole(2, 2, low=-2, high=2), axis=-2)
    case("GatherElements", x, whole(2, 5, low=-4, high=4))
    case("GatherElements", x, whole(4, 3, low=0, high=5), axis=1)
    case("GatherND", x, np.array([[0, 1], [3, -1]]))
    case("GatherND", real(2, 3, 4), np.array([[[1]], [[2]]]), batch_dims=1)
    case("GatherND", real(2, 3, 4), np.array([[1], [0]]))
    indices, updates = np.array([[1, 1, 0], [2, 2, 3]]), real(2, 3)
    for reduction in ["none", "add", "mul", "max", "min"]:
        first = np.array([[1, 0, 0], [2, 3, 3]]) if reduction == "none" else indices
        case("ScatterElements", x, first, updates, reduction=reduction)
        case("ScatterND", x, np.array([[1], [-1]]), real(2, 5), reduction=reduction)
    case("ScatterElements", whole(3, 3), np.array([[-1], [0]]), whole(2, 1), axis=1)
    case("ScatterND", whole(3, 3), np.array([[0, 1], [2, 2]]), whole(2))


def elementwise():
    for kinds in [(truth(2, 1), real(2, 3), real(3)), (truth(2, 1), whole(1, 3), whole(2, 3))]:
        case("Where", *kinds)
    for op in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]:
        case(op, whole(3, 4).astype(np.float32), whole(4).astype(np.float32))
        case(op, whole(3, 4), whole(3, 1))
    case("Equal", truth(6), truth(6))
    case("Not", truth(4))
    case("IsNaN", np.array([0.5, np.nan, -1.0, np.nan], dtype=np.float32))
    for op in ["And", "Or", "Xor"]:
        case(op, truth(2, 4), truth(4))
    for op in ["Add", "Sub", "Mul", "Div", "Pow"]:
        case(op, real(2, 3, low=0.5), real(2, 1, 1))
        case(op, whole(5, low=-7, high=8), ints(1, 3, 2, 4, 3))
    case("Div", ints(7, -7, 7, -7), ints(2, 2, -2, -2))
    case("Mod", ints(7, -7, 7, -7, 6), ints(3, 3, -3, -3, -3))
    case("Mod", ints(7, -7, 7, -7), ints(3, 3, -3, -3), fmod=1)
    case("Mod", real(6), real(6, low=0.5), fmod=1)
    case("Pow", real(4), ints(0, 1, 2, 3))
    case("Pow", ints(2, 3, 4), real(3, low=0.5))
    for op in ["Sum", "Max", "Min"]:
        case(op, real(2, 3), real(3), real(2, 1))
    case("Max", whole(4), whole(4))
    case("Min", whole(4), whole(4))
    case("Clip", real(6), one(-0.5), one(1.0))
    case("Clip", real(6), None, one(1.0))
    case("Clip", real(3), one(1.0), one(-1.0))
    case("Clip", whole(6), one(1), one(3))
    for op in ["Neg", "Abs", "Sign", "Relu"]:
        case(op, real(5))
    for op in ["Neg", "Abs", "Sign"]:
        case(op, whole(4, low=-3, high=4))
    for op in ["Sqrt", "Log", "Reciprocal"]:
        case(op, real(5, low=0.2))
    for op in ["Exp", "Erf", "Tanh", "Sigmoid", "Softplus", "Sin", "Cos", "Floor", "Ceil"]:
        case(op, real(6, low=-5.0, high=5.0))
    case("Round", np.array([0.5, 1.5, -0.5, -2.5, 0.7], dtype=np.float32))
    case("Gelu", real(8, low=-4.0, high=4.0))
    case("Gelu", real(8, low=-4.0, high=4.0), approximate="tanh")
    mixed = np.array([0.0, -0.9, 1.9, 300.0, -2.5], dtype=np.float32)
    for to in [TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT32]:
        case("Cast", mixed, to=to)
        case("Cast", ints(0, 1, -5, 2**33 + 1), to=to)
        case("Cast", truth(4), to=to)


def products():
    for a, b in [
        ((2, 3), (3, 4)),
        ((2, 2, 3), (3, 4)),
        ((2, 1, 2, 3), (3, 3, 2)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((3,), (3,)),
        ((3,), (2, 3, 2)),
        ((2, 2, 3), (3,)),
        ((2, 3), (2, 3, 2)),
    ]:
        case("MatMul", real(*a), real(*b))
    case("Gemm", real(2, 3), real(3, 4))
    case("Gemm", real(3, 2), real(3, 4), real(4), transA=1)
    case("Gemm", real(2, 3), real(4, 3), real(2, 1), transB=1, alpha=0.5, beta=2.0)
    case("Gemm", real(3, 2), real(4, 3), real(2, 4), transA=1, transB=1)

    case("Conv", real(2, 3, 5, 4), real(2, 3, 3, 2), real(2))
    case("Conv", real(1, 2, 5, 6), real(2, 2, 2, 2), strides=[2, 1], pads=[1, 0, 0, 2])
    case("Conv", real(1, 2, 6, 6), real(2, 2, 2, 3), dilations=[2, 2], kernel_shape=[2, 3])
    case("Conv", real(1, 4, 4, 4), real(4, 2, 3, 3), real(4), group=2, pads=[1, 1, 1, 1])
    case("Conv", real(1, 3, 4, 4), real(3, 1, 2, 2), group=3)
    for auto in ["SAME_UPPER", "SAME_LOWER", "VALID"]:
        case("Conv", real(1, 1, 5, 6), real(1, 1, 2, 3), strides=[2, 2], auto_pad=auto)
    case("Conv", real(2, 2, 7), real(3, 2, 3), real(3), strides=[2], pads=[1, 0])
    case("Conv", real(1, 2, 7), real(2, 2, 3), strides=[2], auto_pad="SAME_UPPER")

    case("ConvTranspose", real(2, 3, 3, 2), real(3, 2, 3, 2), real(2))
    case("ConvTranspose", real(1, 2, 3, 3), real(2, 2, 2, 3), strides=[2, 3], pads=[1, 0, 0, 1])
    case("ConvTranspose", real(1, 4, 2, 3), real(4, 2, 2, 2), real(4), group=2, strides=[2, 2])
    case("ConvTranspose", real(1, 1, 3, 3), real(1, 1, 3, 3), strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1])
    case("ConvTranspose", real(1, 2, 3, 3), real(2, 1, 2, 2), dilations=[2, 2])
    case("ConvTranspose", real(1, 2, 4), real(2, 2, 3), strides=[2])


def normalisation():
    for op in ["Softmax", "LogSoftmax"]:
        case(op, real(2, 3, 4))
        case(op, real(2, 3, 4, low=-90.0, high=90.0), axis=1)
    case("LayerNormalization", real(2, 3, 4), real(4), real(4), outputs=3)
    case("LayerNormalization", real(2, 3, 4), real(3, 4), outputs=3, axis=1, epsilon=0.5)
    case("LayerNormalization", real(2, 3), real(3), real(3), outputs=1, axis=-1, epsilon=1e-12)


def reductions():
    x = real(2, 3, 4, low=0.3)
    for op in ["Sum", "Prod", "Max", "Min", "Mean", "L1", "L2", "SumSquare", "LogSumExp"]:
        op = "Reduce" + op
        case(op, x)
        case(op, x, ints(-1), keepdims=0)
        case(op, x, ints(2, 0), keepdims=1)
        case(op, real(2, 2), ints(0, 1), keepdims=0)
    case("ReduceSum", x, noop_with_empty_axes=1)
    case("ReduceSumSquare", x, ints(), noop_with_empty_axes=1)
    case("ReduceL2", x, noop_with_empty_axes=1, keepdims=0)
    case("ReduceMax", real(0, 3), ints(0))
    case("ReduceSum", real(0, 3), ints(0))
    case("ReduceProd", real(0, 3), ints(0))
    case("MatMul", real(2, 0), real(0, 3))
    case("ReduceMean", x, ints(), noop_with_empty_axes=0)
    for op in ["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"]:
        case(op, whole(2, 3), ints(1))
    ties = whole(4, 5, high=3).astype(np.float32)
    for op in ["ArgMax", "ArgMin"]:
        case(op, ties)
        case(op, ties, axis=-1, keepdims=0)
        case(op, ties, axis=1, select_last_index=1)
    for flags in [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}]:
        case("CumSum", real(2, 4), one(1), **flags)
    case("CumSum", whole(3, 2), one(-2))


def losses():
    for reduction in ["mean", "sum", "none"]:
        for inputs in [
            (real(4, 3), whole(4, high=3)),
            (real(4, 3), whole(4, high=3), real(3, low=0.5)),
            (real(2, 3, 4), whole(2, 4, high=3), real(3, low=0.5)),
        ]:
            case("SoftmaxCrossEntropyLoss", *inputs, outputs=2, reduction=reduction)
            case("NegativeLogLikelihoodLoss", *inputs, reduction=reduction)
            labels = inputs[1].copy()
            labels.ravel()[0] = -1
            changed = (inputs[0], labels, *inputs[2:])
            case("SoftmaxCrossEntropyLoss", *changed, outputs=2, reduction=reduction, ignore_index=-1)
            case("NegativeLogLikelihoodLoss", *changed, reduction=reduction, ignore_index=-1)


def resizing():
    transforms = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    for coordinates in transforms:
        for mode in ["linear", "cubic"]:
            for height, width in [(7, 3), (2, 9), (1, 4)]:
                case("Resize", real(1, 2, 4, 4), None, None, ints(1, 2, height, width), mode=mode,
                     coordinate_transformation_mode=coordinates)
            case("Resize", real(1, 1, 3, 5), None, np.array([1, 1, 2.3, 0.7], dtype=np.float32), mode=mode,
                 coordinate_transformation_mode=coordinates)
        for nearest in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]:
            case("Resize", real(1, 1, 4, 6), None, None, ints(1, 1, 7, 4), mode="nearest", nearest_mode=nearest,
                 coordinate_transformation_mode=coordinates)
            case("Resize", real(1, 1, 3, 5), None, np.array([1, 1, 2, 0.6], dtype=np.float32), mode="nearest",
                 nearest_mode=nearest, coordinate_transformation_mode=coordinates)
    case("Resize", real(1, 1, 4, 4), None, None, ints(1, 1, 6, 6), mode="cubic", cubic_coeff_a=-0.5)
    case("Resize", real(1, 1, 4, 4), None, None, ints(6, 3), mode="linear", axes=[2, 3])
    case("Resize", real(1, 1, 3, 3), None, np.array([1, 1, 1.3, 1.1], dtype=np.float32), mode="linear")
    case("Resize", real(1, 1, 3, 3), None, np.array([1, 1, 2, 1.1], dtype=np.float32), mode="linear")
    case("Resize", real(2, 5), None, np.array([1.5, 2.5], dtype=np.float32), mode="linear")


for family in [creation, arrangement, indexing, elementwise, products, normalisation, reductions, losses, resizing]:
    family()
lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in CASES)
pathlib.Path(__file__).with_name("operators.json").write_text(f"[\n{lines}\n]\n")
print(len(CASES), "cases by ONNX Runtime", onnxruntime.__version__)
