"""Pruners at equal counts: nettrim's search against magnitude, Wanda, SparseGPT and ALPS, with and without a refit.

python bench/pruners.py layers      hidden layers 1 to 3 of an MNIST network, all neurons, 20000 calibration samples
python bench/pruners.py network     whole networks at uniform densities, no fine-tuning: accuracy
python bench/pruners.py gaussian    an untrained layer, where l1 is expected to be weak

--network shared (default) is $NETTRIM_DATA/mnist_fc.npz; own is the network that bench/mnist.py trains. Biases stay and
do not count. Errors are those after the ReLU, relative. Calibration and validation samples are training images, apart;
everything was chosen by validation, the test images are for the column that is reported. The seconds of a method that
uses second moments include making them. Writes bench/results/pruners.json as it goes and skips what is there
(--fresh starts a part anew).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import mnist
import numpy as np
from common import environment, fix_threads, read, write

import nettrim as nt
from nettrim import pruners

KEPT = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
KEPT_WHOLE = (0.2, 0.1, 0.05, 0.02)
RIVALS = ("random", "magnitude", "wanda", "sparsegpt", "alps")
EFFORTS = ("fast", "default", "thorough")
THOROUGH = 0.2
PARTS = ("calibration", "validation", "test")


def network(name: str) -> list[np.ndarray]:
    """(inputs + 1) x outputs weights of each layer, the bias last."""
    if name == "own":
        weights, biases = mnist.network()
    else:
        data = np.load(Path(os.environ["NETTRIM_DATA"]) / "mnist_fc.npz")
        weights, biases = [data[f"W{k}"].T for k in range(4)], [data[f"b{k}"] for k in range(4)]
    return [np.vstack([W, b]).astype(np.float32) for W, b in zip(weights, biases, strict=True)]


def forward(layers: list[np.ndarray], S: np.ndarray, count: int | None = None) -> np.ndarray:
    """What the first `count` layers make of samples in rows; all of them: the logits."""
    count = len(layers) if count is None else count
    for k, W in enumerate(layers[:count]):
        S = S @ W[:-1] + W[-1]
        if k < len(layers) - 1:
            S = np.maximum(S, 0)
    return S


def columns(S: np.ndarray) -> np.ndarray:
    """Inputs of a layer as nettrim has them: a column a sample, a row of ones last."""
    return np.ascontiguousarray(np.vstack([S.T, np.ones((1, len(S)), S.dtype)]))


class Samples:
    """Calibration, validation and test images, disjoint, with labels."""

    def __init__(self, count: int, seed: int = 0):
        images, labels = mnist.images("train")
        order = np.random.default_rng(seed).permutation(len(images))
        used, others = order[:count], order[count : 2 * count]
        self.calibration = images[used], labels[used]
        self.validation = images[others], labels[others]
        self.test = mnist.images("test")


def error(W: np.ndarray, X: np.ndarray, Y: np.ndarray) -> float:
    """After the ReLU, relative."""
    return float(np.linalg.norm(np.maximum(W.T @ X, 0) - Y) / np.linalg.norm(Y))


def candidates(kept: float) -> list[tuple[str, dict[str, Any]]]:
    rivals = [(f"{m}{' + refit' * r}", {"method": m, "refit": r}) for m in RIVALS for r in (False, True)]
    # where half of the weights stay, exchanges take minutes and gain little
    efforts = EFFORTS if kept <= THOROUGH else EFFORTS[:2]
    return rivals + [(f"l0, {effort}", {"effort": effort}) for effort in efforts]


def prune(W: np.ndarray, X: np.ndarray, Y: np.ndarray, kept: float, linear: bool, **how: Any) -> np.ndarray:
    if "method" in how:
        return pruners.prune(W, X, density=kept, bias=True, **how)
    return nt.l0(X, Y, W, density=kept, bias=True, omega="linear" if linear else "active", **how).W


def layers(name: str, count: int, record: dict) -> None:
    rows = record.setdefault("layers", [])
    done = {(r["network"], r["layer"], r["kept"], r["method"]) for r in rows}
    net, samples = network(name), Samples(count)
    for k in (2, 0, 1):
        parts = {
            part: columns(forward(net, getattr(samples, part)[0], k)) for part in ("calibration", "validation", "test")
        }
        outputs = {part: np.maximum(net[k].T @ X, 0) for part, X in parts.items()}
        X, Y = parts["calibration"], outputs["calibration"]
        for kept in KEPT:
            for method, how in candidates(kept):
                if (name, k + 1, kept, method) in done:
                    continue
                began = time.perf_counter()
                W = prune(net[k], X, Y, kept, False, **how)
                seconds = time.perf_counter() - began
                row = {"network": name, "layer": k + 1, "kept": kept, "method": method, "samples": count}
                row |= {"nnz": int(np.count_nonzero(W[:-1])), "seconds": seconds}
                rows.append(row | {part: error(W, parts[part], outputs[part]) for part in parts})
                write("pruners", record)
            cell = {r["method"]: r for r in rows if (r["network"], r["layer"], r["kept"]) == (name, k + 1, kept)}
            rival = min((r for m, r in cell.items() if not m.startswith("l0")), key=lambda r: r["validation"])
            print(f"layer {k + 1}, kept {kept:.0%}: best rival {rival['method']}, {rival['validation']:.4f}", end="")
            for effort in (e for e in EFFORTS if f"l0, {e}" in cell):
                mine = cell[f"l0, {effort}"]
                times = mine["seconds"] / cell["alps"]["seconds"]
                print(f"; {effort} {mine['validation'] / rival['validation']:.2f} ({times:.0f}x ALPS)", end="")
            print(flush=True)


def whole(name: str, count: int, record: dict) -> None:
    rows = record.setdefault("networks", [])
    done = {(r["network"], r["scheme"], r["kept"], r["method"]) for r in rows}
    net, samples = network(name), Samples(count)

    def accuracy(pruned: list[np.ndarray], part: str) -> float:
        images, labels = getattr(samples, part)
        return float((forward(pruned, images).argmax(1) == labels).mean())

    record.setdefault("dense", {})[name] = {part: accuracy(net, part) for part in ("validation", "test")}
    print("dense", record["dense"][name])
    refitted = [c for c in candidates(1.0) if c[0].endswith("refit") and not c[0].startswith("random")]
    methods = [*refitted, ("l0, default", {"effort": "default"})]
    for kept in KEPT_WHOLE:
        for method, how in methods:
            # of the rivals, the strongest is also given what the pruned layers before leave
            for scheme in ("parallel", "cascade") if method.startswith(("alps", "l0")) else ("parallel",):
                if (name, scheme, kept, method) in done:
                    continue
                began, pruned = time.perf_counter(), []
                for k, W in enumerate(net):
                    given = forward(net, samples.calibration[0], k)
                    fed = given if scheme == "parallel" else forward([*pruned, *net[k:]], samples.calibration[0], k)
                    Y = columns(given).T @ W
                    last = k == len(net) - 1
                    Y = np.ascontiguousarray((Y if last else np.maximum(Y, 0)).T)
                    pruned.append(prune(W, columns(fed), Y, kept, last, **how))
                row = {"network": name, "scheme": scheme, "kept": kept, "method": method, "samples": count}
                row |= {"seconds": time.perf_counter() - began}
                rows.append(row | {part: accuracy(pruned, part) for part in ("validation", "test")})
                print(
                    f"kept {kept:.0%} {method:18s} {scheme:8s} {rows[-1]['validation']:.2%} {row['seconds']:.0f} s",
                    flush=True,
                )
                write("pruners", record)


def allocated(name: str, count: int, record: dict) -> None:
    """The search and ALPS with densities of `nt.allocate`, whose curves are ALPS's."""
    rows = record.setdefault("networks", [])
    done = {(r["network"], r["scheme"], r["kept"], r["method"]) for r in rows}
    net, samples = network(name), Samples(count)
    plain = [
        nt.Layer(np.ascontiguousarray(W[:-1].T), W[-1], relu=k < len(net) - 1, name=f"fc{k + 1}")
        for k, W in enumerate(net)
    ]
    runs = [
        ("l0, default, allocated", "cascade", {"method": "l0"}),
        *(("alps + refit, allocated", s, {"method": "alps", "refit": "free"}) for s in ("parallel", "cascade")),
    ]
    for kept in KEPT_WHOLE:
        left = [run for run in runs if (name, run[1], kept, run[0]) not in done]
        if not left:
            continue
        began = time.perf_counter()
        found = nt.allocate(plain, samples.calibration[0], kept)
        choosing = time.perf_counter() - began
        print(f"kept {kept:.0%}, densities in {choosing:.0f} s\n{found.table()}")
        for method, scheme, how in left:
            began = time.perf_counter()
            pruned = nt.prune(plain, samples.calibration[0], scheme=scheme, density=found.densities, holdout=0, **how)
            row = {"network": name, "scheme": scheme, "kept": kept, "method": method, "samples": count}
            row |= {"seconds": time.perf_counter() - began, "seconds_allocate": choosing}
            weights = [np.vstack([layer.weight.T, layer.bias]) for layer in pruned.layers]
            for part in ("validation", "test"):
                images, labels = getattr(samples, part)
                row[part] = float((forward(weights, images).argmax(1) == labels).mean())
            rows.append(row | {"allocation": found.to_dict()})
            print(f"{method}, {scheme}: {row['validation']:.2%} {row['seconds']:.0f} s", flush=True)
            write("pruners", record)


