"""Checks the reference code against HF peft and transformers where they can express the same. Prints one line each."""

import warnings

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import DynamicCache

import methods
import models
import reference
from reference import ARCHITECTURES


def same(name, ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    print(f"{name}: largest difference {(ours - theirs).abs().max().item():.1e}")


def installed(kind, method, **options):
    """A model with the method, and the method's tensors."""
    new, model = methods.New("crosscheck"), methods.build(kind)
    method(ARCHITECTURES[kind], model, new, **options)
    return model, new.made


def peft_on_packed(kind, dora):
    """LoRA on two column blocks is one LoRA of twice the rank on the whole, block-diagonal in B."""
    at, rank, hidden = ARCHITECTURES[kind], methods.RANK, models.HIDDEN
    options = dict(rank=rank, alpha=methods.ALPHA, targets=["query", "value"], dora=dora)
    ours, made = installed(kind, reference.lora, **options)
    config = LoraConfig(
        r=2 * rank, lora_alpha=2 * methods.ALPHA, target_modules=[at.packed], fan_in_fan_out=kind == "gpt", use_dora=dora
    )
    theirs = get_peft_model(methods.build(kind), config).double()
    with torch.no_grad():
        for i in range(models.LAYERS):
            name = f"{at.blocks}.{i}.{at.packed}"
            layer = theirs.base_model.model.get_submodule(name)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            b.zero_()
            for k, (target, column) in enumerate({"query": 0, "value": 2}.items()):
                rows = slice(column * hidden, (column + 1) * hidden)
                a[k * rank : (k + 1) * rank] = made[f"{name}.{target}.lora_A.weight"]
                b[rows, k * rank : (k + 1) * rank] = made[f"{name}.{target}.lora_B.weight"]
                if dora:
                    magnitude = layer.lora_magnitude_vector["default"].weight
                    magnitude[rows] = made[f"{name}.{target}.lora_magnitude_vector"]
    batch = methods.batch_of(kind)
    label = f"{kind}: {'DoRA' if dora else 'LoRA'} on blocks is peft's on the whole layer"
    same(label, methods.tokens_of(ours, batch), methods.tokens_of(theirs, batch))


def peft_ia3():
    at = ARCHITECTURES["gpt"]
    ours, made = installed("gpt", reference.ia3)
    config = IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)
    theirs = get_peft_model(methods.build("gpt"), config).double()
    with torch.no_grad():
        for i in range(models.LAYERS):
            base = theirs.base_model.model
            name = f"{at.blocks}.{i}.{at.packed}"
            packed = [torch.ones(models.HIDDEN), made[f"{name}.key.ia3_l"], made[f"{name}.value.ia3_l"]]
            base.get_submodule(name).ia3_l["default"].copy_(torch.cat(packed)[:, None])
            inner = f"{at.blocks}.{i}.{at.mlp_out}"
            base.get_submodule(inner).ia3_l["default"].copy_(made[f"{inner}.ia3_l"][None])
    batch = methods.batch_of("gpt")
    same("gpt: IA3 is peft's", methods.tokens_of(ours, batch), methods.tokens_of(theirs, batch))


def past_key_values():
    """Prefixes are past keys and values; positions of the tokens are given, since a cache would shift them."""
    ours, made = installed("gpt", reference.prefix, length=methods.TOKENS)
    batch, cache = methods.batch_of("gpt"), DynamicCache()
    for i in range(models.LAYERS):
        pair = (reference.heads(made[f"prefix.{i}.{part}"], models.HEADS) for part in ("key", "value"))
        cache.update(*(part.expand(models.BATCH, -1, -1, -1) for part in pair), i)
    seen = torch.ones(models.BATCH, methods.TOKENS, dtype=torch.int64)
    theirs = methods.build("gpt")(
        input_ids=batch["input_ids"], attention_mask=torch.cat([seen, batch["attention_mask"]], dim=1),
        past_key_values=cache, position_ids=torch.arange(models.TOKENS)[None], use_cache=True,
    )
    same("gpt: prefixes are past keys and values", methods.tokens_of(ours, batch), theirs.last_hidden_state)


def input_embeddings():
    """Prompts in front of a causal model are input embeddings, apart from the position that is added to those."""
    ours, made = installed("gpt", reference.prompt, length=methods.TOKENS, deep=False)
    batch, model = methods.batch_of("gpt"), methods.build("gpt")
    prompts = (made["prompt.0"] - model.wpe.weight[: methods.TOKENS]).expand(models.BATCH, -1, -1)
    seen = torch.ones(models.BATCH, methods.TOKENS, dtype=torch.int64)
    positions = torch.cat([torch.arange(methods.TOKENS), torch.arange(models.TOKENS)])[None]
    theirs = model(
        inputs_embeds=torch.cat([prompts, model.wte(batch["input_ids"])], dim=1), position_ids=positions,
        attention_mask=torch.cat([seen, batch["attention_mask"]], dim=1),
    )
    tokens = theirs.last_hidden_state[:, methods.TOKENS :]
    same("gpt: shallow prompts are input embeddings", methods.tokens_of(ours, batch), tokens)


def encoder_prompts():
    """BERT with prompts is its encoder on a longer sequence with a longer mask."""
    ours, made = installed("bert", reference.prompt, length=methods.TOKENS, deep=False)
    batch, model = methods.batch_of("bert"), methods.build("bert")
    embedded = model.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    longer = torch.cat([made["prompt.0"].expand(models.BATCH, -1, -1), embedded], dim=1)
    seen = torch.ones(models.BATCH, methods.TOKENS, dtype=torch.int64)
    mask = torch.cat([seen, batch["attention_mask"]], dim=1)[:, None, None].double()
    theirs = model.encoder(longer, attention_mask=(1 - mask) * torch.finfo(torch.float64).min).last_hidden_state
    same("bert: shallow prompts lengthen the sequence", methods.tokens_of(ours, batch), theirs[:, methods.TOKENS :])


def main():
    warnings.filterwarnings("ignore")
    for kind in ("vit", "gpt"):
        for dora in (False, True):
            peft_on_packed(kind, dora)
    peft_ia3()
    past_key_values()
    input_embeddings()
    encoder_prompts()


if __name__ == "__main__":
    main()
