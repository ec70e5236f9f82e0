"""Twenty optimizer steps by PyTorch, for `fedpeft-runtime` to repeat.

    python tests/golden/optimizers.py

writes `optimizers.json` beside this file; run by hand, with torch 2.15.0 and transformers 5.23.0.

Two tensors descend gradients that are given, in float64. Every case is a `[run.training]` section; `parameters`
holds the values after each step and `learning_rates` the rate of each. Gradient clipping is `clip_grad_norm_`,
schedules are those of transformers, FedProx is its proximal term in the loss, differentiated by autograd. A case
with `accumulate = 2` takes the mean of two micro-batches of 8 and 3 examples: the gradients of step t and of step
19 - t.
"""

import json
import math
import pathlib

import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

STEPS = 20
SHAPES = [[3, 4], [5]]
WEIGHTS = [8, 3]

MOMENTUM = {"kind": "sgd", "momentum": 0.9}
NESTEROV = {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
ADAMW = {"kind": "adamw", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1}
WARM = {"kind": "constant", "warmup": {"steps": 5}}
LINEAR = {"kind": "linear", "warmup": {"fraction": 0.1}}
COSINE = {"kind": "cosine", "warmup": {"steps": 3}, "floor": 0.1}

CASES = {
    "sgd": {"optimizer": {"kind": "sgd"}},
    "sgd momentum": {"optimizer": MOMENTUM},
    "sgd nesterov": {"optimizer": NESTEROV},
    "sgd nesterov clip": {"optimizer": NESTEROV, "clip_norm": 3.0},
    "sgd momentum linear": {"optimizer": MOMENTUM, "schedule": LINEAR},
    "sgd nesterov clip cosine": {"optimizer": NESTEROV, "clip_norm": 3.0, "schedule": COSINE},
    "sgd momentum proximal": {"optimizer": MOMENTUM, "proximal_mu": 0.5},
    "sgd nesterov accumulate": {"optimizer": NESTEROV, "accumulate": 2},
    "adamw": {"optimizer": ADAMW},
    "adamw clip": {"optimizer": ADAMW, "clip_norm": 3.0},
    "adamw warm": {"optimizer": ADAMW, "schedule": WARM},
    "adamw clip linear": {"optimizer": ADAMW, "clip_norm": 3.0, "schedule": LINEAR},
    "adamw cosine": {"optimizer": ADAMW, "schedule": COSINE},
    "adamw proximal clip": {"optimizer": ADAMW, "proximal_mu": 0.5, "clip_norm": 3.0},
    "adamw everything": {
        "optimizer": ADAMW,
        "proximal_mu": 0.5,
        "clip_norm": 2.0,
        "accumulate": 2,
        "schedule": COSINE,
    },
}
LEARNING_RATE = 0.05


def optimizer_of(spec, parameters):
    constants = {key: value for key, value in spec.items() if key != "kind"}
    if spec["kind"] == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, **constants)
    betas = (constants["beta1"], constants["beta2"])
    return torch.optim.AdamW(
        parameters,
        lr=LEARNING_RATE,
        betas=betas,
        eps=constants["epsilon"],
        weight_decay=constants["weight_decay"],
    )


def schedule_of(spec, optimizer):
    warmup = spec.get("warmup", {"steps": 0})
    steps = warmup["steps"] if "steps" in warmup else math.ceil(warmup["fraction"] * STEPS)
    match spec["kind"]:
        case "constant":
            return get_constant_schedule_with_warmup(optimizer, steps)
        case "linear":
            return get_linear_schedule_with_warmup(optimizer, steps, STEPS)
        case "cosine":
            floor = spec["floor"]
            return get_cosine_with_min_lr_schedule_with_warmup(optimizer, steps, STEPS, min_lr_rate=floor)


def run(spec, start, gradients):
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = optimizer_of(spec["optimizer"], parameters)
    schedule = schedule_of(spec.get("schedule", {"kind": "constant"}), optimizer)
    after, rates = [], []
    for step in range(STEPS):
        batches = [(1, gradients[step])]
        if spec.get("accumulate") == 2:
            batches = list(zip(WEIGHTS, [gradients[step], gradients[STEPS - 1 - step]]))
        total = sum(weight for weight, _ in batches)
        optimizer.zero_grad()
        for weight, slopes in batches:
            loss = sum((slope * value).sum() for slope, value in zip(slopes, parameters))
            (loss * weight / total).backward()
        if mu := spec.get("proximal_mu"):
            way = sum(((value - origin) ** 2).sum() for value, origin in zip(parameters, start))
            (mu / 2 * way).backward()
        if norm := spec.get("clip_norm"):
            torch.nn.utils.clip_grad_norm_(parameters, norm)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        after.append(flat(parameters))
    training = {"learning_rate": LEARNING_RATE, "batch_size": sum(WEIGHTS), **spec}
    return {"training": training, "learning_rates": rates, "parameters": after}


def flat(tensors):
    return [round(value, 9) for tensor in tensors for value in tensor.detach().flatten().tolist()]


def main():
    torch.manual_seed(1)
    # Values that f32 holds exactly, of norms on both sides of what is clipped to.
    draw = lambda scale: [(torch.randn(shape, dtype=torch.float64) * scale).float().double() for shape in SHAPES]
    start = draw(1.0)
    gradients = [draw(0.3 + 0.1 * step) for step in range(STEPS)]
    golden = {
        "shapes": SHAPES,
        "weights": WEIGHTS,
        "start": [value for tensor in start for value in tensor.flatten().tolist()],
        "gradients": [[v for tensor in step for v in tensor.flatten().tolist()] for step in gradients],
        "cases": {name: run(spec, start, gradients) for name, spec in CASES.items()},
    }
    path = pathlib.Path(__file__).with_name("optimizers.json")
    write = lambda value: json.dumps(value, separators=(",", ":"))
    cases = ",\n".join(f"{write(name)}:{write(case)}" for name, case in golden.pop("cases").items())
    path.write_text(f'{write(golden)[:-1]},"cases":{{\n{cases}\n}}}}\n')


if __name__ == "__main__":
    main()
