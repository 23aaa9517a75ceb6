"""The MNIST network of bench/mnist.py pruned as a whole, without fine-tuning: weights kept, errors and test accuracy.

python bench/network.py            parallel at epsilon .05 and .1, cascade at .2 (gamma 1.1), plain and with four
                                   rounds of reweighted l1; some minutes on two cores

Calibration samples are training images, a part of them held out; the test images are only used for the accuracy.
Writes bench/results/network.json as it goes and skips what is there (--fresh starts anew).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import environment, fix_threads, read, write
from mnist import accuracy, images, network

import nettrim as nt

RUNS = [
    *(("parallel", 0.05, 1), ("parallel", 0.1, 1), ("cascade", 0.2, 1)),
    *(("parallel", 0.05, 4), ("parallel", 0.1, 4), ("cascade", 0.2, 4)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10000, help="training images, a tenth of them held out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="draws of the images")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    weights, biases = network()
    last = len(weights) - 1
    layers = [
        nt.Layer(np.ascontiguousarray(W.T), b, relu=k < last, name=f"fc{k + 1}")
        for k, (W, b) in enumerate(zip(weights, biases, strict=True))
    ]
    record = ({} if args.fresh else read("network")) or {}
    record["environment"] = environment(threads)
    record["accuracy"] = accuracy(weights, biases)
    print(f"unpruned: {record['accuracy']:.2%} of the test images")
    rows = record.setdefault("runs", [])
    done = {(r["scheme"], r["epsilon"], r.get("rounds", 1), r["samples"], r["seed"]) for r in rows}
    for scheme, epsilon, rounds in RUNS:
        for seed in range(args.seeds):
            if (scheme, epsilon, rounds, args.samples, seed) in done:
                continue
            chosen = np.random.default_rng(seed).permutation(60000)[: args.samples]
            began = time.perf_counter()
            pruned = nt.prune(
                layers, images("train")[0][chosen], epsilon, scheme, rounds=rounds, seed=seed, feas_tol=1e-3
            )
            seconds = time.perf_counter() - began
            found = accuracy([layer.weight.T for layer in pruned.layers], [layer.bias for layer in pruned.layers])
            row = {
                "scheme": scheme,
                "epsilon": epsilon,
                "rounds": rounds,
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
