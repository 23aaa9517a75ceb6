"""The working sets round by round on one layer, for docs/algorithm/working_sets.md.

python bench/rounds.py     layer 3 of the MNIST network, all neurons, epsilon 0.1, P = 5000, gap 1e-9 in float64
"""

from __future__ import annotations

import argparse

import numpy as np
from common import environment, fix_threads, write
from mnist import layer
from solvers import compile_kernels

import nettrim as nt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    compile_kernels()
    X, Y, linear = layer(args.layer - 1, args.samples, dtype=np.float64)
    problem = nt.Problem(X, Y, args.epsilon, omega="linear" if linear else "active")
    solution = nt.Solver(problem, gap_tol=1e-9, feas_tol=1e-7, method="working_set").solve()
    c = solution.certificate
    record = {
        "environment": environment(threads),
        "layer": args.layer,
        "epsilon": args.epsilon,
        "N": problem.N,
        "M": problem.M,
        "P": problem.P,
        "status": str(solution.status),
        "gap": c.gap,
        "violation": c.violation,
        "kept": c.density,
        "seconds": solution.seconds,
        "rows": solution.history,
    }
    print(
        f"{'round':>5} {'inputs':>7} {'bounds':>7} {'kinks':>7} {'ball':>7} {'gap':>8} {'violation':>9} {'seconds':>7}"
    )
    for r in solution.history:
        print(
            f"{r['iteration']:5d} {r['inputs']:7d} {r['bounds']:7d} {r['kinks']:7d} {r['ball']:7.3f} {r['gap']:8.0e} "
            f"{r['violation']:9.0e} {r['seconds']:7.2f}"
        )
    print(f"{solution.status}: gap {c.gap:.0e}, violation {c.violation:.0e}, kept {c.density:.1%}")
    print(write("rounds", record))


if __name__ == "__main__":
    main()
