"""The GPU backend: correctness against the numpy backend, then speed. Needs CuPy and a GPU; about 6 minutes.

python bench/gpu.py            writes bench/results/gpu.json
python bench/gpu.py --quick    smaller sizes, for a card with little memory

1. check: solves, with all samples on the card and with streamed ones, against the numpy backend in float64.
2. iteration: one ADMM iteration against its cuBLAS products alone, and their share of the measured float32 GEMM peak.
3. scaling: an iteration against P, in microseconds a sample.
4. streamed: an iteration with a half, a quarter and none of the samples on the card, against all of them there, and
   against what the bus and the products alone would take.
5. certificate: seconds to gap 1e-3 against the numba backend, ADMM both, with all cores and with two; and what
   backend="auto" would have chosen.

Layers are random ReLU layers, a tenth of whose weights are large. The script runs where only numpy, scipy, numba and
cupy are installed: without threadpoolctl, BLAS keeps its threads and the two-core comparison is left out.

In a checkout that is not installed: PYTHONPATH=. python bench/gpu.py. --only takes some of the parts, and what they
wrote before is kept; --results is another folder for gpu.json.
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
from pathlib import Path

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

try:
    import nettrim as nt
except ImportError:
    # not installed: the kernels lie beside the package
    folder = Path(__file__).parent.parent / "kernels"
    spec = importlib.util.spec_from_file_location(
        "nettrim.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["nettrim.kernels"] = importlib.util.module_from_spec(spec)
    import nettrim as nt

import common  # noqa: E402
from common import environment, write  # noqa: E402

from nettrim import backends  # noqa: E402
from nettrim import device as choice  # noqa: E402
from nettrim.admm import Factor, Loop  # noqa: E402
from nettrim.memory import SLOTS  # noqa: E402
from nettrim.memory import plan as memory_plan  # noqa: E402
from nettrim.operators import Dense, KnownGram  # noqa: E402
from nettrim.samples import Resident  # noqa: E402
from nettrim.streamed import Streamed  # noqa: E402

SIZES = [(1001, 100, 5000), (1001, 1000, 60000), (4096, 4096, 65536)]
QUICK = [(201, 50, 2000), (1001, 100, 5000)]
SCALING = [(1001, 1000, P) for P in (7500, 15000, 30000, 60000, 120000)]
STREAMED = [(1001, 1000, 60000), (4096, 4096, 65536)]
CERTIFICATE = [(1001, 100, 5000), (1001, 1000, 20000)]
#: the problem of the check, the side of the product that gives the peak, iterations that are timed together
CHECK, PEAK, COUNT = (120, 30, 3000), 8192, 20
PARTS = ("check", "iteration", "scaling", "streamed", "certificate")


def layer(N: int, M: int, P: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, P) float32, non-negative with a last row of ones, and outputs (M, P) of a nearly sparse ReLU layer."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, P), dtype=np.float32), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M), dtype=np.float32) * (rng.random((N, M), dtype=np.float32) < 0.1)
    # a trained layer's other weights are small, not zero; noise on the outputs might make the layer infeasible
    W += 0.05 * rng.standard_normal((N, M), dtype=np.float32)
    return X, np.maximum(W.T @ X, 0)


def check() -> dict:
    """Relative difference of float64 solves from the numpy backend's."""
    X, Y = layer(*CHECK)
    found = {}
    for omega in ("active", "linear"):
        problem = nt.Problem(X, Y, 0.1, omega=omega, dtype=np.float64)
        plain = nt.Solver(problem, backend="numpy", method="admm", polish=False, gap_tol=1e-6).solve()
        whole = nt.Solver(problem, backend="cupy", gap_tol=1e-6)
        solvers = {omega: whole}
        if omega == "active":
            little = 0.6 * whole.memory_plan().needed
            solvers["active, streamed"] = nt.Solver(problem, backend="cupy", gap_tol=1e-6, device_memory=little)
        for name, solver in solvers.items():
            ours = solver.solve()
            a, b = ours.certificate.objective, plain.certificate.objective
            found[name] = {
                "status": str(ours.status),
                "gap": ours.certificate.gap,
                "difference": abs(a - b) / b,
                "streamed": solver.memory_plan().streamed,
            }
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
    # random numbers: a product of ones draws less power, and runs faster
    A = cp.asarray(np.random.default_rng(0).standard_normal((size, size), dtype=np.float32))
    C = cp.empty((size, size), np.float32)
    return 2 * size**3 / seconds(cp, lambda: be.product(A, A, C), 5)


def loop_of(be, X: np.ndarray, Y: np.ndarray, kept: int | None = None, width: int = 0) -> Loop:
    """The loop of a layer at epsilon .1, with all samples on the card, or so many and buffers of that width."""
    dtype = np.dtype(np.float32)
    zero, one = np.zeros((1, 1), dtype), be.asarray(np.ones((1, 1)), dtype)
    radii = np.array([0.1 * float(np.linalg.norm(Y))])
    if kept is None:
        dense = Dense(X, be, dtype)
        samples = Resident(dense, be.rowwise(Y, dtype), be.rowwise(Y > 0, bool), be.asarray(zero, dtype), be)
        return Loop(samples, one, radii, Factor(dense, be, dtype))
    samples = Streamed(X, Y, Y > 0, zero, be, dtype, kept, width, SLOTS, os.cpu_count() or 1)
    return Loop(samples, one, radii, Factor(KnownGram(X.shape, samples.gram()), be, dtype))


