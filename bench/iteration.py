"""One ADMM iteration against its three matrix products alone, on the hidden layers at P = 5000.

python bench/iteration.py     writes bench/results/iteration.json

The products are the solver's own, through the same backend: X B^T, (X X^T + r I)^-1 R, and T + F^T X. What the ratio
adds to 1 is the element-wise work. Flops and bytes are counted from the shapes; the peak is a 2048^3 product.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from common import environment, fix_threads, write
from mnist import layer

from nettrim import Problem, Settings
from nettrim.solver import Solver


def median_seconds(function, repeats: int) -> tuple[float, float]:
    """Median and minimum seconds of a call, after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times), min(times)


def peak_flops(be, dtype) -> float:
    A = np.random.default_rng(0).standard_normal((2048, 2048)).astype(dtype)
    out = np.empty_like(A)
    return 2 * 2048**3 / median_seconds(lambda: be.product(A, A, out), 5)[1]


def measure(index: int, P: int, dtype, threads: int, repeats: int) -> dict:
    X, Y, _ = layer(index, P, dtype=dtype)
    solver = Solver(Problem(X, Y, epsilon=0.1), n_threads=threads)
    loop, be = solver._loop(), solver.backend
    state = loop.start()
    N, M = X.shape[0], Y.shape[0]
    B = np.random.default_rng(0).standard_normal((M, P)).astype(dtype)
    F = np.random.default_rng(1).standard_normal((N, M)).astype(dtype) * dtype(1e-9)

    def products():
        R = loop.samples.operator.adjoint(B)
        loop.factor.solve(R, state.r)
        loop.samples.operator.forward(F, B, 1.0, 1.0)

    block = 20  # iterations timed together, without a check or an adaptation
    quiet = Settings(max_iterations=10**9, check_every=10**9, adapt=False)

    def iterations():
        end = state.iteration + block
        loop.run(state, quiet, lambda c: True, lambda: "limit" if state.iteration > end else None, lambda c: None)

    ratios, alone, whole = [], [], []
    products(), iterations()
    for _ in range(repeats):  # in turns, so that a drifting machine slows both
        began = time.perf_counter()
        for _ in range(block):
            products()
        middle = time.perf_counter()
        before = state.iteration
        iterations()
        done = state.iteration - before
        alone.append((middle - began) / block)
        whole.append((time.perf_counter() - middle) / done)
        ratios.append(whole[-1] / alone[-1])
    item = np.dtype(dtype).itemsize
    flops = 4.0 * N * M * P + 2.0 * N * N * M
    # elementwise: the norm reads T, Y, mask; the projection reads them and writes T
    elementwise = M * P * (5 * item + 2)
    moved = elementwise + item * (2 * N * P + 3 * M * P) + 8.0 * N * N
    peak = peak_flops(be, dtype)
    return {
        "layer": index + 1,
        "N": N,
        "M": M,
        "P": P,
        "dtype": np.dtype(dtype).name,
        "iteration_ms": 1e3 * statistics.median(whole),
        "products_ms": 1e3 * statistics.median(alone),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "gflop": flops / 1e9,
        "megabytes": moved / 1e6,
        "elementwise_megabytes": elementwise / 1e6,
        "gflops_per_second": flops / statistics.median(whole) / 1e9,
        "peak_gflops_per_second": peak / 1e9,
        "percent_of_peak": 100 * flops / statistics.median(whole) / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--samples", type=int, default=5000)
    args = parser.parse_args()
    threads = fix_threads(args.threads)
    rows = []
    print(
        f"{'layer':>5} {'dtype':>8} {'N':>5} {'M':>5} {'iteration':>10} {'products':>9} {'ratio':>6} {'GF/s':>6} "
        f"{'of peak':>8}"
    )
    for dtype in (np.float32, np.float64):
        for index in (0, 1, 2):
            row = measure(index, args.samples, dtype, threads, args.repeats)
            rows.append(row)
            print(
                f"{row['layer']:5d} {row['dtype']:>8} {row['N']:5d} {row['M']:5d} {row['iteration_ms']:7.2f} ms "
                f"{row['products_ms']:6.2f} ms {row['ratio_median']:6.2f} {row['gflops_per_second']:6.0f} "
                f"{row['percent_of_peak']:7.0f}%",
                flush=True,
            )
    print(write("iteration", {"environment": environment(threads), "seed": 0, "rows": rows}))


if __name__ == "__main__":
    main()
