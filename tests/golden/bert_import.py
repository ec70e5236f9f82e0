"""Hidden states of BERT-family encoders as transformers computes them, for `fedpeft-hf`'s tests.

    python bert_import.py MINILM_FOLDER

writes `bert_import/`: three tiny random models (one per family, each with another precision, activation and
naming of its checkpoint) with inputs and expected outputs, and expected outputs of all-MiniLM-L6-v2, whose
folder is the argument (`cargo xtask assets` fetches it). Needs torch, transformers and safetensors.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

HERE = Path(__file__).parent / "bert_import"
TOKENS = 12
LENGTHS = [12, 7, 1]
SENTENCES = [
    "Shares in the airline rose 4.2% after it said profits would beat forecasts.",
    "Café owners welcomed the referee's decision – unbelievable!",
    "",
]

tiny = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
MODELS = {
    "bert": (BertModel(BertConfig(**tiny, max_position_embeddings=20)), torch.float32),
    # A checkpoint with a head, whose encoder's parameters begin with `roberta.`.
    "roberta": (
        RobertaForSequenceClassification(
            RobertaConfig(
                **tiny, max_position_embeddings=20, type_vocab_size=1, hidden_act="gelu_new", pad_token_id=1
            )
        ),
        torch.float16,
    ),
    "distilbert": (
        DistilBertModel(
            DistilBertConfig(
                vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=24, activation="relu",
                max_position_embeddings=20,
            )
        ),
        torch.bfloat16,
    ),
}


def randomise(model, dtype):
    """Weights that matter, rounded to what the file will hold."""
    for name, parameter in model.named_parameters():
        centre = 1.0 if name.lower().endswith("norm.weight") else 0.0
        spread = 0.3 if parameter.ndim > 1 else 0.2
        value = centre + spread * torch.randn_like(parameter)
        parameter.data = value.to(dtype).to(torch.float32)


def tiny_model(name, model, dtype):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    randomise(model, dtype)
    model.eval()
    model.save_pretrained(folder, safe_serialization=True)
    weights = {key: value.to(dtype) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")

    pad = model.config.pad_token_id or 0
    mask = torch.tensor([[1] * n + [0] * (TOKENS - n) for n in LENGTHS])
    ids = torch.randint(5, 64, mask.shape) * mask + pad * (1 - mask)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "bert":
        inputs["token_type_ids"] = torch.randint(0, 2, mask.shape) * mask
    base = getattr(model, "roberta", model)
    with torch.no_grad():
        expected = base(**inputs).last_hidden_state
    save_file({**inputs, "last_hidden_state": expected}, folder / "expected.safetensors")


def minilm(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    # Of each sentence the first token and the last that is no padding.
    last = batch["attention_mask"].sum(dim=1) - 1
    rows = torch.stack([hidden[:, 0], hidden[torch.arange(len(SENTENCES)), last]], dim=1)
    save_file(
        {**{name: value.contiguous() for name, value in batch.items()}, "first_and_last": rows.contiguous()},
        HERE / "minilm.safetensors",
    )
    tokens = [{"text": text, "ids": tokenizer(text, truncation=True, max_length=16)["input_ids"]} for text in SENTENCES]
    lines = ",\n".join(json.dumps(line, ensure_ascii=False) for line in tokens)
    (HERE / "minilm_tokens.json").write_text(f"[\n{lines}\n]\n")


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(3)
    for name, (model, dtype) in MODELS.items():
        tiny_model(name, model, dtype)
    minilm(sys.argv[1])


if __name__ == "__main__":
    main()
