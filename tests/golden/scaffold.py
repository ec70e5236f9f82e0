"""Four rounds of SCAFFOLD on softmax regression, by numpy in float64, straight from algorithm 1 of arXiv 1910.06378.

    pip install numpy==2.4.6
    python tests/golden/scaffold.py > tests/golden/scaffold.json

Two of three clients take part in every round; each makes five full-batch steps with option II. `features` are images of
4x4 pixels times a fixed matrix. The test, `tests/e2e/scaffold.rs`, trains the same with real processes.
"""

import json

import numpy as np

PIXELS, FEATURES, CLASSES = 16, 6, 3
ROUNDS, STEPS, RATE, SERVER_RATE, POPULATION = 4, 5, 0.5, 0.8, 3

matrix = np.array([[((i * 7 + j * 13) % 11) / 11 - 0.5 for j in range(FEATURES)] for i in range(PIXELS)])
matrix = matrix.astype(np.float32).astype(np.float64)


def client(seed, count, classes):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, size=(count, PIXELS)), random.choice(classes, size=count)


def gradient(model, features, labels):
    weight, bias = model
    logits = features @ weight + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return [features.T @ shares / len(labels), shares.mean(axis=0)]


# Classes differ, so that clients drift apart.
clients = [client(1, 9, [0, 1]), client(2, 14, [1, 2])]
data = [(pixels / 255 @ matrix, labels) for pixels, labels in clients]
zeros = lambda: [np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES)]
x, c, own = zeros(), zeros(), [zeros() for _ in clients]
rounds = []
for _ in range(ROUNDS):
    moves, changes = [], []
    for i, (features, labels) in enumerate(data):
        y = [value.copy() for value in x]
        for _ in range(STEPS):
            step = gradient(y, features, labels)
            y = [yv - RATE * (g + cv - ov) for yv, g, cv, ov in zip(y, step, c, own[i])]
        after = [ov - cv + (xv - yv) / (STEPS * RATE) for ov, cv, xv, yv in zip(own[i], c, x, y)]
        moves.append([yv - xv for yv, xv in zip(y, x)])
        changes.append([av - ov for av, ov in zip(after, own[i])])
        own[i] = after
    x = [xv + SERVER_RATE * np.mean([m[k] for m in moves], axis=0) for k, xv in enumerate(x)]
    share = len(clients) / POPULATION
    c = [cv + share * np.mean([d[k] for d in changes], axis=0) for k, cv in enumerate(c)]
    name = lambda values: {"weight": values[0].tolist(), "bias": values[1].tolist()}
    rounds.append({"adapter": name(x), "control": name(c)})

given = [{"pixels": pixels.tolist(), "labels": labels.tolist()} for pixels, labels in clients]
print(json.dumps({"matrix": matrix.tolist(), "clients": given, "rounds": rounds}))
