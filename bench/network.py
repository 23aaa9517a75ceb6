"""The MNIST network of bench/mnist.py pruned as a whole, without fine-tuning: weights kept, errors and test accuracy.

python bench/network.py            parallel at epsilon .05 and .1, cascade at .2 (gamma 1.1): plain, with four
                                   rounds of reweighted l1, and with five and a refit within the constraints; half an
                                   hour on two cores, a run at a time with --only

Calibration samples are training images, a part of them held out; the test images are only used for the accuracy.
Writes bench/results/network.json as it goes and skips what is there (--fresh starts anew).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import environment, fix_threads, read, write
from mnist import accuracy, images
from pruners import network

import nettrim as nt

RUNS = [
    *(("parallel", 0.05, 1, None), ("parallel", 0.1, 1, None), ("cascade", 0.2, 1, None)),
    *(("parallel", 0.05, 4, None), ("parallel", 0.1, 4, None), ("cascade", 0.2, 4, None)),
    *(("parallel", 0.05, 5, "within"), ("parallel", 0.1, 5, "within"), ("cascade", 0.2, 5, "within")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10000, help="training images, a tenth of them held out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--network", choices=["shared", "own"], default="own", help="as in pruners.py")
    parser.add_argument("--only", type=int, nargs="*", help="runs by their place in RUNS; default all")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the images")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    net = network(args.network)
    weights, biases = [W[:-1] for W in net], [W[-1] for W in net]
    last = len(weights) - 1
    layers = [
        nt.Layer(np.ascontiguousarray(W.T), b, relu=k < last, name=f"fc{k + 1}")
        for k, (W, b) in enumerate(zip(weights, biases, strict=True))
    ]
    record = ({} if args.fresh else read("network")) or {}
    record["environment"] = environment(threads)
    dense = "accuracy" if args.network == "own" else "accuracy_shared"
    record[dense] = accuracy(weights, biases)
    print(f"unpruned: {record[dense]:.2%} of the test images")
    rows = record.setdefault("runs", [])
    keys = ("network", "scheme", "epsilon", "rounds", "refit", "samples", "seed")
    done = {tuple(({"network": "own", "rounds": 1} | r).get(key) for key in keys) for r in rows}
    for scheme, epsilon, rounds, refit in RUNS if args.only is None else [RUNS[k] for k in args.only]:
        for seed in range(args.seeds):
            if (args.network, scheme, epsilon, rounds, refit, args.samples, seed) in done:
                continue
            chosen = np.random.default_rng(seed).permutation(60000)[: args.samples]
            began = time.perf_counter()
            pruned = nt.prune(
                layers,
                images("train")[0][chosen],
                epsilon,
                scheme,
                rounds=rounds,
                refit=refit,
                seed=seed,
                feas_tol=1e-3,
            )
            seconds = time.perf_counter() - began
            found = accuracy([layer.weight.T for layer in pruned.layers], [layer.bias for layer in pruned.layers])
            row = {
                "network": args.network,
                "scheme": scheme,
                "epsilon": epsilon,
                "rounds": rounds,
                "refit": refit,
                "samples": args.samples,
                "seed": seed,
                "seconds": seconds,
            }
            rows.append(row | {"accuracy": found} | pruned.to_dict())
            print(
                f"\n{scheme}, epsilon {epsilon}, {rounds} rounds, seed {seed}: kept {pruned.kept:.1%}, {found:.2%}, "
                f"{seconds:.0f} s"
            )
            print(pruned.table(), flush=True)
            write("network", record)


if __name__ == "__main__":
    main()
