"""Seconds to sample a million weights of a layer of 10,000, against drawing them one neuron's choice at a time.

python bench/coresets.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from common import environment, fix_threads, write

from nettrim.bounds.coresets import random_draws
from nettrim.bounds.importance import halves, importances, totals
from nettrim.pruners.coresets import random_weights

SHAPE, DRAWS, DELTA, REPEATS = (1001, 10), 1_000_000, 0.5, 7


def chosen(W: np.ndarray, X: np.ndarray, epsilon: float) -> np.ndarray:
    """Algorithm 1 as it is usually written: `numpy.random.choice` with replacement, and a count of each weight."""
    rng, importance = np.random.default_rng(0), importances(W, X)
    draws = random_draws(epsilon, totals(W, importance), DELTA).astype(int)
    pruned = np.zeros(W.shape)
    for k, half in enumerate(halves(W)):
        for m in range(W.shape[1]):
            s = np.where(half[:, m] > 0, importance[:, m], 0)
            q = s / s.sum()
            times = np.bincount(rng.choice(len(q), draws[k, m], p=q), minlength=len(q))
            pruned[:, m] += np.divide(times * W[:, m], draws[k, m] * q, out=np.zeros(len(q)), where=q > 0)
    return pruned


def seconds(call) -> list[float]:
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def main() -> None:
    threads = fix_threads(None)
    rng = np.random.default_rng(0)
    W = rng.standard_normal(SHAPE)
    X = np.maximum(rng.standard_normal((SHAPE[0], 33)), 0)
    # the error for which so many samples are needed, by the formula's leading term
    epsilon = float(np.sqrt(2 * totals(W, importances(W, X)).sum() * np.log(4 / DELTA) * 2 / DRAWS))
    made = random_weights(W, X, epsilon=epsilon, delta=DELTA, samples=X.shape[1])
    ours = seconds(lambda: random_weights(W, X, epsilon=epsilon, delta=DELTA, samples=X.shape[1]))
    baseline = seconds(lambda: chosen(W, X, epsilon))
    record = {
        "environment": environment(threads),
        "shape": SHAPE,
        "draws": int(made.draws.sum()),
        "kept": made.density,
        "seconds": statistics.median(ours),
        "all_seconds": ours,
        "baseline": statistics.median(baseline),
        "all_baseline": baseline,
        "ratio": statistics.median(baseline) / statistics.median(ours),
    }
    write("coresets", record)
    print(
        f"{record['draws']:,} samples of {W.size:,} weights: {1000 * record['seconds']:.0f} ms, "
        f"one choice after the other {1000 * record['baseline']:.0f} ms, ratio {record['ratio']:.1f}"
    )


if __name__ == "__main__":
    main()
