"""The small random transformers that every golden value belongs to.

Weights come from a NumPy generator seeded by the model's name, so that they do not depend on a library's
initialisation. Biases and norms are random too: a gradient that vanishes at initialisation would prove nothing.
"""

import hashlib

import numpy
import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel

BATCH = 3
HIDDEN, LAYERS, HEADS, MLP = 32, 2, 4, 64
IMAGE, PATCH = 32, 8
VOCABULARY, POSITIONS, TOKENS = 61, 24, 9


def generator(name):
    """Random numbers that depend on nothing but a name."""
    return numpy.random.Generator(numpy.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])))


def randomise(model, name):
    """Gives every parameter a random value of a size at which activations neither vanish nor saturate."""
    random = generator(name)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            values = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=numpy.float32))
            if parameter.dim() > 1:
                fan_in = parameter.shape[1:].numel() if parameter.dim() == 4 else parameter.shape[-1]
                parameter.copy_(values * (0.5 if "emb" in parameter_name or "wte" in parameter_name else fan_in**-0.5))
            elif parameter_name.endswith("weight"):
                parameter.copy_(1 + 0.2 * values)
            else:
                parameter.copy_(0.2 * values)
    return model.eval()


def vit(fused=True):
    """timm: packed qkv, pre-norm. `fused` chooses scaled_dot_product_attention over explicit products."""
    set_fused_attn(fused)
    model = VisionTransformer(
        img_size=IMAGE, patch_size=PATCH, embed_dim=HIDDEN, depth=LAYERS, num_heads=HEADS, mlp_ratio=MLP / HIDDEN,
        num_classes=0, global_pool="", qkv_bias=True,
    )
    return randomise(model, "vit")


def bert(attention="eager"):
    """transformers: separate query, key and value, post-norm, token types."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MLP, max_position_embeddings=POSITIONS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation=attention,
    )
    return randomise(BertModel(config, add_pooling_layer=False), "bert")


def gpt(attention="eager"):
    """transformers: packed c_attn stored transposed (Conv1D), causal, pre-norm, tied output embedding."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=MLP,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation=attention, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )
    return randomise(GPT2LMHeadModel(config), "gpt")


def llama(attention="eager"):
    """transformers: RMSNorm, rotary positions, SwiGLU, two query heads for each key head, no biases."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, max_position_embeddings=POSITIONS,
        attn_implementation=attention, use_cache=False, bos_token_id=0, eos_token_id=0,
    )
    return randomise(LlamaModel(config), "llama")


def images(name):
    """A batch [N, 3, H, W]."""
    return torch.from_numpy(generator(name).standard_normal((BATCH, 3, IMAGE, IMAGE), dtype=numpy.float32))


def tokens(name, padded=True):
    """Token ids and mask [N, T]; with `padded`, the second and third examples end early."""
    random = generator(name)
    ids = torch.from_numpy(random.integers(1, VOCABULARY, (BATCH, TOKENS)))
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    if padded:
        mask[1, 6:] = 0
        mask[2, 4:] = 0
    return ids * mask, mask


def token_types():
    """Token types [N, T]: the second half of every example is a second sentence."""
    types = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    types[:, TOKENS // 2 :] = 1
    return types
