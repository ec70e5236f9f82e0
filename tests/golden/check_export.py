"""Checks that HF peft loads an exported LoRA folder and computes the logits that the exporter computed.

    python check_export.py FOLDER VALUES [--base HF_FOLDER] [--pooling cls|mean]

FOLDER holds adapter_config.json and adapter_model.safetensors; VALUES is a safetensors file with the batch
(`input/input_ids`, `input/attention_mask`, ...), `head.weight` [C, classes], `head.bias` and `logits`. Without --base
the backbone is the BERT of models.py."""

import argparse
import pathlib

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModel

import methods
import models

TOLERANCE = 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("values", type=pathlib.Path)
    parser.add_argument("--base", type=pathlib.Path)
    parser.add_argument("--pooling", choices=["cls", "mean"], default="cls")
    options = parser.parse_args()

    base = AutoModel.from_pretrained(options.base) if options.base else models.bert()
    model = PeftModel.from_pretrained(base, options.folder).double().eval()
    stored = load_file(options.folder / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model)
    # peft warns about a key that it does not know and goes on; here that is an error.
    assert stored.keys() == loaded.keys(), f"peft has other tensors: {sorted(stored.keys() ^ loaded.keys())}"
    for name, value in stored.items():
        torch.testing.assert_close(loaded[name].float(), value.float(), rtol=0, atol=0, msg=name)

    values = load_file(options.values)
    batch = {name.removeprefix("input/"): value for name, value in values.items() if name.startswith("input/")}
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state
        without = model.get_base_model()
        with model.disable_adapter():
            untrained = without(**batch).last_hidden_state
    logits = methods.pool(tokens, batch, options.pooling) @ values["head.weight"].double() + values["head.bias"].double()
    error = (logits - values["logits"].double()).abs().max().item()
    scale = values["logits"].abs().max().item()
    moved = (tokens - untrained).abs().max().item()
    print(f"{len(stored)} tensors, logits up to {scale:.3f} differ by {error:.1e}; without the adapter tokens differ by {moved:.1e}")
    assert error <= TOLERANCE * max(scale, 1.0)


if __name__ == "__main__":
    main()
