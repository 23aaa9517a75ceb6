"""The GPU backend: correctness against the numpy backend, then speed. Needs CuPy and a GPU; about 5 minutes.

python bench/gpu.py            writes bench/results/gpu.json
python bench/gpu.py --quick    smaller sizes, for a card with little memory

1. check: passes, products and solves, against the numpy backend in float64.
2. iteration: one ADMM iteration against its cuBLAS products alone, and their share of the measured float32 GEMM peak.
3. certificate: seconds to gap 1e-3 against the numba backend, ADMM both, with all cores and with two.
4. scaling: an iteration against P.

Layers are random ReLU layers with sparse planted weights. The script runs where only numpy, scipy, numba and cupy are
installed: without threadpoolctl, BLAS keeps its threads and the two-core comparison is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable

import numpy as np

LIMITED = importlib.util.find_spec("threadpoolctl") is not None
if not LIMITED:
    # nettrim asks it for BLAS's threads: answer that there is nothing to set
    class _Controller:
        def select(self, **_):
            return self

        def info(self):
            return [{"num_threads": os.cpu_count(), "user_api": "blas"}]

        def limit(self, **_):
            return contextlib.nullcontext()

    sys.modules["threadpoolctl"] = types.ModuleType("threadpoolctl")
    sys.modules["threadpoolctl"].ThreadpoolController = _Controller
    sys.modules["threadpoolctl"].threadpool_info = list
    sys.modules["threadpoolctl"].threadpool_limits = lambda *_: None

from common import environment, write  # noqa: E402

import nettrim as nt  # noqa: E402
from nettrim import backends  # noqa: E402
from nettrim.admm import Factor, Loop  # noqa: E402
from nettrim.operators import Dense  # noqa: E402

SIZES = [(1001, 100, 5000), (1001, 1000, 60000), (4096, 4096, 65536)]
QUICK = [(201, 50, 2000), (1001, 100, 5000)]
SCALING = [(1001, 1000, P) for P in (7500, 15000, 30000, 60000, 120000)]


def layer(N: int, M: int, P: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, P) float32, non-negative with a last row of ones, and outputs (M, P) of a sparse ReLU layer."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, P), dtype=np.float32), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M), dtype=np.float32) * (rng.random((N, M), dtype=np.float32) < 0.1)
    return X, np.maximum(W.T @ X + 0.3 * rng.standard_normal((M, P), dtype=np.float32), 0)


def check(be) -> dict:
    """Largest relative difference of a float64 solve, and of the passes in float32, from the numpy backend's."""
    X, Y = layer(120, 30, 3000)
    found = {}
    for omega in ("active", "linear"):
        problem = nt.Problem(X, Y, 0.1, omega=omega, dtype=np.float64)
        ours = nt.Solver(problem, backend="cupy", gap_tol=1e-6).solve()
        plain = nt.Solver(problem, backend="numpy", method="admm", polish=False, gap_tol=1e-6).solve()
        a, b = ours.certificate.objective, plain.certificate.objective
        found[omega] = {"status": str(ours.status), "gap": ours.certificate.gap, "difference": abs(a - b) / b}
        if ours.status != nt.Status.SOLVED or abs(a - b) > 1e-5 * b:
            raise SystemExit(f"the GPU's answer differs: {found}")
    return found


