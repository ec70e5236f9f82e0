"""Means of low-rank updates, split by numpy's SVD in float64.

    pip install numpy==2.4.6
    python tests/golden/lora.py > tests/golden/lora.json

Every case has the factors `a [rank, inputs]` and `b [outputs, rank]` of each client, row-major, and its `weights`; the `product`
of the best factors of the mean update, its `singular` values and the share `lost` of its squared norm. The test is
`crates/fedpeft-strategy/tests/lora.rs`.
"""

import json

import numpy as np


def case(seed, clients, rank, inputs, outputs, noise):
    random = np.random.default_rng(seed)
    # What clients learn has something in common.
    base_a, base_b = random.normal(size=(rank, inputs)), random.normal(size=(outputs, rank))
    draw = lambda base: (base + noise * random.normal(size=(clients, *base.shape))).astype(np.float32)
    a, b = draw(base_a), draw(base_b)
    weights = random.integers(1, 500, size=clients)
    mean = np.average(b.astype(np.float64) @ a.astype(np.float64), axis=0, weights=weights)
    u, s, vt = np.linalg.svd(mean, full_matrices=False)
    return {
        "rank": rank,
        "inputs": inputs,
        "outputs": outputs,
        "weights": weights.tolist(),
        "a": a.reshape(clients, -1).tolist(),
        "b": b.reshape(clients, -1).tolist(),
        "product": ((u[:, :rank] * s[:rank]) @ vt[:rank]).ravel().tolist(),
        "singular": s[:rank].tolist(),
        "lost": float((s[rank:] ** 2).sum() / (s**2).sum()),
    }


def main():
    cases = [case(1, 3, 2, 7, 5, 0.3), case(2, 6, 1, 12, 20, 1.0), case(3, 8, 4, 40, 31, 0.5), case(4, 2, 3, 4, 9, 3.0)]
    print(json.dumps(cases))


main()
