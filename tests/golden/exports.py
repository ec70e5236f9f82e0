"""Writes exports/*.onnx: one small transformer each, as different exporters spell it; exports/outputs.safetensors:
what PyTorch computes for the batches of models.py; exports/names.json: what each exporter calls the parameters.
Run from this folder; the outputs are committed."""

import json
import pathlib
import warnings

import onnx
import onnxruntime
import torch
from safetensors.torch import save_file

import models

HERE = pathlib.Path(__file__).parent / "exports"
RANDOM_OPERATORS = {"Dropout", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
LIMIT = 400_000


class Outputs(torch.nn.Module):
    """Calls a transformers model with positional inputs and returns one tensor."""

    def __init__(self, model, names, output):
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *inputs):
        return getattr(self.model(**dict(zip(self.names, inputs)), return_dict=True), self.output)


def inputs_of(kind):
    if kind == "vit":
        return {"pixel_values": models.images("vit batch")}
    ids, mask = models.tokens(f"{kind} batch")
    types = {"token_type_ids": models.token_types()} if kind == "bert" else {}
    return {"input_ids": ids, "attention_mask": mask, **types}


def export(name, kind, model, opset, dynamo, output="last_hidden_state"):
    inputs = inputs_of(kind)
    module = model if kind == "vit" else Outputs(model, list(inputs), output)
    output = "tokens" if kind == "vit" else output
    path = HERE / f"{name}.onnx"
    args = tuple(inputs.values())
    common = dict(input_names=list(inputs), output_names=[output], opset_version=opset, dynamo=dynamo)
    if dynamo:
        batch = torch.export.Dim("N", min=1, max=1024)
        shapes = tuple({0: batch} for _ in args)
        shapes = (shapes,) if kind != "vit" else shapes
        torch.onnx.export(module, args, str(path), external_data=False, dynamic_shapes=shapes, **common)
    else:
        axes = {value: {0: "N"} for value in [*inputs, output]}
        torch.onnx.export(module, args, str(path), dynamic_axes=axes, **common)
    strip_metadata(path)
    expected = module(*args).detach()
    check(path, inputs, expected)
    tensors = {f"{name}.{key}": value for key, value in inputs.items()} | {f"{name}.{output}": expected}
    return tensors, {name: names_of(path, model)}


def names_of(path, model):
    """Each parameter's initializer, found by its values, as exporters rename, transpose and copy."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    names = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        for initializer, other in stored.items():
            transposed = values.ndim == 2 and values.T.shape == other.shape and (values.T == other).all()
            if values.shape == other.shape and (values == other).all() or transposed:
                names[name] = {"initializer": initializer, "transposed": bool(transposed)}
        if name not in names:
            print(f"  {path.name}: no initializer holds {name}")
    return names


def strip_metadata(path):
    """Stack traces of the exporting program are no part of a model."""
    model = onnx.load(path)
    model.doc_string = ""
    for part in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input,
                 *model.graph.output, *model.graph.initializer, *model.functions]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def check(path, inputs, expected):
    """Nothing random is left, and ONNX Runtime agrees with PyTorch at this batch size and at another."""
    model = onnx.load(path)
    found = {node.op_type for node in model.graph.node}
    assert not found & RANDOM_OPERATORS, found & RANDOM_OPERATORS
    size = path.stat().st_size
    assert size < LIMIT, (path.name, size)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    error = (torch.from_numpy(output) - expected).abs().max().item()
    (alone,) = session.run(None, {key: value[:1].numpy() for key, value in inputs.items()})
    error_alone = (torch.from_numpy(alone) - expected[:1]).abs().max().item()
    print(f"{path.name:28} opset {model.opset_import[0].version} {size:7} bytes {len(model.graph.node):4} nodes "
          f"largest difference {max(error, error_alone):.1e}  {sorted(found)}")
    assert max(error, error_alone) < 1e-4


def main():
    warnings.filterwarnings("ignore")
    HERE.mkdir(exist_ok=True)
    exports = [
        ("vit-sdpa", "vit", models.vit(fused=True), 17, False),
        ("vit-eager", "vit", models.vit(fused=False), 17, False),
        ("vit-opset14", "vit", models.vit(fused=False), 14, False),
        ("vit-dynamo", "vit", models.vit(fused=True), 18, True),
        ("bert-eager", "bert", models.bert("eager"), 17, False),
        ("bert-sdpa", "bert", models.bert("sdpa"), 17, False),
        ("bert-dynamo", "bert", models.bert("eager"), 18, True),
        ("gpt-eager", "gpt", models.gpt("eager").transformer, 17, False),
        ("gpt-sdpa", "gpt", models.gpt("sdpa").transformer, 17, False),
        ("gpt-lm", "gpt", models.gpt("eager"), 17, False, "logits"),
        ("gpt-dynamo", "gpt", models.gpt("eager").transformer, 18, True),
        ("llama-eager", "llama", models.llama("eager"), 17, False),
        ("llama-dynamo", "llama", models.llama("eager"), 18, True),
    ]
    outputs, names = {}, {}
    for arguments in exports:
        tensors, own_names = export(*arguments)
        outputs |= tensors
        names |= own_names
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, HERE / "outputs.safetensors")
    (HERE / "outputs.safetensors").chmod(0o644)
    lines = json.dumps(names, indent=2).replace("{\n      ", "{ ").replace(",\n      ", ", ").replace("\n    }", " }")
    (HERE / "names.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