def iteration_seconds(cp, loop: Loop, state) -> float:
    """Seconds of an iteration, without checks or adaptation."""

    def run(k: int) -> float:
        settings = nt.Settings(max_iterations=k, adapt=False, check_every=10**6, method="admm")
        cp.cuda.Device().synchronize()
        began = time.perf_counter()
        loop.run(state, settings, lambda check: False, lambda: None, lambda check: None)
        cp.cuda.Device().synchronize()
        return time.perf_counter() - began

    run(3)
    # the last iteration of a run is a check, which takes milliseconds: the difference of two runs has none
    N, M, P = loop.samples.shape
    count = COUNT if N * M * P > 1e10 else 10 * COUNT
    return float(np.median([(run(2 * count) - run(count)) / count for _ in range(3)]))


def iteration(cp, be, N: int, M: int, P: int, peak: float) -> dict:
    loop = loop_of(be, *layer(N, M, P))
    state, operator = loop.start(), loop.samples.operator
    each = iteration_seconds(cp, loop, state)
    F = cp.zeros((N, M), np.float32)
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
        "microseconds_per_sample": 1e6 * each / P,
        "planned_megabytes": memory_plan(N, M, P, 4, 1 << 50).needed / 1e6,
    }


def streamed(cp, be, N: int, M: int, P: int) -> list[dict]:
    """An iteration with parts of the samples on the card, after one with all of them there."""
    X, Y = layer(N, M, P)
    loop = loop_of(be, X, Y)
    resident = iteration_seconds(cp, loop, loop.start())
    del loop
    bus = choice._device_speed(np.dtype(np.float32)).bytes
    layout, rows = memory_plan(N, M, P, 4, 1 << 50, chunked=True), []
    # buffers of the size that a plan would choose, but at least sixteen chunks
    width = min(layout.width, max(P // 16 // 32 * 32, 32))
    for part in (0.5, 0.25, 0.0):
        kept = int(part * P) // width * width
        loop = loop_of(be, X, Y, kept, width)
        each = iteration_seconds(cp, loop, loop.start())
        loop.samples.drain()
        del loop
        moved = (P - kept) * (2 * layout.per_sample + 2 * 4 * M)
        rows.append(
            {
                "N": N,
                "M": M,
                "P": P,
                "kept": kept / P,
                "width": width,
                "iteration_ms": 1e3 * each,
                "resident_ms": 1e3 * resident,
                "ratio": each / resident,
                "moved_gigabytes": moved / 1e9,
                "bus_gigabytes_per_second": bus / 1e9,
                # hidden transfers cost what the longer of the two takes
                "ratio_to_bound": each / max(resident, moved / bus),
            }
        )
    return rows


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
    return {"N": N, "M": M, "P": P, "auto": choice.choose(problem, nt.Settings()), "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--results", type=Path, help="folder for gpu.json (default bench/results)")
    args = parser.parse_args()
    only = args.only.split(",")
    if set(only) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}")
    if args.results:
        common.RESULTS = args.results
    import cupy as cp

    be = backends.get("cupy")
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    record = (common.read("gpu") or {}) if set(only) < set(PARTS) else {}
    record["environment"] = environment(os.cpu_count() or 1) | {
        "gpu": properties["name"].decode(),
        "cupy": cp.__version__,
        "cuda": cp.cuda.runtime.runtimeGetVersion(),
        "driver": cp.cuda.runtime.driverGetVersion(),
    }
    if "check" in only:
        record["check"] = check()
        print("check", record["check"], flush=True)
    peak = gemm_peak(cp, be, min(PEAK, 2048) if args.quick else PEAK)
    record["gemm_peak_tflops"] = peak / 1e12
    print(f"float32 GEMM {peak / 1e12:.1f} TFLOP/s", flush=True)
    write("gpu", record)
    sizes = {
        "iteration": QUICK if args.quick else SIZES,
        "scaling": [] if args.quick else SCALING,
        "streamed": QUICK[1:] if args.quick else STREAMED,
        "certificate": QUICK[:1] if args.quick else CERTIFICATE,
    }
    for part in (name for name in PARTS[1:] if name in only):
        rows = record[part] = []
        for size in sizes[part]:
            if part == "streamed":
                rows += streamed(cp, be, *size)
            else:
                rows.append(certificate(*size) if part == "certificate" else iteration(cp, be, *size, peak))
            show(part, rows)
            write("gpu", record)


def show(part: str, rows: list[dict]) -> None:
    """The rows of the last size."""
    last = rows[-1]
    title = f"{part} N {last['N']} M {last['M']} P {last['P']}"
    if part == "streamed":
        for r in rows[-3:]:
            print(
                f"{title}, {r['kept']:.0%} on the card: {r['iteration_ms']:.2f} ms, {r['ratio']:.2f} of resident, "
                f"{r['ratio_to_bound']:.2f} of the bound",
                flush=True,
            )
    elif part == "certificate":
        for name, r in last["runs"].items():
            print(f"{title} {name}: {r['seconds']:.2f} s, {r['status']}, gap {r['gap']:.0e}", flush=True)
    else:
        print(
            f"{title}: {last['iteration_ms']:.2f} ms, products {last['products_ms']:.2f} ms, "
            f"ratio {last['ratio']:.2f}, {last['percent_of_peak']:.0f} % of peak",
            flush=True,
        )


if __name__ == "__main__":
    main()
