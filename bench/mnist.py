"""MNIST and the 784-300-1000-100-10 ReLU network whose layers the benchmarks prune, trained here in plain NumPy.

python bench/mnist.py     trains (about a minute) and prints the test accuracy; the weights go to bench/cache.
"""

from __future__ import annotations

import gzip
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent / "cache" / "mnist_fc.npz"
SIZES = (784, 300, 1000, 100, 10)
EPOCHS, BATCH, RATE, DROPOUT, SEED = 20, 128, 1e-3, 0.5, 1


def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(samples x 784 float32 in [0, 1], labels) of "train" or "test", from $NETTRIM_DATA/mnist or OpenML."""
    prefix = {"train": "train", "test": "t10k"}[split]
    folder = Path(os.environ.get("NETTRIM_DATA", "")) / "mnist"
    if "NETTRIM_DATA" in os.environ and (folder / f"{prefix}-images-idx3-ubyte.gz").exists():
        X = np.frombuffer(gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
        y = np.frombuffer(gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
        return X.reshape(-1, 784).astype(np.float32) / 255, y.astype(np.int64)
    try:
        from sklearn.datasets import fetch_openml

        X, y = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
    except Exception as error:
        raise SystemExit(
            f"MNIST not found: set NETTRIM_DATA to a folder with mnist/*.gz (IDX files), or allow OpenML ({error})"
        ) from error
    part = slice(0, 60000) if split == "train" else slice(60000, 70000)
    return X[part].astype(np.float32) / 255, y[part].astype(np.int64)


def forward(weights: list, biases: list, S: np.ndarray) -> list[np.ndarray]:
    """Inputs of every layer and the logits, samples in rows."""
    out = [S]
    for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
        Z = out[-1] @ W + b
        out.append(np.maximum(Z, 0) if i < len(weights) - 1 else Z)
    return out


def train() -> Path:
    """Adam, cross-entropy, inverted dropout on the hidden layers, learning rate decaying to zero; seeded."""
    X, y = images("train")
    rng = np.random.default_rng(SEED)
    sizes = list(pairwise(SIZES))
    weights = [rng.standard_normal(s).astype(np.float32) * np.float32(np.sqrt(2 / s[0])) for s in sizes]
    biases = [np.zeros(s[1], np.float32) for s in sizes]
    state = [np.zeros_like(p) for p in weights + biases], [np.zeros_like(p) for p in weights + biases]
    steps, step = EPOCHS * (len(X) // BATCH), 0
    for epoch in range(EPOCHS):
        order, began = rng.permutation(len(X)), time.perf_counter()
        for start in range(0, len(X) - BATCH + 1, BATCH):
            step += 1
            rows = order[start : start + BATCH]
            acts, masks = [X[rows]], []
            for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
                Z = acts[-1] @ W + b
                if i < len(weights) - 1:
                    keep = (rng.random(Z.shape, np.float32) > DROPOUT).astype(np.float32) / np.float32(1 - DROPOUT)
                    masks.append((Z > 0) * keep)
                    Z = Z * masks[-1]
                acts.append(Z)
            p = np.exp(acts[-1] - acts[-1].max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(BATCH), y[rows]] -= 1
            delta, gw, gb = p / BATCH, [], []
            for i in reversed(range(len(weights))):
                gw.insert(0, acts[i].T @ delta)
                gb.insert(0, delta.sum(0))
                if i:
                    delta = (delta @ weights[i].T) * masks[i - 1]
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for q, g, m, v in zip(weights + biases, gw + gb, *state, strict=True):
                m += np.float32(0.1) * (g - m)
                v += np.float32(0.001) * (g * g - v)
                q -= np.float32(rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)) * m / (np.sqrt(v) + np.float32(1e-8))
        print(
            f"epoch {epoch + 1:2d}  test accuracy {accuracy(weights, biases):.4f}  {time.perf_counter() - began:.1f} s"
        )
    CACHE.parent.mkdir(exist_ok=True)
    named = {f"W{i}": W for i, W in enumerate(weights)} | {f"b{i}": b for i, b in enumerate(biases)}
    np.savez(CACHE, **named)
    return CACHE


def accuracy(weights: list, biases: list) -> float:
    """On the 10000 test images."""
    X, y = images("test")
    return float((forward(weights, biases, X)[-1].argmax(1) == y).mean())


def network() -> tuple[list, list]:
    """The trained weights (inputs x outputs) and biases; trains on the first call."""
    if not CACHE.exists():
        train()
    data = np.load(CACHE)
    return [data[f"W{i}"] for i in range(4)], [data[f"b{i}"] for i in range(4)]


def layer(index: int, P: int, seed: int = 0, dtype: type = np.float32, neurons: int | None = None):
    """(X, Y, linear) of layer 0 to 3: inputs with a row of ones and outputs on P training images; layer 3 is linear."""
    weights, biases = network()
    chosen = np.random.default_rng(seed).permutation(60000)[:P]
    S = images("train")[0][chosen]
    acts = forward(
        [w.astype(np.float64) for w in weights], [b.astype(np.float64) for b in biases], S.astype(np.float64)
    )
    X = np.vstack([acts[index].T, np.ones((1, P))])
    Y = acts[index + 1].T[:neurons]
    return np.ascontiguousarray(X, dtype), np.ascontiguousarray(Y, dtype), index == 3


if __name__ == "__main__":
    train()
    print(f"test accuracy {accuracy(*network()):.4f}, weights in {CACHE}")
