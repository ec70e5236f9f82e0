"""Writes methods/*.safetensors: for every case a batch, the trained tensors, and what loss, logits and gradients are.

Everything is computed in float64 from float32 values and stored as float32. `initial/NAME` and `gradient/NAME` are the
trained tensors, `input/NAME` and `labels` the batch; the metadata entry `case` says what the case is, as JSON.
Run from this folder; the outputs are committed."""

import copy
import functools
import json
import pathlib
import warnings

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import models
import reference
from reference import ARCHITECTURES

HERE = pathlib.Path(__file__).parent / "methods"
CLASSES, IGNORED = 5, -100
RANK, ALPHA, TOKENS, BOTTLENECK = 4, 8, 3, 6
# LLaMA has its own cases: what prompts' positions would be is not defined for rotary ones.
WITH_EVERY_METHOD = {kind: at for kind, at in ARCHITECTURES.items() if kind != "llama"}
NORMS = (torch.nn.LayerNorm, LlamaRMSNorm)


class New:
    """Makes trained tensors: standard normal numbers by name, times a scale, around a centre."""

    def __init__(self, case):
        self.case, self.made = case, {}

    def __call__(self, name, shape, scale, around=0.0):
        values = models.generator(f"{self.case} {name}").standard_normal(shape, dtype="float32")
        return self.take(name, torch.from_numpy(values) * scale + around)

    def take(self, name, value):
        assert name not in self.made, name
        self.made[name] = value.detach().to(torch.float32).double().requires_grad_()
        return self.made[name]

    def train(self, name, parameter, value=None):
        """Makes a parameter of the model itself a trained tensor, with a new value if one is given."""
        with torch.no_grad():
            if value is not None:
                parameter.copy_(value)
            parameter.copy_(parameter.to(torch.float32).double())
        assert name not in self.made, name
        self.made[name] = parameter.requires_grad_()


def backbone_tensors(choose):
    """Trains the backbone's own tensors for which choose(module, name of the tensor within it) holds."""

    def install(at, model, new):
        for prefix, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if choose(module, name):
                    new.train(f"{prefix}.{name}".removeprefix("."), parameter)
        return model

    return install


is_bias = lambda module, name: name == "bias"
is_norm = lambda module, name: isinstance(module, NORMS)
everything = lambda module, name: True
nothing = lambda module, name: False


def with_peft(make_config):
    """The method as HF peft has it; its tensors get random values and keep peft's names without wrapper prefixes."""

    def install(at, model, new):
        model = get_peft_model(model, make_config()).double()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            own = name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "")
            values = torch.from_numpy(models.generator(f"{new.case} {own}").standard_normal(tuple(parameter.shape)))
            if "magnitude" in own:
                values = parameter.detach() * (1 + 0.1 * values)
            elif "ia3" in own:
                values = 1 + 0.3 * values
            elif "lora" in own:
                values = 0.2 * values
            else:
                values = None
            new.train(own, parameter, values)
        return model

    return install


def with_reference(method, **options):
    def install(at, model, new):
        method(at, model, new, **options)
        return model

    return install


def lora_config(targets, **options):
    return lambda: LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, **options)


def build(kind):
    made = {"vit": models.vit, "bert": models.bert, "gpt": lambda: models.gpt().transformer, "llama": models.llama}[kind]()
    return made.double().requires_grad_(False)


def tokens_of(model, batch):
    if "pixel_values" in batch:
        return model(batch["pixel_values"])
    return model(**batch).last_hidden_state


def batch_of(kind):
    if kind == "vit":
        return {"pixel_values": models.images("vit methods").double()}
    ids, mask = models.tokens(f"{kind} methods")
    types = {"token_type_ids": models.token_types()} if kind == "bert" else {}
    return {"input_ids": ids, "attention_mask": mask, **types}


def pool(tokens, batch, pooling):
    """The class token, or the mean of the tokens that are not padding."""
    if pooling == "cls":
        return tokens[:, 0]
    mask = batch["attention_mask"].double().unsqueeze(-1)
    return (tokens * mask).sum(1) / mask.sum(1)


SMOOTHING, CLASS_WEIGHTS = 0.1, [0.5, 1.0, 2.0, 0.25, 1.5]


