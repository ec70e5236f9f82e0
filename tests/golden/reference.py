"""Reference implementations of the methods that HF peft does not have for these models, as hooks on the library's
own modules. Each function installs one method into a model, takes its tensors from `new(name, shape, scale)`, which
also returns them, and uses the names that the golden files carry."""

import dataclasses

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import models


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Where the parts of a block are, by PyTorch module names."""

    blocks: str
    attention_out: str
    mlp_out: str
    packed: str | None
    # In which prompts stand behind the class token instead of in front of all tokens.
    class_token: bool
    causal: bool

    def block(self, model, i):
        return model.get_submodule(f"{self.blocks}.{i}")

    def part(self, model, i, name):
        return self.block(model, i).get_submodule(name)


ARCHITECTURES = {
    "vit": Architecture("blocks", "attn.proj", "mlp.fc2", "attn.qkv", True, False),
    "bert": Architecture("encoder.layer", "attention.output.dense", "output.dense", None, False, False),
    "gpt": Architecture("h", "attn.c_proj", "mlp.c_proj", "attn.c_attn", False, True),
    "llama": Architecture("layers", "self_attn.o_proj", "mlp.down_proj", None, False, True),
}

# Column blocks of a packed projection.
QUERY, KEY, VALUE = 0, 1, 2
COLUMNS = {"query": QUERY, "key": KEY, "value": VALUE}


def columns(tensor, block):
    return tensor[..., block * models.HIDDEN : (block + 1) * models.HIDDEN]


def lora(at, model, new, rank, alpha, targets, dora=False):
    """LoRA (Hu et al., arXiv 2106.09685) on column blocks of the packed projection; with `dora`, DoRA (Liu et al.,
    arXiv 2402.09353) on each block as on a layer of its own, the norm taken as a constant as in its section 4.3."""
    for i in range(models.LAYERS):
        layer = at.part(model, i, at.packed)
        transposed = layer.weight.shape[0] == models.HIDDEN  # transformers' Conv1D stores [in, out]
        weight = (layer.weight.T if transposed else layer.weight).detach()
        pairs = {}
        for target in targets:
            name = f"{at.blocks}.{i}.{at.packed}.{target}"
            a = new(f"{name}.lora_A.weight", (rank, models.HIDDEN), 0.2)
            b = new(f"{name}.lora_B.weight", (models.HIDDEN, rank), 0.2)
            own = columns(weight.T, COLUMNS[target]).T
            magnitude = None
            if dora:
                around = own.norm(dim=1).float()
                magnitude = new(f"{name}.lora_magnitude_vector", (models.HIDDEN,), 0.1, around)
            pairs[target] = (a, b, own, magnitude)

        def hook(module, args, output, pairs=pairs):
            (x,) = args
            pieces = list(output.split(models.HIDDEN, dim=-1))
            for target, (a, b, own, magnitude) in pairs.items():
                k = COLUMNS[target]
                update = (x @ a.T) @ b.T * (alpha / rank)
                if magnitude is None:
                    pieces[k] = pieces[k] + update
                else:
                    norm = (own + alpha / rank * b @ a).norm(dim=1).detach()
                    pieces[k] = magnitude / norm * (x @ own.T + update) + columns(module.bias, k)
            return torch.cat(pieces, dim=-1)

        layer.register_forward_hook(hook)


def ia3(at, model, new):
    """IA3 (Liu et al., arXiv 2205.05638) on keys, values and the input of the MLP's second layer."""
    for i in range(models.LAYERS):
        name = f"{at.blocks}.{i}.{at.packed}"
        key = new(f"{name}.key.ia3_l", (models.HIDDEN,), 0.3, 1.0)
        value = new(f"{name}.value.ia3_l", (models.HIDDEN,), 0.3, 1.0)
        inner = new(f"{at.blocks}.{i}.{at.mlp_out}.ia3_l", (models.MLP,), 0.3, 1.0)

        def scale_columns(module, args, output, key=key, value=value):
            return output * torch.cat([torch.ones_like(key), key, value])

        def scale_input(module, args, inner=inner):
            return (args[0] * inner,)

        at.part(model, i, at.packed).register_forward_hook(scale_columns)
        at.part(model, i, at.mlp_out).register_forward_pre_hook(scale_input)


