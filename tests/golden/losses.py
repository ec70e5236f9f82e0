"""Losses and gradients of every task, by PyTorch in float64: `losses.json`.

    python tests/golden/losses.py        # PyTorch 2.15

Each case is a linear model without bias: logits = features @ weight, where the features are given, the mean
of the tokens that are no padding, or rows of an embedding table by token id.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(20)


def rounded(tensor):
    """Values that float32 holds exactly, so that both sides begin with the same numbers."""
    return (tensor * 256).round() / 256


def randn(*shape):
    return rounded(torch.randn(*shape))


CLASSES = 4
WEIGHTS = [0.5, 1.25, 2.0, 0.75]


def case(name, task, loss_of, labels, features, weight, correct, count, given):
    weight = weight.clone().requires_grad_()
    logits = features @ weight
    loss = loss_of(logits, labels)
    loss.backward()
    return {
        "name": name,
        "task": task,
        "labels": labels.flatten().tolist(),
        "weight": weight.detach().tolist(),
        "loss": loss.item(),
        "weight_grad": weight.grad.tolist(),
        "correct": correct(logits.detach(), labels),
        "count": count(labels),
        **given,
    }


def classification():
    features, weight = randn(6, 3), randn(3, CLASSES)
    labels = torch.tensor([0, 3, 1, 1, 2, 3])
    right = lambda x, y: int((x.argmax(-1) == y).sum())
    for smoothing in [0.0, 0.125]:
        for weights in [None, WEIGHTS]:
            tensor = None if weights is None else torch.tensor(weights)
            yield case(
                f"classification, smoothing {smoothing}, weights {weights}",
                {
                    "kind": "classification",
                    "classes": CLASSES,
                    "label_smoothing": smoothing,
                    "class_weights": weights or [],
                },
                lambda x, y: F.cross_entropy(x, y, weight=tensor, label_smoothing=smoothing),
                labels, features, weight, right, len,
                {"features": features.tolist()},
            )


def pooled():
    tokens, weight = randn(4, 5, 3), randn(3, CLASSES)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    features = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return case(
        "classification of pooled tokens",
        {"kind": "classification", "classes": CLASSES},
        F.cross_entropy,
        torch.tensor([2, 0, 1, 3]), features, weight,
        lambda x, y: int((x.argmax(-1) == y).sum()), len,
        {"tokens": tokens.tolist(), "mask": mask.tolist()},
    )


def multi_label():
    features, weight = randn(5, 3), randn(3, CLASSES)
    labels = (torch.rand(5, CLASSES) > 0.5).double()
    for weights in [None, WEIGHTS]:
        tensor = None if weights is None else torch.tensor(weights)
        yield case(
            f"multi-label, weights {weights}",
            {"kind": "multi_label", "labels": CLASSES, "pos_weight": weights or []},
            lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=tensor),
            labels, features, weight,
            lambda x, y: int(((x > 0) == (y > 0.5)).sum()), lambda y: y.numel(),
            {"features": features.tolist()},
        )


def regression():
    features, weight, labels = randn(5, 3), randn(3, 2), randn(5, 2)
    return case(
        "regression",
        {"kind": "regression", "outputs": 2},
        F.mse_loss, labels, features, weight, lambda x, y: 0, lambda y: 0,
        {"features": features.tolist()},
    )


def causal_lm():
    vocabulary, tokens = 7, 5
    ids = torch.randint(0, vocabulary, (3, tokens))
    ignored = ids.clone()
    ignored[0, 3:] = -100
    ignored[2, 1] = -100
    nothing = torch.full_like(ids, -100)
    table = randn(vocabulary, 3)

    def loss_of(logits, labels):
        # As transformers' ForCausalLMLoss: the logits at t are scored on the label of t + 1.
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return loss / (labels[:, 1:] != -100).sum().clamp(min=1)

    for name, labels in [("every token", ids), ("some ignored", ignored), ("all ignored", nothing)]:
        yield case(
            f"causal-lm, {name}",
            {"kind": "causal_lm", "vocabulary": vocabulary},
            loss_of, labels, table[ids], randn(3, vocabulary),
            lambda x, y: int((x[:, :-1].argmax(-1) == y[:, 1:]).sum()),
            lambda y: int((y[:, 1:] != -100).sum()),
            {"ids": ids.tolist(), "table": table.tolist()},
        )


def main():
    cases = [*classification(), pooled(), *multi_label(), regression(), *causal_lm()]
    path = pathlib.Path(__file__).with_name("losses.json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