def decide(new, tokens, batch, pooling, task):
    """Logits, labels and loss of the tasks with one decision, or one vector of them, per example."""
    head = new("head.weight", (models.HIDDEN, CLASSES), 0.3), new("head.bias", (CLASSES,), 0.3)
    logits = pool(tokens, batch, pooling) @ head[0] + head[1]
    random = models.generator("labels")
    if task in {"multi_label", "regression"}:
        labels = torch.from_numpy(random.standard_normal((models.BATCH, CLASSES), dtype="float32")).double()
        if task == "regression":
            return logits, labels, functional.mse_loss(logits, labels)
        labels = (labels > 0).double()
        return logits, labels, functional.binary_cross_entropy_with_logits(logits, labels)
    labels = torch.from_numpy(random.integers(0, CLASSES, models.BATCH))
    weights = torch.tensor(CLASS_WEIGHTS).double() if task == "class_weights" else None
    smoothing = SMOOTHING if task == "label_smoothing" else 0.0
    return logits, labels, functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing)


def continue_text(new, tokens, batch, tied=None):
    """Causal language modelling: logits at t predict the token at t + 1; padding is not scored. The head is a new
    one, or `tied`, the token embedding."""
    if tied is None:
        shape = (models.HIDDEN, models.VOCABULARY)
        logits = tokens @ new("head.weight", shape, 0.3) + new("head.bias", shape[1:], 0.3)
    else:
        logits = tokens @ tied.T
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    shifted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return logits, labels, functional.cross_entropy(*shifted, ignore_index=IGNORED)


def case(kind, method, install, task="classification", variant=None, tie=False, **described):
    name = f"{kind}-{variant or method}"
    at, batch, new = ARCHITECTURES[kind], batch_of(kind), New(name)
    model = install(at, build(kind), new)
    tokens, tied = tokens_of(model, batch), model.get_input_embeddings().weight if tie else None
    pooling = "mean" if at.causal else "cls"
    if task == "causal_lm":
        logits, labels, loss = continue_text(new, tokens, batch, tied)
    else:
        logits, labels, loss = decide(new, tokens, batch, pooling, task)
    gradients = torch.autograd.grad(loss, list(new.made.values()))
    for tensor_name, gradient in zip(new.made, gradients):
        # A softmax does not see what is added to all its inputs: only a key's bias may have no gradient.
        assert tensor_name.endswith("key.bias") or gradient.abs().max() > 1e-6, (name, tensor_name)
    tensors = {f"input/{key}": value for key, value in batch.items()} | {"labels": labels, "logits": logits}
    tensors |= {"loss": loss.reshape(1)} | {f"initial/{key}": value for key, value in new.made.items()}
    tensors |= {f"gradient/{key}": value for key, value in zip(new.made, gradients)}
    narrow = {k: v.detach().float() if v.is_floating_point() else v for k, v in tensors.items()}
    classification = {"label_smoothing", "class_weights"}
    task = "classification" if task in classification else task
    spec = {"model": kind, "method": method, "pooling": pooling, "task": task, **described}
    path = HERE / f"{name}.safetensors"
    save_file({k: v.contiguous().clone() for k, v in narrow.items()}, path, {"case": json.dumps(spec)})
    path.chmod(0o644)
    print(f"{name:28} loss {loss.item():.6f}  {len(new.made):3} tensors  {path.stat().st_size:7} bytes")
    return loss.item(), narrow


def unchanged():
    """The hooks change nothing but what they say: methods that begin as the identity leave every token alike."""
    zero = lambda name, shape, scale, around=0.0: torch.zeros(shape, dtype=torch.float64) + around
    for kind, at in WITH_EVERY_METHOD.items():
        model, batch = build(kind), batch_of(kind)
        expected = tokens_of(model, batch)
        installs = [functools.partial(reference.adapter, bottleneck=BOTTLENECK, places=["attention", "mlp"])]
        if at.packed:
            installs.append(functools.partial(reference.lora, rank=RANK, alpha=ALPHA, targets=["query", "value"]))
        for install in installs:
            changed = copy.deepcopy(model)
            install(at, changed, zero)
            torch.testing.assert_close(tokens_of(changed, batch), expected, rtol=0, atol=1e-12)
        for install in (reference.prefix, functools.partial(reference.prompt, deep=True)):
            # No learned tokens at all: the rewritten attention and masks are the library's.
            changed = copy.deepcopy(model)
            install(at, changed, zero, length=0)
            torch.testing.assert_close(tokens_of(changed, batch), expected, rtol=0, atol=1e-12)


