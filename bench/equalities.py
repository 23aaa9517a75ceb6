"""A radius of zero on MNIST layers with fewer samples than inputs: working sets against ADMM.

python bench/equalities.py     layers 1 to 3, 100 neurons, P of about a third and two thirds of N, gap 1e-3, float64

ADMM stops at --cap times the working sets' seconds: its ratio is then a lower bound. Writes
bench/results/equalities.json.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import environment, fix_threads, write
from mnist import layer
from solvers import compile_kernels, ours

import nettrim as nt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, default=10.0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    compile_kernels()
    record = {"environment": environment(threads), "cap": args.cap, "rows": []}
    for index in (2, 0, 1):
        for part in (1 / 3, 2 / 3):
            N = layer(index, 10)[0].shape[0]
            X, Y, _ = layer(index, round(part * N), dtype=np.float64, neurons=100)
            problem = nt.Problem(X, Y, 0.0)
            exact = ours(problem, 1, method="working_set", time_limit=300.0)
            admm = ours(problem, 1, method="admm", time_limit=max(args.cap * exact["seconds"], 1.0))
            row = {
                **{"layer": index + 1, "N": problem.N, "M": problem.M, "P": problem.P},
                **{"working_set": exact, "admm": admm, "ratio": admm["seconds"] / exact["seconds"]},
                "lower_bound": admm["status"] != "solved",
            }
            record["rows"].append(row)
            print(
                f"layer {index + 1}, {problem.P} samples of {problem.N} inputs: {exact['method']} "
                f"{exact['seconds']:.2f} s, {exact['status']}, gap {exact['gap']:.0e}, violation "
                f"{exact['violation']:.0e}; ADMM {admm['seconds']:.2f} s, {admm['status']}, gap {admm['gap']:.0e}, "
                f"violation {admm['violation']:.0e}",
                flush=True,
            )
            write("equalities", record)


if __name__ == "__main__":
    main()