def adapter(at, model, new, bottleneck, places, shared=False, activation=functional.gelu):
    """Bottlenecks h + Up(act(Down(h))) on a sub-layer's output before the residual sum: after attention and MLP
    (Houlsby et al., arXiv 1902.00751) or after the MLP (Pfeiffer et al., arXiv 2005.00247)."""
    modules = {"attention": at.attention_out, "mlp": at.mlp_out}

    def tensors(name):
        return (
            new(f"{name}.down.weight", (models.HIDDEN, bottleneck), 0.2),
            new(f"{name}.down.bias", (bottleneck,), 0.2),
            new(f"{name}.up.weight", (bottleneck, models.HIDDEN), 0.2),
            new(f"{name}.up.bias", (models.HIDDEN,), 0.2),
        )

    common = tensors("adapter.shared") if shared else None
    for i in range(models.LAYERS):
        for place in places:
            own = common or tensors(f"adapter.{i}.{place}")

            def hook(module, args, output, own=own):
                down, down_bias, up, up_bias = own
                return output + activation(output @ down + down_bias) @ up + up_bias

            at.part(model, i, modules[place]).register_forward_hook(hook)


def prompt(at, model, new, length, deep):
    """Visual prompt tuning (Jia et al., arXiv 2203.12119): `length` learned tokens at the input of the first block,
    or with `deep` new ones at the input of every block in place of what the block before made of its own."""
    before = 1 if at.class_token else 0
    last = models.LAYERS - 1

    def insert(x, prompts):
        prompts = prompts.expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :before], prompts, x[:, before:]], dim=1)

    def drop(x):
        return torch.cat([x[:, :before], x[:, before + length :]], dim=1)

    for i in range(models.LAYERS):
        own = new(f"prompt.{i}", (length, models.HIDDEN), 1.0) if deep or i == 0 else None

        def enter(module, args, kwargs, own=own):
            x, *rest = args
            x = x if own is None else insert(x, own)
            # BERT's layers take the mask by position, GPT's by name; a ViT has none.
            rest = [prompt_mask(value, length, at.causal) if is_mask(value) else value for value in rest]
            kwargs = {k: prompt_mask(v, length, at.causal) if is_mask(v) else v for k, v in kwargs.items()}
            return (x, *rest), kwargs

        def leave(module, args, output, dropped=deep or i == last):
            return drop(output) if dropped else output

        block = at.block(model, i)
        block.register_forward_pre_hook(enter, with_kwargs=True)
        block.register_forward_hook(leave)


def is_mask(value):
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point()


def prompt_mask(mask, length, causal):
    """An additive mask [N, 1, T, T] for `length` prompts in front, which every token sees. In a causal model they
    see each other causally and no token, else whatever the tokens see."""
    blocked = torch.finfo(mask.dtype).min
    seen_by_tokens = functional.pad(mask, (length, 0))
    of_prompts = torch.zeros(mask.shape[0], 1, length, length + mask.shape[-1], dtype=mask.dtype)
    if causal:
        of_prompts[:, :, :, :length] = torch.full((length, length), blocked, dtype=mask.dtype).triu(1)
        of_prompts[:, :, :, length:] = blocked
    else:
        of_prompts[:, :, :, length:] = mask[:, :, :1]
    return torch.cat([of_prompts, seen_by_tokens], dim=2)


def prefix(at, model, new, length):
    """Prefix tuning (Li and Liang, arXiv 2101.00190) without reparametrisation: learned keys and values in front of
    every attention's own, seen by every token; positions of tokens stay as they are."""
    for i in range(models.LAYERS):
        key = new(f"prefix.{i}.key", (length, models.HIDDEN), 1.0)
        value = new(f"prefix.{i}.value", (length, models.HIDDEN), 1.0)
        attention = next(m for m in at.block(model, i).modules() if m is not at.block(model, i) and is_attention(m))
        attention.golden_prefix = (key, value)
        if at.class_token:
            attention.forward = lambda x, attention=attention, **_: vit_attention(attention, x)
    if not at.class_token:
        model.config._attn_implementation = "golden_prefix"


def is_attention(module):
    return type(module).__name__ in {"Attention", "BertSelfAttention", "GPT2Attention"}


def heads(x, count):
    """[.., T, C] -> [.., H, T, C / H]"""
    return x.unflatten(-1, (count, -1)).transpose(-3, -2)


def with_prefix(module, key, value):
    own_key, own_value = (heads(t, models.HEADS).expand(key.shape[0], -1, -1, -1) for t in module.golden_prefix)
    return torch.cat([own_key, key], dim=2), torch.cat([own_value, value], dim=2)


def attend(query, key, value, mask=0.0):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
    return scores.softmax(dim=-1) @ value


def vit_attention(module, x):
    query, key, value = (heads(t, models.HEADS) for t in module.qkv(x).chunk(3, dim=-1))
    return module.proj(attend(query, *with_prefix(module, key, value)).transpose(1, 2).flatten(2))


def text_attention(module, query, key, value, attention_mask, **_):
    mask = functional.pad(attention_mask, (module.golden_prefix[0].shape[0], 0))
    return attend(query, *with_prefix(module, key, value), mask).transpose(1, 2), None


AttentionInterface.register("golden_prefix", text_attention)
AttentionMaskInterface.register("golden_prefix", eager_mask)
