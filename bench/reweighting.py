"""Reweighted l1 round by round on the hidden layers of the MNIST network: weights kept, errors, seconds.

python bench/reweighting.py        layers 1 to 3, all neurons, epsilon 0.1, 5 rounds, P = 5000 and as many held out

Writes bench/results/reweighting.json. Both halves are training images.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import environment, fix_threads, write
from mnist import layer
from solvers import compile_kernels

import nettrim as nt
from nettrim.reweight import reweight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--neurons", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    compile_kernels()
    record = {"environment": environment(threads), "epsilon": args.epsilon, "samples": args.samples, "layers": []}
    for index in range(3):
        X, Y, _ = layer(index, 2 * args.samples, neurons=args.neurons)
        used, held = slice(0, args.samples), slice(args.samples, None)
        solver = nt.Solver(nt.Problem(X[:, used], Y[:, used], args.epsilon), feas_tol=1e-3)
        found = Watched(X[:, held], Y[:, held])
        solver.solve = found.around(solver)
        sol = reweight(solver, args.rounds)
        rows = [
            row | {"kept": row["nnz"] / sol.W.size, "heldout": error}
            for row, error in zip(sol.rounds, found.errors, strict=True)
        ]
        record["layers"].append({"layer": index + 1, "N": X.shape[0], "M": Y.shape[0], "rounds": rows})
        for row in rows:
            print(
                f"layer {index + 1}, round {row['round']}: kept {row['kept']:.2%}, error {row['discrepancy']:.4f}, "
                f"held out {row['heldout']:.4f}, {row['seconds']:.2f} s",
                flush=True,
            )
        write("reweighting", record)


class Watched:
    """Measures the error of every round on samples that were held out."""

    def __init__(self, X: np.ndarray, Y: np.ndarray):
        self.X, self.Y = X, Y
        self.errors: list[float] = []

    def around(self, solver: nt.Solver):
        solve = solver.solve

        def measured() -> nt.Solution:
            found = solve()
            difference = np.maximum(found.W.T @ self.X, 0) - self.Y
            self.errors.append(float(np.linalg.norm(difference) / np.linalg.norm(self.Y)))
            return found

        return measured


if __name__ == "__main__":
    main()