def main():
    warnings.filterwarnings("ignore")
    HERE.mkdir(exist_ok=True)
    unchanged()
    for kind, at in WITH_EVERY_METHOD.items():
        case(kind, "head", backbone_tensors(nothing))
        case(kind, "bias", backbone_tensors(is_bias))
        case(kind, "layernorm", backbone_tensors(is_norm))
        case(kind, "full", backbone_tensors(everything))
        for placement, places in {"houlsby": ["attention", "mlp"], "pfeiffer": ["mlp"]}.items():
            install = with_reference(reference.adapter, bottleneck=BOTTLENECK, places=places)
            case(kind, "adapter", install, variant=f"adapter-{placement}", bottleneck=BOTTLENECK, placement=placement)
        install = with_reference(reference.adapter, bottleneck=BOTTLENECK, places=["mlp"], shared=True)
        described = dict(variant="adapter-shared", bottleneck=BOTTLENECK, placement="pfeiffer", shared=True)
        case(kind, "adapter", install, **described)
        for depth in ("shallow", "deep"):
            install = with_reference(reference.prompt, length=TOKENS, deep=depth == "deep")
            case(kind, "prompt", install, variant=f"prompt-{depth}", tokens=TOKENS, depth=depth)
        case(kind, "prefix", with_reference(reference.prefix, length=TOKENS), tokens=TOKENS)
        if at.packed:
            described = dict(rank=RANK, alpha=ALPHA, targets=["query", "value"])
            case(kind, "lora", with_reference(reference.lora, **described), **described)
            case(kind, "dora", with_reference(reference.lora, dora=True, **described), **described)
            case(kind, "ia3", with_reference(reference.ia3))
            transposed = dict(fan_in_fan_out=kind == "gpt")
            packed = [at.packed.rpartition(".")[2]]
            described = dict(rank=RANK, alpha=ALPHA, targets=packed)
            install = with_peft(lora_config(packed, **transposed))
            case(kind, "lora", install, variant="lora-packed", **described)
            install = with_peft(lora_config(packed, use_dora=True, **transposed))
            case(kind, "dora", install, variant="dora-packed", **described)
    relu = with_reference(
        reference.adapter, bottleneck=BOTTLENECK, places=["attention", "mlp"], activation=functional.relu
    )
    described = dict(variant="adapter-relu", bottleneck=BOTTLENECK, placement="houlsby", activation="relu")
    case("vit", "adapter", relu, **described)
    bert_with_peft()
    described = dict(rank=RANK, alpha=ALPHA, targets=["query", "value"])
    install = with_reference(reference.lora, **described)
    case("gpt", "lora", install, task="causal_lm", variant="lora-lm", **described)
    case("gpt", "lora", install, task="causal_lm", variant="lora-tied", tie=True, **described)
    llama()
    losses()


def llama():
    """Norms without biases, gated MLPs, keys shared by query heads."""
    case("llama", "head", backbone_tensors(nothing))
    case("llama", "layernorm", backbone_tensors(is_norm))
    case("llama", "full", backbone_tensors(everything))
    targets = ["q_proj", "v_proj"]
    described = dict(rank=RANK, alpha=ALPHA, targets=["query", "value"])
    case("llama", "lora", with_peft(lora_config(targets)), **described)
    case("llama", "dora", with_peft(lora_config(targets, use_dora=True)), **described)
    ia3 = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    case("llama", "ia3", with_peft(lambda: ia3))
    install = with_reference(reference.adapter, bottleneck=BOTTLENECK, places=["attention", "mlp"])
    described = dict(variant="adapter-houlsby", bottleneck=BOTTLENECK, placement="houlsby")
    case("llama", "adapter", install, **described)


def losses():
    head = backbone_tensors(nothing)
    case("bert", "head", head, task="multi_label", variant="loss-multi-label")
    case("bert", "head", head, task="regression", variant="loss-regression")
    described = dict(variant="loss-smoothing", label_smoothing=SMOOTHING)
    case("bert", "head", head, task="label_smoothing", **described)
    described = dict(variant="loss-weights", class_weights=CLASS_WEIGHTS)
    case("bert", "head", head, task="class_weights", **described)


def bert_with_peft():
    described = dict(rank=RANK, alpha=ALPHA, targets=["query", "value"])
    case("bert", "lora", with_peft(lora_config(described["targets"])), **described)
    install = with_peft(lora_config(described["targets"], bias="all"))
    case("bert", "lora", install, variant="lora-bias", bias="all", **described)
    case("bert", "dora", with_peft(lora_config(described["targets"], use_dora=True)), **described)
    # The paper's three vectors: peft's own default for BERT would scale the attention's output layer too.
    mlp_out = r".*layer\.\d+\.output\.dense"
    targets = rf"(.*\.(key|value)|{mlp_out})"
    case("bert", "ia3", with_peft(lambda: IA3Config(target_modules=targets, feedforward_modules=mlp_out)))
    every = ["query", "key", "value", "dense"]
    described = dict(variant="lora-all", rank=RANK, alpha=ALPHA, targets=every)
    case("bert", "lora", with_peft(lora_config(every)), **described)


if __name__ == "__main__":
    main()
