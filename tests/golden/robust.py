"""Robust means of updates, by numpy in float64.

    pip install numpy==2.4.6
    python tests/golden/robust.py > tests/golden/robust.json

Every case has `updates` (rows of float32 values), their `weights`, and what each rule makes of them. The last `liars`
updates of a case are far away. The test is `crates/fedpeft-strategy/tests/robust.rs`.
"""

import json
import math

import numpy as np


def trimmed_mean(updates, trim):
    cut = math.ceil(round(trim * len(updates), 9))
    return np.sort(updates, axis=0)[cut : len(updates) - cut].mean(axis=0)


def krum(updates, weights, byzantine, keep):
    squares = ((updates[:, None] - updates[None]) ** 2).sum(axis=2)
    nearest = np.sort(squares, axis=1)[:, 1 : len(updates) - byzantine - 1]  # Without the update itself.
    best = np.argsort(nearest.sum(axis=1))[:keep]
    return np.average(updates[best], axis=0, weights=weights[best])


def geometric_median(updates, weights, iterations, smoothing):
    point = np.average(updates, axis=0, weights=weights)
    for _ in range(iterations):
        distances = np.linalg.norm(updates - point, axis=1)
        point = np.average(updates, axis=0, weights=weights / np.maximum(distances, smoothing))
    return point


def case(seed, count, values, liars, scale):
    random = np.random.default_rng(seed)
    center = random.normal(size=values)
    updates = center + random.normal(scale=0.3, size=(count, values))
    updates[count - liars :] = random.normal(scale=scale, size=(liars, values))
    updates = updates.astype(np.float32)
    weights = random.integers(1, 400, size=count)
    exact = updates.astype(np.float64)
    rules = [
        ({"rule": "median"}, np.median(exact, axis=0)),
        *(({"rule": "trimmed", "trim": trim}, trimmed_mean(exact, trim)) for trim in (0.0, 0.1, 0.25, 0.4)),
        *(
            ({"rule": "krum", "byzantine": liars, "keep": keep}, krum(exact, weights, liars, keep))
            for keep in (1, 3, count - liars)
        ),
        *(
            (
                {"rule": "geometric", "iterations": iterations, "smoothing": smoothing},
                geometric_median(exact, weights, iterations, smoothing),
            )
            for iterations, smoothing in ((0, 1e-6), (1, 1e-6), (4, 1e-6), (4, 2.0), (25, 1e-6))
        ),
    ]
    return {
        "updates": updates.tolist(),
        "weights": weights.tolist(),
        "liars": liars,
        "rules": [rule | {"mean": mean.tolist()} for rule, mean in rules],
    }


def main():
    print(json.dumps([case(1, 5, 3, 1, 50.0), case(2, 9, 19, 2, 1e4), case(3, 16, 40, 4, 3.0), case(4, 7, 1, 0, 1.0)]))


main()