def gaussian(record: dict) -> None:
    rng = np.random.default_rng(0)
    # reweighted l1 with dense supports, at some ten epsilons a cell, takes minutes with more
    N, M, P = 100, 20, 1000
    W = (rng.standard_normal((N, M)) / np.sqrt(N)).astype(np.float32)
    X = rng.standard_normal((N, 2 * P)).astype(np.float32)
    Y = np.maximum(W.T @ X, 0)
    rows = record["gaussian"] = []
    for kept in (0.5, 0.2, 0.1, 0.05):
        nnz = round(kept * W.size)
        found = {m: prune_plain(W, X[:, :P], m, nnz) for m in ("magnitude", "alps")}
        rough = {"nnz": nnz, "gap_tol": 1e-2, "feas_tol": 1e-3}
        found["l1"] = nt.solve(X[:, :P], Y[:, :P], **rough).W
        found["reweighted l1 + refit"] = nt.refit(
            nt.Problem(X[:, :P], Y[:, :P], 0.1), nt.sparsest(X[:, :P], Y[:, :P], **rough).W
        ).W
        found["l0"] = nt.l0(X[:, :P], Y[:, :P], W, nnz=nnz).W
        errors = {m: error(A, X[:, P:], Y[:, P:]) for m, A in found.items()}
        counts = {m: int(np.count_nonzero(A)) for m, A in found.items()}
        rows.append({"kept": kept, "N": N, "M": M, "validation": errors, "nnz": counts})
        print(f"gaussian, kept {kept:.0%}: " + ", ".join(f"{m} {e:.3f}" for m, e in errors.items()), flush=True)
        write("pruners", record)


def prune_plain(W: np.ndarray, X: np.ndarray, method: str, nnz: int) -> np.ndarray:
    return pruners.prune(W, X, method, nnz=nnz, refit=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["layers", "network", "gaussian"])
    parser.add_argument("--network", choices=["shared", "own"], default="shared")
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    # kernels are compiled before timing
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((30, 400)).astype(np.float32), rng.standard_normal((30, 6)).astype(np.float32)
    nt.l0(X, np.maximum(W.T @ X, 0), W, density=0.3)
    record = read("pruners") or {}
    if args.fresh:
        record.pop({"network": "networks"}.get(args.part, args.part), None)
    record.setdefault("environment", {})[f"{args.part} {args.network}"] = environment(threads)
    if args.part == "layers":
        layers(args.network, args.samples, record)
    elif args.part == "network":
        whole(args.network, args.samples, record)
        allocated(args.network, args.samples, record)
    else:
        gaussian(record)


if __name__ == "__main__":
    main()
