"""Trains the 64-300-100-10 ReLU network of `nettrim demo` and writes nettrim/data/digits_relu.npz.

scikit-learn's bundled handwritten digits (1797 images of 8 x 8), split once into four disjoint sets. Plain NumPy, Adam
with decoupled weight decay, dropout, fixed seeds, one thread: the same machine gives the same file.

    python bench/train_digits.py [--output FILE] [--seed 1] [--epochs 300]

The file holds W0, W1, W2 (inputs x outputs) and b0, b1, b2 as float16, the indices ``train``, ``calibration``,
``heldout`` and ``test`` into ``load_digits()``, the ``test_accuracy`` of these very weights, and ``provenance``.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
from threadpoolctl import threadpool_limits

from nettrim.demo import SPLIT_NAMES, accuracy, digits
from nettrim.report import write_atomically

SIZES = (64, 300, 100, 10)
#: images in each set
COUNTS = {"train": 797, "calibration": 300, "heldout": 200, "test": 500}
BATCH, STEP, DECAY, DROPOUT = 64, 1e-3, 1.0, 0.3
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "nettrim" / "data" / "digits_relu.npz"


def split(labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sorted indices of the four sets, drawn without replacement."""
    order = rng.permutation(labels.size)
    ends = np.cumsum([COUNTS[name] for name in SPLIT_NAMES])
    parts = np.split(order, ends[:-1])
    return {name: np.sort(part).astype(np.int16) for name, part in zip(SPLIT_NAMES, parts, strict=True)}


def train(
    inputs: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights (inputs x outputs) and biases after Adam on the cross-entropy, the step falling along a cosine.

    Dropout of the hidden units and decay of the weights make the network a robust one, as real networks are: pruning
    errors are then small beside the margins of its decisions.
    """
    pairs = list(itertools.pairwise(SIZES))
    weights = [rng.normal(0, np.sqrt(2 / n), (n, m)).astype(np.float32) for n, m in pairs]
    biases = [np.zeros(m, np.float32) for _, m in pairs]
    values = weights + biases
    means, squares = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    targets = np.eye(SIZES[-1], dtype=np.float32)[labels]
    steps, step = epochs * (len(inputs) // BATCH), 0
    for _ in range(epochs):
        order = rng.permutation(len(inputs))
        for start in range(0, len(inputs) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            hidden, slopes = [inputs[rows]], [np.ones(1, np.float32)]
            for W, b in zip(weights[:-1], biases[:-1], strict=True):
                before = hidden[-1] @ W + b
                alive = (rng.random(before.shape, dtype=np.float32) >= DROPOUT) / np.float32(1 - DROPOUT)
                slopes.append(alive * (before > 0))
                hidden.append(before * slopes[-1])
            logits = hidden[-1] @ weights[-1] + biases[-1]
            error = np.exp(logits - logits.max(1, keepdims=True))
            error = (error / error.sum(1, keepdims=True) - targets[rows]) / BATCH
            slopes_w, slopes_b = [], []
            for layer in reversed(range(len(weights))):
                slopes_w.insert(0, hidden[layer].T @ error)
                slopes_b.insert(0, error.sum(0))
                if layer:
                    error = (error @ weights[layer].T) * slopes[layer]
            step += 1
            rate = STEP * 0.5 * (1 + np.cos(np.pi * step / steps))
            for value, slope, mean, square in zip(values, slopes_w + slopes_b, means, squares, strict=True):
                mean += 0.1 * (slope - mean)
                square += 0.001 * (slope**2 - square)
                move = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
                value -= rate * (move + DECAY * value if value.ndim == 2 else move)
    return weights, biases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=300)
    options = parser.parse_args()

    images, labels = digits()
    parts = split(labels, np.random.default_rng(0))
    began = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    with threadpool_limits(1):
        weights, biases = train(images[parts["train"]], labels[parts["train"]], options.epochs, rng)
    arrays = {f"W{i}": W.astype(np.float16) for i, W in enumerate(weights)}
    arrays |= {f"b{i}": b.astype(np.float16) for i, b in enumerate(biases)}
    stored_w = [arrays[f"W{i}"].astype(np.float32) for i in range(len(weights))]
    stored_b = [arrays[f"b{i}"].astype(np.float32) for i in range(len(biases))]
    reached = {name: accuracy(stored_w, stored_b, images[part], labels[part]) for name, part in parts.items()}
    provenance = (
        f"{'-'.join(map(str, SIZES))} ReLU network trained by bench/train_digits.py --seed {options.seed} "
        f"--epochs {options.epochs} on scikit-learn {sklearn.__version__} load_digits (UCI optical recognition of "
        f"handwritten digits, test part), {COUNTS['train']} of the images; NumPy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
    extra = {"test_accuracy": np.float64(reached["test"]), "provenance": np.str_(provenance)}
    with write_atomically(options.output) as file:
        np.savez_compressed(file, **arrays, **parts, **extra)
    print(f"{time.perf_counter() - began:.1f} s, accuracy", {name: f"{value:.2%}" for name, value in reached.items()})
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