def seconds(cp, work: Callable[[], object], repeats: int) -> float:
    """Median seconds on the device, after a warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(cp.cuda.get_elapsed_time(start, stop) / 1e3)
    return float(np.median(times))


def gemm_peak(cp, be, size: int) -> float:
    """float32 flop/s of a square product."""
    A = cp.ones((size, size), np.float32)
    C = cp.empty_like(A)
    return 2 * size**3 / seconds(cp, lambda: be.product(A, A, C), 5)


def iteration(cp, be, N: int, M: int, P: int, peak: float) -> dict:
    X, Y = layer(N, M, P)
    dtype = np.dtype(np.float32)
    operator = Dense(X, be, dtype)
    target, mask = be.asarray(Y, dtype), be.asarray(Y > 0, bool)
    one = be.asarray(np.ones((1, 1)), dtype)
    radii = np.array([0.1 * float(np.linalg.norm(Y))])
    loop = Loop(operator, target, mask, 0 * one, one, radii, Factor(operator, be, dtype), be)
    state = loop.start()

    def run(k: int) -> float:
        settings = nt.Settings(max_iterations=k, adapt=False, check_every=10**6, method="admm")
        cp.cuda.Device().synchronize()
        began = time.perf_counter()
        loop.run(state, settings, lambda check: False, lambda: None, lambda check: None)
        cp.cuda.Device().synchronize()
        return time.perf_counter() - began

    run(5)
    count = 20
    # the last iteration of a run is a check: the difference of two runs has none
    each = float(np.median([(run(2 * count) - run(count)) / count for _ in range(3)]))
    F = cp.zeros((N, M), dtype)
    parts = {
        "adjoint": seconds(cp, lambda: operator.adjoint(state.T), 10),
        "inverse": seconds(cp, lambda: loop.factor.solve(F, state.r), 10),
        "forward": seconds(cp, lambda: operator.forward(F, state.T, 1.0, 1.0), 10),
    }
    products = sum(parts.values())
    flops = 4.0 * N * M * P
    return {
        "N": N,
        "M": M,
        "P": P,
        "iteration_ms": 1e3 * each,
        "products_ms": 1e3 * products,
        "parts_ms": {name: 1e3 * value for name, value in parts.items()},
        "ratio": each / products,
        "percent_of_peak": 100 * flops / each / peak,
        "state_megabytes": (2 * M * P * 4 + M * P + N * P * 4) / 1e6,
    }


def certificate(N: int, M: int, P: int) -> dict:
    X, Y = layer(N, M, P)
    problem = nt.Problem(X, Y, 0.1)
    rows = {}
    runs = [("cupy", None), ("numba", os.cpu_count())] + ([("numba", 2)] if LIMITED and os.cpu_count() > 2 else [])
    for backend, threads in runs:
        settings = {"backend": backend, "method": "admm", "gap_tol": 1e-3, "feas_tol": 1e-3, "n_threads": threads}
        nt.solve(X[:, :500], Y[:5, :500], 0.1, **settings)  # compile
        began = time.perf_counter()
        solution = nt.Solver(problem, time_limit=120, **settings).solve()
        rows[backend if threads is None else f"{backend}, {threads} threads"] = {
            "seconds": time.perf_counter() - began,
            "status": str(solution.status),
            "iterations": solution.iterations,
            "gap": solution.certificate.gap,
            "violation": solution.certificate.violation,
            "phases": solution.seconds,
        }
    return {"N": N, "M": M, "P": P, "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    import cupy as cp

    be = backends.get("cupy")
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    record = {"environment": environment(os.cpu_count() or 1)}
    record["environment"] |= {
        "gpu": properties["name"].decode(),
        "cupy": cp.__version__,
        "cuda": cp.cuda.runtime.runtimeGetVersion(),
        "driver": cp.cuda.runtime.driverGetVersion(),
    }
    record["check"] = check(be)
    print("check", record["check"], flush=True)
    peak = gemm_peak(cp, be, 2048 if args.quick else 8192)
    record["gemm_peak_tflops"] = peak / 1e12
    print(f"float32 GEMM {peak / 1e12:.1f} TFLOP/s", flush=True)
    for name, sizes in (("iteration", QUICK if args.quick else SIZES), ("scaling", [] if args.quick else SCALING)):
        rows = record.setdefault(name, [])
        for size in sizes:
            r = iteration(cp, be, *size, peak)
            rows.append(r)
            print(
                f"{name} N {r['N']} M {r['M']} P {r['P']}: {r['iteration_ms']:.2f} ms, products "
                f"{r['products_ms']:.2f} ms, ratio {r['ratio']:.2f}, {r['percent_of_peak']:.0f} % of peak",
                flush=True,
            )
            write("gpu", record)
    rows = record.setdefault("certificate", [])
    for size in QUICK[:1] if args.quick else [(1001, 100, 5000), (1001, 1000, 20000)]:
        rows.append(certificate(*size))
        for name, r in rows[-1]["runs"].items():
            print(f"certificate {size} {name}: {r['seconds']:.2f} s, {r['status']}, gap {r['gap']:.0e}", flush=True)
        write("gpu", record)


if __name__ == "__main__":
    main()
