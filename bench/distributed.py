"""ADMM over 1, 2 and 4 workers of this machine: seconds per iteration, and bytes on the wire against the model.

python bench/distributed.py [-P 20000]        writes bench/results/distributed.json

Workers are processes with one thread each. Bytes are what the transport itself says it has sent, in every process:
messages of the cluster about itself are among them. Latency and bandwidth are those of an actor that does nothing.
Iterations are timed between two checks. On a machine with two cores more than two workers show what more messages
cost, not what more machines gain.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

# this file has the name of a package that it needs: its folder comes last
sys.path.append(sys.path.pop(0))

import numpy as np
from common import environment, fix_threads, write

import nettrim as nt
from nettrim.distributed import ShardedProblem, connect
from nettrim.distributed.cost import Cost
from nettrim.settings import Settings


class Echo:
    """An actor that does nothing."""

    async def take(self, a: Any) -> int:
        return getattr(a, "nbytes", 0)


def count_bytes() -> None:
    """Let this process count what it sends."""
    from distributed.comm import tcp

    if hasattr(tcp, "nettrim_sent"):
        return
    tcp.nettrim_sent = 0
    original = tcp.TCP.write

    async def write(self, *arguments, **options):
        sent = await original(self, *arguments, **options)
        tcp.nettrim_sent += sent
        return sent

    tcp.TCP.write = write


def sent() -> int:
    """Bytes that this process has sent."""
    from distributed.comm import tcp

    return tcp.nettrim_sent


def constants(client: Any, N: int, M: int) -> tuple[float, float]:
    """Seconds of a question without data, and bytes a second of one with an N x M matrix."""
    (address,) = sorted(client.nthreads())[:1]
    actor = client.submit(Echo, actor=True, workers=[address]).result()
    a = np.ones((N, M), np.float32)
    times: dict[str, list[float]] = {"empty": [], "full": []}
    for _ in range(30):
        for name, value in (("empty", None), ("full", a)):
            began = time.perf_counter()
            actor.take(value).result()
            times[name].append(time.perf_counter() - began)
    empty, full = (statistics.median(times[name]) for name in ("empty", "full"))
    return empty, a.nbytes / max(full - empty, 1e-9)


def measure(workers: int, X: np.ndarray, Y: np.ndarray, iterations: int) -> dict:
    """Some iterations over so many workers."""
    (N, P), M = X.shape, Y.shape[0]
    with connect("processes", workers) as client:
        client.wait_for_workers(workers, timeout=300)
        client.run(count_bytes)
        latency, bandwidth = constants(client, N, M)
        with ShardedProblem(X, Y, epsilon=0.1, client=client, shards=workers) as problem:
            solver = nt.Solver(problem)
            began = time.perf_counter()
            loop = solver._loop()
            state = loop.start()
            setup = time.perf_counter() - began
            times, last = [], [time.perf_counter()]
            traffic: list[int] = []

            def total() -> int:
                return sum(client.run(sent).values()) + sent()

            def tick() -> str | None:
                now = time.perf_counter()
                times.append(now - last[0])
                if len(times) in (2, iterations):
                    traffic.append(total())
                last[0] = time.perf_counter()
                return "limit" if len(times) > iterations else None

            quiet = Settings(max_iterations=10**9, check_every=10**9, adapt=False)
            loop.run(state, quiet, lambda check: True, tick, lambda check: None)
            W = state.W.copy()
    cost = Cost(N, M, P, workers)
    flops = product_flops(N, M, P // workers)
    seconds = statistics.median(times[2:iterations])
    return {
        "workers": workers,
        "iterations": iterations,
        "iteration_seconds": seconds,
        "fastest_seconds": min(times[2:iterations]),
        "setup_seconds": setup,
        "latency_seconds": latency,
        "bytes_per_second": bandwidth,
        "product_flops_per_second": flops,
        "sent": (traffic[1] - traffic[0]) / (iterations - 2),
        "sent_model": cost.sent,
        "predicted_seconds": cost.seconds(
            flops * min(1.0, os.cpu_count() / workers), latency, bandwidth, client_flops=flops / 2
        ),
        "depth": cost.depth,
        "weights": W,
    }


def product_flops(N: int, M: int, width: int) -> float:
    """Flops a second of the two products with some samples, alone and in one thread."""
    from nettrim.backends.gemm import gemm

    rng = np.random.default_rng(0)
    X, T, F, R = (rng.standard_normal(s, np.float32) for s in ((N, width), (M, width), (N, M), (N, M)))
    times = []
    for _ in range(4):
        began = time.perf_counter()
        gemm(X, T.T, R, 1.0, 0.0)
        gemm(F.T, X, T, 1e-9, 1.0)
        times.append(time.perf_counter() - began)
    return 4.0 * N * M * width / min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-P", type=int, default=20_000, help="samples (default 20000)")
    parser.add_argument("-N", type=int, default=785, help="inputs (default 785)")
    parser.add_argument("-M", type=int, default=300, help="outputs (default 300)")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    threads = fix_threads(1)
    count_bytes()
    rng = np.random.default_rng(0)
    X = np.maximum(rng.standard_normal((args.N, args.P), np.float32), 0)
    X[-1] = 1
    Y = np.maximum((rng.standard_normal((args.N, args.M), np.float32) ** 3).T @ X, 0)
    rows, first = [], None
    for workers in args.workers:
        row = measure(workers, X, Y, args.iterations)
        W = row.pop("weights")
        first = W if first is None else first
        row["difference"] = float(np.abs(W - first).max() / np.abs(first).max())
        rows.append(row)
        speed = f"{1e3 * row['latency_seconds']:.1f} ms, {row['bytes_per_second'] / 1e6:.0f} MB/s"
        print(
            f"{workers} workers: {row['iteration_seconds']:.3f} s an iteration, predicted "
            f"{row['predicted_seconds']:.3f} s; sent {row['sent'] / 1e6:.2f} MB, model "
            f"{row['sent_model'] / 1e6:.2f} MB; {speed}",
            flush=True,
        )
    record = {"seed": 0, "N": args.N, "M": args.M, "P": args.P, "load": os.getloadavg()[0], "rows": rows}
    print(write("distributed", {**record, "environment": environment(threads)}))


if __name__ == "__main__":
    main()
