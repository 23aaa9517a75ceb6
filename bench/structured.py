"""The MNIST network with whole inputs dropped, and made smaller: neurons left, accuracy, seconds of a forward pass.

python bench/structured.py         group norms over inputs ("inputs": one and four rounds, and with a refit free of the
                                   constraints) and over outputs at epsilon .1 and .2, parallel; then shrunk

Rivals at the same number of inputs of each layer: the inputs whose weights have the largest l2 norm, times the norm of
the input itself (Wanda's score, by rows), with and without a least-squares refit on the calibration samples. A forward
pass is timed on 10000 test images against the unpruned network's, in turns, in one thread. Calibration samples are
training images; test images are only used for the accuracies in the table. Writes bench/results/structured.json.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from common import environment, fix_threads, read, write
from mnist import images
from pruners import network
from torch import nn

import nettrim.torch as ntt
from nettrim import pruners

HOW = (("inputs", 1, None), ("inputs", 4, None), ("inputs", 4, "free"), ("outputs", 1, None))
RUNS = [(*how, epsilon) for epsilon in (0.1, 0.2) for how in HOW]


def model_of(weights: list[np.ndarray]) -> nn.Sequential:
    """The network in PyTorch; weights are N x M with the bias as the last row."""
    modules: list[nn.Module] = []
    for W in weights:
        layer = nn.Linear(W.shape[0] - 1, W.shape[1])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(W[:-1].T)))
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(W[-1])))
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def accuracy(model: nn.Module, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).double().mean())


def speed(models: list[nn.Module], x: torch.Tensor, repeats: int = 15) -> list[float]:
    """Median seconds of a forward pass of each, in turns."""
    seconds: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for k in range(repeats + 3):
            for own, model in zip(seconds, models, strict=True):
                began = time.perf_counter()
                model(x)
                if k >= 3:
                    own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in seconds]


def rivals(weights: list[np.ndarray], used: list[int], x: np.ndarray) -> dict[str, nn.Module]:
    """As many inputs of each layer, by norms, on the unpruned network's inputs."""
    made: dict[str, list[np.ndarray]] = {"norms": [], "norms, refit": []}
    for k, (W, count) in enumerate(zip(weights, used, strict=True)):
        X = np.hstack([x, np.ones((len(x), 1), np.float32)]).T.astype(np.float64)
        score = np.linalg.norm(W[:-1], axis=1) * np.linalg.norm(X[:-1], axis=1)
        keep = np.zeros(W.shape, bool)
        keep[np.argsort(-score, kind="stable")[:count]] = True
        keep[-1] = True
        made["norms"].append(np.where(keep, W, 0))
        made["norms, refit"].append(pruners.least_squares(W.astype(np.float64), X @ X.T, keep).astype(np.float32))
        Z = x @ W[:-1] + W[-1]
        x = np.maximum(Z, 0) if k < len(weights) - 1 else Z
    return {name: model_of(parts) for name, parts in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    torch.set_num_threads(1)
    weights = network("shared")
    model = model_of(weights)
    x = images("train")[0][np.random.default_rng(0).permutation(60000)[: args.samples]]
    test = tuple(torch.from_numpy(a) for a in images("test"))
    record = ({} if args.fresh else read("structured")) or {}
    record["environment"] = environment(threads) | {"torch": torch.__version__}
    record["accuracy"], record["samples"] = accuracy(model, test), args.samples
    rows = record.setdefault("runs", [])
    done = {(r["penalty"], r["rounds"], r["refit"], r["epsilon"]) for r in rows}
    for penalty, rounds, refit, epsilon in RUNS:
        if (penalty, rounds, refit, epsilon) in done:
            continue
        began = time.perf_counter()
        pruned = ntt.prune(
            *(model, [torch.from_numpy(x)], epsilon),
            **{
                "penalty": penalty,
                "rounds": rounds,
                "refit": refit,
                "holdout": 0.1 if refit else 0.0,
                "feas_tol": 1e-3,
            },
        )
        seconds = time.perf_counter() - began
        shrunk = ntt.shrink(pruned.model, (test[0][:8],))
        used = [int((m.weight != 0).any(0).sum()) for m in pruned.model if isinstance(m, nn.Linear)]
        times = speed([model, shrunk.model], test[0])
        row = {
            **{"penalty": penalty, "rounds": rounds, "refit": refit, "epsilon": epsilon, "seconds": seconds},
            "status": [r.status for r in pruned.reports],
            "gaps": [r.gap for r in pruned.reports],
            "inputs": used,
            "layers": [[name, list(old), list(new)] for name, old, new in shrunk.layers],
            "parameters": list(shrunk.parameters),
            "accuracy": accuracy(shrunk.model, test),
            "forward_ratio": times[1] / times[0],
        }
        if penalty == "inputs":
            row["rivals"] = {name: accuracy(m, test) for name, m in rivals(weights, used, x).items()}
        rows.append(row)
        before, after = shrunk.parameters
        print(
            f"{penalty}, {rounds} round(s), refit {refit}, epsilon {epsilon}: inputs {used}, {after / before:.1%} of "
            f"the parameters, {row['accuracy']:.2%} (unpruned {record['accuracy']:.2%}), a forward pass "
            f"{row['forward_ratio']:.2f} of the time; {row.get('rivals')}; {set(row['status'])}, {seconds:.0f} s",
            flush=True,
        )
        write("structured", record)


if __name__ == "__main__":
    main()
